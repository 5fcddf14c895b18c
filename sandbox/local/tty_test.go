package local_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// with runs the given command with the spec in the file name: what the shell
// script `run` of a terminal test calls, which in the plain half is nothing
// but exec "$@".
func with(name string, command []string) int {
	data, err := os.ReadFile(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	var s spec
	if err := json.Unmarshal(data, &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	s.Config.Command = command
	return runSpec(&s)
}

// A screen is a shell on a terminal of tmux.
type screen struct {
	t      *testing.T
	h      *host
	socket string
}

// screens counts them: a server that is ending still has its socket.
var screens atomic.Int64

// newScreen starts an interactive bash, or with command that instead of it, on
// a terminal of 120 by 50.
func newScreen(t *testing.T, h *host, path string, command ...string) *screen {
	t.Helper()
	s := &screen{t: t, h: h, socket: h.dir + "/tmux-" + strconv.FormatInt(screens.Add(1), 10)}
	if len(command) == 0 {
		command = []string{"bash", "--norc", "--noprofile", "-i"}
	}
	args := append([]string{"-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "50", "--", "env", "PS1=$ ", "PATH=" + path,
		"HOME=" + h.home, "LC_ALL=C", "HISTFILE=", "TERM=screen"}, command...)
	if out, err := s.tmux(args...); err != nil {
		t.Fatalf("tmux: %v\n%s", err, out)
	}
	t.Cleanup(func() { _, _ = s.tmux("kill-server") })
	return s
}

func (s *screen) tmux(args ...string) (string, error) {
	cmd := exec.Command("tmux", append([]string{"-S", s.socket}, args...)...)
	cmd.Dir = s.h.project
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if os.Getuid() == 0 && s.h.user.id != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.h.user.id), Gid: uint32(s.h.user.id)}}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// send types keys, in tmux's names: "C-c", "Enter", or text.
func (s *screen) send(keys ...string) {
	s.t.Helper()
	if out, err := s.tmux(append([]string{"send-keys"}, keys...)...); err != nil {
		s.t.Fatalf("send-keys: %v\n%s", err, out)
	}
}

// text is what the screen shows, without blank lines at the end.
func (s *screen) text() string {
	out, err := s.tmux("capture-pane", "-p")
	if err != nil {
		return ""
	}
	return strings.TrimRight(out, "\n") + "\n"
}

// await waits until the screen matches the regular expression.
func (s *screen) await(pattern string) {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	defer func() {
		if s.t.Failed() {
			s.t.Logf("the screen shows:\n%s", s.text())
		}
	}()
	waitFor(s.t, "the screen to show "+pattern, func() bool { return re.MatchString(s.text()) })
}

// A step types keys and then waits for the screen to match.
type step struct {
	keys  []string
	await string
}

func line(text, await string) step { return step{[]string{text, "Enter"}, await} }
func key(name, await string) step  { return step{[]string{name}, await} }

