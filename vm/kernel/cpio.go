package kernel

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// archive writes a cpio archive in the format that the kernel unpacks its
// initial file system from (newc: Documentation/driver-api/early-userspace/
// buffer-format.rst). The few entries that are needed are less code than a
// library's types would be, and none of the well-kept ones writes devices.
type archive struct {
	w   io.Writer
	ino int
	err error
}

// entry adds one; its parents must have been added before.
func (a *archive) entry(name string, mode uint32, rdev uint64, content []byte) {
	nlink := 1
	if mode&unix.S_IFMT == unix.S_IFDIR {
		nlink = 2
	}
	a.ino++
	// Times and owners are 0, so that the same content is the same archive.
	a.write([]byte(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, nlink, 0, len(content), 0, 0, unix.Major(rdev), unix.Minor(rdev), len(name)+1, 0)))
	a.write(append([]byte(name), 0))
	a.pad(110 + len(name) + 1)
	a.write(content)
	a.pad(len(content))
}

func (a *archive) directory(name string) { a.entry(name, unix.S_IFDIR|0o755, 0, nil) }

func (a *archive) file(name string, mode uint32, content []byte) {
	a.entry(name, unix.S_IFREG|mode, 0, content)
}

func (a *archive) device(name string, mode uint32, major, minor uint32) {
	a.entry(name, unix.S_IFCHR|mode, unix.Mkdev(major, minor), nil)
}

// close ends the archive and returns the first error there was.
func (a *archive) close() error {
	a.ino = -1
	a.entry("TRAILER!!!", 0, 0, nil)
	return a.err
}

// pad fills up what has n bytes to a multiple of four.
func (a *archive) pad(n int) { a.write(make([]byte, -n&3)) }

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
}
