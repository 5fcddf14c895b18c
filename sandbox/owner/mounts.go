package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/snapshots"
)

// served is a mount that the owner serves.
type served struct {
	Mount
	// ready is closed when server is set or known never to be.
	ready  chan struct{}
	server *fs.Server
	// gone is closed when the mount is no longer served.
	gone chan struct{}
	// proc is where its processes are found, nil where nobody asked for that.
	proc atomic.Pointer[os.File]
}

// fuse begins to serve the connection of the /dev/fuse descriptor fd, which it
// takes over.
func (s *server) fuse(p *peer, r request, fd int) (Mount, error) {
	if fd < 0 {
		return Mount{}, errors.New("serve-fuse: no descriptor came with the request")
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	want, err := body[FUSE](r)
	var src fs.Source
	release := func() {}
	if err == nil && want.Host != "" {
		src, release, err = s.hostSource(want.Host)
	} else if err == nil {
		src, err = s.source(want)
	}
	if err != nil {
		_ = dev.Close()
		return Mount{}, err
	}
	m := &served{
		Mount: Mount{FUSE: want, Since: time.Now()},
		ready: make(chan struct{}), gone: make(chan struct{}),
	}
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		_ = dev.Close()
		release()
		return Mount{}, fmt.Errorf("session %s: its owner is ending: %w", s.sess.Name(), ErrNoOwner)
	}
	s.last++
	m.ID = s.last
	s.mounts[m.ID] = m
	s.mu.Unlock()

	m.server, err = fs.Serve(dev, src, s.options(p, m))
	close(m.ready)
	if err != nil {
		s.unserve(m)
		release()
		return Mount{}, fmt.Errorf("tree %q on %s: %w", want.Tree, want.Mountpoint, err)
	}
	s.log.Info("serving", "mount", m.ID, "tree", want.Tree, "at", want.Mountpoint, "for", want.Description)
	go func() {
		m.server.Wait()
		release()
		if f := m.proc.Swap(nil); f != nil {
			_ = f.Close()
		}
		s.log.Info("no longer served", "mount", m.ID)
		s.unserve(m)
	}()
	return m.Mount, nil
}

// options are those that a mount is served with. Only a live view of a tree has
// a past, and changes.
func (s *server) options(p *peer, m *served) fs.Options {
	opt := fs.Options{Writeback: m.Writeback, Logger: s.log}
	if m.Snapshot != 0 || m.Host != "" {
		return opt
	}
	opt.Past = past{s.live, m.Tree}
	opt.Changed = func(pid uint32, path func() string) { s.changed.note(m, pid, path) }
	who := &acting{live: s.live, mount: m}
	if m.Private {
		who.within = p.state.PID
	}
	opt.Acting = who.acts
	return opt
}

// source is the face that a mount shows.
func (s *server) source(want FUSE) (fs.Source, error) {
	t := s.live.Tree(want.Tree)
	if t == nil {
		return nil, fmt.Errorf("session %s: tree %q: %w", s.sess.Name(), want.Tree, snapshots.ErrNotFound)
	}
	if want.Snapshot == 0 {
		return fs.Live(t), nil
	}
	snap, err := s.sess.Snapshot(strconv.FormatUint(uint64(want.Snapshot), 10))
	if err != nil {
		return nil, err
	}
	return func(overlay.Notifier) (*overlay.Face, error) { return s.live.View(want.Tree, snap.Number) }, nil
}

// hostState begins the names of the directories that hostSource makes.
const hostState = "mount-"

// removeLeft removes what hostSource made for an owner that was killed.
func removeLeft(dir string, log *slog.Logger) {
	in, err := os.ReadDir(dir)
	for _, d := range in {
		if d.IsDir() && strings.HasPrefix(d.Name(), hostState) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, d.Name())))
		}
	}
	if err != nil {
		log.Warn("remove what an owner before this one has left", "error", err)
	}
}

// hostSource is a directory of the host as a tree without layers. release
// closes it when it is no longer served.
func (s *server) hostSource(path string) (fs.Source, func(), error) {
	bases := detachBases([]snapshots.TreeSpec{{Base: path}}, s.log)
	defer bases.close()
	// The engine keeps its state of a tree somewhere, also of one that is
	// only looked at.
	dir, err := os.MkdirTemp(s.sess.Dir(), hostState)
	if err != nil {
		return nil, nil, err
	}
	t, err := openHost(path, dir, bases, s.sess.Store().HostID())
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, fmt.Errorf("directory %q: %w", path, err)
	}
	release := func() {
		if err := t.Close(); err != nil {
			s.log.Warn("close a mounted directory", "path", path, "error", err)
		}
		_ = os.RemoveAll(dir)
	}
	return fs.Live(t), release, nil
}

func openHost(path, state string, bases detached, hide overlay.HostID) (*overlay.Tree, error) {
	if err := overlay.InitState(hostfs.OS, state, 1); err != nil {
		return nil, err
	}
	base, err := bases.open(path)
	if err != nil {
		return nil, err
	}
	return overlay.Open(overlay.Config{Name: "mount", StateDir: state, Base: base, ReadOnly: true, Hide: []overlay.HostID{hide}}, overlay.Stack{})
}

// addTree adds a tree on a directory of the host to the live session.
func (s *server) addTree(ctx context.Context, a AddTree) (string, error) {
	s.adding.Lock()
	defer s.adding.Unlock()
	if a.Image != nil {
		return snapshots.Root, s.addImage(ctx, a.Image)
	}
	taken := map[string]bool{}
	for _, t := range s.sess.Trees() {
		if t.Base == a.Base {
			return t.Name, nil
		}
		taken[t.Name] = true
	}
	spec := snapshots.TreeSpec{Name: snapshots.TreeName(a.Base, taken), Base: a.Base, Mount: a.Mount}
	bases := detachBases([]snapshots.TreeSpec{spec}, s.log)
	defer bases.close()
	return spec.Name, s.live.AddTree(ctx, spec, snapshots.OpenOptions{OpenBase: bases.open})
}

// addImage adds the tree root on an image to the live session, unless it stands
// on it already.
func (s *server) addImage(ctx context.Context, image *snapshots.Image) error {
	for _, t := range s.sess.Trees() {
		if t.Name == snapshots.Root && t.OnImage() && t.Image.Digest == image.Digest {
			return nil
		}
	}
	return s.live.AddTree(ctx, snapshots.TreeSpec{Name: snapshots.Root, Image: image}, snapshots.OpenOptions{})
}

// unserve forgets a mount that is gone.
func (s *server) unserve(m *served) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mounts, m.ID)
	close(m.gone)
	s.checkIdle()
}

// endMount waits until a mount is gone, or makes it so.
func (s *server) endMount(ctx context.Context, id int, abort bool) error {
	s.mu.Lock()
	m := s.mounts[id]
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	if abort {
		m.abort()
	}
	select {
	case <-m.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// abort ends the serving of a mount, in use or not, and waits for that.
func (m *served) abort() {
	<-m.ready
	if m.server != nil {
		_ = m.server.Close()
	}
}
