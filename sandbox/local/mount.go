package local

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/hostdir"
	"github.com/galleyfs/galley/sandbox/owner"
)

// pendingView is a mount that is being made.
type pendingView struct {
	done  chan message // what the supervisor says of it
	serve error        // why it is not served
}

// Mount is [sandbox.Sandbox.Mount]. The owner of the session serves the
// directory, so that the same engine stands over it as over the workspace.
func (s *Sandbox) Mount(ctx context.Context, r sandbox.MountRequest) (sandbox.MountResult, error) {
	out, err := s.mount(ctx, r)
	if err != nil {
		return sandbox.MountResult{}, sandbox.Wrap("mount", r.Path, err)
	}
	return out, nil
}

func (s *Sandbox) mount(ctx context.Context, r sandbox.MountRequest) (sandbox.MountResult, error) {
	out := sandbox.MountResult{Path: r.Path}
	if err := s.open("mount"); err != nil {
		return out, err
	}
	host, err := hostdir.Check(r, s.session.Store().Home())
	if err != nil {
		return out, err
	}
	if err := s.reserve(r.Path); err != nil {
		return out, err
	}
	f := owner.FUSE{Host: host, Mountpoint: r.Path, ReadOnly: !r.Write, Private: true, Description: "mount"}
	if r.Write {
		if f.Tree, err = s.owner.AddTree(ctx, owner.AddTree{Base: host, Mount: r.Path}); err == nil {
			f.Host = ""
			out.Tree = f.Tree
		}
	}
	if err == nil {
		err = s.makeMount(ctx, r, f)
	}
	if err != nil {
		s.mu.Lock()
		delete(s.placed, r.Path)
		s.mu.Unlock()
	}
	return out, err
}

// reserve keeps a second mount from the path of the first.
func (s *Sandbox) reserve(p string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.placed[p] {
		return sandbox.Errorf(sandbox.Exists, "mount", p, "something is mounted there already")
	}
	s.placed[p] = true
	return nil
}

// makeMount has the supervisor mount, the owner serve, and the supervisor put
// the mount in its place.
func (s *Sandbox) makeMount(ctx context.Context, r sandbox.MountRequest, f owner.FUSE) error {
	p := &pendingView{done: make(chan message, 2)}
	s.mu.Lock()
	n := s.last
	s.last++
	s.mounts[n] = p
	s.views[n] = func(dev *os.File) {
		if err := s.serveFUSE(dev, f); err != nil {
			s.mu.Lock()
			p.serve = err
			delete(s.mounts, n)
			s.mu.Unlock()
			p.done <- message{kind: kindMounted, text: err.Error(), code: int32(unix.EIO)}
			return
		}
		_ = s.channel.send(message{kind: kindServed, n: n}, -1)
	}
	s.mu.Unlock()
	readOnly := int32(1)
	if r.Write {
		readOnly = 0
	}
	if err := s.channel.send(message{kind: kindMount, n: n, code: readOnly, text: r.Path}, -1); err != nil {
		return sandbox.Errorf(sandbox.Closed, "mount", r.Path, "the sandbox has ended: %w", err)
	}
	select {
	case m := <-p.done:
		if m.text == "" {
			return nil
		}
		if p.serve != nil {
			return p.serve
		}
		return mountError(r.Path, m)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mountError makes an error of the contract of what the supervisor said.
func mountError(p string, m message) error {
	errno := unix.Errno(m.code)
	e := &sandbox.Error{}
	if !errors.As(sandbox.Wrap("mount", p, errno), &e) {
		return errno
	}
	if errno == unix.ESHUTDOWN {
		e.Code = sandbox.Closed
	}
	e.Message = strings.TrimSpace(m.text)
	return e
}
