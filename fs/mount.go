package fs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// devFuse is the device that FUSE servers read requests from.
const devFuse = "/dev/fuse"

// OpenMount opens /dev/fuse and mounts a FUSE file system at dir with
// mount(2), without fusermount3. The caller needs CAP_SYS_ADMIN in its user
// namespace: root, or a process in a user and mount namespace of its own. The
// kernel takes only a descriptor that was opened in the very user namespace
// that the mount belongs to, so both steps are done here, in the caller's.
//
// The returned descriptor is what [Serve] reads from; it may be sent to a
// process elsewhere. Until somebody serves it, whoever touches dir waits. When
// its last copy is closed the mount is dead, but stays until it is unmounted.
func OpenMount(dir string, o MountOptions) (*os.File, error) {
	dev, err := openDevice()
	if err != nil {
		return nil, err
	}
	err = unix.Mount(o.fsName(), dir, "fuse."+o.subtype(), o.flags(), o.data(int(dev.Fd())))
	if err == nil {
		return dev, nil
	}
	_ = dev.Close()
	err = &fs.PathError{Op: "mount", Path: dir, Err: err}
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w: needs CAP_SYS_ADMIN in this user namespace; mount through fusermount3, or in namespaces of its own", err)
	case errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: the kernel has no FUSE; load its module with: modprobe fuse", err)
	}
	return nil, err
}

// CheckDevice reports whether /dev/fuse is there and this process may open it;
// the error says what to do. It is what a diagnosis asks before any mount.
func CheckDevice() error {
	dev, err := openDevice()
	if err != nil {
		return err
	}
	return dev.Close()
}

func openDevice() (*os.File, error) {
	fd, err := unix.Open(devFuse, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		// Not os.OpenFile: that would make it non-blocking for Go's
		// poller, and a server reads it with blocking calls.
		return os.NewFile(uintptr(fd), devFuse), nil
	}
	err = &fs.PathError{Op: "open", Path: devFuse, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: no FUSE here; on a host: modprobe fuse; in a container: pass the device in (--device /dev/fuse)", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: this user may not use FUSE; as root: chmod 0666 %s", err, devFuse)
	}
	return nil, err
}
