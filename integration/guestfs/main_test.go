package guestfs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/fs/virtiofs"
	"github.com/galleyfs/galley/integration/testvm"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// callTimeout is plenty for what a guest does at once.
const callTimeout = time.Minute

// machine is a guest with its export.
type machine struct {
	vm     *testvm.VM
	export *virtiofs.Export
	server *virtiofs.Server
	dir    string

	mu      sync.Mutex
	changed []change // protected by mu
}

// change is what the owner of an export was told.
type change struct {
	tree string
	fs.Changes
}

// boot boots a machine whose export has no trees yet.
func boot() (*machine, error) {
	dir, err := os.MkdirTemp("", "galley-guest-")
	if err != nil {
		return nil, err
	}
	m := &machine{dir: dir}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	m.export = virtiofs.NewExport(virtiofs.ExportOptions{Logger: log, Changed: func(tree string, c fs.Changes) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.changed = append(m.changed, change{tree, c})
	}})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m.server, err = virtiofs.Serve(os.NewFile(uintptr(pair[0]), "share"), m.export, virtiofs.Options{Logger: log})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testvm.BootTimeout)
	defer cancel()
	m.vm, err = testvm.Start(ctx, testvm.Options{Dir: dir, Share: os.NewFile(uintptr(pair[1]), "share")})
	if err == nil {
		_, err = m.vm.Call(ctx, testvm.Request{Op: "mount", To: "galley", Path: "/export", Args: []string{"virtiofs", ""}})
	}
	if err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

// end kills the machine and lets the export go.
func (m *machine) end() {
	if m.vm != nil {
		m.vm.Kill()
	}
	_ = m.server.Close()
	m.export.Close()
	_ = os.RemoveAll(m.dir)
}

// shared is the machine that most tests use, booted by the first of them.
var shared struct {
	once sync.Once
	m    *machine
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.m != nil {
		shared.m.end()
	}
	os.Exit(code)
}

// guest is the shared machine.
func guest(t *testing.T) *machine {
	t.Helper()
	shared.once.Do(func() { shared.m, shared.err = boot() })
	must(t, shared.err)
	return shared.m
}

// share is a tree that the guest sees, with a face of the host's on it.
type share struct {
	t         *testing.T
	m         *machine
	name, dir string // its name in the export, and its path in the guest
	base      string
	tree      *overlay.Tree
	host      *overlay.Face
}

// newShare shows a new tree on a base that fill fills.
func (m *machine) newShare(t *testing.T, name string, fill func(base string)) *share {
	t.Helper()
	s := &share{t: t, m: m, name: name, dir: "/export/" + name, base: t.TempDir()}
	if fill != nil {
		fill(s.base)
	}
	base, err := overlay.OpenBase(hostfs.OS, s.base)
	must(t, err)
	state, err := os.MkdirTemp("/dev/shm", "galley-guest-") // which takes xattrs of 64 KiB
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(state)) })
	must(t, overlay.InitState(hostfs.OS, state, 1))
	s.tree, err = overlay.Open(overlay.Config{Name: name, StateDir: state, Base: base}, overlay.Stack{Active: 1})
	must(t, err)
	s.host = s.tree.Attach(nil)
	must(t, m.export.Add(name, fs.Live(s.tree), virtiofs.TreeOptions{}))
	t.Cleanup(func() {
		if err := m.export.Remove(name); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
		s.host.Detach()
		must(t, s.tree.Close())
	})
	return s
}

// call has the guest do something in the share; Path is relative to it.
func (s *share) call(r testvm.Request) (testvm.Reply, error) {
	s.t.Helper()
	r.Path = filepath.Join(s.dir, r.Path)
	if r.To != "" {
		r.To = filepath.Join(s.dir, r.To)
	}
	return s.m.call(s.t, r)
}

func (m *machine) call(t *testing.T, r testvm.Request) (testvm.Reply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	got, err := m.vm.Call(ctx, r)
	if ctx.Err() != nil {
		t.Fatal(err)
	}
	return got, err
}

// do is call for what must work.
func (s *share) do(r testvm.Request) testvm.Reply {
	s.t.Helper()
	got, err := s.call(r)
	must(s.t, err)
	return got
}

// hostWrite writes a file through the host's face.
func (s *share) hostWrite(name, content string) {
	s.t.Helper()
	dir, base := filepath.Split(name)
	p, _, err := s.host.Walk(filepath.Clean("/" + dir)[1:])
	must(s.t, err)
	defer s.host.Forget(p, 1)
	n, _, err := s.host.Lookup(p, base)
	if errors.Is(err, unix.ENOENT) {
		n, _, err = s.host.Create(p, base, unix.S_IFREG|0o644, overlay.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())})
	}
	must(s.t, err)
	defer s.host.Forget(n, 1)
	zero := int64(0)
	_, err = s.host.Setattr(n, overlay.SetAttr{Size: &zero})
	must(s.t, err)
	_, err = s.host.Write(n, []byte(content), 0)
	must(s.t, err)
}

// hostRead reads a file through the host's face.
func (s *share) hostRead(name string) (string, error) {
	n, a, err := s.host.Walk(name)
	if err != nil {
		return "", err
	}
	defer s.host.Forget(n, 1)
	b := make([]byte, a.Size)
	got, err := s.host.Read(n, b, 0)
	if err == io.EOF {
		err = nil
	}
	return string(b[:got]), err
}

// within polls for something that is to become so at once, or within a second;
// the deadline allows for a busy machine.
func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(callTimeout)
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("%s: not so after %v", what, callTimeout)
		}
		<-time.After(20 * time.Millisecond)
	}
}
