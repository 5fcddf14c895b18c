package jail

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Use says what a program of Galley's own does in its jail, which decides what
// system calls [Filter] leaves it.
type Use int

const (
	// Machine runs a guest: it has no sockets but unix ones.
	Machine Use = iota
	// Network carries a guest's network: it has internet sockets, and asks the
	// kernel for routes.
	Network
)

// Offsets in struct seccomp_data (linux/seccomp.h); the low halves of
// arguments, on a little-endian machine.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
	x32Bit    = 0x40000000
)

// refused are the system calls that nothing here needs and that reach parts of
// the kernel which a program that has fallen to its guest would try: other
// programs, mounts and namespaces, modules, tracing, keys, and rings that make
// calls past this filter. They fail as on a kernel without them.
var refused = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP,
	unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_SYSLOG,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP, unix.SYS_PERSONALITY,
	unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK, unix.SYS_NFSSERVCTL, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	unix.SYS_MEMFD_SECRET, unix.SYS_LANDLOCK_CREATE_RULESET,
}

// newNamespaces are the flags of clone(2) that make namespaces.
const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// Filter refuses, for every thread of this process and for good, the system
// calls that its use has no need of. It also shuts the process off from
// debuggers. Nothing that it refuses can be undone by what it lets through.
func Filter(use Use) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("shut the process off from debuggers: %w", err)
	}
	prog, err := filterProgram(use)
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	failed, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("install the system call filter: %w", errno)
	}
	if failed != 0 {
		return fmt.Errorf("install the system call filter: thread %d has another", failed)
	}
	return nil
}

// filterProgram is the filter, in classic BPF (seccomp(2)).
func filterProgram(use Use) ([]unix.SockFilter, error) {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no system call filter for %s", runtime.GOARCH)
	}
	fail := func(e unix.Errno) unix.SockFilter {
		return stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(e))
	}
	allow := stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	p := []unix.SockFilter{
		// Calls of another architecture have other numbers.
		stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		fail(unix.ENOSYS),
		stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offNumber),
	}
	if runtime.GOARCH == "amd64" {
		p = append(p, jump(unix.BPF_JGE, x32Bit, 0, 1), fail(unix.ENOSYS))
	}
	for _, nr := range refused {
		p = append(p, jump(unix.BPF_JEQ, nr, 0, 1), fail(unix.ENOSYS))
	}
	// clone3 hides its flags from a filter; libraries fall back to clone.
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), fail(unix.ENOSYS))
	p = append(p, onlyIf(unix.SYS_CLONE, []unix.SockFilter{
		stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offArg0),
		jump(unix.BPF_JSET, newNamespaces, 0, 1),
		fail(unix.EPERM),
		allow,
	})...)
	families := []uint32{unix.AF_UNIX}
	if use == Network {
		families = append(families, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK)
	}
	body := []unix.SockFilter{stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offArg0)}
	for _, f := range families {
		body = append(body, jump(unix.BPF_JEQ, f, 0, 1), allow)
	}
	p = append(p, onlyIf(unix.SYS_SOCKET, append(body, fail(unix.EAFNOSUPPORT)))...)
	return append(p, allow), nil
}

// onlyIf runs body where the accumulator is k, and else goes on behind it. The
// body must return.
func onlyIf(k uint32, body []unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{jump(unix.BPF_JEQ, k, 0, uint8(len(body)))}, body...)
}

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(test uint16, k uint32, onTrue, onFalse uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: onTrue, Jf: onFalse, K: k}
}
