package local

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// firstView numbers the overlays that add directories for views while the
// sandbox is built, and firstAdded those that do while it runs, so that each is
// told from the others.
const (
	firstView  = 1 << 15
	firstAdded = 1 << 16
)

// pendingMount is a view that is mounted and waits for being served.
type pendingMount struct {
	fd   int
	path string
}

// beginMount mounts a further view, which finishMount puts in its place once
// it is served.
func (s *supervisor) beginMount(m message) {
	fd, err := s.mountFUSE(viewSetup{
		Path: m.text, Source: "galley", Subtype: "galley", ReadOnly: m.code == 1, MaxRead: defaultMaxRead,
	}, m.n)
	if err != nil {
		s.sayMounted(m.n, err)
		return
	}
	s.mu.Lock()
	s.pending[m.n] = pendingMount{fd, m.text}
	s.mu.Unlock()
}

func (s *supervisor) finishMount(n int32) {
	s.mu.Lock()
	p, ok := s.pending[n]
	delete(s.pending, n)
	s.mu.Unlock()
	if !ok {
		return
	}
	s.placing.Lock()
	defer s.placing.Unlock()
	s.sayMounted(n, s.placeLive(p))
}

func (s *supervisor) sayMounted(n int32, err error) {
	m := message{kind: kindMounted, n: n}
	if err != nil {
		m.text = err.Error()
		m.code = int32(unix.EIO)
		var errno unix.Errno
		if errors.As(err, &errno) {
			m.code = int32(errno)
		}
	}
	_ = s.channel.send(m, -1)
}

// placeLive puts a view in its place in the running sandbox.
func (s *supervisor) placeLive(p pendingMount) error {
	target, err := s.placeFor(p.path)
	if err != nil {
		_ = unix.Close(p.fd)
		return err
	}
	if err := fsmount.Place(p.fd, target); err != nil {
		return fmt.Errorf("mount at %s: %w", p.path, err)
	}
	return nil
}

// placeFor opens the directory that a view is to stand on, and makes it where
// it is missing: in a file system that can be written to as it is, at the top
// in the root's own, and elsewhere by showing the nearest directory that there
// is through an overlay which adds it.
func (s *supervisor) placeFor(p string) (int, error) {
	top, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(top)
	now := root{top}
	target, err := now.makeDir(p)
	if errors.Is(err, unix.EROFS) {
		if err = s.addPlace(now, p); err == nil {
			target, err = now.lookup(p)
		}
	}
	if err != nil {
		return -1, err
	}
	if err := fsmount.CheckFree(target, p); err != nil {
		_ = unix.Close(target)
		return -1, err
	}
	return target, nil
}

// addPlace makes the directory p where the file system there is read-only.
func (s *supervisor) addPlace(now root, p string) error {
	parent := path.Dir(p)
	for ; parent != "/"; parent = path.Dir(parent) {
		fd, err := now.lookup(parent)
		if err == nil {
			_ = unix.Close(fd)
			break
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	if parent == "/" {
		fd, err := s.builder.bare.makeDir(p)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	s.added++
	b := &builder{setup: s.setup, root: now}
	unstage, err := b.stageAside(fmt.Sprintf("/run/.galley-%d", s.added))
	if err != nil {
		return err
	}
	defer unstage()
	return b.addDirs(firstAdded+s.added, parent, []string{p})
}

// stageAside makes a stage in the running sandbox at p, in a file system of the
// sandbox's own: the one that it was built on is gone, and what lies under an
// overlay must stand somewhere while that is mounted.
func (b *builder) stageAside(p string) (unstage func(), err error) {
	if b.stage, err = newTmpfs("0700"); err != nil {
		return nil, err
	}
	fail := func(err error) (func(), error) {
		_ = unix.Close(b.stage)
		return nil, fmt.Errorf("a place to build: %w", err)
	}
	target, err := b.root.makeDir(p)
	if err != nil {
		return fail(err)
	}
	err = unix.MoveMount(b.stage, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	_ = unix.Close(target)
	if err == nil {
		err = unix.Mkdirat(b.stage, "cache", 0o700)
	}
	if err != nil {
		return fail(err)
	}
	return func() {
		_ = unix.Unmount(p, unix.MNT_DETACH)
		_ = unix.Rmdir(p)
		_ = unix.Close(b.stage)
	}, nil
}

// addMissing adds the directory p to the nearest one that there is.
func (b *builder) addMissing(i int, p string) error {
	for parent := path.Dir(p); parent != "/"; parent = path.Dir(parent) {
		fd, err := b.root.lookup(parent)
		if err == nil {
			_ = unix.Close(fd)
			return b.addDirs(i, parent, []string{p})
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return &os.PathError{Op: "mkdir", Path: p, Err: unix.EROFS}
}
