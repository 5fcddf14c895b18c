package overlay_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// openFDs is a host that knows which descriptors are open, to close those of a
// tree that crashed: whatever locks it held, it holds for ever.
type openFDs struct {
	hostfs.FS
	fds map[int]bool
}

func (o *openFDs) note(fd int, err error) (int, error) {
	if err == nil {
		o.fds[fd] = true
	}
	return fd, err
}

func (o *openFDs) Open(dirfd int, name string, flags int, mode uint32) (int, error) {
	return o.note(o.FS.Open(dirfd, name, flags, mode))
}

func (o *openFDs) OpenTmp(dirfd int, mode uint32) (int, error) {
	return o.note(o.FS.OpenTmp(dirfd, mode))
}

func (o *openFDs) Dup(fd int) (int, error) { return o.note(o.FS.Dup(fd)) }

func (o *openFDs) Close(fd int) error {
	delete(o.fds, fd)
	return o.FS.Close(fd)
}

// faulted is a session whose host calls can be made to fail.
type faulted struct {
	base, state string
	host        *openFDs
	fault       *hostfstest.Fault
	tree        *overlay.Tree
	face        *overlaytest.FaceFS
	stack       overlay.Stack
}

func newFaulted(base, dir string) (*faulted, error) {
	state, err := os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	host := &openFDs{FS: hostfs.OS, fds: map[int]bool{}}
	f := &faulted{base: base, state: state, host: host, fault: hostfstest.New(host), stack: overlay.Stack{Active: 1}}
	if err := overlay.InitState(f.fault, state, 1); err != nil {
		return nil, err
	}
	return f, f.open()
}

func (f *faulted) open() error {
	base, err := overlay.OpenBase(f.fault, f.base)
	if err != nil {
		return err
	}
	f.tree, err = overlay.Open(overlay.Config{Name: "workspace", StateDir: f.state, Base: base, FS: f.fault, NoWatch: true}, f.stack)
	if err != nil {
		return err
	}
	f.face = overlaytest.NewFaceFS(f.tree.Attach(nil))
	return nil
}

func (f *faulted) close() error {
	f.face.ReleaseAll()
	f.face.Face.Detach()
	return f.tree.Close()
}

// do runs operations, of which none may fail.
func (f *faulted) do(ops []overlaytest.Op) error {
	for _, o := range ops {
		if o.Kind == overlaytest.OpSeal {
			if err := f.seal(); err != nil {
				return err
			}
			continue
		}
		if r := overlaytest.Exec(f.face, o); r.Err != 0 {
			return fmt.Errorf("%v: %w", o, r.Err)
		}
	}
	return nil
}

func (f *faulted) seal() error {
	next := f.stack.Active + 1
	if err := f.tree.Prepare(next); err != nil {
		return err
	}
	b := overlay.Quiesce(f.tree)
	defer b.Release()
	if err := b.Seal(next); err != nil {
		return err
	}
	f.stack = f.tree.Stack()
	return nil
}

// merge flattens all sealed layers into one and switches to it.
func (f *faulted) merge() error {
	if err := f.seal(); err != nil {
		return err
	}
	to, next := f.stack.Active+1, f.stack.Active+2
	if err := f.tree.Flatten(overlay.Stack{Sealed: f.stack.Sealed}, to, overlay.Keep{}); err != nil {
		return err
	}
	if err := f.tree.Prepare(next); err != nil {
		return err
	}
	b := overlay.Quiesce(f.tree)
	defer b.Release()
	if err := b.Switch(0, overlay.Stack{Sealed: []overlay.Range{{From: to, To: to}}, Active: next}, nil); err != nil {
		return err
	}
	f.stack = f.tree.Stack()
	return nil
}

// isEither tells which of two references the live view shows.
func (f *faulted) isEither(old, done *overlaytest.Ref) (isOld bool, err error) {
	cmp := func(r *overlaytest.Ref) error {
		c := overlaytest.NewComparer()
		c.LooseInos, c.LooseTimes = true, true
		return c.Compare(r, f.face)
	}
	asDone := cmp(done)
	if asDone == nil {
		return false, nil
	}
	asOld := cmp(old)
	if asOld == nil {
		return true, nil
	}
	return false, fmt.Errorf("neither as before (%w) nor as after (%w)", asOld, asDone)
}

