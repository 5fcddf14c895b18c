package virtual

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// Mount implements [sandbox.Sandbox]: another tree under the same name space,
// seen by commands that run.
func (s *Sandbox) Mount(ctx context.Context, r sandbox.MountRequest) (sandbox.MountResult, error) {
	if err := s.begin("mount", r.Path); err != nil {
		return sandbox.MountResult{}, err
	}
	defer s.end()
	out, err := s.mount(ctx, r)
	return out, sandbox.Wrap("mount", r.Path, err)
}

func (s *Sandbox) mount(ctx context.Context, r sandbox.MountRequest) (sandbox.MountResult, error) {
	var out sandbox.MountResult
	for _, p := range []string{r.Host, r.Path} {
		if err := files.CheckPath("mount", p); err != nil {
			return out, err
		}
		if !path.IsAbs(p) {
			return out, sandbox.Errorf(sandbox.Invalid, "mount", p, "the path is relative; expected an absolute one")
		}
	}
	if err := ctx.Err(); err != nil {
		return out, err
	}
	if err := s.mayShow(r.Host); err != nil {
		return out, err
	}
	at := path.Clean(r.Path)
	if at == "/" {
		return out, sandbox.Errorf(sandbox.Invalid, "mount", r.Path, "nothing can be mounted over the root")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.view.MountPoints() {
		if p == at {
			return out, sandbox.Errorf(sandbox.Exists, "mount", r.Path, "something is mounted there already")
		}
	}
	if err := s.mountPoint(at); err != nil {
		return out, plainErr(err)
	}
	real, err := s.view.Real(at)
	if err != nil {
		return out, plainErr(err)
	}
	face, name, err := s.mountTree(ctx, r, real)
	if err != nil {
		return out, err
	}
	if err := s.view.Mount(real, face, !r.Write); err != nil {
		if err == unix.EEXIST {
			return out, sandbox.Errorf(sandbox.Exists, "mount", r.Path, "something is mounted there already")
		}
		return out, err
	}
	return sandbox.MountResult{Path: at, Tree: name}, nil
}

// mayShow checks the directory of the host.
func (s *Sandbox) mayShow(host string) error {
	i, err := os.Stat(host)
	if err != nil {
		return err
	}
	if !i.IsDir() {
		return sandbox.Errorf(sandbox.NotDirectory, "mount", host, "it is not a directory; only directories can be mounted")
	}
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		return err
	}
	for _, f := range append([]string{s.scratch}, s.cfg.Forbidden...) {
		if f, err = filepath.EvalSymlinks(f); err != nil {
			continue // what is not there cannot be shown
		}
		if beneath(f, real) || beneath(real, f) {
			return sandbox.Errorf(sandbox.Invalid, "mount", host, "it is, or holds, or lies in Galley's own state; mount another directory")
		}
	}
	return nil
}

// beneath reports whether p is dir or lies in it.
func beneath(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// mountTree opens the tree of a mount at the resolved path at.
//
// Preconditions: mu is held.
func (s *Sandbox) mountTree(ctx context.Context, r sandbox.MountRequest, at string) (*overlay.Face, string, error) {
	if r.Write && s.cfg.NewTree != nil {
		t, name, err := s.cfg.NewTree(ctx, r.Host, at)
		if err != nil {
			return nil, "", err
		}
		return s.attach(t), name, nil
	}
	base, err := overlay.OpenBase(nil, r.Host)
	if err != nil {
		return nil, "", err
	}
	t, err := s.newTree("mount", base)
	if err != nil {
		return nil, "", err
	}
	name := ""
	if r.Write {
		name = filepath.Base(t.Name()) + ":" + path.Clean(r.Path)
	}
	return s.attach(t), name, nil
}
