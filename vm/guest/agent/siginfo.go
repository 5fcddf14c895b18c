package agent

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigchldPID is si_pid of what waitid(2) says, which the library keeps to
// itself: behind three numbers and, where pointers have 64 bits, a gap.
func sigchldPID(info *unix.Siginfo) int {
	type sigchld struct {
		signo, errno, code int32
		_                  [unsafe.Sizeof(uintptr(0)) - 4]byte
		pid                int32
	}
	return int((*sigchld)(unsafe.Pointer(info)).pid)
}
