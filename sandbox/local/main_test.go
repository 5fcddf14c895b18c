package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// The test binary plays every part, told apart by its first argument: the
// caller of Run ("runner"), the server of a view ("loopback"), and programs
// that run inside ("probe", "inside").
const rolePrefix = "galley-test-"

func TestMain(m *testing.M) {
	local.Init()
	// A process under the race detector waits for a second before it exits,
	// and every call in a sandbox is one.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == owner.Command {
		os.Exit(owner.Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], rolePrefix) {
		os.Exit(playRole(strings.TrimPrefix(os.Args[1], rolePrefix), os.Args[2:]))
	}
	code, err := withOpenFuse(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withOpenFuse lets ordinary users open /dev/fuse while the tests run, as
// hosts with udev do always.
func withOpenFuse(run func() int) (int, error) {
	st, err := os.Stat("/dev/fuse")
	if err != nil || os.Geteuid() != 0 || st.Mode().Perm() == 0o666 {
		return run(), nil
	}
	if err := os.Chmod("/dev/fuse", 0o666); err != nil {
		return 1, err
	}
	return run(), nil
}

func playRole(role string, args []string) int {
	var err error
	switch role {
	case "runner":
		return runner(args[0])
	case "with":
		return with(args[0], args[1:])
	case "loopback":
		err = loopback(args[0])
	case "probe":
		err = runProbes(args[0])
	case "inside":
		err = inside(args)
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A spec is what a runner is told: a Config without what cannot be written
// down, and for each view the directory that its server shows there.
type spec struct {
	Config local.Config
	Views  []viewSpec
	Report string // file for the outcome

	// CallerIgnores makes the caller ignore these signals, as nohup does.
	CallerIgnores []int
	// ServeFails makes View.Serve fail with this text.
	ServeFails string
	// PauseAt writes a byte to a FIFO and waits for ever at a point of the
	// set-up: "serve" (in View.Serve).
	PauseAt, PauseFIFO string
}

// A viewSpec is a local.View with the directory that its server shows.
type viewSpec struct {
	Path, Backing, Source, Subtype string
	ReadOnly                       bool
}

// An outcome is what Run returned.
type outcome struct {
	Result local.Result
	Err    string
}

// runner calls Run as the spec in the file name says.
func runner(name string) int {
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
	return runSpec(&s)
}

func runSpec(s *spec) int {
	for _, sig := range s.CallerIgnores {
		signal.Ignore(syscall.Signal(sig))
	}
	s.Config.Stdin, s.Config.Stdout, s.Config.Stderr = os.Stdin, os.Stdout, os.Stderr
	for _, v := range s.Views {
		s.Config.Views = append(s.Config.Views, local.View{
			Path: v.Path, ReadOnly: v.ReadOnly, Source: v.Source, Subtype: v.Subtype,
			Serve: func(_ context.Context, dev *os.File) error { return s.serve(v.Backing, dev) },
		})
	}
	result, err := local.Run(context.Background(), s.Config)
	o := outcome{Result: result}
	if err != nil {
		o.Err = err.Error()
		fmt.Fprintln(os.Stderr, "runner:", err)
	}
	if s.Report != "" {
		data, _ := json.Marshal(o)
		if err := os.WriteFile(s.Report, data, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
	}
	if err != nil {
		return result.Code
	}
	result.Exit()
	return 99
}

// serve starts a server that shows the directory backing, and returns when it
// answers.
func (s *spec) serve(backing string, dev *os.File) error {
	defer dev.Close()
	if s.ServeFails != "" {
		return errors.New(s.ServeFails)
	}
	if s.PauseAt == "serve" {
		if err := os.WriteFile(s.PauseFIFO, []byte("x"), 0); err != nil {
			return err
		}
		select {}
	}
	cmd := exec.Command("/proc/self/exe", rolePrefix+"loopback", backing)
	cmd.ExtraFiles = []*os.File{dev}
	cmd.Stderr = os.Stderr
	// The server is nobody's job: Ctrl-C and Ctrl-Z are not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = io.ReadFull(out, make([]byte, 5))
	return err
}

// loopback serves dir on the FUSE descriptor 3 until the mount is gone.
func loopback(dir string) error {
	root, err := gofs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	opts := &gofs.Options{NullPermissions: true}
	server, err := fuse.NewServer(gofs.NewNodeFS(root, opts), "/dev/fd/3", &opts.MountOptions)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString("ready"); err != nil {
		return err
	}
	_ = os.Stdout.Close()
	server.Serve()
	return nil
}

// A user is who calls Run.
type user struct {
	name string
	id   int
}

// ordinaryID is the user that root's tests run as besides; it needs no entry
// in /etc/passwd.
const ordinaryID = 1000

// forUsers runs f as root and as an ordinary user; an ordinary user can only be
// itself.
func forUsers(t *testing.T, f func(t *testing.T, h *host)) {
	users := []user{{"user", os.Getuid()}}
	if os.Getuid() == 0 {
		users = []user{{"root", 0}, {"user", ordinaryID}}
	}
	for _, u := range users {
		t.Run(u.name, func(t *testing.T) { f(t, newHost(t, u)) })
	}
}

// A host is a place for one test on the real file system, outside /tmp: what
// is outside is read-only inside.
type host struct {
	user    user
	dir     string // the top of it all
	bin     string // the test binary, where the user can reach it
	home    string
	project string // where the view stands; its content is the base
	backing string // what the view shows, apart from the base
}

func newHost(t *testing.T, u user) *host {
	t.Helper()
	parent := "/var/lib"
	if os.Getuid() != 0 {
		parent = os.Getenv("HOME")
	}
	dir, err := os.MkdirTemp(parent, "galley-local-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	h := &host{user: u, dir: dir, bin: dir + "/local.test", home: dir + "/home", project: dir + "/home/project", backing: dir + "/backing"}
	for _, d := range []string{h.home, h.project, h.backing} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write(t, h.project+"/file", "base")
	h.write(t, h.backing+"/file", "view")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	h.own(t)
	return h
}

func (h *host) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// own gives all of h to its user.
func (h *host) own(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(h.dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, h.user.id, h.user.id)
	})
	if err == nil {
		err = os.Chmod(h.dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// spec is a spec for command with the one view at the project.
func (h *host) spec(command ...string) *spec {
	return &spec{
		Config: local.Config{
			Command: command, Dir: h.project,
			Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.home, "TERM=xterm", "LC_ALL=C"},
		},
		Views: []viewSpec{{Path: h.project, Backing: h.backing}},
	}
}

// command is the runner of s as h's user, not started.
func (h *host) command(t *testing.T, s *spec) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(h.bin, rolePrefix+"runner", h.writeSpec(t, s))
	cmd.Dir = h.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getuid() == 0 && h.user.id != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(h.user.id), Gid: uint32(h.user.id)}
	}
	return cmd
}

func (h *host) writeSpec(t *testing.T, s *spec) string {
	t.Helper()
	f, err := os.CreateTemp(h.dir, "spec")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s.Report == "" {
		s.Report = f.Name() + ".report"
	}
	if err := json.NewEncoder(f).Encode(s); err != nil {
		t.Fatal(err)
	}
	h.own(t)
	return f.Name()
}

// run runs s and returns what it printed on both outputs, and its outcome.
func (h *host) run(t *testing.T, s *spec, stdin string) (string, outcome) {
	t.Helper()
	cmd := h.command(t, s)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("runner: %v\n%s", err, out)
	}
	return string(out), h.outcome(t, s)
}

func (h *host) outcome(t *testing.T, s *spec) outcome {
	t.Helper()
	data, err := os.ReadFile(s.Report)
	if err != nil {
		t.Fatalf("the runner wrote no report: %v", err)
	}
	var o outcome
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// shell runs a shell script in the sandbox and returns its output. It must
// succeed.
func (h *host) shell(t *testing.T, script string) string {
	t.Helper()
	out, o := h.run(t, h.spec("sh", "-c", script), "")
	if o.Err != "" || o.Result.Code != 0 {
		t.Fatalf("%s\nended with %+v, printed:\n%s", script, o, out)
	}
	return out
}

// patience is how long a test waits for what must happen soon.
const patience = 10 * time.Second

// waitFor polls until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// processes lists the processes whose command line contains what.
func processes(what string) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range dirs {
		data, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(data), what) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
