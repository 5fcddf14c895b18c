package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// item is one checked entry of a layer: what is done to path.
type item struct {
	path     string // "" is the root
	whiteout bool
	opaque   bool // path is a directory; all that it had goes
	hdr      *tar.Header
	typ      uint32 // S_IFMT
	link     string // path, of a hard link
	same     bool
	xattrs   map[string][]byte
	was      *wasRecord
}

// budget is what is left of an import's limits.
type budget struct{ bytes, files int64 }

// bounded reads what a blob unpacks to, up to a size and a ratio: a few bytes may
// unpack to very many.
type bounded struct {
	r      io.Reader // unpacked
	packed *counted  // what was read of the blob
	left   *budget
	n      int64
	h      hash.Hash
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	b.left.bytes -= int64(n)
	b.h.Write(p[:n])
	if b.left.bytes < 0 {
		return n, fmt.Errorf("the layers unpack to more bytes than the limit: %w", ErrLimit)
	}
	if b.n > ratioFree && b.n > maxRatio*b.packed.n {
		return n, fmt.Errorf("%d bytes unpack to more than %d: %w", b.packed.n, b.n, ErrLimit)
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, err
}

// readLayer calls fn for each entry of a compressed layer, in the layer's order.
// content is that of a regular file, valid during the call. It reads the blob to
// its end and returns the digest of the tar in it.
func readLayer(blob io.Reader, left *budget, fn func(it *item, content io.Reader) error) (diffID string, err error) {
	packed := newCounted(io.Discard)
	// gzip reads single bytes, and the ratio is that of what it took.
	zip, err := gzip.NewReader(bufio.NewReader(io.TeeReader(blob, packed)))
	if err != nil {
		return "", fmt.Errorf("%w: no gzip data: %w", ErrDamaged, err)
	}
	b := &bounded{r: zip, packed: packed, left: left, h: sha256.New()}
	l := &layerReader{seen: map[string]bool{}, filled: map[string]bool{}, left: left}
	return b.entries(func(hdr *tar.Header, content io.Reader) error {
		it, err := l.check(hdr)
		if err != nil {
			return err
		}
		return fn(it, content)
	})
}

// entries calls fn for each entry of a tar stream and returns the digest of all
// of it.
func (b *bounded) entries(fn func(hdr *tar.Header, content io.Reader) error) (diffID string, err error) {
	for t := tar.NewReader(b); ; {
		hdr, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", damaged(err)
		}
		if err := fn(hdr, t); err != nil {
			return "", fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
	// The rest, normally padding, counts for the digest and the limits.
	if _, err := io.Copy(io.Discard, b); err != nil {
		return "", damaged(err)
	}
	return hex.EncodeToString(b.h.Sum(nil)), nil
}

func damaged(err error) error {
	if errors.Is(err, ErrLimit) || errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

type layerReader struct {
	seen   map[string]bool // paths that had their entry
	filled map[string]bool // directories in which something had
	left   *budget
}

func hostile(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrHostile)...)
}

// parsePath takes a name apart as a path beneath the root, in which no component
// has a meaning of its own.
func parsePath(name string) (parts []string, err error) {
	if name == "" || len(name) > maxPath {
		return nil, hostile("a name of %d bytes", len(name))
	}
	if name[0] == '/' {
		return nil, hostile("an absolute name")
	}
	parts = strings.Split(name, "/")
	for _, p := range parts {
		if err := checkComponent(p); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

func checkComponent(p string) error {
	switch {
	case p == "" || p == "." || p == "..":
		return hostile("the component %q leads elsewhere", p)
	case strings.IndexByte(p, 0) >= 0 || strings.IndexByte(p, '/') >= 0:
		return hostile("the component %q is no name", p)
	}
	return nil
}

// unescape undoes what tarName did. What begins as a whiteout has no place here.
func unescape(parts []string) (string, error) {
	for i, p := range parts {
		if strings.HasPrefix(p, whPrefix) {
			return "", hostile("the component %q is a whiteout's", p)
		}
		if code, ok := strings.CutPrefix(p, escapePrefix); ok {
			b, err := hex.DecodeString(code)
			if err != nil {
				return "", hostile("the component %q is no escaped name", p)
			}
			if err := checkComponent(string(b)); err != nil {
				return "", err
			}
			p = string(b)
			parts[i] = p
		}
		if len(p) > maxComponent {
			return "", hostile("a component of %d bytes", len(p))
		}
	}
	return strings.Join(parts, "/"), nil
}

// check takes an entry apart and refuses what no export writes.
func (l *layerReader) check(hdr *tar.Header) (*item, error) {
	if l.left.files--; l.left.files < 0 {
		return nil, fmt.Errorf("more entries than the limit: %w", ErrLimit)
	}
	it := &item{hdr: hdr}
	if err := it.place(hdr); err != nil {
		return nil, err
	}
	key := it.path
	if it.opaque {
		key += "/"
	}
	if l.seen[key] {
		return nil, hostile("a second entry for one path")
	}
	if it.opaque {
		// Children would be hidden by what says that older ones are.
		if l.filled[it.path] {
			return nil, hostile("an opaque marker after what is in the directory")
		}
	}
	l.seen[key] = true
	if !it.opaque {
		for dir := it.path; dir != "" && !l.filled[dirOf(dir)]; {
			dir = dirOf(dir)
			l.filled[dir] = true
		}
	}
	if it.whiteout || it.opaque {
		if hdr.Typeflag != tar.TypeReg || hdr.Size != 0 {
			return nil, hostile("a whiteout that is no empty file")
		}
		return it, it.records(hdr)
	}
	return it, it.node(hdr, l.left)
}

// place finds the path that an entry is about.
func (it *item) place(hdr *tar.Header) error {
	name := hdr.Name
	if hdr.Typeflag == tar.TypeDir {
		if name == "./" || name == "." {
			return nil
		}
		name = strings.TrimSuffix(name, "/")
	}
	parts, err := parsePath(strings.TrimPrefix(name, "./"))
	if err != nil {
		return err
	}
	last := parts[len(parts)-1]
	if last == opaqueMarker {
		it.opaque = true
		parts = parts[:len(parts)-1]
		if len(parts) == 0 {
			return hostile("an opaque marker for the root")
		}
	} else if of, ok := strings.CutPrefix(last, whPrefix); ok {
		it.whiteout = true
		if strings.HasPrefix(of, whPrefix) {
			return hostile("a marker that is not known")
		}
		if err := checkComponent(of); err != nil {
			return hostile("a whiteout of %q", of)
		}
		parts[len(parts)-1] = of
	}
	it.path, err = unescape(parts)
	return err
}

// node checks the entry of something that is there.
func (it *item) node(hdr *tar.Header, left *budget) error {
	if err := it.records(hdr); err != nil {
		return err
	}
	if it.path == "" && hdr.Typeflag != tar.TypeDir {
		return hostile("a root that is no directory")
	}
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) >= 1<<32-1 || int64(hdr.Gid) >= 1<<32-1 {
		return hostile("the owner %d:%d", hdr.Uid, hdr.Gid)
	}
	if hdr.Mode < 0 || hdr.Mode&^0o7777 != 0 {
		return hostile("the mode %o", hdr.Mode)
	}
	if hdr.Size < 0 || hdr.Size > 0 && hdr.Typeflag != tar.TypeReg {
		return hostile("a size of %d", hdr.Size)
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		if hdr.Size > left.bytes {
			return fmt.Errorf("a size of %d bytes: %w", hdr.Size, ErrLimit)
		}
		it.typ = unix.S_IFREG
		if hdr.PAXRecords[paxSocket] != "" {
			it.typ = unix.S_IFSOCK
			if hdr.Size != 0 {
				return hostile("a socket with content")
			}
		}
	case tar.TypeDir:
		it.typ = unix.S_IFDIR
	case tar.TypeSymlink:
		it.typ = unix.S_IFLNK
		if hdr.Linkname == "" || len(hdr.Linkname) >= unix.PathMax || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return hostile("a symbolic link to %d bytes", len(hdr.Linkname))
		}
	case tar.TypeLink:
		parts, err := parsePath(hdr.Linkname)
		if err == nil {
			it.link, err = unescape(parts)
		}
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
		}
		if it.link == it.path {
			return hostile("a hard link to itself")
		}
	case tar.TypeFifo:
		it.typ = unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		it.typ = unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			it.typ = unix.S_IFBLK
		}
		if hdr.Devmajor < 0 || hdr.Devminor < 0 || hdr.Devmajor >= 1<<32 || hdr.Devminor >= 1<<32 || hdr.Devmajor|hdr.Devminor == 0 {
			return hostile("the device %d:%d", hdr.Devmajor, hdr.Devminor)
		}
	default:
		return hostile("an entry of type %q", hdr.Typeflag)
	}
	return nil
}

