package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// server is the owner of one live session.
//
// Lock order: mu is a leaf. It is not held while a request waits for the
// engine or a mount.
type server struct {
	sess  *snapshots.Session
	live  *snapshots.Live
	log   *slog.Logger
	since time.Time

	// adding is held while a tree is added. It is taken before the session's
	// own locks.
	adding sync.Mutex

	seals   atomic.Int64
	tidying sync.WaitGroup // in the background; waited for before the session is closed
	// hosted: the process works on the session itself, and ends when it is
	// done with that.
	hosted bool

	changed changes // who changed what since the last seal

	mu      sync.Mutex
	clients map[*peer]struct{}
	mounts  map[int]*served
	last    int // latest mount's id
	ending  bool
	end     chan struct{} // closed when the owner is to end
	machine *machine      // from the request for it until nothing is left of it
	ended   *machine      // the one before
}

func newServer(live *snapshots.Live, log *slog.Logger) *server {
	removeLeft(live.Session().Dir(), log)
	return &server{
		sess: live.Session(), live: live, log: log, since: time.Now(),
		clients: map[*peer]struct{}{}, mounts: map[int]*served{}, end: make(chan struct{}),
	}
}

// peer is one connection.
type peer struct {
	link  *link
	state ClientState
	lease bool // has said hello
	// user: the owner stays for it. A connection that says nothing, or
	// nonsense, keeps nobody; the first user's is waited for.
	user bool
	// ctx ends with the connection.
	ctx    context.Context
	cancel context.CancelFunc
}

// accept serves connections until ln is closed.
func (s *server) accept(ln *net.UnixListener) {
	for {
		conn, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, say: those who wait are served later.
			s.log.Warn("accept", "error", err)
			select {
			case <-s.end:
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		s.start(conn, false)
	}
}

// start serves one connection, if it is of a process of the same user or root.
func (s *server) start(conn *net.UnixConn, first bool) {
	cred, err := credentials(conn)
	if err != nil || cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		s.log.Warn("connection refused", "cred", cred, "error", err)
		_ = conn.Close()
		return
	}
	p := &peer{link: &link{conn: conn}, user: first, state: ClientState{PID: int(cred.Pid), Since: time.Now()}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		_ = conn.Close()
		return
	}
	s.clients[p] = struct{}{}
	go s.serve(p)
}

// credentials are those of the process that made the connection, as the kernel
// noted them (unix(7), SO_PEERCRED).
func credentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(cerr, err)
}

// serve works on the requests of p until the connection ends. Then its lease
// is over.
func (s *server) serve(p *peer) {
	var working sync.WaitGroup
	for {
		b, fd, err := p.link.read()
		var r request
		if err == nil {
			r, err = decodeRequest(b)
		}
		if err == nil && !p.lease && r.Op != opHello {
			err = errors.New("no hello first")
		}
		if err != nil {
			closeFD(fd)
			break
		}
		if r.Op == opHello {
			closeFD(fd)
			if !s.hello(p, r) {
				break
			}
			continue
		}
		working.Go(func() { s.answer(p, r, fd) })
	}
	p.cancel()
	working.Wait()
	s.mu.Lock()
	delete(s.clients, p)
	if s.machine != nil {
		s.machine.letGo(p)
	}
	keep := s.ending // the connection is closed as the owner's last act
	s.checkIdle()
	s.mu.Unlock()
	if !keep {
		_ = p.link.conn.Close()
	}
}

// hello takes a client in, or tells it why not.
func (s *server) hello(p *peer, r request) bool {
	h, err := body[helloBody](r)
	if err == nil && h.Protocol != protocol {
		err = fmt.Errorf("the owner of session %s is galley %s with protocol %d, and this program has protocol %d; end the commands that use the session, and try again",
			s.sess.Name(), version(), protocol, h.Protocol)
	}
	if err == nil {
		s.mu.Lock()
		ending := s.ending
		if !ending {
			p.lease, p.user, p.state.What = true, true, h.What
		}
		s.mu.Unlock()
		if ending {
			// No answer: the connection ends with the owner, and whoever
			// greeted it starts another.
			return false
		}
	}
	s.reply(p, r, helloAnswer{Protocol: protocol, Version: version(), PID: os.Getpid()}, err)
	return err == nil
}

