package owner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"time"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/fs/virtiofs"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/netstack"
)

// What the owner does with the guest of the session's machine.

const (
	// syncTimeout is how long a guest may take to write back what it holds
	// before a seal or a rollback, which then goes on without.
	syncTimeout = 5 * time.Second
	// invalidateTimeout is how long whoever changed something waits for the
	// guest to look again.
	invalidateTimeout = 5 * time.Second
	// mountTimeout bounds a mount at run time.
	mountTimeout = 15 * time.Second
)

// greet waits for the agent and has it make the guest's tree. It takes conn
// over.
func (m *machine) greet(conn net.Conn, begin time.Time) error {
	boot, cancel := context.WithTimeoutCause(m.ctx, bootTimeout, fmt.Errorf("the guest's agent said nothing within %v", bootTimeout))
	defer cancel()
	// A machine that ends closes the stream, and says why it did.
	var err error
	if m.mux, err = guest.Connect(boot, conn); err != nil {
		return m.explain(err)
	}
	m.boot.Agent = time.Since(begin) - m.boot.Process
	m.agent = guest.NewClient(m.mux.Open)
	ctx, cancel := context.WithTimeout(m.ctx, setupTimeout)
	defer cancel()
	setup := m.want.Setup
	setup.Tag, setup.Clock = vm.ShareTag, time.Now()
	setup.Root, setup.Workspace = m.roots()
	if m.net != nil {
		setup.Network = &guest.Network{
			Address: netip.PrefixFrom(netstack.GuestIP, netstack.PrefixBits).String(),
			Gateway: netstack.GatewayIP.String(), DNS: []string{netstack.GatewayIP.String()}, MTU: netstack.MTU,
		}
	}
	if _, err := m.agent.Setup(ctx, setup); err != nil {
		return m.explain(err)
	}
	for _, t := range m.s.sess.Trees() {
		if p := m.placeOf(t); p != "" && t.Name != setup.Root && t.Name != setup.Workspace {
			if err := m.agent.Mount(ctx, guest.Mount{Name: t.Name, Path: p}); err != nil {
				return m.explain(fmt.Errorf("tree %s at %s: %w", t.Name, p, err))
			}
		}
	}
	m.boot.Setup = time.Since(begin) - m.boot.Process - m.boot.Agent
	return nil
}

// explain adds to err, a failure to reach the agent, how the machine ended if
// it did.
func (m *machine) explain(err error) error {
	if cause := context.Cause(m.ctx); cause != nil {
		return cause
	}
	var failed *guest.Failure
	if errors.As(err, &failed) {
		return err // the agent itself said so
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = m.vm.Wait()
	}()
	m.killAfter(ended, time.Second) // an agent that has gone takes the machine with it
	select {
	case <-ended:
		exit, _ := m.vm.Wait()
		return fmt.Errorf("%w: %s; galley logs %s shows its console", err, exit, m.s.sess.Name())
	default:
		return err
	}
}

// roots are the trees that are the guest's root and its workspace.
func (m *machine) roots() (root, workspace string) {
	if m.want.Setup.Root != "" {
		return m.want.Setup.Root, m.want.Setup.Workspace
	}
	for _, t := range m.s.sess.Trees() {
		if t.Name == snapshots.Root {
			return snapshots.Root, snapshots.Workspace
		}
	}
	return snapshots.Workspace, ""
}

// placeOf is where a tree stands in the guest; "" is nowhere.
func (m *machine) placeOf(t snapshots.TreeSpec) string {
	root, workspace := m.roots()
	switch t.Name {
	case root:
		return "/"
	case workspace:
		return m.want.Setup.Workdir
	}
	return t.Mount
}