// terminalCases are typed into a shell once with the plain command and once
// with the sandbox around it; the screens must be the same at the end. The
// command `run` is what differs.
var terminalCases = map[string][]step{
	"interrupt": {
		line("run rsleep; echo rc=$?", `ready\n`),
		key("C-c", `\^C(.|\n)*\$\n$`),
		line("echo still $((40+2))", "still 42"),
	},
	"quit": {
		line("ulimit -c 0; run rsleep; echo rc=$?", `ready\n`),
		key(`C-\`, `rc=131`),
	},
	"suspend and continue": {
		line("run rcat", `ready\n`),
		line("one", `one\none`),
		key("C-z", `Stopped`),
		line("echo in the shell $((40+2))", "shell 42"),
		line("jobs", `(?s)Stopped.*Stopped`),
		line("fg", `\nrun rcat`),
		line("two", `two\ntwo`),
		key("C-d", `\$\n$`),
		line("echo rc=$?", "rc=0"),
	},
	"suspend twice": {
		line("run rcat", `ready\n`),
		key("C-z", `Stopped`),
		line("fg", `\nrun rcat\n`),
		key("C-z", `(?s)Stopped.*Stopped`),
		line("%1", `(?s)%1\nrun rcat\n`),
		line("x", `x\nx`),
		key("C-c", `\^C\n\$\n$`),
		line("echo rc=$?", "rc=130"),
	},
	"background": {
		line("run sh -c 'echo ready; until test -e go; do :; done; echo o''ver'", `\nready`),
		key("C-z", `Stopped`),
		line("bg", `&\n`),
		line("jobs", `Running`),
		line("touch go", `over\n`),
		line("wait; rm -f go; echo the end", `\nthe end`),
	},
	"kill a stopped job": {
		line("run rcat", `ready\n`),
		key("C-z", `Stopped`),
		// A shell that does not know yet that the job goes on would not wait for it.
		line("kill %1; rc=148; while [ $rc = 148 ]; do wait %1 2>/dev/null; rc=$?; done; echo rc=$rc", `rc=143`),
	},
	"read in the background": {
		line("run cat & while jobs %1 | grep -q Running; do sleep .05; done", `Stopped`),
		line("fg", `\nrun cat\n`),
		line("x", `x\nx`),
		key("C-d", `\$\n$`),
	},
	"foreground while running": {
		line("run sh -c 'while ! test -e go; do sleep .02; done; rm go; read x; echo got $x' &", `\[1\]`),
		line("(sleep .3; touch go) & fg %1", `\nrun sh`),
		line("typed", `got typed`),
	},
	"interrupt after foreground": {
		line("run rsleep &", `ready\n`),
		line("fg", `\nrun rsleep\n`),
		key("C-c", `\^C\n\$\n$`),
		line("echo rc=$?", "rc=130"),
	},
	"suspend after foreground": {
		line("run rsleep &", `ready\n`),
		line("fg", `\nrun rsleep\n`),
		key("C-z", `Stopped`),
		line("fg", `(?s)Stopped.*\nrun rsleep\n`),
		key("C-c", `\^C\n\$\n$`),
	},
	"inner shell with jobs": {
		line("run bash --norc --noprofile -i", `(?s)run bash.*\n.*\$\n$`),
		line("PS1='in$ '", `in\$\n$`),
		line("rsleep", `\nready\n`),
		key("C-z", `Stopped`),
		line("sleep 200 &", `\[2\]`),
		line("jobs", `Running`),
		line("fg %1", `fg %1\nrsleep\n`),
		key("C-c", `\^C\nin\$\n$`),
		line("kill %2; wait %2; echo gone $?", `\ngone 143`),
		line("suspend", `Stopped`),
		line("fg", `in\$\n$`),
		line("exit 5", `\n\$\n$`),
		line("echo rc=$?", `rc=5`),
		line("rcat", `(?s)rc=5.*\nready\n`),
		key("C-c", `\^C\n\$\n$`),
	},
	"loop in a script": {
		line("bash -c 'for i in 1 2 3; do echo round $i; run rsleep; done'; echo rc=$?", `\nready`),
		key("C-c", `\^C\n\$\n$`),
		line("echo rc=$?", `rc=130`),
	},
	"pipeline": {
		line("run sh -c 'echo ready >&2; exec cat' | tr a-z A-Z", `\nready`),
		key("C-z", `Stopped`),
		line("fg", `(?s)Stopped.*\nrun sh`),
		line("abc", `\nabc`),
		key("C-d", `ABC`),
	},
	"trap": {
		line("run sh -c 'trap \"echo caught; exit 3\" INT; echo ready; while :; do sleep .02; done'; echo rc=$?", `\nready`),
		key("C-c", `rc=3`),
	},
	"window size": {
		line("run sh -c 'trap \"stty size; exit\" WINCH; stty size; while :; do sleep .05; done'", `50 120`),
		step{[]string{"resize"}, `40 60`},
	},
	"terminal modes": {
		line("run sh -c 'stty -echo; echo ready; read x; stty echo; echo read $x'", `\nready`),
		line("secret", `read secret\n\$\n$`),
		line("echo visible", `\$ echo visible\nvisible`),
	},
	"stdin is a pipe": {
		line("echo data | run sh -c 'cat; read x </dev/tty; echo tty $x'", `\ndata`),
		line("typed", `tty typed`),
	},
	"password prompt without stdin": {
		line("run sh -c 'echo to-tty >/dev/tty; test -t 0 && test -t 1 && echo both' </dev/tty", `both`),
	},
	"editor": {
		line("run vim -u NONE -i NONE -n edited", `(?s)~.*edited`),
		{[]string{"ihello"}, `hello`},
		key("C-z", `(?s)hello`),
		key("Escape", `hello`),
		line(":wq", `\$\n$`),
		line("run cat edited; run rm edited", `\nhello`),
	},
	"editor suspended": {
		line("run vim -u NONE -i NONE -n edited", `(?s)~.*edited`),
		key("C-z", `Stopped`),
		line("echo outside", `\noutside`),
		line("fg", `(?s)~.*`),
		line(":q!", `\$\n$`),
	},
}

// TestTerminal types the cases into a plain shell and into one with a sandbox.
func TestTerminal(t *testing.T) {
	for _, tool := range []string{"tmux", "vim"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	forUsers(t, func(t *testing.T, h *host) {
		plain, boxed := h.dir+"/plain", h.dir+"/boxed"
		h.write(t, plain+"/run", "#!/bin/sh\nexec \"$@\"\n")
		// Programs that say when they may be typed at.
		h.write(t, plain+"/rcat", "#!/bin/sh\necho ready; exec cat\n")
		h.write(t, plain+"/rsleep", "#!/bin/sh\necho ready; exec sleep 100\n")
		s := h.spec("true")
		// The shell waits for files that commands make, on both sides.
		s.Views[0].Backing = h.project
		s.Config.Env = append(s.Config.Env, "PS1=$ ", "PATH="+plain+":"+os.Getenv("PATH"))
		h.write(t, boxed+"/run", fmt.Sprintf("#!/bin/sh\nexec %s %swith %s \"$@\"\n", h.bin, rolePrefix, h.writeSpec(t, s)))
		for _, name := range []string{plain + "/run", plain + "/rcat", plain + "/rsleep", boxed + "/run"} {
			if err := os.Chmod(name, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		h.own(t)
		for name, steps := range terminalCases {
			t.Run(name, func(t *testing.T) {
				want := typeSteps(t, h, plain, steps)
				got := typeSteps(t, h, boxed+":"+plain, steps)
				if got != want {
					t.Errorf("with the sandbox the screen shows\n%s\n\nwithout it\n%s", got, want)
				}
			})
		}
	})
}

var (
	processID = regexp.MustCompile(`(?m)\[(\d)\] \d+$`)
	doneJob   = regexp.MustCompile(`(?m)^\[\d\].? +(Done|Terminated).*$`)
	prompt    = regexp.MustCompile(`^(in)?\$ ?`)
)

// comparable is what of a screen is the same at every run: not process ids,
// not when bash tells of a job's end, and not the echo of what was typed, which
// comes before the prompt when the shell is slow.
func comparable(text string, steps []step) string {
	text = processID.ReplaceAllString(text, "[$1] PID")
	text = doneJob.ReplaceAllString(text, "")
	typed := make(map[string]bool)
	for _, st := range steps {
		if len(st.keys) > 0 {
			typed[strings.TrimSpace(st.keys[0])] = true
		}
	}
	var lines []string
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(prompt.ReplaceAllString(l, ""))
		if l != "" && !typed[l] {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n")
}

func typeSteps(t *testing.T, h *host, bin string, steps []step) string {
	t.Helper()
	s := newScreen(t, h, bin+":"+os.Getenv("PATH"))
	s.await(`\$\n$`)
	for _, st := range steps {
		switch {
		case len(st.keys) == 1 && st.keys[0] == "resize":
			if out, err := s.tmux("resize-window", "-x", "60", "-y", "40"); err != nil {
				t.Fatalf("resize: %v\n%s", err, out)
			}
		case st.keys != nil:
			s.send(st.keys...)
		}
		s.await(st.await)
	}
	// The last prompt may still be on its way.
	s.await(`\$\n$|~`)
	text := comparable(s.text(), steps)
	_, _ = s.tmux("kill-server")
	return text
}
