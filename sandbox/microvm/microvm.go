// Package microvm is the sandbox in a virtual machine: the contract over a
// guest that boots an image, with the session's workspace in it. The machine
// belongs to the session and is run by its owner; a [Sandbox] is one of its
// users, and reaches the guest by the guest's agent.
//
// The guest's own files are a tree of the session like the workspace, so that
// everything that a command changes, wherever it is, can be reviewed.
package microvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/command"
	"github.com/galleyfs/galley/sandbox/internal/filerpc"
	"github.com/galleyfs/galley/sandbox/internal/hostdir"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

// Workdir is where the workspace stands in a guest unless something else is
// asked for.
const Workdir = "/workspace"

// Options configures [Open].
type Options struct {
	// Session takes the writes: its trees stand in the guest.
	Session *snapshots.Session
	// VM is the machine to start, or to join where the session has one.
	VM owner.VM
	// Env is the image's environment; PATH and HOME are added where it has
	// none.
	Env []string
	// User is who commands and the calls on files run as, "USER[:GROUP]";
	// empty is root.
	User string
	// Dir is the working directory, absolute; default: where the workspace
	// stands.
	Dir string
	// Owner configures the owner process, where it must be started.
	Owner owner.Options
}

// Sandbox is a session's machine behind the contract.
type Sandbox struct {
	*fileCalls
	*commandCalls

	info   sandbox.Info
	home   string // of the store, which is never mounted
	owner  *owner.Client
	status owner.VMStatus
	guest  *guest.Client
	env    []string
	user   string
	ctx    context.Context
	cancel context.CancelCauseFunc

	close sync.Once
	err   error // of Close

	mu      sync.Mutex
	running map[*running]struct{} // commands at work
}

var _ sandbox.Sandbox = (*Sandbox)(nil)

// The sandbox's calls: on files, which land in the process of the guest that
// works on them, and on commands. By these names they are embedded and yet no
// exported fields.
type (
	fileCalls    = filerpc.Client
	commandCalls = command.Calls
)

// errClosed is why the context of a closed sandbox is cancelled.
var errClosed = errors.New("the sandbox was closed")

// Open starts the session's machine, or joins it, and takes a lease of it: the
// machine ends with the last, unless it was detached.
func Open(ctx context.Context, o Options) (*Sandbox, error) {
	if o.Session == nil {
		return nil, errors.New("microvm.Open: no session")
	}
	if o.Owner.What == "" {
		o.Owner.What = "sandbox"
	}
	if o.VM.Setup.Workdir == "" {
		o.VM.Setup.Workdir = Workdir
	}
	client, err := owner.Ensure(ctx, o.Session, o.Owner)
	if err != nil {
		return nil, err
	}
	status, err := client.StartVM(ctx, o.VM)
	if err == nil {
		var s *Sandbox
		if s, err = Join(ctx, o, client, status); err == nil {
			return s, nil
		}
	}
	_ = client.Close()
	return nil, err
}

