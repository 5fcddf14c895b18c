package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// busyRetry is the first pause between two tries to unmount what is busy; the
// kernel tells nobody when the last user has gone. It doubles up to busyRetryMax.
const (
	busyRetry    = 2 * time.Millisecond
	busyRetryMax = 100 * time.Millisecond
)

// BusyError is an unmount that failed because something still uses the mount.
type BusyError struct {
	Dir   string
	Users []User // who; processes of other users cannot be looked into
}

func (e *BusyError) Error() string {
	if len(e.Users) == 0 {
		return fmt.Sprintf("%s is busy, and no process this user may look into uses it; try as root, or unmount lazily", e.Dir)
	}
	var who []string
	for _, u := range e.Users {
		who = append(who, u.String())
	}
	return fmt.Sprintf("%s is busy: %s; end that, or unmount lazily", e.Dir, strings.Join(who, "; "))
}

// Unwrap makes errors.Is(err, unix.EBUSY) true.
func (e *BusyError) Unwrap() error { return unix.EBUSY }

// Unmount takes down the topmost mount at dir, which must be a Galley one. As
// long as something uses it, it tries again until ctx ends, and then fails
// with a [BusyError] that says who. A context that is already done tries once.
// The mount's server ends by itself afterwards.
func Unmount(ctx context.Context, dir string) error {
	dir, err := galleyMountAt(dir)
	if err != nil {
		return err
	}
	pause := busyRetry
	for {
		err := unmountOnce(context.WithoutCancel(ctx), dir, 0)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return &BusyError{Dir: dir, Users: usersOf(dir)}
		case <-time.After(pause):
		}
		pause = min(2*pause, busyRetryMax)
	}
}

// UnmountLazy takes the mount at dir out of the tree of names at once; it ends
// when its last user has gone. Until then its server goes on.
func UnmountLazy(ctx context.Context, dir string) error {
	dir, err := galleyMountAt(dir)
	if err != nil {
		return err
	}
	return detach(ctx, dir)
}

// galleyMountAt makes dir absolute without touching what is mounted there,
// which may be dead, and refuses what is not a Galley mount.
func galleyMountAt(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	abs = filepath.Join(parent, filepath.Base(abs))
	m, err := mountAt(abs)
	if err != nil {
		// dir itself may be a symbolic link to the mount point.
		real, lerr := filepath.EvalSymlinks(abs)
		if lerr != nil || real == abs {
			return "", err
		}
		if m, err = mountAt(real); err != nil {
			return "", err
		}
		abs = real
	}
	if m.fstype != "fuse" && !strings.HasPrefix(m.fstype, "fuse.") {
		return "", fmt.Errorf("%s is a mount of type %s, not one of Galley's", abs, m.fstype)
	}
	return abs, nil
}

// detach is a lazy unmount of dir, which is known to be ours.
func detach(ctx context.Context, dir string) error {
	return unmountOnce(ctx, dir, unix.MNT_DETACH)
}

// unmountOnce tries umount2(2), and fusermount3 where this process may not.
func unmountOnce(ctx context.Context, dir string, flags int) error {
	err := unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW)
	if err == nil {
		return nil
	}
	if err != unix.EPERM {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	bin, ferr := findFusermount()
	if ferr != nil {
		return fmt.Errorf("unmount %s: %w", dir, ferr)
	}
	args := []string{"-u", "--", dir}
	if flags&unix.MNT_DETACH != 0 {
		args[0] = "-uz"
	}
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stderr = &said
	if rerr := cmd.Run(); rerr != nil {
		if strings.Contains(said.String(), "busy") {
			return &os.PathError{Op: "unmount", Path: dir, Err: unix.EBUSY}
		}
		return fusermountError("unmount", dir, said.String(), rerr)
	}
	return nil
}
