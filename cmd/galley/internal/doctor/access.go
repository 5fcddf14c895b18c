package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/local"
)

func fuseDevice() Finding {
	f := Finding{Name: "/dev/fuse", Level: OK, Found: "can be opened"}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return f
	}
	f.Level = Fail
	f.Found = err.Error()
	f.Means = "no view can be mounted"
	switch {
	case errors.Is(err, unix.ENOENT):
		f.Fix = "as root: modprobe fuse; in a container, start it with --device /dev/fuse"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		f.Fix = "as root: chmod 0666 /dev/fuse (what udev does everywhere); in a container, allow the device 10:229"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		f.Fix = "as root: modprobe fuse"
	}
	return f
}

// privilegeFinding tells also whether this process may mount without a user
// namespace.
func privilegeFinding() (Finding, bool) {
	admin := hasCapability(unix.CAP_SYS_ADMIN)
	f := Finding{Name: "privileges", Level: OK}
	if admin {
		f.Found = fmt.Sprintf("user %d with CAP_SYS_ADMIN: layers carry trusted.overlay.* and real owners", os.Geteuid())
		return f, true
	}
	f.Found = fmt.Sprintf("user %d without CAP_SYS_ADMIN", os.Geteuid())
	f.Level = Note
	f.Means = "layers carry user.overlay.*; owners and devices that cannot be made are kept in the layer's record"
	return f, false
}

func hasCapability(capability int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// userNamespaces tries to make one, the only test that knows of every rule
// there may be, and when that fails looks for the rule.
func userNamespaces(ctx context.Context, exe string, root bool) Finding {
	f := Finding{Name: "user namespaces", Level: OK, Found: "can be made"}
	err := tryNamespaces(ctx, exe, root)
	if err == nil {
		if root {
			f.Name, f.Found = "namespaces", "mount and process namespaces can be made"
		}
		return f
	}
	f.Level = Fail
	f.Found = err.Error()
	f.Means = "galley run cannot give a command its own view; galley mount works through fusermount3"
	f.Fix = namespaceFix()
	if root {
		f.Name = "namespaces"
		f.Fix = "in a container, start it with CAP_SYS_ADMIN and a seccomp profile that allows clone and unshare"
	}
	return f
}

// tryNamespaces starts a child in new namespaces which only ends.
func tryNamespaces(ctx context.Context, exe string, root bool) error {
	cmd := exec.CommandContext(ctx, exe, "version")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	if !root {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	err := cmd.Run()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// namespaceFix says what forbids user namespaces: a setting that the sandbox
// knows of, or else what is most likely.
func namespaceFix() string {
	for _, f := range local.Features() {
		if f.Required && !f.OK && strings.Contains(f.Name, "namespaces") {
			return f.Detail
		}
	}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return "the kernel was built without CONFIG_USER_NS"
	}
	if seccompFiltered() {
		return "a seccomp filter forbids them, as containers' default profiles do: start the container with a profile that allows clone(CLONE_NEWUSER) and unshare"
	}
	return "a security module or the limit of nested namespaces forbids them; look at the kernel's log (dmesg)"
}

func seccompFiltered() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			return strings.TrimSpace(v) == "2"
		}
	}
	return false
}

// fusermount looks for the set-uid helper that mounts for ordinary users where
// others see it.
func fusermount(path string) Finding {
	f := Finding{Name: "fusermount3", Level: OK}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, "fusermount3")
		info, err := os.Stat(p)
		if err != nil || info.Mode()&0o111 == 0 {
			continue
		}
		f.Found = p
		if info.Mode()&os.ModeSetuid == 0 && os.Geteuid() != 0 {
			f.Level = Note
			f.Means = "galley mount does not work for ordinary users; galley run does"
			f.Fix = "as root: chmod u+s " + p
		}
		return f
	}
	f.Level = Note
	f.Found = "not in $PATH"
	f.Means = "galley mount does not work for ordinary users; galley run does"
	f.Fix = "as root: apt-get install fuse3"
	return f
}

// fewWatches is a number of inotify watches that a project of some size uses
// up: one for each directory that was looked at.
const fewWatches = 65536

func watchesFinding() Finding {
	f := Finding{Name: "inotify watches", Level: OK}
	const file = "/proc/sys/fs/inotify/max_user_watches"
	b, err := os.ReadFile(file)
	if err != nil {
		f.Level, f.Found = Note, err.Error()
		f.Means = "edits on the host show through after a timeout of at most a second"
		return f
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	f.Found = fmt.Sprintf("%d for each user", n)
	if n < fewWatches {
		f.Level = Note
		f.Means = "in larger trees, edits on the host show through after a timeout of at most a second, and names are asked for again as often"
		f.Fix = "as root: sysctl fs.inotify.max_user_watches=524288"
	}
	return f
}