// Join makes a sandbox of a machine that runs; it takes client over when it
// succeeds.
func Join(ctx context.Context, o Options, client *owner.Client, status owner.VMStatus) (*Sandbox, error) {
	dir := o.Dir
	if dir == "" {
		dir = o.VM.Setup.Workdir
	}
	network := "none"
	if status.Net {
		network = "host"
	}
	s := &Sandbox{
		info:    sandbox.Info{Kind: "microvm", Session: o.Session.Name(), Workdir: dir, TempDir: "/tmp", Network: network},
		home:    o.Session.Store().Home(),
		owner:   client,
		status:  status,
		guest:   guest.NewClient(client.DialVM),
		env:     append(command.BaseEnv(), o.Env...),
		user:    o.User,
		running: map[*running]struct{}{},
	}
	conn, err := s.guest.Files(ctx, guest.Files{User: s.user, Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("start the sandbox in the guest: %w", err)
	}
	s.fileCalls = filerpc.NewClient(conn)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.commandCalls = command.NewCalls(command.Host{Workdir: s.info.Workdir, Closed: s.ctx.Done(), Open: s.open, Stat: s.Stat, Launch: s.run})
	return s, nil
}

// Info is [sandbox.Sandbox.Info].
func (s *Sandbox) Info() sandbox.Info { return s.info }

// Owner is the sandbox's connection to the session's owner.
func (s *Sandbox) Owner() *owner.Client { return s.owner }

// Machine is what the machine was when the sandbox was opened.
func (s *Sandbox) Machine() owner.VMStatus { return s.status }

// Close is [sandbox.Sandbox.Close]. The machine ends, unless somebody else uses
// it.
func (s *Sandbox) Close() error {
	s.close.Do(func() {
		s.cancel(errClosed)
		_ = s.fileCalls.Close()
		s.mu.Lock()
		left := make([]*running, 0, len(s.running))
		for r := range s.running {
			left = append(left, r)
		}
		s.mu.Unlock()
		for _, r := range left {
			r.End()
		}
		for _, r := range left {
			<-r.command.Gone()
		}
		s.err = s.owner.Close()
	})
	return s.err
}

// open reports, as an error, whether the sandbox was closed.
func (s *Sandbox) open(op string) error {
	if s.ctx.Err() != nil {
		return sandbox.Errorf(sandbox.Closed, op, "", "the sandbox was closed")
	}
	return nil
}

// Mount is [sandbox.Sandbox.Mount]. The owner of the session serves the
// directory to the guest as a further tree.
func (s *Sandbox) Mount(ctx context.Context, r sandbox.MountRequest) (sandbox.MountResult, error) {
	if err := s.open("mount"); err != nil {
		return sandbox.MountResult{}, err
	}
	host, err := hostdir.Check(r, s.home)
	if err != nil {
		return sandbox.MountResult{}, err
	}
	m, err := s.owner.MountVM(ctx, owner.VMMount{Host: host, Path: r.Path, Write: r.Write})
	switch {
	case errors.Is(err, snapshots.ErrExists):
		return sandbox.MountResult{}, sandbox.Errorf(sandbox.Exists, "mount", r.Path, "%w", err)
	case err != nil:
		return sandbox.MountResult{}, s.wrap("mount", r.Path, err)
	}
	return sandbox.MountResult{Path: r.Path, Tree: m.Tree}, nil
}

// wrap makes an error of a call of what the guest, or the way to it, said.
func (s *Sandbox) wrap(op, path string, err error) error {
	var f *guest.Failure
	switch {
	case err == nil:
		return nil
	case s.ctx.Err() != nil:
		return sandbox.Errorf(sandbox.Closed, op, path, "the sandbox was closed")
	case errors.Is(err, guest.ErrGone), errors.Is(err, owner.ErrNoOwner), errors.Is(err, snapshots.ErrNotFound):
		return sandbox.Errorf(sandbox.Closed, op, path, "the machine has ended: %w", err)
	case !errors.As(err, &f):
		return messageOf(sandbox.Wrap(op, path, err), err)
	}
	switch f.Kind {
	case guest.Exists:
		return sandbox.Errorf(sandbox.Exists, op, path, "%w", f)
	case guest.NoShell, guest.NotFound, guest.BadDir:
		return sandbox.Errorf(sandbox.NotFound, op, path, "%w", f)
	case guest.NotExecutable:
		return sandbox.Errorf(sandbox.Permission, op, path, "%w", f)
	case guest.BadUser:
		return sandbox.Errorf(sandbox.Invalid, op, path, "%w", f)
	case guest.Unsupported:
		return sandbox.Errorf(sandbox.NotSupported, op, path, "%w", f)
	}
	return messageOf(sandbox.Wrap(op, path, f), f)
}

// messageOf keeps all of a message where [sandbox.Wrap] takes that of the errno:
// the guest knows better what it was about.
func messageOf(wrapped, err error) error {
	var e *sandbox.Error
	var errno syscall.Errno
	if errors.As(wrapped, &e) && errors.As(err, &errno) && !errors.Is(err, fs.ErrInvalid) {
		e.Message = err.Error()
	}
	return wrapped
}
