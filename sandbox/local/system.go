package local

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// deviceNodes are the devices of the host that are harmless to anybody.
var deviceNodes = []string{"null", "zero", "full", "random", "urandom", "tty"}

// deviceLinks are the symbolic links that programs expect in /dev.
var deviceLinks = []struct{ name, target string }{
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
}

// readOnlyProc is what of /proc changes the host, not the process.
var readOnlyProc = []string{"sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr",
	"driver", "dynamic_debug", "tty", "latency_stats", "pressure"}

// maskedProc is what of /proc tells of the host's memory, keys and timers.
var maskedProc = []string{"kcore", "keys", "key-users", "timer_list", "sched_debug", "kallsyms",
	"kpagecount", "kpageflags", "kpagecgroup", "vmallocinfo", "slabinfo"}

// maskedSys is what of /sys reaches into the kernel, other processes or Galley.
var maskedSys = []string{"fs/fuse/connections", "kernel/debug", "kernel/tracing", "kernel/security",
	"fs/bpf", "fs/pstore", "firmware/efi/efivars", "devices/virtual/powercap"}

// gatherDevices copies the host's device nodes, and the terminal's own, while
// the host's /dev is in sight. They are read-only, which says nothing about
// the device but keeps root from changing the node's mode on the host.
func (b *builder) gatherDevices() error {
	b.nodes = make(map[string]int)
	for _, name := range deviceNodes {
		fd, err := cloneTree(unix.AT_FDCWD, "/dev/"+name, false)
		if errors.Is(err, unix.ENOENT) {
			continue // containers leave some out
		}
		if err != nil {
			return err
		}
		b.nodes["/dev/"+name] = fd
	}
	if n := b.setup.TerminalOnStdio; n >= 0 {
		// The private /dev/pts does not have the caller's terminal, so
		// that ttyname(3) finds it as /dev/console, as in a container.
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n))
		if err != nil {
			return err
		}
		if fd, err := cloneTree(unix.AT_FDCWD, name, false); err == nil {
			b.nodes["/dev/console"] = fd
		}
	}
	for name, fd := range b.nodes {
		if err := restrictMount(fd, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// placeSystem makes /proc, /sys and /dev.
func (b *builder) placeSystem() error {
	if err := b.placeProc(); err != nil {
		return err
	}
	if err := b.root.mountAt(b.sys, "/sys"); err != nil {
		return err
	}
	for _, name := range maskedSys {
		if err := b.mask("/sys/" + name); err != nil {
			return err
		}
	}
	return b.placeDev()
}

func (b *builder) placeProc() error {
	proc, err := newProc()
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: parts of this host's /proc are covered, as in a container; start the container with an uncovered one (--security-opt systempaths=unconfined)", err)
	}
	if err != nil {
		return err
	}
	if err := b.showProc(proc); err != nil {
		return err
	}
	for _, name := range maskedProc {
		if err := b.mask("/proc/" + name); err != nil {
			return err
		}
	}
	return nil
}

// newProc makes a /proc of the pid namespace, which showProc puts in its place.
func newProc() (int, error) {
	return fsmount.New("proc", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, fsmount.Option{"source", "proc"})
}

func (b *builder) showProc(proc int) error {
	if err := b.root.mountAt(proc, "/proc"); err != nil {
		return err
	}
	for _, name := range readOnlyProc {
		if err := b.reMountReadOnly("/proc/" + name); err != nil {
			return err
		}
	}
	return nil
}

// reMountReadOnly mounts p over itself, read-only. What is not there is passed
// over: kernels differ in what they have.
func (b *builder) reMountReadOnly(p string) error {
	target, err := b.root.lookup(p)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := cloneTree(b.root.fd, relative(p), true)
	if err != nil {
		_ = unix.Close(target)
		return err
	}
	if err := restrictMount(fd, hostAttrs); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return fsmount.Place(fd, target)
}

func (b *builder) placeDev() error {
	dev, err := newTmpfs("0755")
	if err != nil {
		return err
	}
	if err := b.root.mountAt(dev, "/dev"); err != nil {
		return err
	}
	if dev, err = b.root.lookup("/dev"); err != nil {
		return err
	}
	defer unix.Close(dev)
	for name, fd := range b.nodes {
		if err := b.root.mountFileAt(fd, name); err != nil {
			return err
		}
	}
	for _, l := range deviceLinks {
		if err := unix.Symlinkat(l.target, dev, l.name); err != nil {
			return &os.PathError{Op: "symlink", Path: "/dev/" + l.name, Err: err}
		}
	}
	pts, err := fsmount.New("devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC,
		fsmount.Option{"source", "devpts"}, fsmount.Option{"newinstance", ""}, fsmount.Option{"ptmxmode", "0666"}, fsmount.Option{"mode", "0620"})
	if err != nil {
		return err
	}
	if err := b.root.mountAt(pts, "/dev/pts"); err != nil {
		return err
	}
	if err := b.root.tmpfsAt("/dev/shm", "01777"); err != nil {
		return err
	}
	if err := unix.MountSetattr(dev, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make /dev read-only: %w", err)
	}
	return nil
}
