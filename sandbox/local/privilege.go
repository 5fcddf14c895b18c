package local

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptCapabilities are what root keeps inside: what tar, npm, make install and
// package managers need on the view, and nothing that reaches the kernel, a
// device, another process or a file by its handle. DAC_READ_SEARCH is not
// among them for the sake of open_by_handle_at(2), which opens any file of a
// file system, hidden or not.
var keptCapabilities = []uint{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT,
}

// supervisorCapabilities are what the supervisor of an ordinary user needs over
// its namespaces. Its execve would drop them unless they are ambient, because
// its user is not root there.
var supervisorCapabilities = []uintptr{
	unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER,
}

// restrictThread takes from the calling thread, and from all it will start,
// what the command must not have. The goroutine must be locked to its thread
// and end with it. The supervisor's other threads keep their rights.
func restrictThread(s *setup) error {
	var keep []uint
	if unix.Geteuid() == 0 {
		keep = keptCapabilities
	}
	if err := setCapabilities(keep); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := scopeThread(s.AllowAbstract); err != nil {
		return err
	}
	return installFilter()
}

// setCapabilities makes keep the thread's whole capability state: bounding,
// permitted and effective set; nothing is inheritable or ambient.
func setCapabilities(keep []uint) error {
	var set uint64
	for _, c := range keep {
		set |= 1 << c
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	for c := uint(0); c < 64; c++ {
		if set&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the last one that this kernel has
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	current, err := permittedCapabilities()
	if err != nil {
		return err
	}
	set &= current // a container's root may lack some of them
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(set), Permitted: uint32(set)},
		{Effective: uint32(set >> 32), Permitted: uint32(set >> 32)},
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

func permittedCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// canMount reports whether this process has CAP_SYS_ADMIN, so that it needs no
// user namespace.
func canMount() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// landlockScopeABI is the Landlock version from which abstract sockets and
// signals can be kept within the domain (Linux 6.12).
const landlockScopeABI = 6

// landlockABI is the version of Landlock that the kernel has, 0 for none.
func landlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// scopeThread puts the thread into a Landlock domain whose members reach
// abstract sockets and send signals only among themselves. Where the kernel
// cannot, nothing is done; Features says so.
func scopeThread(allowAbstract bool) error {
	if landlockABI() < landlockScopeABI {
		return nil
	}
	attr := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_SIGNAL}
	if !allowAbstract {
		attr.Scoped |= unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a Landlock ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("enter the Landlock domain: %w", errno)
	}
	return nil
}