// changed has the guest look again at what changed in a tree by another way
// than its own. There is no notification in virtio-fs; what the agent is not
// told, the guest sees when its caches time out, within a second. Whoever made
// the change waits for the guest, but not for long, and not at all for one that
// has not answered before; that one is told to look at the whole tree when it
// does.
func (m *machine) changed(tree string, c fs.Changes) {
	select {
	case <-m.ready:
	default:
		return // it has nothing in its caches
	}
	if m.err != nil {
		return
	}
	m.s.mu.Lock()
	silent := m.syncing
	if _, busy := m.telling[tree]; busy {
		m.telling[tree] = true
		m.s.mu.Unlock()
		return
	}
	m.telling[tree] = false
	m.s.mu.Unlock()
	told := make(chan struct{})
	go func() {
		defer close(told)
		m.tell(tree, c)
	}()
	if silent {
		return
	}
	timer := time.NewTimer(invalidateTimeout)
	defer timer.Stop()
	select {
	case <-told:
	case <-timer.C:
		m.s.log.Warn("the guest has not yet looked again at what changed", "tree", tree)
	}
}

// tell tells the guest of changes in a tree, and of all that come meanwhile.
func (m *machine) tell(tree string, c fs.Changes) {
	for {
		var r guest.Invalidate
		if place, ok := m.guestPlace(tree); ok && !c.All {
			for _, p := range c.Paths {
				r.Paths = append(r.Paths, path.Join(place, p))
			}
		}
		if err := m.agent.Invalidate(m.ctx, r); err != nil && m.ctx.Err() == nil {
			m.s.log.Warn("the guest was not told of changes", "tree", tree, "paths", len(c.Paths), "error", err)
		}
		m.s.mu.Lock()
		again := m.telling[tree]
		if !again || m.ctx.Err() != nil {
			delete(m.telling, tree)
			m.s.mu.Unlock()
			return
		}
		m.telling[tree] = false
		m.s.mu.Unlock()
		c = fs.Changes{All: true}
	}
}

// guestPlace is where the export's directory name stands in the guest.
func (m *machine) guestPlace(name string) (string, bool) {
	for _, t := range m.s.sess.Trees() {
		if t.Name == name {
			if p := m.placeOf(t); p != "" {
				return p, true
			}
		}
	}
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for p, t := range m.mounts {
		if t.name == name {
			return p, true
		}
	}
	return "", false
}

// syncGuest has the guest of the session's machine write back what it holds,
// so that a seal or a rollback finds it. A guest that does not answer in time
// delays nothing further; the error says what then may be missing, and is nil
// where there is no guest.
func (s *server) syncGuest(ctx context.Context) error {
	s.mu.Lock()
	m := s.machine
	if m == nil || m.phase != Running || m.syncing {
		late := m != nil && m.syncing
		s.mu.Unlock()
		if late {
			return errors.New("the guest has not yet answered the last request to write back what it holds")
		}
		return nil
	}
	m.syncing = true
	s.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		done <- m.agent.Sync(m.ctx)
		s.mu.Lock()
		m.syncing = false
		s.mu.Unlock()
	}()
	timer := time.NewTimer(syncTimeout)
	defer timer.Stop()
	var err error
	select {
	case err = <-done:
	case <-timer.C:
		err = fmt.Errorf("the guest did not write back what it holds within %v", syncTimeout)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		s.log.Warn("seal without the guest's caches", "error", err)
	}
	return err
}

