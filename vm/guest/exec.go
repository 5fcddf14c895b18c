package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Output gets what a command puts out. The bytes are valid during the call. A
// slow one holds the command up.
type Output func(stream int, b []byte)

// The streams of [Output].
const (
	Stdout = 1
	Stderr = 2
)

// window is how much standard input may be on its way to a command that has
// not taken it yet.
const window = 256 << 10

// Command is a command at work in the guest.
type Command struct {
	conn   net.Conn
	frames *frames
	pid    int

	exited chan struct{} // the command's own process has ended, or all is over
	gone   chan struct{} // all of it has ended

	mu     sync.Mutex
	credit int           // how much standard input may be sent
	more   chan struct{} // closed when there is more of it
	status syscall.WaitStatus
	known  bool // status is the command's own
	err    error

	writing sync.Mutex // one Write at a time
}

// Start starts a command. The context counts until it runs. Output is given to
// out by one goroutine, in order, until Gone is closed.
func (c *Client) Start(ctx context.Context, r Exec, out Output) (*Command, error) {
	f, conn, release, err := c.open(ctx, opExec, r)
	if err != nil {
		return nil, err
	}
	t, b, err := f.receive()
	if !release() {
		err = context.Cause(ctx)
	}
	var s started
	switch {
	case err != nil:
		err = c.lost(ctx, opExec, err)
	case t == frameStarted:
		err = Decode(b, &s)
	case t == frameFailed:
		fail := &Failure{}
		if err = Decode(b, fail); err == nil {
			err = fail
		}
	default:
		err = fmt.Errorf("%w: message of type %d where a command was to start", ErrProtocol, t)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	k := &Command{
		conn: conn, frames: f, pid: s.PID, credit: window, more: make(chan struct{}),
		exited: make(chan struct{}), gone: make(chan struct{}),
	}
	go k.receive(out)
	return k, nil
}

// receive takes what the agent says until the end.
func (k *Command) receive(out Output) {
	over := false
	end := func() {
		if !over {
			over = true
			close(k.exited)
		}
	}
	err := k.each(out, end)
	k.mu.Lock()
	if k.err == nil {
		k.err = err
	}
	k.mu.Unlock()
	_ = k.conn.Close()
	end()
	close(k.gone)
}

// each handles one frame after the other; nil is the proper end.
func (k *Command) each(out Output, exit func()) error {
	for {
		t, b, err := k.frames.receive()
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %w", ErrGone, err)
		}
		if err != nil {
			return err
		}
		switch t {
		case frameStdout:
			out(Stdout, b)
		case frameStderr:
			out(Stderr, b)
		case frameTaken:
			var m taken
			if err := Decode(b, &m); err != nil {
				return err
			}
			if err := k.grant(m.Bytes); err != nil {
				return err
			}
		case frameExited:
			var m exited
			if err := Decode(b, &m); err != nil {
				return err
			}
			k.mu.Lock()
			k.status, k.known = syscall.WaitStatus(m.Status), true
			k.mu.Unlock()
			exit()
		case frameGone:
			var m gone
			if err := Decode(b, &m); err != nil {
				return err
			}
			if m.Left != "" {
				return fmt.Errorf("something of the command could not be ended: %s", m.Left)
			}
			return nil
		default:
			return fmt.Errorf("%w: message of type %d from a command", ErrProtocol, t)
		}
	}
}

// grant lets more standard input be sent.
func (k *Command) grant(n int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n < 0 || n > window-k.credit {
		return fmt.Errorf("%w: %d bytes of input were taken that had not been sent", ErrProtocol, n)
	}
	k.credit += n
	close(k.more)
	k.more = make(chan struct{})
	return nil
}

// PID is the command's in the guest.
func (k *Command) PID() int { return k.pid }

// Exited is closed when the command's own process has ended.
func (k *Command) Exited() <-chan struct{} { return k.exited }

// Gone is closed when all of it has ended and all output was given out.
func (k *Command) Gone() <-chan struct{} { return k.gone }

// Status is how it ended, once Exited is closed; known is false when that was
// never told, because it was ended or the guest has gone. Err is then why.
func (k *Command) Status() (status syscall.WaitStatus, known bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status, k.known, k.err
}

// Write sends standard input, as fast as the command takes it.
func (k *Command) Write(ctx context.Context, b []byte) (int, error) {
	k.writing.Lock()
	defer k.writing.Unlock()
	done := 0
	for done < len(b) {
		n, err := k.room(ctx, min(len(b)-done, maxData))
		if err != nil {
			return done, err
		}
		if err := k.frames.send(frameStdin, b[done:done+n]); err != nil {
			return done, fmt.Errorf("%w: %w", ErrGone, err)
		}
		done += n
	}
	return done, nil
}

// room waits until some of n bytes may be sent.
func (k *Command) room(ctx context.Context, n int) (int, error) {
	for {
		k.mu.Lock()
		n, more := min(n, k.credit), k.more
		k.credit -= n
		k.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-more:
		case <-k.gone:
			return 0, fmt.Errorf("the command reads no more: %w", syscall.EPIPE)
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// CloseStdin ends standard input. On a terminal it types the end-of-file
// character.
func (k *Command) CloseStdin() error { return k.frames.send(frameEOF, nil) }

// Signal sends a signal to the command's process group.
func (k *Command) Signal(sig syscall.Signal) error {
	return k.frames.sendValue(frameSignal, signalBody{int(sig)})
}

// Resize sets the terminal's size.
func (k *Command) Resize(s Size) error { return k.frames.sendValue(frameResize, s) }

// endPatience is how long a guest may take to end what it was told to end. Only
// tests change it.
var endPatience = time.Minute

// End ends all of it, and returns at once: Gone tells when that is done. A guest
// that does not do it, or does not even take what it is sent, is given up.
func (k *Command) End() {
	t := time.AfterFunc(endPatience, func() { _ = k.conn.Close() })
	go func() {
		// It waits for what is being sent, which the guest need not take.
		if err := k.frames.send(frameKill, nil); err != nil {
			_ = k.conn.Close()
		}
	}()
	go func() {
		<-k.gone
		t.Stop()
	}()
}
