package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/command"
	"github.com/galleyfs/galley/sandbox/internal/filerpc"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// Options configures [Open]. Session is needed; the zero value of every other
// field is the strict choice.
type Options struct {
	// Session takes the writes: its trees stand in the sandbox.
	Session *snapshots.Session
	// Dir is the working directory, absolute; default: the mount of the
	// session's workspace.
	Dir string
	// Env is what the commands' environment is chosen from; nil is
	// os.Environ(). See [sandbox.BashRequest.Env].
	Env []string
	// AllowSockets, AllowAbstractSockets, HostTmp, Caches and Hide are as in
	// [Config]. The store of the session is always hidden.
	AllowSockets         []string
	AllowAbstractSockets bool
	HostTmp              bool
	Caches               []string
	Hide                 []string
	// Owner configures the owner process, where it must be started.
	Owner owner.Options
}

// Sandbox is the local sandbox behind the contract: one set of namespaces that
// stays, in which commands and the calls on files land.
type Sandbox struct {
	*fileCalls
	*commandCalls

	info    sandbox.Info
	session *snapshots.Session
	owner   *owner.Client
	env     []string
	config  Config
	channel channel
	process *os.Process
	gone    chan struct{} // closed when all of the sandbox has ended
	ctx     context.Context
	cancel  context.CancelCauseFunc

	mu        sync.Mutex
	closed    bool
	last      int32                    // number of the latest call or view
	calls     map[int32]chan message   // who waits for kindGone
	mounts    map[int32]*pendingView   // mounts that are being made
	placed    map[string]bool          // paths of mounts
	failure   error                    // of the supervisor
	proc      *os.File                 // the supervisor's /proc
	tree      string                   // identifies its pid namespace, and so the process that works on files
	unwatched []int                    // mounts that the owner serves, to be watched once proc is there
	views     map[int32]func(*os.File) // who serves a view that is being made
	ready     chan error               // how the start went

	closeChannel sync.Once
}

var _ sandbox.Sandbox = (*Sandbox)(nil)

// The sandbox's calls: on files, which land in the process that works on them,
// and on commands. By these names they are embedded and yet no exported fields.
type (
	fileCalls    = filerpc.Client
	commandCalls = command.Calls
)

// errClosed is why the context of a closed sandbox is cancelled.
var errClosed = errors.New("the sandbox was closed")

// Open starts a sandbox of a session. It takes a lease of the session's owner,
// which it starts where there is none.
func Open(ctx context.Context, o Options) (*Sandbox, error) {
	if o.Session == nil {
		return nil, errors.New("local.Open: no session")
	}
	if o.Owner.What == "" {
		o.Owner.What = "sandbox"
	}
	client, err := owner.Ensure(ctx, o.Session, o.Owner)
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, o, client)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return s, nil
}

func open(ctx context.Context, o Options, client *owner.Client) (*Sandbox, error) {
	dir := o.Dir
	if dir == "" {
		dir = o.Session.Trees()[0].Mount
	}
	host := o.Env
	if host == nil {
		host = os.Environ()
	}
	s := &Sandbox{
		info:    sandbox.Info{Kind: "local", Session: o.Session.Name(), Workdir: path.Clean(dir), TempDir: "/tmp", Network: "host"},
		session: o.Session, owner: client, gone: make(chan struct{}), ready: make(chan error, 1),
		calls: map[int32]chan message{}, mounts: map[int32]*pendingView{}, placed: map[string]bool{},
		views: map[int32]func(*os.File){},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.config = Config{
		Command: []string{agentName}, Dir: s.info.Workdir, Env: safeEnv(host),
		AllowSockets: o.AllowSockets, AllowAbstractSockets: o.AllowAbstractSockets, HostTmp: o.HostTmp,
		Caches: o.Caches, Hide: append([]string{o.Session.Store().Home()}, o.Hide...),
	}
	for _, t := range o.Session.Trees() {
		if t.OnImage() {
			continue // a guest's
		}
		s.config.Views = append(s.config.Views, View{Path: t.Mount})
		s.placed[t.Mount] = true
		n := s.last
		s.last++
		s.views[n] = func(dev *os.File) {
			s.served(n, s.serveFUSE(dev, owner.FUSE{Tree: t.Name, Mountpoint: t.Mount, Private: true, Description: "sandbox"}))
		}
	}
	setup, err := newSetup(&s.config, nil)
	if err != nil {
		return nil, err
	}
	setup.Agent = true
	s.env = setup.Env
	if err := s.start(ctx, setup); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// start starts the supervisor and waits for the process that works on files.
func (s *Sandbox) start(ctx context.Context, set *setup) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket pair to the sandbox: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "files"), os.NewFile(uintptr(fds[1]), "files")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		_ = theirs.Close()
		return err
	}
	s.fileCalls = filerpc.NewClient(conn)
	s.commandCalls = command.NewCalls(command.Host{Workdir: s.info.Workdir, Closed: s.ctx.Done(), Open: s.open, Stat: s.Stat, Launch: s.run})
	launched := make(chan error)
	go func() {
		// The supervisor ends with the thread that started it, which must
		// therefore stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		s.process, s.channel, err = launch(set, []*os.File{theirs, nil, nil}, true)
		_ = theirs.Close()
		launched <- err
		if err != nil {
			close(s.gone)
			return
		}
		_, _ = s.process.Wait()
		s.ended()
		close(s.gone)
	}()
	if err := <-launched; err != nil {
		return err
	}
	go s.receive()
	select {
	case err := <-s.ready:
		return err
	case <-s.gone:
		return s.why(errors.New("the sandbox's supervisor ended while it started"))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receive takes the supervisor's messages until it ends.
func (s *Sandbox) receive() {
	for {
		m, fd, err := s.channel.receive()
		if err != nil {
			return
		}
		switch m.kind {
		case kindView:
			s.mu.Lock()
			serve := s.views[m.n]
			delete(s.views, m.n)
			s.mu.Unlock()
			dev := os.NewFile(uintptr(fd), "/dev/fuse")
			if serve == nil {
				_ = dev.Close()
				continue
			}
			go serve(dev)
		case kindProc:
			s.watchAll(os.NewFile(uintptr(fd), "/proc"), m.text)
		case kindStarted:
			s.ready <- nil
		case kindFailed:
			r := &runner{cfg: &s.config}
			s.fail(r.describeFailure(m))
		case kindGone:
			s.mu.Lock()
			ch := s.calls[m.n]
			delete(s.calls, m.n)
			s.mu.Unlock()
			if ch != nil {
				ch <- m
			}
		case kindMounted:
			s.mu.Lock()
			p := s.mounts[m.n]
			delete(s.mounts, m.n)
			s.mu.Unlock()
			if p != nil {
				p.done <- m
			}
		}
	}
}

func (s *Sandbox) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = err
	}
}

