package shell

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// childEnv names the state directory of a test that runs itself confined.
const childEnv = "GALLEY_TEST_CONFINED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(confined(dir))
	}
	os.Exit(m.Run())
}

// TestNoProcessAndNoPathOfTheHost runs all scripts in a process that the kernel
// kills when it starts a program, or when it names a file in any other way than
// relative to a directory that it had open before: the engine's own calls are
// of that kind, and every way of the interpreter to the host is not.
func TestNoProcessAndNoPathOfTheHost(t *testing.T) {
	want, err := json.Marshal(scripts(t))
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+t.TempDir())
	cmd.Stdin = strings.NewReader(string(want))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, clip(string(out)))
	}
	if !strings.Contains(string(out), "confined: all") {
		t.Errorf("%s", clip(string(out)))
	}
}

// TestConfinementHolds: the check itself would notice.
func TestConfinementHolds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"open", "stat", "exec", "mkfifo"} {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), childEnv+"=break:"+what)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "SIGSYS") {
			t.Errorf("%s: it was not stopped: %v, %s", what, err, clip(string(out)))
		}
	}
}

// childTB is what the helpers need of a test.
type childTB struct{ testing.TB }

func (childTB) Helper() {}
func (childTB) Fatal(a ...any) {
	fmt.Println(a...)
	os.Exit(1)
}
func (c childTB) Fatalf(f string, a ...any) { c.Fatal(fmt.Sprintf(f, a...)) }

// confined is the child.
func confined(dir string) int {
	if what, ok := strings.CutPrefix(dir, "break:"); ok {
		return breakOut(what)
	}
	var table map[string][]string
	if err := json.NewDecoder(os.Stdin).Decode(&table); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := overlay.InitState(nil, dir, 1); err != nil {
		fmt.Println(err)
		return 1
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: dir}, overlay.Stack{Active: 1})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	v := view.New(tree.Attach(nil), uint32(os.Getuid()), uint32(os.Getgid()), 1000)
	for _, d := range []string{"/tmp", "/w"} {
		if err := v.Mkdir(d, 0o777); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	if err := confine(); err != nil {
		fmt.Println("confine:", err)
		return 1
	}
	t, n := childTB{}, 0
	var names []string
	for name := range table {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		for i, s := range table[name] {
			d := fmt.Sprintf("/w/%s%d", name, i)
			populate(t, v, d)
			if _, err := Run(context.Background(), v, Script{Text: s, Dir: d, Env: testEnv, Home: "/home/user", UID: 1000, Umask: 0o022, Stdin: strings.NewReader("a\n")}); err != nil {
				fmt.Printf("%s: %v\n", s, err)
				return 1
			}
			n++
		}
	}
	for _, s := range []string{
		"command -v nosuch; type nosuch", "pwd -P", "cat <(echo x)", "echo ~root ~nobody", "source nosuch", ". ./nosuch", "eval 'cat <(echo y); echo ~bin'", "[ -O /w ]", "[[ -G /w ]]",
		"trap 'cat <(echo z)' EXIT", "declare x=~bin; echo $x", "shopt -s expand_aliases; alias p='cat <(echo x)'\np", "cat < /tmp/sh-interp-1", "nosuch", "/bin/nosuch", "env -u HOME bash -c 'echo ~'", "date; date -r /w", "ls -l /w", "[[ /w -ef /w ]]",
	} {
		_, _ = Run(context.Background(), v, Script{Text: s, Dir: "/w", Env: testEnv, Home: "/home/user", UID: 1000})
	}
	fmt.Printf("confined: all of %d scripts\n", n)
	return 0
}

func breakOut(what string) int {
	if err := confine(); err != nil {
		fmt.Println(err)
		return 0
	}
	switch what {
	case "open":
		_, _ = os.ReadFile("/etc/passwd")
	case "stat":
		_, _ = os.Stat("/etc")
	case "exec":
		_ = exec.Command("/bin/true").Run()
	case "mkfifo":
		_ = unix.Mkfifo("/nowhere/fifo", 0o600)
	}
	return 0
}

// confine has the kernel end this process at a call that names a path from the
// root or the working directory, or that starts a program.
func confine() error {
	const atFDCWD = 0xffffff9c // -100, the low half of the argument
	execs := []uint32{unix.SYS_EXECVE, unix.SYS_EXECVEAT}
	paths := []uint32{
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_STATX, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_READLINKAT, unix.SYS_MKDIRAT, unix.SYS_MKNODAT,
		unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT, fstatat,
	}
	ld := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	ret := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	prog := []unix.SockFilter{ld(0)}
	for i, nr := range execs {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: uint8(len(execs) - i + len(paths) + 2)})
	}
	for i, nr := range paths {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: uint8(len(paths) - i)})
	}
	prog = append(prog,
		ret(unix.SECCOMP_RET_ALLOW),
		ld(16), // the first argument
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: atFDCWD, Jf: 1},
		ret(unix.SECCOMP_RET_TRAP),
		ret(unix.SECCOMP_RET_ALLOW),
	)
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return errno
	}
	return nil
}
