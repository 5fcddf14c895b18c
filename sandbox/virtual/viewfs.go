package virtual

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// viewFS is the view as the contract's calls on files want it.
type viewFS struct {
	v     *view.View
	umask uint32
}

var _ files.DirFS = (*viewFS)(nil)

// viewFile adds what a file of the contract tells.
type viewFile struct{ *view.File }

func (f viewFile) Stat() (sandbox.FileInfo, error) {
	i, err := f.File.Stat()
	if err != nil {
		return sandbox.FileInfo{}, err
	}
	return infoOf(i), nil
}

func infoOf(i *view.Info) sandbox.FileInfo {
	st := i.Stat()
	return sandbox.FileInfo{Mode: i.Mode(), Size: st.Size, ModTime: i.ModTime(), UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Ino: st.Ino}
}

// plainErr makes the bare errno of what the engine says.
func plainErr(err error) error {
	if err == nil {
		return nil
	}
	return overlay.Errno(err)
}

func (f *viewFS) Open(p string) (files.File, error) {
	file, err := f.v.OpenFile(p, os.O_RDONLY, 0)
	if err == nil {
		return viewFile{file}, nil
	}
	if overlay.Errno(err) == unix.ENXIO {
		// A FIFO or a socket is opened to be told what it is, no more.
		if i, serr := f.v.Stat(p, true); serr == nil {
			return special{i}, nil
		}
	}
	return nil, plainErr(err)
}

// special is an open file that cannot be read.
type special struct{ i *view.Info }

func (s special) Stat() (sandbox.FileInfo, error) { return infoOf(s.i), nil }
func (special) Read([]byte) (int, error)          { return 0, unix.ENXIO }
func (special) ReadAt([]byte, int64) (int, error) { return 0, unix.ENXIO }
func (special) Write([]byte) (int, error)         { return 0, unix.ENXIO }
func (special) Close() error                      { return nil }
func (f *viewFS) Real(p string) (string, error)   { r, err := f.v.Real(p); return r, plainErr(err) }
func (f *viewFS) CopyMeta(from, to string) error  { return plainErr(f.v.CopyMeta(from, to)) }
func (f *viewFS) Rename(from, to string, noReplace bool) error {
	return plainErr(f.v.Rename(from, to, noReplace))
}

func (f *viewFS) Stat(p string, follow bool) (sandbox.FileInfo, error) {
	i, err := f.v.Stat(p, follow)
	if err != nil {
		return sandbox.FileInfo{}, plainErr(err)
	}
	out := infoOf(i)
	if i.Mode()&fs.ModeSymlink != 0 {
		if out.Target, err = f.v.Readlink(p); err != nil {
			return sandbox.FileInfo{}, plainErr(err)
		}
	}
	return out, nil
}

func (f *viewFS) ReadDir(p string) ([]files.DirEntry, error) {
	entries, err := f.v.ReadDir(p)
	if err != nil {
		return nil, plainErr(err)
	}
	return plainEntries(entries), nil
}

// viewDir is an open directory of the view.
type viewDir struct{ *view.Dir }

func (f *viewFS) OpenDir(p string) (files.Dir, error) {
	d, err := f.v.OpenDir(p)
	if err != nil {
		return nil, plainErr(err)
	}
	return viewDir{d}, nil
}

func (d viewDir) ReadDir() ([]files.DirEntry, error) {
	entries, err := d.Dir.ReadDir()
	return plainEntries(entries), plainErr(err)
}

func (d viewDir) OpenFile(name string) (files.File, error) {
	file, err := d.Dir.OpenFile(name)
	if err != nil {
		return nil, plainErr(err)
	}
	return viewFile{file}, nil
}

func plainEntries(entries []view.DirEntry) []files.DirEntry {
	out := make([]files.DirEntry, len(entries))
	for i, e := range entries {
		out[i] = files.DirEntry{Name: e.Name(), Type: e.Type()}
	}
	return out
}

func (f *viewFS) Create(p string, perm fs.FileMode) (files.File, error) {
	file, err := f.v.OpenFile(p, os.O_RDWR|os.O_CREATE|os.O_EXCL, uint32(perm.Perm())&^f.umask)
	if err != nil {
		return nil, plainErr(err)
	}
	return viewFile{file}, nil
}

func (f *viewFS) Mkdir(p string, perm fs.FileMode) error {
	return plainErr(f.v.Mkdir(p, uint32(perm.Perm())&^f.umask))
}

func (f *viewFS) Remove(p string) error {
	err := f.v.Remove(p, false)
	if overlay.Errno(err) == unix.EISDIR {
		err = f.v.Remove(p, true)
	}
	return plainErr(err)
}
