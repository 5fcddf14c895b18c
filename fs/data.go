package fs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Requests about content. None of them names a handle.

const (
	// spliceMin is the READ from which on moving pages through a pipe is
	// cheaper than copying them; see docs/io-mode.md.
	spliceMin = 128 << 10
	// copyMax bounds one COPY_FILE_RANGE, so that a caller can be
	// interrupted; callers repeat short copies.
	copyMax = 256 << 20
)

// Open answers ENOSYS, which switches opening off for the mount: the kernel
// opens by itself, keeps pages, and truncates by SETATTR.
func (r *rawFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	r.stats.count(opOpen)
	return fuse.ENOSYS
}

// Flush answers ENOSYS, which switches it off: there is nothing to flush.
func (r *rawFS) Flush(_ <-chan struct{}, _ *fuse.FlushIn) fuse.Status {
	r.stats.count(opFlush)
	return fuse.ENOSYS
}

// Release comes only for a file that was created before the first OPEN.
func (r *rawFS) Release(_ <-chan struct{}, _ *fuse.ReleaseIn) { r.stats.count(opRelease) }

func (r *rawFS) Access(_ <-chan struct{}, _ *fuse.AccessIn) fuse.Status {
	r.stats.count(opAccess)
	return fuse.ENOSYS // the kernel checks permissions
}

func (r *rawFS) Ioctl(_ <-chan struct{}, _ *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	r.stats.count(opIoctl)
	return fuse.ENOSYS // the caller gets ENOTTY
}

func (r *rawFS) Statx(_ <-chan struct{}, _ *fuse.StatxIn, _ *fuse.StatxOut) fuse.Status {
	r.stats.count(opStatx)
	return fuse.ENOSYS // the kernel falls back to GETATTR
}

// span refuses offsets beyond what a file can have.
func span(off, size uint64) fuse.Status {
	if off > math.MaxInt64 || size > math.MaxInt64-off {
		return fuse.EINVAL
	}
	return fuse.OK
}

// file is the regular file that a request names.
func (r *rawFS) file(id uint64) (*overlay.Node, fuse.Status) {
	n := r.nodes.get(id)
	if n == nil {
		return nil, errStale
	}
	switch n.Type() {
	case unix.S_IFREG:
		return n, fuse.OK
	case unix.S_IFDIR:
		return nil, fuse.EISDIR
	}
	return nil, fuse.EINVAL
}

func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	r.stats.count(opRead)
	n, st := r.file(in.NodeId)
	if st != fuse.OK {
		return nil, st
	}
	if st := span(in.Offset, uint64(in.Size)); st != fuse.OK {
		return nil, st
	}
	if in.Size >= spliceMin || r.guest != nil {
		fd, release, err := r.face.ReadFD(n)
		if err != nil {
			return nil, status(err)
		}
		return &splicedRead{fd: fd, off: int64(in.Offset), size: int(in.Size), release: release}, fuse.OK
	}
	got, err := r.face.Read(n, buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:got]), fuse.OK
}

// splicedRead is content that go-fuse moves from a descriptor to the kernel.
type splicedRead struct {
	fd      int
	off     int64
	size    int
	release func()
}

// Seekable makes go-fuse splice from the descriptor.
func (s *splicedRead) Seekable() (uintptr, int64, int) { return uintptr(s.fd), s.off, s.size }

// Size is the most that there may be.
func (s *splicedRead) Size() int { return s.size }

// Done gives the descriptor back.
func (s *splicedRead) Done() { s.release() }

// Readv reads into the pages of a guest.
func (s *splicedRead) Readv(dst [][]byte) (int, fuse.Status) {
	for {
		n, err := unix.Preadv(s.fd, dst, s.off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, status(err)
		}
		return n, fuse.OK
	}
}

// Bytes reads into buf where splicing is not possible.
func (s *splicedRead) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:min(len(buf), s.size)]
	for {
		n, err := unix.Pread(s.fd, buf, s.off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, status(err)
		}
		return buf[:n], fuse.OK
	}
}

func (r *rawFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	r.stats.count(opWrite)
	r.acts(&in.InHeader)
	n, st := r.file(in.NodeId)
	if st != fuse.OK {
		return 0, st
	}
	data = data[:min(len(data), int(in.Size))]
	if st := span(in.Offset, uint64(len(data))); st != fuse.OK {
		return 0, st
	}
	defer r.wrote(in.NodeId)
	kill := in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0
	done, err := 0, error(nil)
	switch {
	case r.writeback && in.WriteFlags&fuse.WRITE_CACHE != 0:
		done, err = r.writeCached(n, data, int64(in.Offset), kill)
	case in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0:
		done, err = r.append(n, data, int64(in.Offset), kill)
	case kill:
		done, err = r.face.WriteKill(n, data, int64(in.Offset))
	default:
		done, err = r.face.Write(n, data, int64(in.Offset))
	}
	if err != nil && done == 0 {
		return 0, status(err)
	}
	return uint32(done), fuse.OK
}

// append puts data at the end as it is now, not where this kernel last saw it:
// another face may have appended since, and its data must not be overwritten.
// Where the two differ, the kernel has put the pages at the wrong place and is
// told to drop them.
func (r *rawFS) append(n *overlay.Node, data []byte, seen int64, kill bool) (int, error) {
	if kill {
		if err := r.face.DropPrivileges(n); err != nil {
			return 0, err
		}
	}
	done, err := r.face.Append(n, data)
	if err != nil {
		return done, err
	}
	a, err := r.face.Getattr(n)
	switch {
	case err == nil && a.Size == seen+int64(done):
	case r.guest != nil:
		r.staleGuest(r.nodes.id(n))
	default:
		r.stale.data(r.nodes.id(n))
	}
	return done, nil
}

func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	r.stats.count(opLseek)
	n, st := r.file(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if in.Offset > math.MaxInt64 || in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := r.face.Seek(n, int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

func (r *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	r.stats.count(opFallocate)
	r.acts(&in.InHeader)
	n, st := r.file(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if st := span(in.Offset, in.Length); st != fuse.OK {
		return errTooBig
	}
	defer r.wrote(in.NodeId)
	return status(r.face.Fallocate(n, in.Mode, int64(in.Offset), int64(in.Length)))
}

func (r *rawFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	r.stats.count(opCopyFileRange)
	r.acts(&in.InHeader)
	src, st := r.file(in.NodeId)
	if st != fuse.OK {
		return 0, st
	}
	dst, st := r.file(in.NodeIdOut)
	if st != fuse.OK {
		return 0, st
	}
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	size := min(in.Len, copyMax)
	if span(in.OffIn, size) != fuse.OK || span(in.OffOut, size) != fuse.OK {
		return 0, errTooBig
	}
	defer r.wrote(in.NodeIdOut)
	done, err := r.face.CopyRange(src, int64(in.OffIn), dst, int64(in.OffOut), int64(size))
	if err != nil && done == 0 {
		return 0, status(err)
	}
	return uint32(done), fuse.OK
}

func (r *rawFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	r.stats.count(opFsync)
	return r.sync(in)
}

func (r *rawFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	r.stats.count(opFsyncdir)
	return r.sync(in)
}

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC.
const fsyncDataOnly = 1

func (r *rawFS) sync(in *fuse.FsyncIn) fuse.Status {
	n := r.nodes.get(in.NodeId)
	if n == nil {
		return errStale
	}
	return status(r.face.Fsync(n, in.FsyncFlags&fsyncDataOnly != 0))
}
