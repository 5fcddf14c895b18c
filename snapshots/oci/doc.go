// Package oci carries sessions in the format of OCI images: a layout in a
// directory or a tar file, or a registry.
//
// # What is written
//
// One image for each tree of a session, named by the tree in the layout's index.
// Each snapshot on the way to the exported one is a layer: what the tree has
// otherwise than in the snapshot before it, or than the base. Whiteouts are
// entries ".wh.NAME", a directory that hides all below it holds ".wh..wh..opq".
// What was renamed is a whiteout and the whole content at its new place, for
// layers of images know no renames.
//
// The base is not in the image: its layers apply to the directory that the
// annotation base names. Another OCI tool that unpacks them gets what the session
// added and changed, with the directories on the way.
//
// # What layers of images cannot carry
//
// Records of the tar format under the keys of this package, which others ignore,
// say what the format has no place for: see the constants pax…. A socket is an
// empty file with a record. A name that begins as a whiteout does is written as
// escapePrefix and its bytes in hexadecimal.
//
// Exporting a snapshot twice gives the same digests: entries are sorted, and no
// time is that of the export.
//
// # Hostile input
//
// A layout is read beneath its directory without following links, each blob up to
// the size that its descriptor says and compared with its digest; the layers are
// applied through the engine, by names of one component, to a session that nobody
// sees before it is whole.
package oci

import (
	"errors"
)

// Format is the version of what this package writes. It reads no newer one.
const Format = 1

// Annotations of an image (on its manifest) and of its layers.
const (
	prefix        = "io.github.galleyfs.galley."
	annFormat     = prefix + "format"
	annSession    = prefix + "session"  // name of the session
	annTree       = prefix + "tree"     // name of the tree
	annBase       = prefix + "base"     // path of the base
	annMount      = prefix + "mount"    // where the tree is shown
	annImage      = prefix + "image"    // that the tree stands on, in the place of a base, as JSON
	annRules      = prefix + "rules"    // of the session, as JSON
	annSnapshot   = prefix + "snapshot" // number of a layer's snapshot
	annName       = prefix + "name"     // and its name
	annCause      = prefix + "cause"    // as JSON
	annTime       = prefix + "time"     // RFC 3339
	annRefName    = "org.opencontainers.image.ref.name"
	annCreated    = "org.opencontainers.image.created"
	opaqueMarker  = ".wh..wh..opq"
	whPrefix      = ".wh."
	escapePrefix  = ".galley-name."
	paxPrefix     = "GALLEY."
	paxSame       = paxPrefix + "same"   // the node that the layer below has there, changed
	paxSocket     = paxPrefix + "socket" // the empty file is a socket
	paxXattr      = paxPrefix + "xattr." // then the name in hexadecimal: value that SCHILY.xattr cannot hold
	paxWas        = paxPrefix + "was"    // what the base had there, as JSON
	schilyXattr   = "SCHILY.xattr."
	maxComponent  = 255
	maxPath       = 1 << 16
	ratioFree     = 256 << 20
	maxRatio      = 500
	maxJSON       = 64 << 20
	maxLayers     = 100000
	maxImages     = 64
	defaultBytes  = 64 << 30
	defaultFiles  = 10_000_000
	defaultLayers = maxLayers
)

// Errors that callers test with errors.Is. A newer format wraps
// overlay.ErrFormat.
var (
	// ErrDamaged: the layout or a layer is not what its digests and the formats
	// promise.
	ErrDamaged = errors.New("damaged")
	// ErrHostile: a layer asks for what no export writes and an import refuses.
	ErrHostile = errors.New("refused")
	// ErrForeign: it is no session.
	ErrForeign = errors.New("not an exported session")
	// ErrLimit: it is larger than the caller allows.
	ErrLimit = errors.New("larger than allowed")
)

// Limits bound what an import accepts; zero fields are the defaults.
type Limits struct {
	// Bytes of all layers together, unpacked. The default is 64 GiB.
	Bytes int64
	// Files is the number of entries in all layers together. The default is ten
	// million.
	Files int64
}

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = defaultBytes
	}
	if l.Files <= 0 {
		l.Files = defaultFiles
	}
	return l
}