// records reads the records of the tar format that this package gives a meaning,
// and the extended attributes.
func (it *item) records(hdr *tar.Header) error {
	it.same = hdr.PAXRecords[paxSame] != ""
	if text := hdr.PAXRecords[paxWas]; text != "" {
		it.was = &wasRecord{}
		if err := json.Unmarshal([]byte(text), it.was); err != nil {
			return fmt.Errorf("record %s: %w: %w", paxWas, ErrDamaged, err)
		}
		if len(it.was.Path) > 0 {
			if _, err := parsePath(string(it.was.Path)); err != nil {
				return fmt.Errorf("record %s: %w", paxWas, err)
			}
		}
	}
	it.xattrs = map[string][]byte{}
	for key, val := range hdr.PAXRecords {
		name, plain := strings.CutPrefix(key, schilyXattr)
		value := []byte(val)
		if !plain {
			code, ok := strings.CutPrefix(key, paxXattr)
			if !ok {
				continue
			}
			raw, err := hex.DecodeString(code)
			var verr error
			value, verr = hex.DecodeString(strings.TrimSuffix(val, "."))
			if err != nil || verr != nil {
				return fmt.Errorf("record %s: %w", key, ErrDamaged)
			}
			name = string(raw)
		}
		if name == "" || len(name) > maxComponent || strings.IndexByte(name, 0) >= 0 || len(value) > 64<<10 {
			return hostile("the extended attribute %q", name)
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return hostile("the extended attribute %q, which has a meaning for layers", name)
		}
		it.xattrs[name] = value
	}
	return nil
}
