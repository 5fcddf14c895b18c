// Package agent is the guest's half of the protocol of package guest. In a
// virtual machine it is the first process: it loads what the kernel needs,
// mounts what the host exports, makes the guest's tree of it and then does what
// it is asked for.
//
// The agent lives in the mount namespace of the initramfs, where the export
// stands, and holds a second one, whose root is the guest's root itself (moved
// over the old one, not a chroot, so that programs may use namespaces of their
// own). Everything that works on the guest's files runs in that one: threads
// that enter it, and the processes they start. Nothing of the export is in sight
// there but what was put in its place.
//
// Locks: the order is Agent.mu, reaper.mu. Neither is held while a file of the
// guest is touched, except that reaper.mu is held shared while a process is
// started.
package agent

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/galleyfs/galley/vm/guest"
)

// FilesName is argv[0] with which the agent starts its own executable again as
// the process that works on files; see package sandbox/microvm/guestfiles.
const FilesName = "galley: guest files"

// Options say where an agent runs.
type Options struct {
	// End ends the guest, when the host asks for it or is gone.
	End func()
	// Devices: /dev is a file system of the agent's own with the common
	// devices of the one it lives in, not the kernel's with all of them.
	Devices bool
}

// Agent is an agent at work.
type Agent struct {
	options Options
	reaper  reaper

	setup sync.Mutex // one Setup at a time

	mu     sync.Mutex
	world  *world // nil before Setup
	calls  int    // commands at work
	ending bool   // no more calls
}

var _ guest.Handler = (*Agent)(nil)

// Run serves the host at the other end of conn until that ends or asks to shut
// down, and then ends the guest. It must run in the process that inherits
// orphans: pid 1.
func Run(conn net.Conn, o Options) error {
	a := &Agent{options: o}
	a.reaper.start()
	err := guest.Serve(conn, func(c net.Conn) { guest.Handle(c, a) })
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	if end, serr := a.Shutdown(ctx); serr == nil {
		end()
	}
	return err
}

// endPatience is how long the calls may take to end.
const endPatience = 30 * time.Second

// inside is the guest's world, or why there is none.
func (a *Agent) inside() (*world, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.world == nil:
		return nil, guest.Failuref(guest.Failed, "the guest is not set up")
	case a.ending:
		return nil, guest.Failuref(guest.Failed, "the guest is shutting down")
	}
	return a.world, nil
}

// Setup is [guest.Handler.Setup].
func (a *Agent) Setup(ctx context.Context, s guest.Setup) (guest.Info, error) {
	a.setup.Lock()
	defer a.setup.Unlock()
	a.mu.Lock()
	done := a.world != nil
	a.mu.Unlock()
	if done {
		return guest.Info{}, guest.Failuref(guest.Exists, "the guest is set up already")
	}
	w, err := makeWorld(s, a.options)
	if err != nil {
		return guest.Info{}, err
	}
	a.mu.Lock()
	a.world = w
	a.mu.Unlock()
	return a.Info(ctx)
}

// Sync is [guest.Handler.Sync].
func (a *Agent) Sync(context.Context) error {
	syncAll()
	return nil
}

// Shutdown is [guest.Handler.Shutdown].
func (a *Agent) Shutdown(context.Context) (func(), error) {
	a.mu.Lock()
	w := a.world
	a.ending = true
	a.mu.Unlock()
	if w != nil {
		w.cgroups.end()
	}
	syncAll()
	return a.options.End, nil
}

// Dial is [guest.Handler.Dial].
func (a *Agent) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" {
		return nil, guest.Failuref(guest.Unsupported, "connections of type %q; expected tcp", network)
	}
	d := net.Dialer{Timeout: dialPatience}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, guest.FailureOf(guest.Failed, err)
	}
	return c, nil
}

// dialPatience is how long a connection in the guest may take.
const dialPatience = 30 * time.Second
