package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/sandbox/virtual"
	"github.com/galleyfs/galley/snapshots"
)

// place is where the tools of a session land: a sandbox, once it is started,
// and who seals the session meanwhile.
type place struct {
	e    *env
	sess *snapshots.Session
	opt  sandboxOptions
	what string

	mu   sync.Mutex
	ctrl owner.Controller // while the sandbox runs
}

// open starts the sandbox.
func (p *place) open(ctx context.Context) (sandbox.Sandbox, error) {
	if p.opt.virtual {
		h, err := p.e.host(ctx, p.sess)
		if err != nil {
			return nil, err
		}
		sb, err := newVirtual(p.sess, h)
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		noteSandbox(p.sess, inVirtual, p.e.log)
		p.set(h.Control())
		out := &inProcess{Sandbox: sb, owner: h, place: p}
		go func() {
			// Somebody wants the session for himself.
			<-h.Done()
			_ = out.Close()
		}()
		return out, nil
	}
	if p.opt.guest.on {
		sb, err := p.e.openGuest(ctx, p.sess, p.opt.guest, p.what)
		if err != nil {
			return nil, err
		}
		p.set(shared{sb.Owner()})
		return &leased{sb, p}, nil
	}
	o := local.Options{
		Session: p.sess, AllowSockets: p.opt.sockets, AllowAbstractSockets: p.opt.abstract, HostTmp: p.opt.hostTmp,
		Caches: p.opt.caches, Owner: owner.Options{Log: p.e.log, What: p.what},
	}
	if home := p.e.getenv("HOME"); !p.opt.noCaches && home != "" {
		o.Caches = append(o.Caches, local.DefaultCaches(home)...)
	}
	sb, err := local.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	noteSandbox(p.sess, inLocal, p.e.log)
	p.set(shared{sb.Owner()})
	return &leased{sb, p}, nil
}

func (p *place) set(c owner.Controller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ctrl = c
}

// control is who seals the session: its owner, or this process under its lock.
func (p *place) control(ctx context.Context) (owner.Controller, error) {
	p.mu.Lock()
	c := p.ctrl
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	return owner.Control(ctx, p.sess)
}

// shared is a connection that stays open when one who uses it is done.
type shared struct{ *owner.Client }

func (shared) Close() error { return nil }

// leased is a sandbox whose connection to the owner goes with it.
type leased struct {
	sandbox.Sandbox
	place *place
}

func (s *leased) Close() error {
	s.place.set(nil)
	return s.Sandbox.Close()
}

// FilesTree tells whose changes are those of the calls on files, where the
// sandbox can (package sandbox/tools asks for it).
func (s *leased) FilesTree() string {
	if f, ok := s.Sandbox.(interface{ FilesTree() string }); ok {
		return f.FilesTree()
	}
	return ""
}

// inProcess is a virtual sandbox with the session that this process owns.
type inProcess struct {
	*virtual.Sandbox
	owner *owner.Hosted
	place *place
	once  sync.Once
	err   error
}

func (s *inProcess) Close() error {
	s.once.Do(func() {
		s.err = s.Sandbox.Close()
		s.place.set(nil)
		s.err = errors.Join(s.err, s.owner.Close())
	})
	return s.err
}

// host opens a session in this process, which is then its owner.
func (e *env) host(ctx context.Context, sess *snapshots.Session) (*owner.Hosted, error) {
	var h *owner.Hosted
	err := whenIdle(ctx, sess, func() (err error) {
		h, err = owner.Host(ctx, sess, e.log)
		return err
	})
	if errors.Is(err, snapshots.ErrBusy) {
		return nil, withHint(err, "the virtual sandbox works on the session in its own process: wait until the others have ended, or --new starts another session")
	}
	return h, err
}

// newVirtual makes the virtual sandbox of a session: its trees at their paths,
// and those that are mounted while it runs as further trees of it.
func newVirtual(sess *snapshots.Session, h *owner.Hosted) (*virtual.Sandbox, error) {
	cfg := virtual.Config{
		Session: sess.Name(), Workdir: sess.Trees()[0].Mount, Forbidden: []string{sess.Store().Home()},
		NewTree: func(ctx context.Context, host, at string) (*overlay.Tree, string, error) {
			return h.AddTree(ctx, owner.AddTree{Base: host, Mount: at})
		},
	}
	for _, t := range sess.Trees() {
		if t.OnImage() {
			continue // a guest's
		}
		cfg.Trees = append(cfg.Trees, virtual.Tree{Path: t.Mount, Tree: h.Tree(t.Name)})
	}
	return virtual.New(cfg)
}

// events is the session's record, for writing.
func (e *env) events(sess *snapshots.Session) *slog.Logger {
	return events.Open(sess.Dir()).Logger("session", sess.Name())
}

// recordCommand writes the event of a command that has ended.
func (e *env) recordCommand(sess *snapshots.Session, snap snapshots.Snapshot, cause snapshots.Cause) {
	s := sealedOf(snap, cause)
	attrs := []any{"text", cause.Text, "start", cause.Start, "duration", cause.Duration, "exit", *cause.Exit}
	if s.Number != 0 {
		attrs = append(attrs, "snapshot", s.Number, "changed", s.Changed, "changes", s.Changes)
	}
	e.events(sess).Info(events.Command, attrs...)
}
