package local

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter closes the few doors that neither namespaces nor capabilities
// do. It names what is refused and lets all else pass, so that the kernel's
// cache of always-allowed calls makes it cost next to nothing.
//
//   - ioctl TIOCSTI and TIOCLINUX push input into the terminal, which the
//     caller's shell would read and obey after the command has ended. Only the
//     low half of the request counts, as the kernel itself reads it.
//   - keyctl, add_key, request_key: the keyrings belong to the user, not to a
//     namespace. They fail as on a kernel without them.
//   - a new cgroup namespace, inside a new user namespace, would let a cgroup file system be
//     mounted, and the caller's own cgroup be killed or frozen through it. clone3
//     hides its flags from a filter, so it fails as on an older kernel, and
//     libraries fall back to clone.
//
// A system call of another architecture (32-bit on a 64-bit kernel, x32) has
// other numbers: its ioctl, keyrings and clone are filtered by theirs on amd64;
// every other foreign architecture is refused.

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16 // the low half, on a little-endian machine
	offArg1   = 24
)

const x32Bit = 0x40000000

// numbers are the system calls of one architecture that the filter looks at.
type numbers struct {
	arch                                                      uint32
	ioctl, keyctl, addKey, requestKey, unshare, clone, clone3 uint32
}

var native = numbers{
	arch: nativeArch(), ioctl: unix.SYS_IOCTL, keyctl: unix.SYS_KEYCTL, addKey: unix.SYS_ADD_KEY,
	requestKey: unix.SYS_REQUEST_KEY, unshare: unix.SYS_UNSHARE, clone: unix.SYS_CLONE, clone3: unix.SYS_CLONE3,
}

// i386 are the numbers of 32-bit programs on amd64 (arch/x86/entry/syscalls).
var i386 = numbers{
	arch: unix.AUDIT_ARCH_I386, ioctl: 54, keyctl: 288, addKey: 286,
	requestKey: 287, unshare: 310, clone: 120, clone3: 435,
}

func nativeArch() uint32 {
	if runtime.GOARCH == "arm64" {
		return unix.AUDIT_ARCH_AARCH64
	}
	return unix.AUDIT_ARCH_X86_64
}

func installFilter() error {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return nil
	}
	prog := filterProgram()
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	// SPEC_ALLOW: on kernels before 5.16 a filter would otherwise slow the
	// command down with a speculation barrier that it does not have outside.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("install the system call filter: %w", errno)
	}
	return nil
}

func filterProgram() []unix.SockFilter {
	deny := func(errno uint32) unix.SockFilter {
		return stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|errno)
	}
	var p []unix.SockFilter
	p = append(p, load(offArch))
	p = append(p, onlyIf(native.arch, archProgram(native))...)
	if runtime.GOARCH == "amd64" {
		p = append(p, onlyIf(i386.arch, archProgram(i386))...)
	}
	return append(p, deny(uint32(unix.ENOSYS)))
}

// archProgram judges the calls of one architecture and always returns.
func archProgram(n numbers) []unix.SockFilter {
	allow := stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	fail := func(e unix.Errno) unix.SockFilter {
		return stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(e))
	}
	p := []unix.SockFilter{load(offNumber)}
	if n.arch == unix.AUDIT_ARCH_X86_64 {
		// x32 numbers carry a bit on top; hardly any kernel still has them.
		p = append(p, jump(unix.BPF_JGE, x32Bit, 0, 1), fail(unix.ENOSYS))
	}
	for _, nr := range []uint32{n.keyctl, n.addKey, n.requestKey, n.clone3} {
		p = append(p, onlyIf(nr, []unix.SockFilter{fail(unix.ENOSYS)})...)
	}
	p = append(p, onlyIf(n.ioctl, []unix.SockFilter{
		load(offArg1),
		jump(unix.BPF_JEQ, unix.TIOCSTI, 1, 0),
		jump(unix.BPF_JEQ, unix.TIOCLINUX, 0, 1),
		fail(unix.EPERM),
		allow,
	})...)
	for _, nr := range []uint32{n.unshare, n.clone} {
		p = append(p, onlyIf(nr, []unix.SockFilter{
			load(offArg0),
			jump(unix.BPF_JSET, unix.CLONE_NEWCGROUP, 0, 1),
			fail(unix.EPERM),
			allow,
		})...)
	}
	return append(p, allow)
}

// onlyIf runs body where the accumulator is k, and else goes on behind it.
// The body must return.
func onlyIf(k uint32, body []unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{jump(unix.BPF_JEQ, k, 0, uint8(len(body)))}, body...)
}

func load(offset uint32) unix.SockFilter {
	return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset)
}

func stmt(code uint16, k uint32) unix.SockFilter {
	return unix.SockFilter{Code: code, K: k}
}

func jump(test uint16, k uint32, onTrue, onFalse uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: onTrue, Jf: onFalse, K: k}
}