// why is what the supervisor said went wrong, or err.
func (s *Sandbox) why(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return s.failure
	}
	return err
}

// serveFUSE hands a view's descriptor to the session's owner.
func (s *Sandbox) serveFUSE(dev *os.File, f owner.FUSE) error {
	defer dev.Close()
	m, err := s.owner.ServeFUSE(s.ctx, f, int(dev.Fd()))
	if err != nil {
		return fmt.Errorf("serve %s: %w", f.Mountpoint, err)
	}
	s.mu.Lock()
	proc := s.proc
	if proc == nil {
		s.unwatched = append(s.unwatched, m.ID)
	}
	s.mu.Unlock()
	if proc != nil {
		s.watch(m.ID, proc)
	}
	return nil
}

// watchAll has the owner tell the sandbox's calls apart, by the /proc in which
// they are found.
func (s *Sandbox) watchAll(proc *os.File, tree string) {
	s.mu.Lock()
	s.proc, s.tree = proc, tree
	mounts := s.unwatched
	s.unwatched = nil
	s.mu.Unlock()
	for _, id := range mounts {
		go s.watch(id, proc)
	}
}

// watch is of no consequence where it fails: whose a change is stays unknown.
func (s *Sandbox) watch(mount int, proc *os.File) {
	_ = s.owner.Watch(s.ctx, mount, int(proc.Fd()))
}

// FilesTree identifies the process that works on files, as
// [sandbox.BashRequest.OnStart] does a command.
func (s *Sandbox) FilesTree() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tree
}

// served tells the supervisor that a view is served, or ends the sandbox that
// was to be built of it.
func (s *Sandbox) served(n int32, err error) {
	if err != nil {
		s.fail(err)
		_ = s.process.Kill()
		return
	}
	_ = s.channel.send(message{kind: kindServed, n: n}, -1)
}

// ended lets everybody know who waits for something of the sandbox.
func (s *Sandbox) ended() {
	s.mu.Lock()
	s.closed = true
	calls, mounts := s.calls, s.mounts
	s.calls, s.mounts = map[int32]chan message{}, map[int32]*pendingView{}
	s.mu.Unlock()
	s.cancel(errClosed)
	_ = s.fileCalls.Close()
	for n, ch := range calls {
		ch <- message{kind: kindGone, n: n}
	}
	for _, p := range mounts {
		p.done <- message{kind: kindMounted, text: errClosed.Error(), code: int32(unix.ESHUTDOWN)}
	}
}

// Info is [sandbox.Sandbox.Info].
func (s *Sandbox) Info() sandbox.Info { return s.info }

// Owner is the sandbox's connection to the session's owner.
func (s *Sandbox) Owner() *owner.Client { return s.owner }

// Close is [sandbox.Sandbox.Close].
func (s *Sandbox) Close() error {
	s.mu.Lock()
	s.closed = true
	process := s.process
	s.mu.Unlock()
	if process != nil {
		_ = process.Kill()
		<-s.gone
	}
	s.cancel(errClosed)
	if s.fileCalls != nil {
		_ = s.fileCalls.Close()
	}
	s.closeChannel.Do(func() {
		if process != nil {
			s.channel.close()
		}
	})
	err := s.owner.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		_ = s.proc.Close()
	}
	return err
}

// open reports, as an error, whether the sandbox was closed.
func (s *Sandbox) open(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return sandbox.Errorf(sandbox.Closed, op, "", "the sandbox was closed")
	}
	return nil
}
