package fs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// serveConfig is what the server process is told, as JSON in serveEnv; the
// device is its descriptor 3.
type serveConfig struct {
	Base, State string
	Writeback   bool
	NoWatch     bool
	Stack       *overlay.Stack // of a state that is there; nil: a new one
}

const serveEnv = "GALLEY_FS_TEST_SERVE"

// command is one line to the server process, reply its answer.
type command struct {
	Op    string
	Path  string
	Data  []byte
	Layer overlay.LayerID
	Stack overlay.Stack
}

type reply struct {
	Err   string
	Stats map[string]uint64
	Known int
	Rings bool   // over io_uring
	Base  uint64 // lookups that asked the base
	Data  []byte
	Stack overlay.Stack
	Attr  overlay.Attr
}

// serveHelper is the server process: one tree, the mount's face, and a second
// face that the commands act through.
func serveHelper() error {
	var cfg serveConfig
	if err := json.Unmarshal([]byte(os.Getenv(serveEnv)), &cfg); err != nil {
		return err
	}
	base, err := overlay.OpenBase(hostfs.OS, cfg.Base)
	if err != nil {
		return err
	}
	if cfg.Stack == nil {
		if err := overlay.InitState(hostfs.OS, cfg.State, 1); err != nil {
			return err
		}
		cfg.Stack = &overlay.Stack{Active: 1}
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: cfg.State, Base: base, NoWatch: cfg.NoWatch}, *cfg.Stack)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	srv, err := Serve(os.NewFile(3, devFuse), Live(tree), Options{Writeback: cfg.Writeback, Logger: log})
	if err != nil {
		return err
	}
	other := tree.Attach(nil)
	enc := json.NewEncoder(os.Stdout)
	if err := enc.Encode(reply{}); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<22)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		r, err := obey(c, srv, tree, other)
		if err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	// The test has closed its end: the mount is gone, or is to go.
	if err := srv.Close(); err != nil {
		return err
	}
	other.Detach()
	return tree.Close()
}

