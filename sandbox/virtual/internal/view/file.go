package view

import (
	"crypto/rand"
	"io"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// File is an open file. Its methods may be called at the same time.
type File struct {
	v    *View
	spot *spot // holds the references
	m    *mount
	node *overlay.Node
	path string
	flag int

	mu     sync.Mutex
	off    int64
	closed bool
}

// OpenFile opens a file as open(2) does: flag is of os.O_RDONLY, O_WRONLY,
// O_RDWR, O_APPEND, O_CREATE, O_EXCL, O_TRUNC and unix.O_NOFOLLOW; perm is
// exact. A directory can be opened for reading, and read with ReadDir only.
func (v *View) OpenFile(p string, flag int, perm uint32) (*File, error) {
	if d := deviceName(p); d != "" {
		return &File{v: v, path: d, flag: flag}, nil
	}
	follow := flag&os.O_EXCL == 0 && flag&unix.O_NOFOLLOW == 0
	s, err := v.find(p, follow)
	if err != nil {
		return nil, err
	}
	f, err := v.open(s, p, flag, perm)
	if err != nil {
		s.release()
		return nil, err
	}
	return f, nil
}

func (v *View) open(s *spot, p string, flag int, perm uint32) (*File, error) {
	write := flag&(os.O_WRONLY|os.O_RDWR) != 0
	if s.node == nil {
		if flag&os.O_CREATE == 0 {
			return nil, unix.ENOENT
		}
		if p[len(p)-1] == '/' {
			return nil, unix.EISDIR
		}
		if err := v.mayChange(s); err != nil {
			return nil, err
		}
		n, a, err := s.dir().m.face.Create(s.dir().node, s.name, perm, v.caller())
		if overlay.Errno(err) == unix.EEXIST && flag&os.O_EXCL == 0 {
			// Somebody else was faster: what they made is opened.
			var found bool
			if found, err = v.lookup(s, s.name); err == nil && !found {
				err = unix.ENOENT
			}
			n, a = s.node, s.attr
		}
		if err != nil {
			return nil, err
		}
		s.m, s.node, s.attr, s.own = s.dir().m, n, a, true
		return &File{v: v, spot: s, m: s.m, node: n, path: s.path(), flag: flag}, nil
	}
	switch {
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, unix.EEXIST
	case s.attr.IsSymlink():
		return nil, unix.ELOOP
	case s.attr.IsDir() && (write || flag&os.O_CREATE != 0):
		return nil, unix.EISDIR
	case !s.attr.IsDir() && !s.attr.IsRegular():
		return nil, unix.ENXIO
	case write && s.m.readOnly:
		return nil, unix.EROFS
	}
	want := uint32(4)
	switch {
	case flag&os.O_RDWR != 0:
		want = 6
	case write:
		want = 2
	}
	if err := v.access(s.attr, want); err != nil {
		return nil, err
	}
	if write && s.m.face.ReadOnly() {
		return nil, unix.EROFS
	}
	if write && flag&os.O_TRUNC != 0 {
		size := int64(0)
		if _, err := s.m.face.Setattr(s.node, overlay.SetAttr{Size: &size}); err != nil {
			return nil, err
		}
	}
	return &File{v: v, spot: s, m: s.m, node: s.node, path: s.path(), flag: flag}, nil
}

// Path is where the file was when it was opened, resolved.
func (f *File) Path() string { return f.path }

// Stat tells of the file.
func (f *File) Stat() (*Info, error) {
	if f.node == nil {
		return device(f.path), nil
	}
	a, err := f.m.face.Getattr(f.node)
	if err != nil {
		return nil, err
	}
	return f.v.info(path.Base(f.path), f.m, &a), nil
}

// Read reads on from where the last Read or Write ended.
func (f *File) Read(p []byte) (int, error) {
	if f.flag&os.O_WRONLY != 0 {
		return 0, unix.EBADF
	}
	if f.node == nil {
		return readDevice(f.path, p)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	n, err := f.m.face.Read(f.node, p, f.off)
	f.off += int64(n)
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return n, err
}

// ReadAt reads at an offset.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if f.node == nil {
		return readDevice(f.path, p)
	}
	n, err := f.m.face.Read(f.node, p, off)
	if n < len(p) && err == nil {
		return n, io.EOF
	}
	return n, err
}

// Write writes on from where the last Read or Write ended, or at the end.
func (f *File) Write(p []byte) (int, error) {
	if f.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return 0, unix.EBADF
	}
	if f.node == nil {
		return writeDevice(f.path, p)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, os.ErrClosed
	}
	done := 0
	for done < len(p) {
		var n int
		var err error
		if f.flag&os.O_APPEND != 0 {
			n, err = f.m.face.Append(f.node, p[done:])
		} else {
			n, err = f.m.face.Write(f.node, p[done:], f.off)
		}
		f.off += int64(n)
		done += n
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.ErrShortWrite
		}
	}
	return done, nil
}

// Seek sets where the next Read or Write begins.
func (f *File) Seek(off int64, whence int) (int64, error) {
	if f.node == nil {
		return 0, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		a, err := f.m.face.Getattr(f.node)
		if err != nil {
			return 0, err
		}
		off += a.Size
	}
	if off < 0 {
		return 0, unix.EINVAL
	}
	f.off = off
	return off, nil
}

// Close gives the file back.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.closed = true
	if f.spot != nil {
		f.spot.release()
	}
	return nil
}

// The devices that every view has.
const (
	devNull   = "/dev/null"
	devZero   = "/dev/zero"
	devFull   = "/dev/full"
	devRandom = "/dev/random"
	devURand  = "/dev/urandom"
)

// deviceName is the device that a path means, or "".
func deviceName(p string) string {
	if len(p) < 5 || p[:5] != "/dev/" {
		return ""
	}
	switch p = path.Clean(p); p {
	case devNull, devZero, devFull, devRandom, devURand:
		return p
	}
	return ""
}

func device(p string) *Info {
	d := deviceName(p)
	if d == "" {
		return nil
	}
	minor := map[string]uint32{devNull: 3, devZero: 5, devFull: 7, devRandom: 8, devURand: 9}[d]
	return Made(path.Base(d), unix.S_IFCHR|0o666, unix.Mkdev(1, minor))
}

func readDevice(d string, p []byte) (int, error) {
	switch d {
	case devZero, devFull:
		clear(p)
		return len(p), nil
	case devRandom, devURand:
		return rand.Read(p)
	}
	return 0, io.EOF
}

func writeDevice(d string, p []byte) (int, error) {
	if d == devFull {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}
