package owner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/fs/virtiofs"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/krun"
	"github.com/galleyfs/galley/vm/netstack"
	"github.com/galleyfs/galley/vm/qemu"
)

const (
	// bootTimeout is how long a guest may take until its agent speaks. Under
	// emulation on a busy host that is half a minute.
	bootTimeout = 3 * time.Minute
	// setupTimeout is how long the agent may take to make its tree.
	setupTimeout = time.Minute
	// shutdownTimeout is how long a guest that was asked to end may take,
	// and partingTimeout one whose agent has gone.
	shutdownTimeout = 10 * time.Second
	partingTimeout  = 5 * time.Second
	// maxStreams bounds the conversations with one guest.
	maxStreams = 1024
)

// machine is the session's machine, from the first who asked for it until
// nothing of it is left.
//
// Lock order: the server's mu protects the fields that say so; it is a leaf.
type machine struct {
	s     *server
	want  VM
	since time.Time

	// ctx ends when the machine is to end; end says whether at once.
	ctx  context.Context
	stop context.CancelCauseFunc

	ready chan struct{} // closed when the guest is set up, or failed to be
	done  chan struct{} // closed when nothing is left

	// These are set before ready is closed, and then do not change.
	err    error
	vm     vm.Machine
	mux    *guest.Mux
	agent  *guest.Client
	export *virtiofs.Export
	net    *netstack.Process // nil without one
	boot   BootTimes
	probe  vm.Probe

	// Protected by the server's mu.
	phase   Phase
	syncing bool // the guest has been asked to, and has not answered
	// telling are the trees of whose changes the guest is being told; true
	// if more has changed meanwhile.
	telling  map[string]bool
	holders  map[*peer]struct{}
	detached bool
	idle     time.Duration
	streams  int
	quiet    *time.Timer          // ends a detached machine that nobody speaks with
	mounts   map[string]guestTree // by their path in the guest
	last     int                  // latest mount's number
	exit     *vm.Exit
}

// guestTree is a directory that was added to the guest while it ran.
type guestTree struct {
	name    string // in the export
	release func()
}

var (
	errStopped = errors.New("the machine was stopped")
	errKilled  = errors.New("the machine was killed")
)

// startVM is opVMStart: it starts the machine or joins it, and holds it for p.
func (s *server) startVM(p *peer, r VM) (VMStatus, error) {
	for {
		m, err := s.hold(p, r)
		if err != nil {
			return VMStatus{}, err
		}
		wait := m.ready
		if m.leaving() {
			wait = m.done // the next one is started when this has gone
		}
		select {
		case <-wait:
		case <-p.ctx.Done():
			return VMStatus{}, context.Cause(p.ctx)
		}
		if wait == m.done {
			continue
		}
		if m.err != nil {
			<-m.done
			return VMStatus{}, m.err
		}
		return m.status(), nil
	}
}

// hold finds or makes the machine and notes that p, or nobody in particular,
// keeps it.
func (s *server) hold(p *peer, r VM) (*machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, fmt.Errorf("session %s: its owner is ending: %w", s.sess.Name(), ErrNoOwner)
	}
	m := s.machine
	if m == nil {
		m = newMachine(s, r)
		s.machine = m
		go m.run()
	} else if m.phase == Stopping || m.phase == Ended {
		return m, nil
	} else if err := m.differs(r); err != nil {
		return nil, err
	}
	if r.Detach {
		m.detached, m.idle = true, r.Idle
	} else {
		m.holders[p] = struct{}{}
	}
	m.watchIdle()
	return m, nil
}

func newMachine(s *server, r VM) *machine {
	m := &machine{
		s: s, want: r, since: time.Now(), phase: Starting,
		ready: make(chan struct{}), done: make(chan struct{}),
		holders: map[*peer]struct{}{}, mounts: map[string]guestTree{}, telling: map[string]bool{},
	}
	m.ctx, m.stop = context.WithCancelCause(context.Background())
	return m
}

// differs refuses to join a machine that is not what was asked for in what
// matters.
func (m *machine) differs(r VM) error {
	var what string
	switch {
	case r.Net && !m.want.Net:
		what = "without a network"
	case !r.Net && m.want.Net:
		what = "with a network"
	case r.Driver != m.want.Driver:
		what = "under " + m.want.Driver
	default:
		return nil
	}
	name := m.s.sess.Name()
	return fmt.Errorf("the machine of session %s runs %s already; galley stop %s ends it: %w", name, what, name, snapshots.ErrBusy)
}

func (m *machine) leaving() bool {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return m.phase == Stopping || m.phase == Ended
}

// letGo notes that p has gone. A machine that nobody holds is asked to end.
//
// Preconditions: mu of the server is held.
func (m *machine) letGo(p *peer) {
	if _, ok := m.holders[p]; !ok {
		return
	}
	delete(m.holders, p)
	if len(m.holders) == 0 && !m.detached {
		m.end(errStopped)
		return
	}
	m.watchIdle()
}

