package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
	"github.com/galleyfs/galley/vm/guest"
)

// world is what the guest's programs see, and where it comes from.
type world struct {
	ns       *os.File // the mount namespace of programs
	export   string   // where the export stands in the agent's own
	hostname string
	cgroups  *cgroups

	mu     sync.Mutex
	mounts map[string]bool // what Mount placed, by path
}

// do runs f on a thread in the guest's mount namespace.
func (w *world) do(f func() error) error {
	return onThread(func() error { return enterMountNamespace(w.ns) }, f)
}

// exportDir is where the export is mounted.
const exportDir = "/export"

// makeWorld does what [guest.Setup] says.
func makeWorld(s guest.Setup, o Options) (*world, error) {
	w := &world{export: s.Export, hostname: s.Hostname, mounts: map[string]bool{}}
	if !s.Clock.IsZero() {
		if err := setClock(s.Clock); err != nil {
			return nil, err
		}
	}
	if w.hostname != "" {
		if err := unix.Sethostname([]byte(w.hostname)); err != nil {
			return nil, fmt.Errorf("set the host name %q: %w", w.hostname, err)
		}
	}
	if err := configureNetwork(s.Network); err != nil {
		return nil, err
	}
	if s.Tag != "" {
		w.export = exportDir
		if err := mountExport(s.Tag); err != nil {
			return nil, err
		}
	}
	var err error
	if w.cgroups, err = newCgroups(s.MaxProcesses, s.Reserve); err != nil {
		return nil, err
	}
	// The threads that make it and enter it later are different ones.
	err = onThread(func() (err error) {
		w.ns, err = newMountNamespace()
		return err
	}, func() error { return w.build(s, o) })
	if err != nil {
		w.cgroups.end()
		return nil, err
	}
	return w, nil
}

// mountExport mounts the host's export.
func mountExport(tag string) error {
	if err := os.MkdirAll(exportDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount(tag, exportDir, "virtiofs", 0, "")
	switch {
	case errors.Is(err, unix.ENODEV):
		return guest.Failuref(guest.Unsupported, "the guest's kernel has no virtio-fs (CONFIG_VIRTIO_FS, or its module): %w", err)
	case errors.Is(err, unix.EINVAL):
		return guest.Failuref(guest.Unsupported, "the machine has no virtio-fs device with the tag %q: %w", tag, err)
	case err != nil:
		return fmt.Errorf("mount the export %q: %w", tag, err)
	}
	return nil
}

// build makes the guest's tree. The calling thread is in its namespace.
func (w *world) build(s guest.Setup, o Options) error {
	unix.Umask(0)
	if err := checkName(s.Root); err != nil {
		return err
	}
	root, err := cloneTree(path.Join(w.export, s.Root))
	if err != nil {
		return err
	}
	work := -1
	if s.Workspace != "" {
		if err := errors.Join(checkName(s.Workspace), checkPlace(s.Workdir)); err != nil {
			return err
		}
		if work, err = cloneTree(path.Join(w.export, s.Workspace)); err != nil {
			return err
		}
	}
	dev, err := newDev(o.Devices)
	if err != nil {
		return err
	}
	if err := enterRoot(root); err != nil {
		return err
	}
	if err := w.standard(s, dev); err != nil {
		return err
	}
	if work >= 0 {
		return mountAt(work, s.Workdir)
	}
	return nil
}

// checkName refuses what is no name of a directory in the export.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is no name of a directory of the export: %w", name, unix.EINVAL)
	}
	return nil
}

// enterRoot makes the detached mount fd the root of the thread's namespace.
func enterRoot(fd int) error {
	err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err == nil {
		err = unix.Fchdir(fd)
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err != nil {
		return fmt.Errorf("make the guest's root: %w", err)
	}
	return unix.Close(fd)
}

// standard mounts what every guest has.
func (w *world) standard(s guest.Setup, dev int) error {
	const safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	tmp := []fsmount.Option{{"mode", "1777"}}
	if s.TmpSize > 0 {
		tmp = append(tmp, fsmount.Option{"size", fmt.Sprint(s.TmpSize)})
	}
	if err := newMountAt("/proc", "proc", safe|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	if err := newMountAt("/sys", "sysfs", safe|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	if err := newMountAt("/sys/fs/cgroup", "cgroup2", safe|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	if err := mountAt(dev, "/dev"); err != nil {
		return err
	}
	if err := newMountAt("/dev/pts", "devpts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, fsmount.Option{"ptmxmode", "0666"}, fsmount.Option{"mode", "0620"}, fsmount.Option{"gid", "5"}); err != nil {
		return err
	}
	if err := newMountAt("/dev/shm", "tmpfs", safe, fsmount.Option{"mode", "1777"}); err != nil {
		return err
	}
	if err := newMountAt("/tmp", "tmpfs", safe, tmp...); err != nil {
		return err
	}
	if err := newMountAt("/run", "tmpfs", safe, fsmount.Option{"mode", "0755"}); err != nil {
		return err
	}
	return identity(s)
}

// Mount is [guest.Handler.Mount].
func (a *Agent) Mount(_ context.Context, m guest.Mount) error {
	w, err := a.inside()
	if err != nil {
		return err
	}
	if err := errors.Join(checkName(m.Name), checkPlace(m.Path)); err != nil {
		return guest.FailureOf(guest.Failed, err)
	}
	fd, err := cloneTree(path.Join(w.export, m.Name))
	if err != nil {
		return err
	}
	if m.ReadOnly {
		err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("make the mount read-only: %w", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	err = w.do(func() error {
		target, err := freePlace(m.Path)
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		return fsmount.Place(fd, target)
	})
	if errors.Is(err, unix.EEXIST) {
		return guest.FailureOf(guest.Exists, err)
	}
	if err == nil {
		w.mounts[m.Path] = true
	}
	return err
}

// Unmount is [guest.Handler.Unmount].
func (a *Agent) Unmount(_ context.Context, p string) error {
	w, err := a.inside()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mounts[p] {
		return guest.Failuref(guest.Failed, "nothing was mounted at %s: %w", p, unix.EINVAL)
	}
	err = w.do(func() error { return unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	if err != nil {
		return fmt.Errorf("unmount %s: %w", p, err)
	}
	delete(w.mounts, p)
	return nil
}