// dialVM is opVMDial: it joins the descriptor fd, which it takes over, with a
// new stream to the agent.
func (s *server) dialVM(ctx context.Context, fd int) error {
	if fd < 0 {
		return errors.New("vm-dial: no descriptor came with the request")
	}
	conn, err := connOf(os.NewFile(uintptr(fd), "stream"))
	if err != nil {
		return fmt.Errorf("vm-dial: %w", err)
	}
	m, err := s.running()
	if err == nil {
		err = m.stream(1)
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	to, err := m.mux.Open(ctx)
	if err != nil {
		_ = conn.Close()
		_ = m.stream(-1)
		return err
	}
	go func() {
		guest.Join(to, conn)
		_ = m.stream(-1)
	}()
	return nil
}

// stream counts a conversation with the guest.
func (m *machine) stream(n int) error {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if n > 0 && m.streams >= maxStreams {
		return fmt.Errorf("session %s: %d conversations with its machine are under way already", m.s.sess.Name(), m.streams)
	}
	m.streams += n
	m.watchIdle()
	return nil
}

// errNoMachine is what a request for a machine that does not run gets.
func (s *server) errNoMachine() error {
	name := s.sess.Name()
	return fmt.Errorf("session %s: no machine runs; galley start %s starts it: %w", name, name, snapshots.ErrNotFound)
}

// running is the machine that runs.
func (s *server) running() (*machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machine == nil || s.machine.phase != Running {
		return nil, s.errNoMachine()
	}
	return s.machine, nil
}

// forwardVM is opVMForward.
func (s *server) forwardVM(ctx context.Context, r VMForward) (VMForward, error) {
	m, err := s.running()
	if err != nil {
		return r, err
	}
	if m.net == nil {
		return r, fmt.Errorf("session %s: its machine has no network, through which ports are forwarded; start it with --net", s.sess.Name())
	}
	if r.Off {
		return r, m.net.Unforward(ctx, r.Guest)
	}
	f, err := m.net.Forward(ctx, r.Guest, r.Host)
	r.Host = int(f.Host.Port())
	return r, err
}

// mountVM is opVMMount.
func (s *server) mountVM(ctx context.Context, r VMMount) (VMMounted, error) {
	var out VMMounted
	m, err := s.running()
	if err != nil {
		return out, err
	}
	s.mu.Lock()
	if m.want.Driver == "krun" {
		s.mu.Unlock()
		return out, fmt.Errorf("mount at %s: libkrun 1.x shares only what its machine was started with; start it under QEMU, or with the directory", r.Path)
	}
	_, taken := m.mounts[r.Path]
	if !taken {
		m.mounts[r.Path] = guestTree{} // nobody else's meanwhile
	}
	s.mu.Unlock()
	if taken {
		return out, fmt.Errorf("mount at %s: something is mounted there already: %w", r.Path, snapshots.ErrExists)
	}
	t, err := s.addToGuest(ctx, m, r, &out)
	if err == nil {
		err = m.mounted(r.Path, t)
	}
	if err != nil {
		s.mu.Lock()
		delete(m.mounts, r.Path)
		s.mu.Unlock()
		return VMMounted{}, err
	}
	return out, nil
}

// mounted notes what was mounted at path, which goes when the machine does. It
// goes at once if that has ended meanwhile.
func (m *machine) mounted(path string, t guestTree) error {
	m.s.mu.Lock()
	running := m.phase == Running
	if running {
		m.mounts[path] = t
	}
	m.s.mu.Unlock()
	if running {
		return nil
	}
	t.release()
	return m.s.errNoMachine()
}

// addToGuest adds the directory to the export and has the agent bind it.
func (s *server) addToGuest(ctx context.Context, m *machine, r VMMount, out *VMMounted) (guestTree, error) {
	var src fs.Source
	release := func() {}
	if r.Write {
		name, err := s.addTree(ctx, AddTree{Base: r.Host, Mount: r.Path})
		if err != nil {
			return guestTree{}, err
		}
		out.Tree, src = name, fs.Live(s.live.Tree(name))
	} else {
		var err error
		if src, release, err = s.hostSource(r.Host); err != nil {
			return guestTree{}, err
		}
	}
	s.mu.Lock()
	m.last++
	// No tree's name begins so.
	t := guestTree{name: fmt.Sprintf("@%d", m.last)}
	s.mu.Unlock()
	if err := m.export.Add(t.name, src, virtiofs.TreeOptions{ReadOnly: !r.Write}); err != nil {
		release()
		return t, err
	}
	t.release = func() {
		if err := m.export.Remove(t.name); err != nil {
			s.log.Warn("take a directory from the guest", "path", r.Path, "error", err)
		}
		release()
	}
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	if err := m.agent.Mount(ctx, guest.Mount{Name: t.name, Path: r.Path, ReadOnly: !r.Write}); err != nil {
		t.release()
		return t, err
	}
	return t, nil
}

// unmountVM is opVMUnmount.
func (s *server) unmountVM(ctx context.Context, at string) error {
	m, err := s.running()
	if err != nil {
		return err
	}
	s.mu.Lock()
	t, ok := m.mounts[at]
	if ok = ok && t.release != nil; ok {
		delete(m.mounts, at)
	}
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("unmount %s: nothing was mounted there at run time: %w", at, snapshots.ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	err = m.agent.Unmount(ctx, at)
	t.release()
	return err
}