func obey(c command, srv *Server, tree *overlay.Tree, f *overlay.Face) (reply, error) {
	switch c.Op {
	case "stats":
		return reply{Stats: srv.Stats(), Known: srv.Known(), Rings: srv.OverIOURing(), Base: tree.Stats().BaseCalls}, nil
	case "stack":
		return reply{Stack: tree.Stack()}, nil
	case "close":
		return reply{}, srv.Close()
	case "seal":
		if err := tree.Prepare(c.Layer); err != nil {
			return reply{}, err
		}
		b := overlay.Quiesce(tree)
		defer b.Release()
		return reply{}, b.Seal(c.Layer)
	case "view":
		data, err := viewed(tree, c.Stack)
		return reply{Data: data}, err
	case "viewOf":
		data, err := readIn(tree, c.Stack, c.Path)
		return reply{Data: data}, err
	case "switch":
		if err := tree.Prepare(c.Stack.Active); err != nil {
			return reply{}, err
		}
		b := overlay.Quiesce(tree)
		defer b.Release()
		return reply{}, b.Switch(0, c.Stack, nil)
	}
	dir, name := filepath.Split(c.Path)
	p, _, err := f.Walk(filepath.Clean("/" + dir)[1:])
	if err != nil {
		return reply{}, err
	}
	defer f.Forget(p, 1)
	switch c.Op {
	case "unlink":
		return reply{}, f.Unlink(p, name)
	case "mkdir":
		n, _, err := f.Mkdir(p, name, 0o755, overlay.Caller{})
		if err == nil {
			f.Forget(n, 1)
		}
		return reply{}, err
	case "write":
		n, _, err := f.Lookup(p, name)
		if overlay.Errno(err) == unix.ENOENT {
			n, _, err = f.Create(p, name, 0o644, overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
		}
		if err != nil {
			return reply{}, err
		}
		defer f.Forget(n, 1)
		size := int64(len(c.Data))
		if _, err := f.Setattr(n, overlay.SetAttr{Size: &size}); err != nil {
			return reply{}, err
		}
		_, err = f.Write(n, c.Data, 0)
		return reply{}, err
	case "append":
		n, _, err := f.Lookup(p, name)
		if err != nil {
			return reply{}, err
		}
		defer f.Forget(n, 1)
		_, err = f.Append(n, c.Data)
		return reply{}, err
	case "stat":
		n, a, err := f.Lookup(p, name)
		if err == nil {
			f.Forget(n, 1)
		}
		return reply{Attr: a}, err
	case "read":
		n, a, err := f.Lookup(p, name)
		if err != nil {
			return reply{}, err
		}
		defer f.Forget(n, 1)
		buf := make([]byte, a.Size)
		got, err := f.Read(n, buf, 0)
		return reply{Data: buf[:got]}, err
	}
	return reply{}, fmt.Errorf("no command %q", c.Op)
}

// served is a mount with a server process.
type served struct {
	t    testing.TB
	Dir  string // the mount point
	Base string
	cfg  serveConfig
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
}

// newBase makes a small tree to mount over.
func newBase(t testing.TB) string {
	t.Helper()
	base := t.TempDir()
	for name, data := range map[string]string{
		"a.txt": "alpha\n", "b.txt": "beta\n", "dir/c.txt": "gamma\n", "dir/sub/d.txt": "delta\n",
	} {
		name = filepath.Join(base, name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		must(t, os.WriteFile(name, []byte(data), 0o644))
	}
	return base
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mount mounts as root or, for others, through fusermount3, and starts a
// server process; the test's end takes both down.
func mount(t testing.TB, cfg serveConfig) *served {
	t.Helper()
	dir := t.TempDir()
	if overURing {
		defer allowURing(t)()
	}
	dev := openMountFor(t, dir, MountOptions{})
	s := serveOn(t, dev, cfg)
	s.Dir = dir
	return s
}

// openMountFor mounts at dir as this user can and unmounts it at the test's
// end.
func openMountFor(t testing.TB, dir string, o MountOptions) *os.File {
	t.Helper()
	var dev *os.File
	var err error
	if os.Geteuid() == 0 {
		dev, err = OpenMount(dir, o)
	} else {
		dev, err = OpenFusermount(t.Context(), dir, o)
	}
	must(t, err)
	t.Cleanup(func() {
		if _, err := mountAt(dir); err != nil {
			return // the test has unmounted it
		}
		// The context of the test has ended by now.
		if err := detach(context.Background(), dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dev
}

// serveOn starts a server process for an open device.
func serveOn(t testing.TB, dev *os.File, cfg serveConfig) *served {
	t.Helper()
	if cfg.Base == "" {
		cfg.Base = newBase(t)
	}
	if cfg.State == "" {
		cfg.State = t.TempDir()
	}
	js, err := json.Marshal(cfg)
	must(t, err)
	cmd := helper("serve")
	cmd.Env = append(cmd.Env, serveEnv+"="+string(js))
	cmd.ExtraFiles = []*os.File{dev}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, dev.Close())
	s := &served{t: t, Base: cfg.Base, cfg: cfg, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	s.out.Buffer(nil, 1<<22)
	t.Cleanup(s.stop)
	s.answer("start")
	return s
}

func helper(part string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	// The race detector would hold up the end of each process for a second.
	cmd.Env = append(os.Environ(), helperEnv+"="+part, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return cmd
}

// stop lets the server process end by itself, or kills it after a while.
func (s *served) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	_ = s.in.Close()
	timer := time.AfterFunc(20*time.Second, func() {
		s.t.Errorf("the server does not end")
		_ = s.cmd.Process.Kill()
	})
	defer timer.Stop()
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("server: %v", err)
	}
}

// kill ends the server process as a crash would.
func (s *served) kill() {
	s.t.Helper()
	must(s.t, s.cmd.Process.Kill())
	var exit *exec.ExitError
	if err := s.cmd.Wait(); !errors.As(err, &exit) {
		s.t.Fatalf("killed server: %v", err)
	}
}

func (s *served) answer(op string) reply {
	s.t.Helper()
	if !s.out.Scan() {
		s.t.Fatalf("%s: the server has ended: %v", op, s.out.Err())
	}
	var r reply
	must(s.t, json.Unmarshal(s.out.Bytes(), &r))
	if r.Err != "" {
		s.t.Fatalf("%s: %s", op, r.Err)
	}
	return r
}

// do sends a command to the server process and fails the test if it fails.
func (s *served) do(c command) reply {
	s.t.Helper()
	js, err := json.Marshal(c)
	must(s.t, err)
	if _, err := s.in.Write(append(js, '\n')); err != nil {
		s.t.Fatalf("%s: %v", c.Op, err)
	}
	return s.answer(c.Op)
}

func (s *served) path(name string) string { return filepath.Join(s.Dir, name) }

// eventually polls until ok, as the events it waits for have no channel, and
// fails after a deadline.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		<-time.After(time.Millisecond)
	}
}
