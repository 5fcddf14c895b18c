// Package fsmount makes mounts and puts them in their place by descriptor, with
// the calls of Linux 5.2: for the sandbox on the host, the jail of a machine and
// the agent in a guest. Where a place is, and by what path it may be reached, is
// theirs to say.
package fsmount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Option is one key and value of fsconfig(2); a value of "" is a flag.
type Option [2]string

// New makes a mount of type fstype that stands nowhere yet.
func New(fstype string, attrs int, options ...Option) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open file system type %s: %w", fstype, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		key, value := o[0], o[1]
		if value == "" {
			err = unix.FsconfigSetFlag(fs, key)
		} else {
			err = unix.FsconfigSetString(fs, key, value)
		}
		if err != nil {
			return -1, fmt.Errorf("%s: option %s=%s: %w%s", fstype, key, value, err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make a %s mount: %w%s", fstype, err, kernelLog(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("make a %s mount: %w", fstype, err)
	}
	return fd, nil
}

// kernelLog is what the kernel says of the last failure on the fsopen
// descriptor fs, ready to be put behind an error.
func kernelLog(fs int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fs, buf)
	if err != nil || n < 2 {
		return ""
	}
	// Each line starts with its level, as in "e overlay: ...".
	return " (" + strings.TrimSpace(string(buf[2:n])) + ")"
}

// Place puts the detached mount fd at target, a descriptor, and closes both.
func Place(fd, target int) error {
	err := unix.MoveMount(fd, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	_, _ = unix.Close(fd), unix.Close(target)
	if err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// CheckFree refuses what a further mount must not cover: anything but a
// directory, and the root of a mount. The descriptor target is open on p.
func CheckFree(target int, p string) error {
	var st unix.Statx_t
	err := unix.Statx(target, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory: %w", p, unix.ENOTDIR)
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return fmt.Errorf("something is mounted at %s already: %w", p, unix.EEXIST)
	}
	return nil
}
