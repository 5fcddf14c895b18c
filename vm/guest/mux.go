package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"
)

// Hello is what an agent says first. Its length does not depend on the version.
var Hello = fmt.Sprintf("galley-guest/%03d\n", Version)

// Errors of [Connect].
var (
	// ErrNotAgent: what speaks at the other end is no agent.
	ErrNotAgent = errors.New("what speaks in the guest is not Galley's agent")
	// ErrVersion: the agent is of another version.
	ErrVersion = errors.New("the guest's agent speaks another version of the protocol; build galley and galley-guest together")
)

// stall is how long a write to a guest may wait. A machine that is stopped, or
// one that another program keeps from running, must not lose its session.
const stall = 10 * time.Minute

// config is the multiplexer's, which is the same on both sides.
func config(incoming uint32) *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // the machine's process tells when it has ended
	c.MeasureRTTInterval = time.Hour
	c.ConnectionWriteTimeout = stall
	c.MaxIncomingStreams = incoming
	c.InitialStreamWindowSize = 256 << 10
	c.MaxStreamWindowSize = 1 << 20
	c.MaxMessageSize = 32 << 10
	c.ReadBufSize = 32 << 10
	c.LogOutput = io.Discard
	return c
}

// Mux is a connection to an agent, on which any number of streams are opened.
type Mux struct{ session *yamux.Session }

// Connect waits until the agent at the other end of conn speaks, and starts the
// multiplexer. It takes conn over, also when it fails.
func Connect(ctx context.Context, conn net.Conn) (*Mux, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	hello := make([]byte, len(Hello))
	_, err := io.ReadFull(conn, hello)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = checkHello(string(hello))
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("wait for the guest's agent: %w", err)
	}
	s, err := yamux.Client(conn, config(0), nil)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &Mux{s}, nil
}

func checkHello(s string) error {
	const name = "galley-guest/"
	switch {
	case s == Hello:
		return nil
	case len(s) == len(Hello) && s[:len(name)] == name:
		return ErrVersion
	}
	return ErrNotAgent
}

// Serve is the agent's side of [Connect]: it says hello on conn and hands each
// stream that the host opens to handle, until conn ends.
func Serve(conn net.Conn, handle func(net.Conn)) error {
	if _, err := io.WriteString(conn, Hello); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	s, err := yamux.Server(conn, config(4096), nil)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		stream, err := s.Accept()
		if err != nil {
			return err
		}
		go handle(stream)
	}
}

// Open opens a stream. Nothing is exchanged yet.
func (m *Mux) Open(ctx context.Context) (net.Conn, error) {
	c, err := m.session.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a stream to the guest: %w", err)
	}
	return c, nil
}

// Done is closed when the connection has ended.
func (m *Mux) Done() <-chan struct{} { return m.session.CloseChan() }

// Close ends the connection with all its streams.
func (m *Mux) Close() error { return m.session.Close() }

// halfCloser is a connection that can end its own direction alone, as sockets
// and streams of a [Mux] can.
type halfCloser interface{ CloseWrite() error }

// Join copies between two connections, each way until its end, and closes
// both. When one fails, the other is closed at once.
func Join(a, b net.Conn) {
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		h, ok := to.(halfCloser)
		if err == nil && ok {
			err = h.CloseWrite()
		}
		if err != nil || !ok {
			_, _ = a.Close(), b.Close()
		}
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
	_, _ = a.Close(), b.Close()
}