// watchIdle starts or ends the time after which a detached machine ends.
//
// Preconditions: mu of the server is held.
func (m *machine) watchIdle() {
	if m.quiet != nil {
		m.quiet.Stop()
		m.quiet = nil
	}
	if m.phase == Running && m.detached && m.idle > 0 && len(m.holders) == 0 && m.streams == 0 {
		m.quiet = time.AfterFunc(m.idle, func() { m.endIdle() })
	}
}

func (m *machine) endIdle() {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.streams == 0 && len(m.holders) == 0 {
		m.s.log.Info("the machine was idle", "for", m.idle)
		m.end(errStopped)
	}
}

// end asks for the machine's end; the first reason counts, but for a wish to
// kill it.
//
// Preconditions: mu of the server is held.
func (m *machine) end(why error) {
	if m.phase != Ended {
		m.phase = Stopping
	}
	m.stop(why)
	if errors.Is(why, errKilled) && m.vm != nil {
		go m.vm.Kill()
	}
}

// run is the machine's life.
func (m *machine) run() {
	parts, err := m.start()
	if err != nil {
		m.err = fmt.Errorf("session %s: start its machine: %w", m.s.sess.Name(), err)
		m.s.log.Warn("the machine did not start", "error", err)
	} else {
		m.s.mu.Lock()
		if m.phase == Starting {
			m.phase = Running
			m.watchIdle()
		}
		m.s.mu.Unlock()
		if err := keepVM(m.s.sess, m.want); err != nil {
			m.s.log.Warn("record what the machine is", "error", err)
		}
		m.s.log.Info("the machine runs", "pid", m.vm.PID(), "accel", m.vm.Accel(), "boot", m.boot)
		close(m.ready)
		m.await()
	}
	m.clean(parts)
	if err != nil {
		close(m.ready)
	}
	close(m.done)
}

// await returns when the machine has ended, for whatever reason.
func (m *machine) await() {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = m.vm.Wait()
	}()
	select {
	case <-ended:
	case <-m.mux.Done(): // it ends just now, or its agent has died
		m.killAfter(ended, partingTimeout)
	case <-m.ctx.Done():
		if errors.Is(context.Cause(m.ctx), errStopped) {
			m.shutdown(ended)
		}
	}
	_ = m.vm.Kill()
	<-ended
}

// shutdown asks the guest to end and gives it time to.
func (m *machine) shutdown(ended <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := m.agent.Shutdown(ctx); err != nil {
		m.s.log.Warn("the guest did not shut down by itself", "error", err)
		return
	}
	m.killAfter(ended, partingTimeout)
}

// killAfter gives the machine some time to end by itself.
func (m *machine) killAfter(ended <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		m.s.log.Warn("the machine did not end by itself and is killed")
	}
}

// parts are what a machine is made of and what has to be closed, last first.
type parts []func()

func (p *parts) add(f func()) { *p = append(*p, f) }

// start makes everything that the machine needs, starts it and sets its guest
// up. What it returns is to be closed in any case.
func (m *machine) start() (parts, error) {
	var p parts
	begin := time.Now()
	d, err := m.driver()
	if err != nil {
		return p, err
	}
	if m.probe, err = d.Probe(m.ctx); err != nil {
		return p, err
	}
	if !m.probe.OK {
		return p, &vm.Missing{What: m.probe.Why, Fix: m.probe.Fix}
	}
	config := m.want.Config
	agent, err := m.connect(&config, &p)
	if err != nil {
		closeAll(config)
		return p, err
	}
	started, err := d.Start(m.ctx, config)
	closeAll(config) // the machine has its own
	if err != nil {
		_ = agent.Close()
		return p, err
	}
	m.s.mu.Lock()
	m.vm = started
	m.s.mu.Unlock()
	p.add(func() { _ = started.Kill() })
	m.boot.Process = time.Since(begin)
	return p, m.greet(agent, begin)
}

// connect makes the descriptors of the machine and returns the owner's end of
// the agent's stream.
func (m *machine) connect(c *vm.Config, p *parts) (net.Conn, error) {
	log, err := openConsole(filepath.Join(m.s.sess.Dir(), ConsoleLog))
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	c.Console = write
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		log.copy(read)
	}()
	p.add(func() {
		<-copied // the machine's end was the last, and is gone
		_ = read.Close()
	})
	if err := m.share(c, p); err != nil {
		return nil, err
	}
	if err := m.network(c, p); err != nil {
		return nil, err
	}
	mine, theirs, err := streamPair("agent")
	if err != nil {
		return nil, err
	}
	c.Agent = theirs
	conn, err := connOf(mine)
	if err != nil {
		return nil, fmt.Errorf("agent of a machine: %w", err)
	}
	return conn, nil
}

// share serves the session's trees to the machine.
func (m *machine) share(c *vm.Config, p *parts) error {
	m.export = virtiofs.NewExport(virtiofs.ExportOptions{Logger: m.s.log, Changed: m.changed})
	p.add(m.export.Close)
	if m.want.Driver == "krun" {
		m.shareOverFUSE(c, p)
		return nil
	}
	for _, t := range m.s.sess.Trees() {
		name := t.Name
		if m.placeOf(t) == "" {
			continue
		}
		live := m.s.live.Tree(name)
		if live == nil {
			continue
		}
		if err := m.export.Add(name, fs.Live(live), virtiofs.TreeOptions{}); err != nil {
			return err
		}
	}
	mine, theirs, err := streamPair("share")
	if err != nil {
		return err
	}
	c.Share = theirs
	server, err := virtiofs.Serve(mine, m.export, virtiofs.Options{Logger: m.s.log})
	if err != nil {
		return fmt.Errorf("share of a machine: %w", err)
	}
	p.add(func() { _ = server.Close() })
	return nil
}

