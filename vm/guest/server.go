package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// Handler is what an agent does when it is asked. Its methods are called at the
// same time.
type Handler interface {
	Setup(ctx context.Context, s Setup) (Info, error)
	Info(ctx context.Context) (Info, error)
	Mount(ctx context.Context, m Mount) error
	Unmount(ctx context.Context, path string) error
	Sync(ctx context.Context) error
	Invalidate(ctx context.Context, i Invalidate) error
	SetClock(ctx context.Context, now time.Time) error
	// Shutdown ends the calls and syncs; the function that it returns ends
	// the guest, and is called once the answer is sent.
	Shutdown(ctx context.Context) (func(), error)
	// Dial, Files and Copy return a connection that is joined with the stream.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	Files(ctx context.Context, r Files) (net.Conn, error)
	Copy(ctx context.Context, r Copy) (net.Conn, error)
	// Exec starts a command and works on it until all of it has ended. An
	// error is one of before it started.
	Exec(ctx context.Context, r Exec, t *Task) error
}

// firstPatience is how long the host may take to say what a stream is for.
const firstPatience = 10 * time.Minute

// Handle serves one stream and closes it.
func Handle(conn net.Conn, h Handler) {
	defer conn.Close()
	f := &frames{rw: conn}
	_ = conn.SetReadDeadline(time.Now().Add(firstPatience))
	t, b, err := f.receive()
	if err != nil || t != frameCall {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	var c call
	if err = Decode(b, &c); err == nil {
		err = serve(conn, f, c, h)
	}
	if err != nil {
		_ = f.sendValue(frameFailed, FailureOf(Failed, err))
	}
}

// body decodes the body of a call.
func body[T any](c call) (T, error) {
	var v T
	err := Decode(c.Body, &v)
	return v, err
}

// serve does what a call asks for.
func serve(conn net.Conn, f *frames, c call, h Handler) error {
	ctx := context.Background()
	switch c.Op {
	case opExec:
		r, err := body[Exec](c)
		if err != nil {
			return err
		}
		return h.Exec(ctx, r, &Task{frames: f})
	case opFiles:
		r, err := body[Files](c)
		if err != nil {
			return err
		}
		to, err := h.Files(ctx, r)
		return join(conn, f, to, err)
	case opCopy:
		r, err := body[Copy](c)
		if err != nil {
			return err
		}
		to, err := h.Copy(ctx, r)
		return join(conn, f, to, err)
	case opDial:
		r, err := body[dialBody](c)
		if err != nil {
			return err
		}
		to, err := h.Dial(ctx, r.Network, r.Address)
		return join(conn, f, to, err)
	case opShutdown:
		end, err := h.Shutdown(ctx)
		if err != nil {
			return err
		}
		_ = f.send(frameAnswer, nil)
		_ = conn.Close()
		end()
		return nil
	}
	out, err := simple(ctx, c, h)
	if err != nil {
		return err
	}
	return f.sendValue(frameAnswer, out)
}

// simple are the calls of one frame each way.
func simple(ctx context.Context, c call, h Handler) (any, error) {
	switch c.Op {
	case opInfo:
		return h.Info(ctx)
	case opSync:
		return nil, h.Sync(ctx)
	case opSetup:
		r, err := body[Setup](c)
		if err != nil {
			return nil, err
		}
		return h.Setup(ctx, r)
	case opMount:
		r, err := body[Mount](c)
		if err != nil {
			return nil, err
		}
		return nil, h.Mount(ctx, r)
	case opUnmount:
		r, err := body[unmountBody](c)
		if err != nil {
			return nil, err
		}
		return nil, h.Unmount(ctx, r.Path)
	case opInvalidate:
		r, err := body[Invalidate](c)
		if err != nil {
			return nil, err
		}
		return nil, h.Invalidate(ctx, r)
	case opClock:
		r, err := body[clockBody](c)
		if err != nil {
			return nil, err
		}
		return nil, h.SetClock(ctx, r.Now)
	}
	return nil, Failuref(Unsupported, "the agent does not know the call %q", c.Op)
}

// join answers a call whose stream carries bytes of its own from then on.
func join(conn net.Conn, f *frames, to net.Conn, err error) error {
	if err != nil {
		return err
	}
	if err := f.send(frameAnswer, nil); err != nil {
		_ = to.Close()
		return nil // nobody is there to tell
	}
	Join(conn, to)
	return nil
}

// Task is the stream of a command, as the agent has it. Methods that send are
// safe for concurrent use.
type Task struct {
	frames *frames
}

// Started tells that the command runs.
func (t *Task) Started(pid int) error { return t.frames.sendValue(frameStarted, started{pid}) }

// Output sends a piece of output of a stream, of up to 64 KiB.
func (t *Task) Output(stream int, b []byte) error {
	if stream == Stderr {
		return t.frames.send(frameStderr, b)
	}
	return t.frames.send(frameStdout, b)
}

// Taken tells that the command took n bytes of its input.
func (t *Task) Taken(n int) error { return t.frames.sendValue(frameTaken, taken{n}) }

// Exited tells how the command's own process ended.
func (t *Task) Exited(status syscall.WaitStatus) error {
	return t.frames.sendValue(frameExited, exited{uint32(status)})
}

// Gone tells that all of it has ended; left is why something may not have.
func (t *Task) Gone(left string) error { return t.frames.sendValue(frameGone, gone{left}) }

// Event is what the host wants of a command: one of the fields.
type Event struct {
	Input  []byte // valid until the next Receive
	EOF    bool
	Signal syscall.Signal
	Size   *Size
	Kill   bool
}

// Receive waits for the next event. Any error is the end of the stream.
func (t *Task) Receive() (Event, error) {
	kind, b, err := t.frames.receive()
	if err != nil {
		return Event{}, err
	}
	switch kind {
	case frameStdin:
		return Event{Input: b}, nil
	case frameEOF:
		return Event{EOF: true}, nil
	case frameKill:
		return Event{Kill: true}, nil
	case frameSignal:
		var m signalBody
		if err := Decode(b, &m); err != nil {
			return Event{}, err
		}
		if m.Signal <= 0 || m.Signal > 64 {
			return Event{}, fmt.Errorf("%w: signal %d", ErrProtocol, m.Signal)
		}
		return Event{Signal: syscall.Signal(m.Signal)}, nil
	case frameResize:
		s := &Size{}
		if err := Decode(b, s); err != nil {
			return Event{}, err
		}
		return Event{Size: s}, nil
	}
	return Event{}, errors.Join(ErrProtocol, fmt.Errorf("message of type %d", kind))
}
