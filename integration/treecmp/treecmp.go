// Package treecmp takes down what a directory tree is, as a program sees it
// through system calls, and compares two such records. Tests use it to say
// that the same work left the same tree: type, mode, owner, size, content,
// target, device, extended attributes, hard links and, where a tool set it,
// modification time.
package treecmp

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is what a tree has at one path. Times are nanoseconds since 1970.
type Entry struct {
	Path   string            // slash-separated, relative to the root; "." is the root
	Mode   uint32            // type and permissions as st_mode has them
	UID    uint32            //
	GID    uint32            //
	Size   int64             // of a regular file
	Digest string            `json:",omitempty"` // SHA-256 of a regular file, in hexadecimal
	Target string            `json:",omitempty"` // of a symbolic link
	Rdev   uint64            `json:",omitempty"` // of a device
	Nlink  uint64            // of anything but a directory
	Linked string            `json:",omitempty"` // first path in the tree that is the same file, if it has others
	Xattrs map[string]string `json:",omitempty"` // values in hexadecimal
	Mtime  int64             //
}

// Tree is a record of a whole tree, sorted by path.
type Tree []Entry

// Read takes down the tree at root. It changes nothing but access times.
func Read(root string) (Tree, error) {
	var tree Tree
	first := make(map[[2]uint64]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, id, err := read(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		e.Path = filepath.ToSlash(rel)
		if e.Nlink > 1 {
			if other, ok := first[id]; ok {
				e.Linked = other
			} else {
				first[id] = e.Path
			}
		}
		tree = append(tree, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the tree %s: %w", root, err)
	}
	sort.Slice(tree, func(i, j int) bool { return tree[i].Path < tree[j].Path })
	return tree, nil
}

func read(path string) (Entry, [2]uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, [2]uint64{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Nano()}
	id := [2]uint64{st.Dev, st.Ino}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size, e.Nlink = st.Size, uint64(st.Nlink)
		e.Digest, err = digest(path)
	case unix.S_IFLNK:
		e.Nlink = uint64(st.Nlink)
		e.Target, err = os.Readlink(path)
	case unix.S_IFDIR:
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Nlink, e.Rdev = uint64(st.Nlink), st.Rdev
	default:
		e.Nlink = uint64(st.Nlink)
	}
	if err != nil {
		return Entry{}, id, err
	}
	e.Xattrs, err = xattrs(path)
	return e, id, err
}

// digest hashes a file: the bytes, or for one above 1 GiB its data extents, so
// that a large file of holes costs nothing.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if st.Size() > 1<<30 {
		return sparseDigest(f, h, st.Size())
	}
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sparseDigest hashes the data extents with their offsets.
func sparseDigest(f *os.File, h hash.Hash, size int64) (string, error) {
	for off := int64(0); off < size; {
		data, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return "", err
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d-%d:", data, hole)
		if _, err := io.Copy(h, io.NewSectionReader(f, data, hole-data)); err != nil {
			return "", err
		}
		off = hole
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(path string) (map[string]string, error) {
	names, err := retryRange(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if errors.Is(err, unix.ENOTSUP) || len(names) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	all := make(map[string]string)
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		val, err := retryRange(func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
		if err != nil {
			return nil, &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
		all[name] = hex.EncodeToString(val)
	}
	return all, nil
}

// retryRange calls get with a buffer that is large enough for its answer.
func retryRange(get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		p := make([]byte, n)
		n, err = get(p)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		return p[:max(n, 0)], err
	}
}

// Options say what a comparison leaves out.
type Options struct {
	// Ignore leaves out a path and, for a directory, all below it.
	Ignore func(path string) bool
	// Content leaves out size, digest and mtime of a regular file: its bytes
	// are not the same from one run to the next.
	Content func(path string) bool
	// AnyMtime leaves out the modification time.
	AnyMtime func(path string) bool
	// Since is when the work began. Modification times before it were set by
	// a tool, or are those of files that nobody touched, and must be equal;
	// later ones need only be later in both trees. The zero time compares
	// all times exactly.
	Since time.Time
}

// Diff lists how got differs from want, one line for each path and field,
// sorted by path. It is empty when the trees are the same.
func Diff(want, got Tree, o Options) []string {
	var lines []string
	w, g := byPath(want, o), byPath(got, o)
	for _, path := range paths(w, g) {
		a, inWant := w[path]
		b, inGot := g[path]
		switch {
		case !inGot:
			lines = append(lines, fmt.Sprintf("%s: missing (want %s)", path, kind(a.Mode)))
		case !inWant:
			lines = append(lines, fmt.Sprintf("%s: should not be there (is %s)", path, kind(b.Mode)))
		default:
			lines = append(lines, compare(a, b, o)...)
		}
	}
	return lines
}

func compare(want, got Entry, o Options) []string {
	var lines []string
	add := func(field string, w, g any) {
		if w != g {
			lines = append(lines, fmt.Sprintf("%s: %s is %v, want %v", want.Path, field, g, w))
		}
	}
	add("type", kind(want.Mode), kind(got.Mode))
	add("mode", fmt.Sprintf("%04o", want.Mode&0o7777), fmt.Sprintf("%04o", got.Mode&0o7777))
	add("owner", fmt.Sprintf("%d:%d", want.UID, want.GID), fmt.Sprintf("%d:%d", got.UID, got.GID))
	add("target", want.Target, got.Target)
	add("device", want.Rdev, got.Rdev)
	add("number of links", want.Nlink, got.Nlink)
	add("linked with", want.Linked, got.Linked)
	add("xattrs", fmt.Sprint(want.Xattrs), fmt.Sprint(got.Xattrs))
	if o.Content != nil && o.Content(want.Path) {
		return lines
	}
	add("size", want.Size, got.Size)
	add("content", want.Digest, got.Digest)
	if o.AnyMtime != nil && o.AnyMtime(want.Path) {
		return lines
	}
	if line := mtime(want, got, o.Since); line != "" {
		lines = append(lines, line)
	}
	return lines
}

func mtime(want, got Entry, since time.Time) string {
	if want.Mtime == got.Mtime {
		return ""
	}
	w, g := time.Unix(0, want.Mtime).UTC(), time.Unix(0, got.Mtime).UTC()
	if !since.IsZero() && !w.Before(since) {
		if !g.Before(since) {
			return ""
		}
		return fmt.Sprintf("%s: mtime is %v, want one after %v", want.Path, g, since)
	}
	return fmt.Sprintf("%s: mtime is %v, want %v", want.Path, g, w)
}

func byPath(t Tree, o Options) map[string]Entry {
	m := make(map[string]Entry, len(t))
	for _, e := range t {
		if !ignored(e.Path, o.Ignore) {
			m[e.Path] = e
		}
	}
	return m
}

// ignored says whether path or a directory above it is left out.
func ignored(path string, ignore func(string) bool) bool {
	if ignore == nil {
		return false
	}
	for ; path != "."; path = filepath.Dir(path) {
		if ignore(path) {
			return true
		}
	}
	return false
}

func paths(a, b map[string]Entry) []string {
	var all []string
	for p := range a {
		all = append(all, p)
	}
	for p := range b {
		if _, ok := a[p]; !ok {
			all = append(all, p)
		}
	}
	sort.Strings(all)
	return all
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	default:
		return "a device"
	}
}
