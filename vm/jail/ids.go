package jail

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are those that the program has of its own, with one for the
// network unless it is to have the caller's.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// builderCapabilities are what making the root needs of an ordinary user, who
// would lose them with execve(2) unless they are ambient.
var builderCapabilities = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP}

// userInside is the id that an ordinary user has in the new user namespace.
const userInside = 1

// attributes are those of the program's process. Where an ordinary user starts
// it, that user is all that its user namespace knows. Where root does, the
// namespace knows all ids, so that the host's files can be found as root finds
// them, and the program then becomes one that nobody else has.
//
// A program that is to have owners begins with no ids at all: they are given to
// it when it runs, because that may take another program (owners.go).
func attributes(w work) (*syscall.SysProcAttr, error) {
	a := &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: unix.SIGKILL}
	if !w.HostNetwork {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	if w.Owners {
		a.AmbientCaps = ownerBuilderCapabilities
		return a, nil
	}
	if !w.Root {
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: userInside, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: userInside, HostID: os.Getegid(), Size: 1}}
		a.AmbientCaps = builderCapabilities
		return a, nil
	}
	var err error
	if a.UidMappings, err = allIDs("/proc/self/uid_map"); err != nil {
		return nil, err
	}
	a.GidMappings, err = allIDs("/proc/self/gid_map")
	a.GidMappingsEnableSetgroups = setgroupsAllowed()
	return a, err
}

// setgroupsAllowed is false for root of a user namespace that an ordinary user
// made, who cannot give up groups, nor have any.
func setgroupsAllowed() bool {
	b, err := os.ReadFile("/proc/self/setgroups")
	return err != nil || strings.TrimSpace(string(b)) != "deny"
}

// allIDs maps every id that this process knows to itself.
func allIDs(mapFile string) ([]syscall.SysProcIDMap, error) {
	b, err := os.ReadFile(mapFile)
	if err != nil {
		return nil, err
	}
	var out []syscall.SysProcIDMap
	for line := range strings.Lines(string(b)) {
		var inside, outside, size int
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err != nil {
			return nil, fmt.Errorf("%s: %w", mapFile, err)
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: inside, HostID: inside, Size: size})
	}
	return out, nil
}

const (
	// ownIDs is where the ids of machines begin, outside all ranges that
	// distributions and systemd give away; processes of different machines
	// have different ones.
	ownIDs   = 2_000_000_000
	ownCount = 1 << 22
	// nobody is the last resort, in a container that has no more ids.
	nobody = 65534
)

// unusedID is an id for this supervisor's program, among those that are known.
func unusedID(known []syscall.SysProcIDMap) int {
	id, last := ownIDs+os.Getpid()%ownCount, 0
	for _, m := range known {
		if id >= m.ContainerID && id < m.ContainerID+m.Size {
			return id
		}
		last = max(last, m.ContainerID+m.Size-1)
	}
	return min(last, nobody)
}

// whyNoNamespaces names what most likely forbids them.
func whyNoNamespaces(err error) string {
	for _, l := range []struct{ file, forbids, why string }{
		{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0; as root: sysctl -w user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0; as root: sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts user namespaces; as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		b, rerr := os.ReadFile(l.file)
		if rerr == nil && strings.TrimSpace(string(b)) == l.forbids && (os.Geteuid() != 0 || strings.HasPrefix(l.file, "/proc/sys/user")) {
			return "; " + l.why
		}
	}
	if errors.Is(err, unix.EPERM) {
		return "; in a container, its seccomp profile may forbid user namespaces"
	}
	return ""
}
