package owner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/galleyfs/galley/fs"
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
}

// fuse begins to serve the connection of the /dev/fuse descriptor fd, which it
// takes over.
func (s *server) fuse(r request, fd int) (Mount, error) {
	if fd < 0 {
		return Mount{}, errors.New("serve-fuse: no descriptor came with the request")
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	want, err := body[FUSE](r)
	var src fs.Source
	if err == nil {
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
		return Mount{}, fmt.Errorf("session %s: its owner is ending: %w", s.sess.Name(), ErrNoOwner)
	}
	s.last++
	m.ID = s.last
	s.mounts[m.ID] = m
	s.mu.Unlock()

	opt := fs.Options{Writeback: want.Writeback, Logger: s.log}
	if want.Snapshot == 0 {
		opt.Past = past{s.sess, s.live.Tree(want.Tree)}
	}
	m.server, err = fs.Serve(dev, src, opt)
	close(m.ready)
	if err != nil {
		s.unserve(m)
		return Mount{}, fmt.Errorf("tree %q on %s: %w", want.Tree, want.Mountpoint, err)
	}
	s.log.Info("serving", "mount", m.ID, "tree", want.Tree, "at", want.Mountpoint, "for", want.Description)
	go func() {
		m.server.Wait()
		s.log.Info("no longer served", "mount", m.ID)
		s.unserve(m)
	}()
	return m.Mount, nil
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
	return fs.Snapshot(t, snap.Stacks[want.Tree]), nil
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
