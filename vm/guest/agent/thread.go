package agent

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, which ends with it: enter changes the
// thread's namespaces first, and nothing else may run on it afterwards.
func onThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		err := enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// newMountNamespace puts the thread into a copy of its mount namespace, whose
// changes stay there, and returns a descriptor of it.
func newMountNamespace() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	f, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("the mount namespace: %w", err)
	}
	return f, nil
}

// enterMountNamespace puts the thread into the namespace ns, at its root.
func enterMountNamespace(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's root: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the guest's mount namespace: %w", err)
	}
	unix.Umask(0o022)
	return nil
}