// faultBase makes the base of the fault tests.
func faultBase(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"d", "d/sub", "e", "two"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int{"f": 10, "g": 20, "big": 100 << 10, "d/x": 30, "d/y": 40, "d/sub/z": 50, "two/h1": 60} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte('a' + i%17)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(filepath.Join(dir, "two/h1"), filepath.Join(dir, "two/h2")), os.Symlink("f", filepath.Join(dir, "ln"))); err != nil {
		t.Fatal(err)
	}
}

// TestFaultAtEveryCall makes each host call of each operation fail once, with
// an error or by a crash: the caller is told, the tree is as it was before the
// operation or after it, now and when it is opened again, and then goes on.
func TestFaultAtEveryCall(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: owners")
	}
	dir := t.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", "galley-fault-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(shm) })
		dir = shm
	}
	base := filepath.Join(dir, "base")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	faultBase(t, base)
	points := 0
	for _, c := range faultCases {
		t.Run(c.name, func(t *testing.T) { points += c.run(t, base, dir) })
	}
	t.Logf("%d points", points)
}

type faultCase struct {
	name  string
	setup []overlaytest.Op
	// op is one operation, or does what is none of overlaytest's.
	op overlaytest.Op
	do func(*faulted) error
}

func (c *faultCase) act(f *faulted) error {
	if c.do != nil {
		return c.do(f)
	}
	return f.do([]overlaytest.Op{c.op})
}

func (c *faultCase) run(t *testing.T, base, dir string) (points int) {
	prepare := func() *faulted {
		t.Helper()
		f, err := newFaulted(base, dir)
		if err == nil {
			err = f.do(c.setup)
		}
		if err == nil {
			err = f.tree.Sync()
		}
		if err != nil {
			t.Fatalf("set up: %v", err)
		}
		f.fault.Clear()
		return f
	}
	look := func(f *faulted) *overlaytest.Ref {
		t.Helper()
		r, err := overlaytest.Import(f.face)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	f := prepare()
	before := look(f)
	f.fault.Clear()
	if err := c.act(f); err != nil {
		t.Fatal(err)
	}
	calls := f.fault.Calls()
	after := look(f)
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(calls); n++ {
		for _, errno := range []syscall.Errno{unix.EIO, unix.ENOSPC, 0} {
			if testing.Short() && (n+int(errno))%4 != 0 {
				continue
			}
			f := prepare()
			if err := c.at(f, n, errno, before, after); err != nil {
				t.Errorf("call %v, failing with %v: %v", calls[n-1], errno, err)
			}
			points++
			_ = os.RemoveAll(f.state)
		}
	}
	return points
}

// at does the operation with a fault at its nth call: a crash where errno is 0.
func (c *faultCase) at(f *faulted, n int, errno syscall.Errno, before, after *overlaytest.Ref) error {
	if errno == 0 {
		f.fault.CrashAt(n)
	} else {
		f.fault.FailAt(n, errno)
	}
	crashed, err := f.fault.Run(func() error { return c.act(f) })
	if !crashed {
		f.fault.Clear()
		switch {
		case err != nil && overlay.Errno(err) != errno:
			return fmt.Errorf("the caller is told %w", err)
		}
		isOld, lerr := f.isEither(before, after)
		if lerr != nil {
			return fmt.Errorf("answered %v: %w", err, lerr)
		}
		if isOld && err == nil && !same(before, after, f) {
			return errors.New("said to be done, and is not")
		}
	}
	if crashed {
		for fd := range f.host.fds {
			_ = f.host.Close(fd)
		}
		f.fault.Clear()
	} else if err := f.close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := f.open(); err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	defer f.close()
	isOld, err := f.isEither(before, after)
	if err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	if !isOld || c.do != nil || same(before, after, f) {
		return nil
	}
	for _, o := range c.setup {
		if o.Kind == overlaytest.OpOpen || o.Kind == overlaytest.OpTmpfile {
			return nil // what was held is not any more
		}
	}
	if err := c.act(f); err != nil {
		return fmt.Errorf("done again: %w", err)
	}
	if isOld, err := f.isEither(before, after); err != nil || isOld {
		return fmt.Errorf("done again, it is as before (%v), %w", isOld, err)
	}
	return nil
}

// same reports whether the view shows both.
func same(a, b *overlaytest.Ref, f *faulted) bool {
	for _, r := range []*overlaytest.Ref{a, b} {
		c := overlaytest.NewComparer()
		c.LooseInos, c.LooseTimes = true, true
		if c.Compare(r, f.face) != nil {
			return false
		}
	}
	return true
}
