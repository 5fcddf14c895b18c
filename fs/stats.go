package fs

import "sync/atomic"

// opcode indexes the counters; the values are of this program only.
type opcode int

const (
	opLookup opcode = iota
	opForget
	opGetattr
	opSetattr
	opReadlink
	opSymlink
	opMknod
	opMkdir
	opUnlink
	opRmdir
	opRename
	opLink
	opOpen
	opRead
	opWrite
	opStatfs
	opRelease
	opFsync
	opSetxattr
	opGetxattr
	opListxattr
	opRemovexattr
	opFlush
	opOpendir
	opReaddir
	opReaddirplus
	opReleasedir
	opFsyncdir
	opAccess
	opCreate
	opTmpfile
	opFallocate
	opLseek
	opCopyFileRange
	opIoctl
	opStatx
	opCount
)

// opNames are the kernel's names, without FUSE_ (include/uapi/linux/fuse.h).
var opNames = [opCount]string{
	opLookup: "LOOKUP", opForget: "FORGET", opGetattr: "GETATTR", opSetattr: "SETATTR",
	opReadlink: "READLINK", opSymlink: "SYMLINK", opMknod: "MKNOD", opMkdir: "MKDIR",
	opUnlink: "UNLINK", opRmdir: "RMDIR", opRename: "RENAME", opLink: "LINK",
	opOpen: "OPEN", opRead: "READ", opWrite: "WRITE", opStatfs: "STATFS",
	opRelease: "RELEASE", opFsync: "FSYNC", opSetxattr: "SETXATTR", opGetxattr: "GETXATTR",
	opListxattr: "LISTXATTR", opRemovexattr: "REMOVEXATTR", opFlush: "FLUSH", opOpendir: "OPENDIR",
	opReaddir: "READDIR", opReaddirplus: "READDIRPLUS", opReleasedir: "RELEASEDIR", opFsyncdir: "FSYNCDIR",
	opAccess: "ACCESS", opCreate: "CREATE", opTmpfile: "TMPFILE", opFallocate: "FALLOCATE",
	opLseek: "LSEEK", opCopyFileRange: "COPY_FILE_RANGE", opIoctl: "IOCTL", opStatx: "STATX",
}

// counters count requests by operation.
type counters [opCount]atomic.Uint64

func (c *counters) count(op opcode) { c[op].Add(1) }

func (c *counters) snapshot() map[string]uint64 {
	out := make(map[string]uint64)
	for op := range c {
		if n := c[op].Load(); n > 0 {
			out[opNames[op]] = n
		}
	}
	return out
}