func (s *server) reply(p *peer, r request, v any, err error) {
	out := response{Number: r.Number, Error: toWire(err)}
	if err == nil {
		if out.Body, err = json.Marshal(v); err != nil {
			out.Error = toWire(err)
		}
	}
	if err := p.link.write(out, -1); err != nil && p.ctx.Err() == nil {
		s.log.Warn("answer a client", "op", r.Op, "pid", p.state.PID, "error", err)
	}
}

// answer works on one request. A panic in it is the end of the request and not
// of the session.
func (s *server) answer(p *peer, r request, fd int) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic in a request", "op", r.Op, "value", v, "stack", string(debug.Stack()))
			s.reply(p, r, nil, fmt.Errorf("%s: internal error; the owner's log has the details", r.Op))
		}
	}()
	v, err := s.do(p, r, fd)
	s.reply(p, r, v, err)
}

// do works on one request; it takes fd over.
func (s *server) do(p *peer, r request, fd int) (any, error) {
	switch r.Op {
	case opFUSE:
		return s.fuse(p, r, fd)
	case opWatch:
		return struct{}{}, s.watch(r, fd)
	}
	if r.Op == opVMDial {
		return struct{}{}, s.dialVM(p.ctx, fd)
	}
	closeFD(fd)
	switch r.Op {
	case opStatus:
		return s.status(), nil
	case opSeal:
		opt, err := body[snapshots.SealOptions](r)
		if err != nil {
			return nil, err
		}
		if err := s.syncGuest(p.ctx); err != nil {
			opt.Cause.Unsynced = err.Error()
		}
		snap, err := s.seal(p.ctx, opt)
		if s.seals.Add(1)%tidyEvery == 0 {
			s.inBackground(s.tidy)
		}
		return snap, err
	case opCommitted:
		c, err := body[snapshots.Committed](r)
		if err != nil {
			return nil, err
		}
		return s.live.Committed(p.ctx, c)
	case opDiscard:
		d, err := body[snapshots.Discard](r)
		if err != nil {
			return nil, err
		}
		return s.live.Discard(p.ctx, d)
	case opRollback:
		r, err := body[snapshots.Rollback](r)
		if err != nil {
			return nil, err
		}
		_ = s.syncGuest(p.ctx) // what it did not write back is not kept
		return s.live.Rollback(p.ctx, r)
	case opTake:
		t, err := body[snapshots.Take](r)
		if err != nil {
			return nil, err
		}
		return s.live.Take(p.ctx, t)
	case opReplacing:
		b, err := body[snapshots.Replacing](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, s.live.Replacing(p.ctx, b)
	case opAddTree:
		a, err := body[AddTree](r)
		if err != nil {
			return nil, err
		}
		return s.addTree(p.ctx, a)
	case opPrune:
		b, err := body[snapshots.Prune](r)
		if err != nil {
			return nil, err
		}
		return s.live.Prune(p.ctx, b)
	case opWait, opAbort:
		m, err := body[mountBody](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, s.endMount(p.ctx, m.ID, r.Op == opAbort)
	case opVMStart:
		b, err := body[VM](r)
		if err != nil {
			return nil, err
		}
		return s.startVM(p, b)
	case opVMMount:
		b, err := body[VMMount](r)
		if err != nil {
			return nil, err
		}
		return s.mountVM(p.ctx, b)
	case opVMUnmount:
		b, err := body[vmPath](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, s.unmountVM(p.ctx, b.Path)
	case opVMForward:
		b, err := body[VMForward](r)
		if err != nil {
			return nil, err
		}
		return s.forwardVM(p.ctx, b)
	case opVMStop:
		b, err := body[StopVM](r)
		if err != nil {
			return nil, err
		}
		return s.stopVM(p.ctx, b)
	case opStop:
		b, err := body[stopBody](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, s.stop(p, b.Force)
	}
	return nil, fmt.Errorf("%q: no such operation", r.Op)
}

// tidyEvery is how many seals lie between two looks for old checkpoints, in a
// session that goes on.
const tidyEvery = 1000

// inBackground runs f, which the end of the owner waits for, unless that began.
func (s *server) inBackground(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ending {
		s.tidying.Go(f)
	}
}

// tidy merges checkpoints that are old and have no name.
func (s *server) tidy() {
	done, err := s.live.Tidy(context.Background(), snapshots.DefaultTidy)
	if err != nil {
		s.log.Warn("merge old checkpoints", "error", err)
	} else if len(done.Snapshots) > 0 {
		s.log.Info("merged old checkpoints", "forgotten", len(done.Snapshots), "layers", done.Layers, "bytes", done.Bytes)
	}
}

// checkIdle ends the owner when nobody needs it any more.
//
// Preconditions: mu is held.
func (s *server) checkIdle() {
	if s.users() == 0 && len(s.mounts) == 0 && s.machine == nil && !s.hosted {
		s.finish()
	}
}

// users counts the connections that the owner stays for.
//
// Preconditions: mu is held.
func (s *server) users() int {
	n := 0
	for p := range s.clients {
		if p.user {
			n++
		}
	}
	return n
}

// finish makes the owner end.
//
// Preconditions: mu is held.
func (s *server) finish() {
	if !s.ending {
		s.ending = true
		close(s.end)
	}
}

// stop ends the owner on the wish of p.
func (s *server) stop(p *peer, force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	others := s.users() - 1
	if s.hosted {
		others++
	}
	if !force && (others > 0 || len(s.mounts) > 0) {
		return fmt.Errorf("session %s: %w: %d other users, %d mounts", s.sess.Name(), snapshots.ErrBusy, others, len(s.mounts))
	}
	if s.machine != nil && !force {
		return fmt.Errorf("session %s: %w: its machine runs", s.sess.Name(), snapshots.ErrBusy)
	}
	s.finish()
	return nil
}

// shutdown ends all serving, closes the session, and lets those who wait for
// that know by closing their connections.
func (s *server) shutdown() error {
	s.mu.Lock()
	s.finish()
	mounts := make([]*served, 0, len(s.mounts))
	for _, m := range s.mounts {
		mounts = append(mounts, m)
	}
	peers := make([]*peer, 0, len(s.clients))
	for p := range s.clients {
		peers = append(peers, p)
	}
	m := s.machine
	if m != nil {
		m.end(errStopped)
	}
	s.mu.Unlock()
	if m != nil {
		<-m.done
	}
	for _, m := range mounts {
		m.abort()
	}
	for _, m := range mounts {
		<-m.gone // what it was served from is closed
	}
	s.tidying.Wait()
	s.tidy()
	err := s.live.Close()
	for _, p := range peers {
		_ = p.link.conn.Close()
	}
	return err
}

func (s *server) status() Status {
	st := Status{Version: version(), PID: os.Getpid(), Session: s.sess.ID(), Since: s.since}
	for _, spec := range s.sess.Trees() {
		t := s.live.Tree(spec.Name)
		if t == nil {
			continue
		}
		st.Trees = append(st.Trees, TreeStatus{
			Name: spec.Name, Base: spec.Base, Stack: t.Stack(), Dirty: t.Dirty(),
			ReadOnlyBase: s.live.ReadOnlyBase(spec.Name), Stats: t.Stats(),
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mounts {
		st.Mounts = append(st.Mounts, m.Mount)
	}
	sort.Slice(st.Mounts, func(i, j int) bool { return st.Mounts[i].ID < st.Mounts[j].ID })
	if m := s.machine; m != nil {
		v := m.statusLocked()
		st.VM = &v
	} else if s.ended != nil {
		v := s.ended.statusLocked()
		st.VM = &v
	}
	for p := range s.clients {
		if p.lease {
			st.Clients = append(st.Clients, p.state)
		}
	}
	sort.Slice(st.Clients, func(i, j int) bool { return st.Clients[i].Since.Before(st.Clients[j].Since) })
	return st
}
