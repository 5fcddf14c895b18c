package oci

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// counted is a writer that takes the digest and the size of what goes through.
type counted struct {
	w io.Writer
	h hash.Hash
	n int64
}

func newCounted(w io.Writer) *counted { return &counted{w: w, h: sha256.New()} }

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counted) digest() string { return hex.EncodeToString(c.h.Sum(nil)) }

// packed is a layer that was written.
type packed struct {
	digest, diffID string // hexadecimal SHA-256 of the blob, and of the tar in it
	size           int64
}

// writeLayer writes entries of a view as a compressed tar.
func writeLayer(w io.Writer, f *overlay.Face, entries []*entry, told func(int64)) (packed, error) {
	blob := newCounted(w)
	zip := gzip.NewWriter(blob)
	plain := newCounted(zip)
	t := &layerWriter{f: f, tar: tar.NewWriter(plain), told: told}
	for _, e := range entries {
		if err := t.entry(e); err != nil {
			return packed{}, fmt.Errorf("%q: %w", e.path, err)
		}
	}
	if err := errors.Join(t.tar.Close(), zip.Close()); err != nil {
		return packed{}, err
	}
	return packed{digest: blob.digest(), diffID: plain.digest(), size: blob.n}, nil
}

type layerWriter struct {
	f    *overlay.Face
	tar  *tar.Writer
	told func(int64)
	buf  []byte
}

// tarName is a path as a layer spells it.
func tarName(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, whPrefix) || strings.HasPrefix(p, escapePrefix) {
			parts[i] = escapePrefix + hex.EncodeToString([]byte(p))
		}
	}
	return strings.Join(parts, "/")
}

// wasRecord is what the base had, for an import to compare.
type wasRecord struct {
	Path   []byte `json:"path"` // in the base; JSON has no place for all names
	Exists bool   `json:"exists"`
	Mode   uint32 `json:"mode,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Sec    int64  `json:"sec,omitempty"`
	Nsec   uint32 `json:"nsec,omitempty"`
	Digest string `json:"sha256,omitempty"`
	Target []byte `json:"target,omitempty"`
}

func (e *entry) records() map[string]string {
	out := map[string]string{}
	if e.same {
		out[paxSame] = "1"
	}
	if w := e.was; w != nil {
		r := wasRecord{Path: []byte(w.Path), Exists: w.Exists}
		if w.Exists {
			r.Mode, r.Size, r.Sec, r.Nsec, r.Target = w.Mode, w.Size, w.Mtime.Sec, w.Mtime.Nsec, []byte(w.Target)
		}
		if w.HasDigest {
			r.Digest = hex.EncodeToString(w.Digest[:])
		}
		b, _ := json.Marshal(r) // of plain fields: cannot fail
		out[paxWas] = string(b)
	}
	return out
}

// marker writes an empty file with a meaning.
func (t *layerWriter) marker(name string, rec map[string]string) error {
	return t.tar.WriteHeader(&tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: time.Unix(0, 0), PAXRecords: rec,
	})
}

func (t *layerWriter) entry(e *entry) error {
	if e.whiteout {
		// The name itself may look like a whiteout.
		dir, name := dirOf(e.path), e.path[len(dirOf(e.path)):]
		return t.marker(join(tarName(dir), whPrefix+tarName(strings.TrimPrefix(name, "/"))), e.records())
	}
	hdr := &tar.Header{
		Format: tar.FormatPAX, Name: tarName(e.path), Mode: int64(e.attr.Mode & 0o7777),
		Uid: int(e.attr.UID), Gid: int(e.attr.GID), PAXRecords: e.records(),
		ModTime: time.Unix(e.attr.Mtime.Sec, int64(e.attr.Mtime.Nsec)),
	}
	if e.link != "" {
		hdr.Typeflag, hdr.Linkname = tar.TypeLink, tarName(e.link)
		return t.tar.WriteHeader(hdr)
	}
	n, a, err := t.f.Walk(e.path)
	if err != nil {
		return err
	}
	defer t.f.Forget(n, 1)
	if a.Ino != e.attr.Ino {
		return fmt.Errorf("the base changed while it was read: %w", unix.ESTALE)
	}
	if err := t.xattrs(n, hdr); err != nil {
		return err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		hdr.Typeflag, hdr.Name = tar.TypeDir, hdr.Name+"/"
		if e.path == "" {
			hdr.Name = "./"
		}
		if err := t.tar.WriteHeader(hdr); err != nil || !e.opaque {
			return err
		}
		return t.marker(hdr.Name+opaqueMarker, nil)
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, a.Size
		if err := t.tar.WriteHeader(hdr); err != nil {
			return err
		}
		return t.content(n, a.Size)
	case unix.S_IFLNK:
		hdr.Typeflag = tar.TypeSymlink
		if hdr.Linkname, err = t.f.Readlink(n); err != nil {
			return err
		}
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFSOCK:
		hdr.Typeflag = tar.TypeReg
		hdr.PAXRecords[paxSocket] = "1"
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if a.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(a.Rdev)), int64(unix.Minor(a.Rdev))
	}
	return t.tar.WriteHeader(hdr)
}

// xattrs adds the extended attributes as other tools read them, where they can
// be had so.
func (t *layerWriter) xattrs(n *overlay.Node, hdr *tar.Header) error {
	names, err := t.f.Listxattr(n)
	if err != nil {
		return fmt.Errorf("extended attributes: %w", err)
	}
	for _, name := range names {
		if name == "security.selinux" {
			continue // of the machine, not of the tree
		}
		val, err := t.f.Getxattr(n, name)
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
		if len(val) == 0 || strings.ContainsAny(name, "=\n") {
			hdr.PAXRecords[paxXattr+hex.EncodeToString([]byte(name))] = hex.EncodeToString(val) + "."
			continue
		}
		hdr.PAXRecords[schilyXattr+name] = string(val)
	}
	return nil
}

func (t *layerWriter) content(n *overlay.Node, size int64) error {
	if t.buf == nil {
		t.buf = make([]byte, 256<<10)
	}
	for off := int64(0); off < size; {
		p := t.buf[:min(int64(len(t.buf)), size-off)]
		got, err := t.f.Read(n, p, off)
		if err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("it ends at byte %d of %d: changed while it was read: %w", off, size, unix.ESTALE)
		}
		if _, err := t.tar.Write(p[:got]); err != nil {
			return err
		}
		off += int64(got)
		if t.told != nil {
			t.told(int64(got))
		}
	}
	return nil
}
