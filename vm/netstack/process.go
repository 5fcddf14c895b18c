package netstack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/jail"
)

const (
	// resolvConf names the host's resolvers.
	resolvConf = "/etc/resolv.conf"
	// resolversEvery is how often it is looked at: a laptop changes networks.
	resolversEvery = 5 * time.Second
	// maxResolvers is how many of them are asked, as in resolv.conf(5).
	maxResolvers = 3
)

// Options are those of a network's process.
type Options struct {
	// Log takes each decision, and what goes wrong (default slog.Default()).
	Log *slog.Logger
}

// Process is the process of one guest's network. It ends with the guest's
// device, or with the process that started it.
type Process struct {
	jail    *jail.Process
	log     *slog.Logger
	control *net.UnixConn

	mu      sync.Mutex
	last    int                 // latest order
	waiting map[int]chan report // who waits for an answer
	ended   bool
	gone    chan struct{} // closed when the control connection has ended
}

// ErrEnded is the error of orders to a network whose process has ended.
var ErrEnded = errors.New("the guest's network has ended")

// Start starts the network's process. The file is the end of the connection
// that goes to the machine's driver; the caller closes it when that has its own.
func Start(o Options) (p *Process, device *os.File, err error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	frames, device, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, fmt.Errorf("start the guest's network: %w", err)
	}
	defer frames.Close()
	theirs, mine, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		_ = device.Close()
		return nil, nil, fmt.Errorf("start the guest's network: %w", err)
	}
	defer theirs.Close()
	p, err = start(o, mine, frames, theirs)
	if err != nil {
		_ = device.Close()
		return nil, nil, fmt.Errorf("start the guest's network: %w", err)
	}
	return p, device, nil
}

func start(o Options, mine *os.File, frames, theirs *os.File) (*Process, error) {
	conn, err := net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		return nil, err
	}
	p := &Process{log: o.Log, control: conn.(*net.UnixConn), waiting: map[int]chan report{}, gone: make(chan struct{})}
	spec, err := jail.Self(programPath)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	spec.HostNetwork = true
	spec.OpenFiles = 4096
	if p.jail, err = jail.Start(spec, os.Stderr, frames, theirs); err != nil {
		_ = conn.Close()
		return nil, err
	}
	go p.listen()
	go p.watchResolvers()
	return p, nil
}

// pair is a connected pair of sockets.
func pair(kind int) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "network"), os.NewFile(uintptr(fds[1]), "network"), nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.jail.PID() }

// Done is closed when the network has ended.
func (p *Process) Done() <-chan struct{} { return p.gone }

// Close ends the network and waits until its process is gone.
func (p *Process) Close() {
	_ = p.control.Close()
	p.jail.Kill()
	<-p.gone
}

// Forward lets programs of the host reach a TCP port of the guest at a port of
// the host's loopback, 0 for any free one. A port that is forwarded already
// stays as it is.
func (p *Process) Forward(ctx context.Context, guest, host int) (Forward, error) {
	r, err := p.order(ctx, order{Forward: guest, Host: host})
	if err != nil || r.Forward == nil {
		return Forward{}, err
	}
	return *r.Forward, nil
}

// Unforward ends what Forward began. Connections that are there go on.
func (p *Process) Unforward(ctx context.Context, guest int) error {
	_, err := p.order(ctx, order{Unforward: guest})
	return err
}

// order has the process do something, and waits for its answer.
func (p *Process) order(ctx context.Context, o order) (report, error) {
	answer := make(chan report, 1)
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return report{}, ErrEnded
	}
	p.last++
	o.ID = p.last
	p.waiting[o.ID] = answer
	err := writeMessage(p.control, o)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.waiting, o.ID)
	}()
	if err != nil {
		return report{}, fmt.Errorf("%w: %w", ErrEnded, err)
	}
	select {
	case r := <-answer:
		if r.Error != "" {
			return r, errors.New(r.Error)
		}
		return r, nil
	case <-p.gone:
		return report{}, ErrEnded
	case <-ctx.Done():
		return report{}, context.Cause(ctx)
	}
}

// listen reads what the process says until it ends. It is a process that a
// guest may have taken over: what it says is shown and counted, no more.
func (p *Process) listen() {
	defer close(p.gone)
	buf := make([]byte, maxControl)
	var why error
	for {
		var r report
		if why = readMessage(p.control, buf, &r); why != nil {
			break
		}
		if r.Request != nil && r.Decision != nil {
			p.note(r)
			continue
		}
		if r.ID == 0 {
			p.log.Warn("network", "error", r.Error)
			continue
		}
		p.mu.Lock()
		if answer := p.waiting[r.ID]; answer != nil {
			delete(p.waiting, r.ID)
			answer <- r
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	_ = p.control.Close()
	code, signal := p.jail.Wait()
	p.log.Info("network ended", "why", why, "status", code, "signal", signal)
}

func (p *Process) note(r report) {
	args := []any{"proto", r.Request.Proto, "allow", r.Decision.Allow, "rule", r.Decision.Rule}
	if r.Request.Dst.IsValid() {
		args = append(args, "to", r.Request.Dst.String())
	}
	if r.Request.Name != "" {
		args = append(args, "name", r.Request.Name)
	}
	if r.Missed > 0 {
		args = append(args, "not_shown_before", r.Missed)
	}
	p.log.Info("network", args...)
}

// watchResolvers tells the process who the host's resolvers are: it has no file
// system to look for itself.
func (p *Process) watchResolvers() {
	var told []byte
	tick := time.NewTicker(resolversEvery)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(resolvConf)
		if err == nil && (told == nil || !bytes.Equal(text, told)) {
			if _, err := p.order(context.Background(), order{Resolvers: resolversOf(text)}); err != nil {
				return
			}
			told = text
		}
		select {
		case <-tick.C:
		case <-p.gone:
			return
		}
	}
}

// resolversOf are the resolvers that a resolv.conf(5) names. One without any
// means the host itself.
func resolversOf(text []byte) []netip.AddrPort {
	var out []netip.AddrPort
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan() && len(out) < maxResolvers; {
		f := bytes.Fields(lines.Bytes())
		if len(f) < 2 || string(f[0]) != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(string(f[1])); err == nil {
			out = append(out, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	if len(out) == 0 {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort))
	}
	return out
}
