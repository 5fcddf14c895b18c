package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/vm/images/imagestest"
)

// scriptDeadline is how long a script waits for an event.
const scriptDeadline = 60 * time.Second

// TestScript runs the scripts of testdata/script with the program as it is
// built, real mounts and real processes. A script works in the home directory,
// because /tmp and /var/tmp are not the host's inside galley run. It must leave
// no mount and no owner behind.
//
// Beside testscript's own commands there are
//
//	exits N PROGRAM [ARGS…]        runs a program, which must end with status N
//	poll PROGRAM [ARGS…]           runs a program until it ends with status 0
//	capture NAME REGEXP FILE       sets NAME to what the first group matches
//	unchanged DIR                  fails unless DIR is as it was at the first call
//	owner NAME SESSION             sets NAME to the pid of a session's owner
//	killed CALL ARGS…              runs galley ARGS…, which ends like one that is
//	                               killed before the call, such as "Rename journal"
//	registry NAME                  sets NAME to the address of a registry with sample:1
//	on-image SESSION DIR IMAGE     makes a session with a tree on an image, changed
//	[!] same DIR DIR               compares two trees
//	busybox FILE                   makes a tar with the files of an image
//
// and the conditions [root] and [machine], which can boot a virtual machine.
func TestScript(t *testing.T) {
	dir, bin := scriptBench(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", WorkdirRoot: dir, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error { return setupScript(env, bin) },
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "machine":
				_, qemu := exec.LookPath("qemu-system-x86_64")
				_, busybox := exec.LookPath("busybox")
				return qemu == nil && busybox == nil, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": scriptExits, "poll": pollScript, "capture": scriptCapture,
			"unchanged": scriptUnchanged, "owner": scriptOwner, "killed": scriptKilled,
			"registry": scriptRegistry, "on-image": scriptOnImage, "same": scriptSame,
			"busybox": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: busybox FILE")
				}
				ts.Check(os.Rename(imagestest.Busybox(t), ts.MkAbs(args[0])))
			},
		},
	})
}

// scriptBench makes the directory that scripts work in, and builds galley
// (GALLEY_BIN takes one that is built).
func scriptBench(t *testing.T) (dir, bin string) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = os.MkdirTemp(home, ".galley-script-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		terminals, _ := filepath.Glob(filepath.Join(dir, "*", "tmux-socket"))
		for _, s := range terminals {
			exec.Command("tmux", "-S", s, "kill-server").Run() // of a script that failed
		}
		if err := waitNothingLeft(dir); err != nil {
			t.Error(err)
		}
		exec.Command("chmod", "-R", "u+rwX", dir).Run()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	bin = filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	galley := filepath.Join(bin, "galley")
	cmd := exec.Command("go", append([]string{"build", "-o", galley}, append(raceFlags, ".")...)...)
	if have := os.Getenv("GALLEY_BIN"); have != "" {
		cmd = exec.Command("cp", have, galley)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build galley: %v\n%s", err, out)
	}
	cmd = exec.Command("go", "build", "-o", filepath.Join(bin, "galley-guest"), "../galley-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build galley-guest: %v\n%s", err, out)
	}
	return dir, bin
}

func setupScript(env *testscript.Env, bin string) error {
	home := filepath.Join(env.WorkDir, "home")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	state := filepath.Join(env.WorkDir, "state")
	for k, v := range map[string]string{
		"HOME": home, "GALLEY_HOME": state, "PATH": bin + ":" + searchable(os.Getenv("PATH")) + ":/usr/sbin:/sbin",
		"SHELL": "/bin/sh", "TERM": "dumb", "LC_ALL": "C.UTF-8", "XDG_STATE_HOME": "", "TMPDIR": "/tmp",
		"GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com",
		"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com",
		// Under the race detector every process would sleep a second at its end.
		"GORACE": "atexit_sleep_ms=0",
	} {
		env.Setenv(k, v)
	}
	env.Values[unchangedKey{}] = map[string]string{}
	return nil
}

// searchable is path without the directories that this user cannot look into,
// which make programs that are not there forbidden ones.
func searchable(path string) string {
	var out []string
	for _, dir := range filepath.SplitList(path) {
		if unix.Access(dir, unix.X_OK) == nil {
			out = append(out, dir)
		}
	}
	return strings.Join(out, ":")
}

