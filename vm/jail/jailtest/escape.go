// Package jailtest is what a program that has fallen to its guest would try to
// get out of its jail. It runs in the program's own place, with its rights, and
// tells what it reached.
package jailtest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Outside is what there is to be found outside.
type Outside struct {
	// Secret is a file of the host, and Contains what stands in it.
	Secret   string `json:"secret"`
	Contains string `json:"contains"`
	// PID is a process of the host.
	PID int `json:"pid"`
	// Abstract is an abstract socket on which the host listens, without the @.
	Abstract string `json:"abstract"`
	// Port is a TCP port of the host's loopback on which it listens.
	Port int `json:"port"`
	// Inet: the program has the host's network.
	Inet bool `json:"inet"`
}

// Found is what a program in its jail got hold of.
type Found struct {
	// Seen are all files that it can see, outside /proc, by their paths.
	Seen []string `json:"seen"`
	// Written are the directories in which it can make a file.
	Written []string `json:"written"`
	// Escapes are attempts that succeeded.
	Escapes []string `json:"escapes"`
	// Errors is what each attempt met, to see that it was made.
	Errors map[string]string `json:"errors"`
	// Processes are those that it can see.
	Processes []string `json:"processes"`
	// Capabilities are its effective ones, NoNewPrivs and Seccomp its states.
	Capabilities uint64 `json:"capabilities"`
	NoNewPrivs   int    `json:"no_new_privs"`
	Seccomp      int    `json:"seccomp"`
}

// Report tries everything and writes what was found to w, as JSON.
func Report(w *os.File, o Outside) error {
	f := Found{Errors: map[string]string{}}
	f.look()
	f.readHost(o)
	f.calls(o)
	f.sockets(o)
	f.state()
	return json.NewEncoder(w).Encode(f)
}

// try notes an attempt: without an error it is an escape.
func (f *Found) try(what string, err error) {
	if err == nil {
		f.Escapes = append(f.Escapes, what)
		return
	}
	f.Errors[what] = err.Error()
}

// look walks everything there is.
func (f *Found) look() {
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if path == "/proc" {
			return fs.SkipDir
		}
		if err != nil {
			return nil
		}
		if !d.IsDir() {
			f.Seen = append(f.Seen, path)
			return nil
		}
		name := filepath.Join(path, "escape-test")
		if fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err == nil {
			_ = unix.Close(fd)
			_ = unix.Unlink(name)
			f.Written = append(f.Written, path)
		}
		return nil
	})
	for _, p := range f.Seen {
		if strings.HasPrefix(p, "/dev/") {
			continue
		}
		if fd, err := unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			_ = unix.Close(fd)
			f.Written = append(f.Written, p)
		}
	}
	entries, err := os.ReadDir("/proc")
	f.Errors["read /proc"] = fmt.Sprint(err)
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			f.Processes = append(f.Processes, e.Name())
		}
	}
	sort.Strings(f.Seen)
	sort.Strings(f.Written)
}

// readHost looks for the host's secret along every way that there might be.
func (f *Found) readHost(o Outside) {
	up := strings.Repeat("../", 40)
	for _, way := range []string{
		"", up, "/proc/self/root" + up, "/proc/1/root", "/proc/self/cwd/" + up, "/proc/1/cwd/" + up, "/proc/self/task/1/root/" + up,
		fmt.Sprintf("/proc/%d/root", o.PID), "/dev/fd/" + up,
	} {
		b, err := os.ReadFile(way + o.Secret)
		if err == nil && !strings.Contains(string(b), o.Contains) {
			err = fmt.Errorf("another file stands there")
		}
		f.try("read the secret by "+way, err)
	}
	for fd := range 64 {
		path := fmt.Sprintf("/proc/self/fd/%d/%s%s", fd, up, o.Secret)
		if _, err := os.ReadFile(path); err == nil {
			f.try(path, nil)
		}
	}
	for _, p := range []string{"/proc/kcore", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys", "/etc/passwd", "/root", "/home", "/var", "/run/systemd"} {
		_, err := os.Stat(p)
		f.try("find "+p, err)
	}
}

