package jail

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ownersCount is how many ids the files of a guest have: 0 to 65535, as images
// use them.
const ownersCount = 65536

// highestOwners is where the ranges begin that root gives away, and
// ownersRanges how many there are: above what distributions and systemd hand
// out, below 2^31, which some tools take for a sign.
const (
	highestOwners = 0x70000000
	ownersRanges  = 2048
)

// ownerCapabilities are what making files of many owners takes. What is done
// with them is done in the program's own user namespace, and so to nothing but
// what is mounted in it.
const ownerCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP

// ownerBuilderCapabilities are what making the root of such a program takes
// besides; execve(2) would drop them unless they were ambient.
var ownerBuilderCapabilities = []uintptr{
	unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_MKNOD, unix.CAP_SETFCAP,
}

// becomeOwner makes this thread root in its user namespace, whose ids it has
// been given meanwhile.
func becomeOwner() error {
	if err := setgroups(nil); err != nil && !errors.Is(err, unix.EPERM) { // one id: setgroups is denied
		return fmt.Errorf("set groups: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("become root of the machine's own ids: group: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
		return fmt.Errorf("become root of the machine's own ids: user: %w", errno)
	}
	return nil
}

// mapOwners gives the process pid, which has none, the ids of its user
// namespace.
func mapOwners(pid int) error {
	if os.Geteuid() == 0 {
		uid, ok := ownRange("/proc/self/uid_map")
		gid, ok2 := ownRange("/proc/self/gid_map")
		if !ok || !ok2 {
			return mapOne(pid) // a container's root that has few ids itself
		}
		return errors.Join(
			writeMap(pid, "uid_map", fmt.Sprintf("0 %d %d\n", uid, ownersCount)),
			writeMap(pid, "gid_map", fmt.Sprintf("0 %d %d\n", gid, ownersCount)))
	}
	if SubordinateIDs() != nil {
		return mapOne(pid)
	}
	return mapSubordinate(pid)
}

// ownRange picks ids for this supervisor's program among those that this
// process knows.
func ownRange(mapFile string) (int, bool) {
	b, err := os.ReadFile(mapFile)
	if err != nil {
		return 0, false
	}
	return rangeIn(string(b), os.Getpid())
}

// rangeIn picks ownersCount ids of an id map, none of the first so many, which
// people and services have; other machines get others where there are enough.
func rangeIn(idMap string, seed int) (int, bool) {
	best := -1
	for line := range strings.Lines(idMap) {
		var inside, outside, count int
		if n, _ := fmt.Sscan(line, &inside, &outside, &count); n != 3 {
			continue
		}
		own := highestOwners + seed%ownersRanges*ownersCount
		if own >= inside && own+ownersCount <= inside+count {
			return own, true
		}
		if start := inside + count - ownersCount; start >= inside && start >= ownersCount {
			best = max(best, start)
		}
	}
	return best, best >= 0
}

// mapOne maps root inside to the user outside, which needs no help.
func mapOne(pid int) error {
	if err := writeMap(pid, "setgroups", "deny"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(
		writeMap(pid, "uid_map", fmt.Sprintf("0 %d 1\n", os.Geteuid())),
		writeMap(pid, "gid_map", fmt.Sprintf("0 %d 1\n", os.Getegid())))
}

func writeMap(pid int, file, content string) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), []byte(content), 0)
}

// SubordinateIDs says why this user cannot give a program ids of its own; nil
// if that is possible.
func SubordinateIDs() error {
	if os.Geteuid() == 0 {
		return nil
	}
	_, err := subordinateIDs()
	return err
}

// idTool is a program that maps subordinate ids, and what it may map.
type idTool struct {
	tool             string
	id, start, count int
}

func subordinateIDs() ([]idTool, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	out := []idTool{{tool: "newuidmap", id: os.Geteuid()}, {tool: "newgidmap", id: os.Getegid()}}
	for i, file := range []string{"/etc/subuid", "/etc/subgid"} {
		t := &out[i]
		path := findTool(t.tool)
		if path == "" {
			return nil, fmt.Errorf("%s is not installed (Debian, Ubuntu: package uidmap; Fedora, Arch: shadow-utils, shadow)", t.tool)
		}
		t.tool = path
		if t.start, t.count, err = subordinate(file, me.Username, me.Uid); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// findTool finds a program of the system, without an environment.
func findTool(name string) string {
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin", "/run/wrappers/bin"} {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path
		}
	}
	return ""
}

// mapSubordinate has newuidmap(1) and newgidmap(1) map the user and what is
// subordinate to it.
func mapSubordinate(pid int) error {
	tools, err := subordinateIDs()
	if err != nil {
		return err
	}
	for _, t := range tools {
		out, err := exec.Command(t.tool, strconv.Itoa(pid), "0", strconv.Itoa(t.id), "1",
			"1", strconv.Itoa(t.start), strconv.Itoa(min(t.count, ownersCount-1))).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", t.tool, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// subordinate is the largest range of ids that file, in the form of subuid(5),
// gives to a user.
func subordinate(file, name, uid string) (start, count int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		part := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(part) != 3 || part[0] != name && part[0] != uid {
			continue
		}
		s, err1 := strconv.Atoi(part[1])
		n, err2 := strconv.Atoi(part[2])
		if err1 == nil && err2 == nil && n > count {
			start, count = s, n
		}
	}
	if count == 0 {
		return 0, 0, fmt.Errorf("%s gives %s no ids (as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s)", file, name, name)
	}
	return start, count, nil
}