// shareOverFUSE serves each tree to a driver that has no vhost-user: over a FUSE
// mount that is made in the machine's jail, and in the guest with caches of
// that driver's own (libkrun 1.x: five seconds, and no notifications).
func (m *machine) shareOverFUSE(c *vm.Config, p *parts) {
	for _, t := range m.s.sess.Trees() {
		live := m.s.live.Tree(t.Name)
		if m.placeOf(t) == "" || live == nil {
			continue
		}
		c.Shares = append(c.Shares, vm.Share{Name: t.Name, Serve: func(dev *os.File) error {
			server, err := fs.Serve(dev, fs.Live(live), fs.Options{Logger: m.s.log})
			if err == nil {
				p.add(func() { _ = server.Close() })
			}
			return err
		}})
	}
}

// network starts the process that is the guest's network, if it is to have one.
// What the guest sends never comes to the owner.
func (m *machine) network(c *vm.Config, p *parts) error {
	if !m.want.Net {
		return nil
	}
	var err error
	if m.net, c.Net, err = netstack.Start(netstack.Options{Log: m.s.log}); err != nil {
		return err
	}
	p.add(m.net.Close)
	return nil
}

// closeAll closes the descriptors that are made for a machine.
func closeAll(c vm.Config) {
	for _, f := range []*os.File{c.Share, c.Agent, c.Net, c.Console} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// driver is the driver that was asked for.
func (m *machine) driver() (vm.Driver, error) {
	switch m.want.Driver {
	case "qemu":
		return qemu.New(qemu.Options{
			Exe: m.want.Program, Kernel: m.want.Config.Kernel,
			Cache: MachineCache(m.s.sess.Store()), Log: m.s.log,
		}), nil
	case "krun":
		return krun.New(krun.Options{Library: m.want.Program, Cache: MachineCache(m.s.sess.Store()), Log: m.s.log}), nil
	}
	return nil, fmt.Errorf("no driver %q for machines; there are qemu and krun", m.want.Driver)
}

// clean ends what is left of the machine, and notes how it ended.
func (m *machine) clean(p parts) {
	m.stop(errStopped)
	m.s.mu.Lock()
	if m.quiet != nil {
		m.quiet.Stop()
		m.quiet = nil
	}
	m.phase = Stopping
	mounts := m.mounts
	m.mounts = map[string]guestTree{}
	m.s.mu.Unlock()
	if m.mux != nil {
		_ = m.mux.Close()
	}
	for _, t := range mounts {
		if t.release != nil {
			t.release()
		}
	}
	for i := len(p) - 1; i >= 0; i-- {
		p[i]()
	}
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.phase = Ended
	if m.vm != nil {
		if exit, err := m.vm.Wait(); err == nil {
			m.exit = &exit
			m.s.log.Info("the machine ended", "how", exit.String())
		}
	}
	m.s.machine, m.s.ended = nil, m
	m.s.checkIdle()
}

// status tells of the machine.
func (m *machine) status() VMStatus {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return m.statusLocked()
}

// statusLocked is status.
//
// Preconditions: mu of the server is held.
func (m *machine) statusLocked() VMStatus {
	st := VMStatus{
		Phase: m.phase, Driver: m.want.Driver, Since: m.since,
		CPUs: m.want.Config.CPUs, Memory: m.want.Config.Memory, Net: m.want.Net,
		Image: m.want.Image, Command: m.want.Command,
		Detached: m.detached, Idle: m.idle, Users: len(m.holders), Streams: m.streams, Exit: m.exit,
	}
	if m.vm != nil {
		st.PID, st.Accel = m.vm.PID(), m.vm.Accel()
	}
	select {
	case <-m.ready:
		st.Boot = m.boot
		if st.Accel == vm.TCG {
			st.Slow, st.SlowNew = m.probe.Why, m.probe.Fresh
		}
	default:
	}
	return st
}

// stopVM is opVMStop.
func (s *server) stopVM(ctx context.Context, r StopVM) (VMStatus, error) {
	s.mu.Lock()
	m := s.machine
	if m != nil {
		why := errStopped
		if r.Kill {
			why = errKilled
		}
		m.end(why)
	}
	s.mu.Unlock()
	if m == nil {
		return VMStatus{}, s.errNoMachine()
	}
	select {
	case <-m.done:
		return m.status(), nil
	case <-ctx.Done():
		return VMStatus{}, context.Cause(ctx)
	}
}

// MachineCache is the directory where the store's machines keep what is made of
// kernels, and what was found out about the host.
func MachineCache(st *snapshots.Store) string { return filepath.Join(st.Home(), "machines") }