// waitNothingLeft fails if mounts below dir stay, or owners of stores there;
// what stays is then ended, so that it disturbs nobody.
func waitNothingLeft(dir string) error {
	var mounts []string
	if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
				mounts = append(mounts, f[4])
			}
		}
	}
	for _, m := range mounts {
		if unix.Unmount(m, unix.MNT_DETACH) != nil {
			exec.Command("fusermount3", "-u", "-z", m).Run()
		}
	}
	owners := ownersBelow(dir)
	for deadline := time.Now().Add(scriptDeadline); len(owners) > 0 && time.Now().Before(deadline); owners = ownersBelow(dir) {
		for pid := range owners {
			waitEnd(pid, time.Until(deadline))
		}
	}
	for pid := range owners {
		unix.Kill(pid, unix.SIGKILL)
	}
	if len(mounts)+len(owners) > 0 {
		return fmt.Errorf("left behind: mounts %v, owners %v", mounts, owners)
	}
	return nil
}

// ownersBelow are the owner processes of the stores at or below dir, with what
// they serve: the store's directory and the session's id.
func ownersBelow(dir string) map[int][2]string {
	out := map[int][2]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, _ := os.ReadFile(f)
		args := strings.Split(string(data), "\x00")
		if len(args) > 3 && args[1] == owner.Command && strings.HasPrefix(args[2]+"/", dir+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			out[pid] = [2]string{args[2], args[3]}
		}
	}
	return out
}

// waitEnd waits until a process has ended, for at most patience.
func waitEnd(pid int, patience time.Duration) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it is gone
	}
	defer unix.Close(fd)
	for end := time.Now().Add(patience); ; {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(end)).Milliseconds()))
		if err != unix.EINTR {
			return
		}
	}
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N PROGRAM [ARGS…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

// pollScript waits for what tells nobody: the screen of a terminal, a mount that
// is dead, what another command prints of a session.
func pollScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: poll PROGRAM [ARGS…]")
	}
	deadline := time.Now().Add(scriptDeadline)
	for ts.Exec(args[0], args[1:]...) != nil {
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not within %v", strings.Join(args, " "), scriptDeadline)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func scriptCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: capture NAME REGEXP FILE")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile(args[2]))
	if len(m) < 2 {
		ts.Fatalf("no match for %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}

type unchangedKey struct{}

// scriptUnchanged compares everything of a tree that a program can see, times
// of access apart.
func scriptUnchanged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: unchanged DIR")
	}
	dir := ts.MkAbs(args[0])
	out, err := exec.Command("find", dir, "-printf", `%P %y %m %n %U:%G %s %T@ %C@ %l\n`).Output()
	ts.Check(err)
	sums, err := exec.Command("find", dir, "-type", "f", "-readable", "-exec", "cksum", "{}", "+").Output()
	ts.Check(err)
	now := string(out) + string(sums)
	seen := ts.Value(unchangedKey{}).(map[string]string)
	if old, ok := seen[dir]; ok && old != now {
		ts.Fatalf("%s changed\nfrom:\n%s\nto:\n%s", args[0], old, now)
	}
	seen[dir] = now
}

func scriptKilled(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: killed CALL ARGS…")
	}
	self, err := os.Executable()
	ts.Check(err)
	ts.Setenv(endBefore, args[0])
	defer ts.Setenv(endBefore, "")
	scriptExits(ts, false, append([]string{strconv.Itoa(hostfstest.ExitStatus), self}, args[1:]...))
}

func scriptOwner(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: owner NAME SESSION")
	}
	ts.Check(ts.Exec("galley", "sessions", "--json"))
	id := regexp.MustCompile(`"id": "([^"]+)",\s+"name": "` + regexp.QuoteMeta(args[1]) + `"`).FindStringSubmatch(ts.ReadFile("stdout"))
	if id == nil {
		ts.Fatalf("no session %q", args[1])
	}
	// One that is ending may still be there beside the one that serves.
	best, latest := 0, -1
	for pid, serves := range ownersBelow(ts.Getenv("GALLEY_HOME")) {
		if began := startOf(pid); serves[1] == id[1] && began > latest {
			best, latest = pid, began
		}
	}
	if best == 0 {
		ts.Fatalf("session %q has no owner", args[1])
	}
	ts.Setenv(args[0], strconv.Itoa(best))
}

// startOf is when a process began, in clock ticks since the machine did; -1 if
// it has gone (proc_pid_stat(5), field 22; the name before it is in brackets).
func startOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return -1
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return -1
	}
	began, err := strconv.Atoi(f[19])
	if err != nil {
		return -1
	}
	return began
}
