package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is a process that uses a mount, or a mount below it.
type User struct {
	PID     int    // 0 for a mount
	Command string // its short name, or the directory of the mount below
	How     string // "working directory", "open file a/b", "mapped file a/b", …
}

func (u User) String() string {
	if u.PID == 0 {
		return fmt.Sprintf("%q is mounted below it", u.Command)
	}
	// %q: a process chooses its own name and its files' names.
	return fmt.Sprintf("process %d %q (%s)", u.PID, u.Command, u.How)
}

// usersOf says who uses the topmost mount at dir. It asks only /proc, never
// the mount: readlink there prints the kernel's own name of a file, and the
// mount's number and device tell apart what else has such a name. Processes
// that this one may not look into are left out.
func usersOf(dir string) []User {
	top, err := mountAt(dir)
	if err != nil {
		return nil
	}
	users := mountsBelow(top)
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return users
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if how := howUses(filepath.Join("/proc", p.Name()), top); how != "" {
			users = append(users, User{PID: pid, Command: commandOf(pid), How: how})
		}
	}
	return users
}

func mountsBelow(top infoLine) []User {
	data, err := os.ReadFile(mountInfo)
	if err != nil {
		return nil
	}
	var out []User
	for line := range bytes.Lines(data) {
		if m, ok := parseMountInfo(string(line)); ok && m.parent == top.ID {
			out = append(out, User{Command: m.Dir})
		}
	}
	return out
}

func commandOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(b), "\n")
}

// howUses is the first way in which the process uses the mount, "" if none is
// found.
func howUses(proc string, top infoLine) string {
	for _, l := range []struct{ link, how string }{{"cwd", "working directory"}, {"root", "root directory"}, {"exe", "program"}} {
		if rel, ok := beneath(proc+"/"+l.link, top.Dir); ok && sameNamespace(proc) {
			return l.how + quotedRel(rel)
		}
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if !onMount(proc+"/fdinfo/"+fd.Name(), top.ID) {
			continue
		}
		rel, _ := beneath(proc+"/fd/"+fd.Name(), top.Dir)
		return "open file" + quotedRel(rel)
	}
	return mappedFile(proc+"/maps", top)
}

func quotedRel(rel string) string {
	if rel == "" {
		return ""
	}
	return fmt.Sprintf(" %q", rel)
}

// beneath reads the magic link and cuts dir off its target.
func beneath(link, dir string) (string, bool) {
	target, err := os.Readlink(link)
	if err != nil {
		return "", false
	}
	if target == dir {
		return "", true
	}
	return strings.CutPrefix(target, strings.TrimSuffix(dir, "/")+"/")
}

// sameNamespace: a copy of the mount in another mount namespace keeps nobody
// busy here.
func sameNamespace(proc string) bool {
	var theirs, ours unix.Stat_t
	if unix.Stat(proc+"/ns/mnt", &theirs) != nil || unix.Stat("/proc/self/ns/mnt", &ours) != nil {
		return false
	}
	return theirs.Ino == ours.Ino
}

// onMount: fdinfo names the mount that a descriptor was opened on.
func onMount(fdinfo string, id int) bool {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			return err == nil && n == id
		}
	}
	return false
}

// mappedFile looks for a mapping of the mount's device; proc_pid_maps(5) has
// device numbers in hexadecimal in the fourth column.
func mappedFile(maps string, top infoLine) string {
	b, err := os.ReadFile(maps)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || !sameDev(f[3], top.dev) {
			continue
		}
		rel := strings.TrimPrefix(f[5], strings.TrimSuffix(top.Dir, "/")+"/")
		return "mapped file" + quotedRel(rel)
	}
	return ""
}

// sameDev compares a major:minor in hexadecimal with one in decimal.
func sameDev(hex, dec string) bool {
	hmaj, hmin, _ := strings.Cut(hex, ":")
	dmaj, dmin, _ := strings.Cut(dec, ":")
	a, err1 := strconv.ParseUint(hmaj, 16, 32)
	b, err2 := strconv.ParseUint(hmin, 16, 32)
	c, err3 := strconv.ParseUint(dmaj, 10, 32)
	d, err4 := strconv.ParseUint(dmin, 10, 32)
	return err1 == nil && err2 == nil && err3 == nil && err4 == nil && a == c && b == d
}
