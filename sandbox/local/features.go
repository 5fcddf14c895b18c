package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Feature is one thing that the sandbox takes from the kernel or the host.
type Feature struct {
	Name     string // short, such as "user namespaces"
	OK       bool
	Required bool   // without it Run fails
	Detail   string // what was found, or what is missing and what to do
}

// Features reports, for `galley doctor`, what this host offers to the sandbox.
// It looks and tries nothing that would change the host.
func Features() []Feature {
	return []Feature{namespaceFeature(), mountFeature(), fuseFeature(), abstractFeature()}
}

func namespaceFeature() Feature {
	f := Feature{Name: "namespaces", OK: true, Required: true}
	if canMount() {
		f.Detail = "privileged: no user namespace is needed"
		return f
	}
	if why := forbiddenNamespaces(); why != "" {
		f.OK, f.Detail = false, why
		return f
	}
	f.Detail = "user namespaces are allowed"
	return f
}

func mountFeature() Feature {
	f := Feature{Name: "mount_setattr (Linux 5.12)", OK: true, Required: true, Detail: "the host can be made read-only as a whole"}
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	if errors.Is(err, unix.ENOSYS) {
		f.OK, f.Detail = false, "this kernel does not have it; Galley needs Linux 6.1 or later"
	}
	return f
}

func fuseFeature() Feature {
	f := Feature{Name: "/dev/fuse", OK: true, Required: true, Detail: "can be opened"}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.OK, f.Detail = false, explainDevFuse(err).Error()
		return f
	}
	_ = unix.Close(fd)
	return f
}

func abstractFeature() Feature {
	f := Feature{Name: "hiding of abstract sockets (Landlock, Linux 6.12)"}
	abi := landlockABI()
	f.OK = abi >= landlockScopeABI
	switch {
	case f.OK:
		f.Detail = fmt.Sprintf("Landlock ABI %d", abi)
	case abi == 0:
		f.Detail = "the kernel has no Landlock, or it is not among the lsm= of its command line; the host's abstract sockets (X11, some D-Bus) stay within a sandbox's reach"
	default:
		f.Detail = fmt.Sprintf("Landlock ABI %d, needed is %d; the host's abstract sockets (X11, some D-Bus) stay within a sandbox's reach", abi, landlockScopeABI)
	}
	return f
}

func explainDevFuse(err error) error {
	err = &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: no FUSE here; on a host, as root: modprobe fuse; in a container: pass the device in (--device /dev/fuse)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: this user may not use FUSE; as root: chmod 0666 /dev/fuse", err)
	}
	return err
}

// namespaceLimits are the settings that forbid user namespaces to ordinary
// users, with the value that does.
var namespaceLimits = []struct{ file, forbids, why string }{
	{"/proc/sys/kernel/unprivileged_userns_clone", "0",
		"kernel.unprivileged_userns_clone is 0, which forbids user namespaces to ordinary users; as root: sysctl -w kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/user/max_user_namespaces", "0",
		"user.max_user_namespaces is 0, which forbids user namespaces; as root: sysctl -w user.max_user_namespaces=15000"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
		"AppArmor takes the rights from ordinary users' user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1); allow Galley by an AppArmor profile with the rule \"userns,\", or all, as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
}

// forbiddenNamespaces says which setting forbids user namespaces to ordinary
// users and how to allow them, or "".
func forbiddenNamespaces() string {
	for _, l := range namespaceLimits {
		data, err := os.ReadFile(l.file)
		if err == nil && strings.TrimSpace(string(data)) == l.forbids {
			return l.why
		}
	}
	return ""
}

// explainNamespaces adds to err, a failure to make the namespaces or to mount
// in them, what forbids it and how to allow it.
func explainNamespaces(err error, userNamespace bool) error {
	refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS)
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w; Galley needs Linux 6.1 or later", err)
	case errors.Is(err, unix.EINVAL) && userNamespace && !exists("/proc/self/ns/user"):
		return fmt.Errorf("%w; this kernel has no user namespaces: run Galley as root", err)
	case !refused || !userNamespace:
		return err
	}
	if why := forbiddenNamespaces(); why != "" {
		return fmt.Errorf("%w; %s", err, why)
	}
	return fmt.Errorf("%w; in a container, its seccomp or AppArmor profile may forbid user namespaces and mounts: run it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or run Galley as root with CAP_SYS_ADMIN", err)
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