// calls makes system calls that reach other parts of the kernel, or other
// programs, harmless where they succeed.
func (f *Found) calls(o Outside) {
	raw := func(what string, nr uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		_, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == 0 {
			f.try(what, nil)
			return
		}
		f.try(what, errno)
	}
	f.try("kill a process of the host", unix.Kill(o.PID, 0))
	f.try("kill everything else", unix.Kill(-1, 0))
	f.try("trace a process", unix.PtraceAttach(o.PID))
	f.try("mount tmpfs", unix.Mount("none", "/proc", "tmpfs", 0, ""))
	f.try("mount proc", unix.Mount("none", "/proc", "proc", 0, ""))
	f.try("unmount /proc", unix.Unmount("/proc", unix.MNT_DETACH))
	f.try("bind /", unix.Mount("/", "/", "", unix.MS_BIND|unix.MS_REC, ""))
	f.try("make / writable", unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	f.try("pivot_root", unix.PivotRoot("/", "/"))
	f.try("chroot", unix.Chroot("/"))
	f.try("new user namespace", unix.Unshare(unix.CLONE_NEWUSER))
	f.try("new mount namespace", unix.Unshare(unix.CLONE_NEWNS))
	raw("new user namespace by clone", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	raw("fsopen", unix.SYS_FSOPEN, uintptr(unsafe.Pointer(&[]byte("tmpfs\x00")[0])))
	raw("open_tree", unix.SYS_OPEN_TREE, ^uintptr(99), uintptr(unsafe.Pointer(&[]byte("/\x00")[0])), unix.OPEN_TREE_CLONE)
	raw("bpf", unix.SYS_BPF)
	raw("perf_event_open", unix.SYS_PERF_EVENT_OPEN)
	raw("userfaultfd", unix.SYS_USERFAULTFD, 1)
	raw("io_uring_setup", unix.SYS_IO_URING_SETUP, 4)
	raw("keyctl", unix.SYS_KEYCTL, 0)
	raw("add_key", unix.SYS_ADD_KEY)
	raw("init_module", unix.SYS_INIT_MODULE)
	raw("kexec_load", unix.SYS_KEXEC_LOAD)
	raw("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT)
	raw("syslog", unix.SYS_SYSLOG, 10)
	raw("personality", unix.SYS_PERSONALITY, 0xffffffff)
	raw("process_vm_readv", unix.SYS_PROCESS_VM_READV, uintptr(o.PID))
	raw("quotactl", unix.SYS_QUOTACTL)
	f.try("set the host's name", unix.Sethostname([]byte("x")))
	f.try("make a block device", unix.Mknod("/run/disk", unix.S_IFBLK|0o600, 8<<8))
	f.try("make a device of memory", unix.Mknod("/run/mem", unix.S_IFCHR|0o600, 1<<8|1))
	f.try("execute itself", unix.Exec("/proc/self/exe", []string{"again"}, nil))
	if fd, err := unix.Open("/proc/self/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		f.try("setns", unix.Setns(fd, 0))
		_ = unix.Close(fd)
	}
	if fd, err := unix.Open("/proc/self/mem", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd) // its own memory is its own
	}
}

func (f *Found) sockets(o Outside) {
	open := func(what string, family, kind, proto int) {
		s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
		if err == nil {
			_ = unix.Close(s)
		}
		f.try(what, err)
	}
	if !o.Inet {
		open("internet socket", unix.AF_INET, unix.SOCK_STREAM, 0)
		open("IPv6 socket", unix.AF_INET6, unix.SOCK_DGRAM, 0)
		open("netlink socket", unix.AF_NETLINK, unix.SOCK_RAW, 0)
	}
	open("raw socket", unix.AF_INET, unix.SOCK_RAW, 1)
	open("packet socket", unix.AF_PACKET, unix.SOCK_RAW, 0)
	open("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	open("crypto socket", unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	open("bluetooth", unix.AF_BLUETOOTH, unix.SOCK_RAW, 1)
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(s, &unix.SockaddrUnix{Name: "@" + o.Abstract})
		_ = unix.Close(s)
	}
	f.try("abstract socket of the host", err)
}

func (f *Found) state() {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "CapEff:\t%x", &f.Capabilities)
		_, _ = fmt.Sscanf(line, "NoNewPrivs:\t%d", &f.NoNewPrivs)
		_, _ = fmt.Sscanf(line, "Seccomp:\t%d", &f.Seccomp)
	}
}
