// Package tarcopy copies a file or a directory as a tar stream: what galley cp
// sends between the host and a guest. Neither side trusts the other's names.
package tarcopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// errorRecord carries why a stream ends before its time.
const errorRecord = "GALLEY.error"

// Pack writes what is at p, a file or a directory with all beneath it, to w.
// Links are not followed, but for p itself, and nothing is read that is not
// beneath it, whoever changes the tree meanwhile. The first entry has the name
// "."; an error is told in the stream, too.
func Pack(w io.Writer, p string) error {
	t := tar.NewWriter(w)
	err := pack(t, p)
	if err != nil {
		text := err.Error()
		_ = t.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{errorRecord: text[:min(len(text), 4096)]}})
	}
	return errors.Join(err, t.Close())
}

func pack(t *tar.Writer, top string) error {
	real, err := filepath.EvalSymlinks(top)
	if err != nil {
		return err
	}
	info, err := os.Lstat(real)
	if err != nil {
		return err
	}
	at, name := real, "."
	if !info.IsDir() {
		at, name = filepath.Split(real)
	}
	root, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer root.Close()
	k := packer{t, root}
	if !info.IsDir() {
		return k.one(name, ".", info)
	}
	return k.tree(".", info)
}

// packer writes entries of a stream. What it looks at may be another thing when
// it opens it: the root keeps it from leading out, and what is opened says
// itself what it is.
type packer struct {
	tar  *tar.Writer
	root *os.Root
}

// tree writes what is at p, and all beneath it.
func (k *packer) tree(p string, info fs.FileInfo) error {
	if err := k.one(p, p, info); err != nil || !info.IsDir() {
		return err
	}
	d, err := k.root.OpenFile(p, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		sub := path.Join(p, name)
		info, err := k.root.Lstat(sub)
		if err != nil {
			return err
		}
		if err := k.tree(sub, info); err != nil {
			return err
		}
	}
	return nil
}

// one writes what is at p as an entry of another name.
func (k *packer) one(p, name string, info fs.FileInfo) error {
	target := ""
	switch {
	case info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe|fs.ModeDevice|fs.ModeIrregular) != 0:
		return nil // nothing that could be copied
	case info.Mode().IsRegular():
		return k.file(p, name)
	case info.Mode()&fs.ModeSymlink != 0:
		var err error
		if target, err = k.root.Readlink(p); err != nil {
			return err
		}
	}
	return k.header(info, name, target)
}

// file writes a file with its content.
func (k *packer) file(p, name string) error {
	f, err := k.root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe in its place is not waited for
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s was a file, and became something else while it was copied", f.Name())
	}
	if err == nil {
		err = k.header(info, name, "")
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(k.tar, io.LimitReader(f, info.Size()))
	return err
}

func (k *packer) header(info fs.FileInfo, name, target string) error {
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	return k.tar.WriteHeader(h)
}

// Result is what was copied.
type Result struct {
	Files int
	Bytes int64
	// Skipped are entries of a kind that is not copied, such as devices.
	Skipped int
}

// Unpack makes what r has at to. Where to is a directory that is there it is
// made in it, by name. Nothing outside is reached, and no symbolic link beneath
// is walked through, whoever made it.
func Unpack(r io.Reader, to, name string) (Result, error) {
	var out Result
	if st, err := os.Stat(to); err == nil && st.IsDir() {
		if name == "" || name == "/" || name == "." || name == ".." {
			return out, fmt.Errorf("%s is a directory, and what is copied has no name to stand there by", to)
		}
		to = filepath.Join(to, name)
	}
	parent, err := os.OpenRoot(filepath.Dir(to))
	if err != nil {
		return out, err
	}
	defer parent.Close()
	u := unpacker{tar: tar.NewReader(r)}
	h, err := u.next()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return out, err
	}
	if path.Clean(h.Name) != "." {
		return out, fmt.Errorf("the stream begins with %q, and not with what was asked for", h.Name)
	}
	// Links may lead anywhere in the parent; only the first entry is made there.
	top := filepath.Base(to)
	if u.root = parent; h.Typeflag == tar.TypeDir {
		if err := u.one(h, top); err != nil {
			return u.out, err
		}
		if u.root, err = parent.OpenRoot(top); err != nil {
			return u.out, err
		}
		defer u.root.Close()
		err = u.rest()
		return u.out, err
	}
	if err := u.one(h, top); err != nil {
		return u.out, err
	}
	if h, err = u.next(); err == nil {
		err = fmt.Errorf("the stream has the name %q beneath what is no directory", h.Name)
	} else if err == io.EOF {
		err = nil
	}
	return u.out, err
}

// unpacker makes the entries of a stream.
type unpacker struct {
	tar  *tar.Reader
	root *os.Root
	// dir is the directory that was last found to be reached without links. It
	// stays so: no entry replaces a directory.
	dir string
	out Result
}

// next is the next entry.
func (u *unpacker) next() (*tar.Header, error) {
	for {
		h, err := u.tar.Next()
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			return h, nil
		}
		if text, ok := h.PAXRecords[errorRecord]; ok {
			return nil, errors.New(text)
		}
	}
}

// rest makes what is beneath the first entry.
func (u *unpacker) rest() error {
	for {
		h, err := u.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		rel := path.Clean(h.Name)
		if rel == "." || !filepath.IsLocal(rel) || strings.ContainsRune(rel, 0) {
			return fmt.Errorf("the stream has the name %q, which leads out", h.Name)
		}
		if err := u.reach(path.Dir(rel)); err != nil {
			return err
		}
		if err := u.one(h, rel); err != nil {
			return err
		}
	}
}

// reach checks that all of dir are directories, and no links to some: the root
// follows links that stay beneath it.
func (u *unpacker) reach(dir string) error {
	if dir == "." || dir == u.dir {
		return nil
	}
	for i := range len(dir) + 1 {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		if err := u.isDir(dir[:i]); err != nil {
			return err
		}
	}
	u.dir = dir
	return nil
}

// isDir checks that p is itself a directory.
func (u *unpacker) isDir(p string) error {
	st, err := u.root.Lstat(p)
	if err == nil && !st.IsDir() {
		err = &fs.PathError{Op: "unpack in", Path: filepath.Join(u.root.Name(), p), Err: syscall.ENOTDIR}
	}
	return err
}

// one makes one entry at p.
func (u *unpacker) one(h *tar.Header, p string) error {
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(p, 0o700|mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := u.isDir(p); err != nil {
			return err
		}
		return u.root.Chmod(p, mode|0o700)
	case tar.TypeReg:
		return unpackFile(u.root, u.tar, h, p, mode, &u.out)
	case tar.TypeSymlink:
		if err := clear(u.root, p); err != nil {
			return err
		}
		u.out.Files++
		return u.root.Symlink(h.Linkname, p)
	}
	u.out.Skipped++
	return nil
}

func unpackFile(root *os.Root, t *tar.Reader, h *tar.Header, p string, mode fs.FileMode, out *Result) error {
	if err := clear(root, p); err != nil {
		return err
	}
	f, err := root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, t)
	out.Files, out.Bytes = out.Files+1, out.Bytes+n
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return root.Chtimes(p, h.ModTime, h.ModTime)
}

// clear removes what a file is to replace; a directory stays, and is an error
// then.
func clear(root *os.Root, p string) error {
	st, err := root.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s is a directory, and is not replaced by a file", p)
	}
	return root.Remove(p)
}
