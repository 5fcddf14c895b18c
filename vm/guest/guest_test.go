package guest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/galleyfs/galley/vm/guest"
)

// patience is how long anything may take before a test gives up.
const patience = 60 * time.Second

// fake is an agent that plays with what it is asked.
type fake struct {
	guest.Handler
	exec func(guest.Exec, *guest.Task) error
	dial func() (net.Conn, error)
}

func (f *fake) Info(context.Context) (guest.Info, error) {
	return guest.Info{Version: guest.Version, Kernel: "6.1\x1b[31m"}, nil
}
func (f *fake) Setup(_ context.Context, s guest.Setup) (guest.Info, error) {
	if s.Root == "" {
		return guest.Info{}, guest.Failuref(guest.Unsupported, "no root: %w", syscall.ENODEV)
	}
	return guest.Info{CPUs: 3}, nil
}
func (f *fake) Exec(_ context.Context, r guest.Exec, t *guest.Task) error { return f.exec(r, t) }
func (f *fake) Dial(context.Context, string, string) (net.Conn, error)    { return f.dial() }

// connect is a client of an agent at the other end of a pipe.
func connect(t *testing.T, h guest.Handler) *guest.Client {
	t.Helper()
	host, far := net.Pipe()
	go func() { _ = guest.Serve(far, func(c net.Conn) { guest.Handle(c, h) }) }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	mux, err := guest.Connect(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mux.Close() })
	return guest.NewClient(mux.Open)
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing within %v", what, patience)
	}
}

func TestCalls(t *testing.T) {
	c := connect(t, &fake{dial: func() (net.Conn, error) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(b, b) }()
		return a, nil
	}})
	i, err := c.Setup(t.Context(), guest.Setup{Root: "root", Clock: time.Now()})
	if err != nil || i.CPUs != 3 {
		t.Errorf("%+v, %v", i, err)
	}
	_, err = c.Setup(t.Context(), guest.Setup{})
	var f *guest.Failure
	if !errors.As(err, &f) || f.Kind != guest.Unsupported || !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), "no root") {
		t.Errorf("%v", err)
	}
	conn, err := c.Dial(t.Context(), "tcp", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "echo"); err != nil {
		t.Error(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "echo" {
		t.Errorf("%q, %v", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Input goes no faster than the command takes it, and control is not held up
// by it.
func TestInputWaitsForTheCommand(t *testing.T) {
	take, signaled := make(chan struct{}), make(chan struct{})
	var got int
	taking := false
	c := connect(t, &fake{exec: func(_ guest.Exec, task *guest.Task) error {
		if err := task.Started(7); err != nil {
			return err
		}
		for {
			e, err := task.Receive()
			switch {
			case err != nil:
				return nil
			case e.Signal != 0:
				close(signaled)
				<-take
				taking = true
				if err := task.Taken(got); err != nil {
					return err
				}
			case e.EOF:
				_ = task.Output(guest.Stderr, fmt.Append(nil, got))
				_ = task.Exited(syscall.WaitStatus(3 << 8))
				return task.Gone("")
			}
			got += len(e.Input)
			if len(e.Input) > 0 && taking {
				if err := task.Taken(len(e.Input)); err != nil {
					return err
				}
			}
		}
	}})
	var mu sync.Mutex
	var out bytes.Buffer
	k, err := c.Start(t.Context(), guest.Exec{Argv: []string{"x"}}, func(stream int, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(&out, "%d:%s", stream, b)
	})
	if err != nil || k.PID() != 7 {
		t.Fatal(err)
	}
	const size = 1 << 20
	wrote := make(chan error, 1)
	go func() {
		_, err := k.Write(t.Context(), make([]byte, size))
		if err == nil {
			err = k.CloseStdin()
		}
		wrote <- err
	}()
	if err := k.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	within(t, "a signal while input waits", signaled)
	close(take)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	within(t, "the end", k.Gone())
	status, known, err := k.Status()
	if !known || status.ExitStatus() != 3 || err != nil || out.String() != fmt.Sprintf("2:%d", size) {
		t.Errorf("%v, %v, %v, %q", status, known, err, out.String())
	}
}

// A guest that goes ends what was under way.
func TestGuestGoes(t *testing.T) {
	host, far := net.Pipe()
	go func() {
		_ = guest.Serve(far, func(c net.Conn) {
			guest.Handle(c, &fake{exec: func(_ guest.Exec, task *guest.Task) error {
				_ = task.Started(1)
				_ = far.Close()
				return nil
			}})
		})
	}()
	mux, err := guest.Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	k, err := guest.NewClient(mux.Open).Start(t.Context(), guest.Exec{Line: "x"}, func(int, []byte) {})
	if err == nil {
		within(t, "the end", k.Gone())
		if _, known, err := k.Status(); known || !errors.Is(err, guest.ErrGone) {
			t.Errorf("known %v, %v", known, err)
		}
	} else if !errors.Is(err, guest.ErrGone) {
		t.Error(err)
	}
	within(t, "the multiplexer's end", mux.Done())
	if _, err := guest.NewClient(mux.Open).Info(t.Context()); err == nil {
		t.Error("a call on a connection that has ended")
	}
}

func TestConnectRefuses(t *testing.T) {
	for hello, want := range map[string]error{
		"galley-guest/999\n": guest.ErrVersion, "SSH-2.0-OpenSSH_9.": guest.ErrNotAgent, "galley-guest": io.ErrUnexpectedEOF, "": io.EOF,
	} {
		host, far := net.Pipe()
		go func() { _, _ = io.WriteString(far, hello); _ = far.Close() }()
		if _, err := guest.Connect(t.Context(), host); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", hello, err, want)
		}
	}
	host, far := net.Pipe()
	defer far.Close()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("too slow"))
	defer cancel()
	if _, err := guest.Connect(ctx, host); err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("a guest that says nothing: %v", err)
	}
}

// script is a connection whose other end says what it was told to, whatever it
// hears.
type script struct {
	io.Reader
	net.Conn
}

func (s script) Read(b []byte) (int, error)     { return s.Reader.Read(b) }
func (script) Write(b []byte) (int, error)      { return len(b), nil }
func (script) Close() error                     { return nil }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// frame is a frame of the protocol.
func frame(t byte, body []byte) []byte {
	out := append([]byte{t}, binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	return append(out, body...)
}

// A guest that says it took more than it was sent, by so much that a sum of it
// turns over, is not believed, and input does not wait for it.
func TestTakenBeyondCounting(t *testing.T) {
	c := connect(t, &fake{exec: func(_ guest.Exec, task *guest.Task) error {
		if err := task.Started(7); err != nil {
			return err
		}
		if err := task.Taken(math.MaxInt); err != nil {
			return err
		}
		_, _ = task.Receive() // until the host gives it up
		return nil
	}})
	k, err := c.Start(t.Context(), guest.Exec{Line: "x"}, func(int, []byte) {})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the end", k.Gone())
	if _, known, err := k.Status(); known || !errors.Is(err, guest.ErrProtocol) {
		t.Errorf("known %v, %v", known, err)
	}
}

// FuzzAnswers feeds a client what a hostile guest may answer: it must end, with
// an error or without, in bounded memory.
func FuzzAnswers(f *testing.F) {
	enc := func(v any) []byte { b, _ := guest.Encode(v); return b }
	f.Add(frame(2, enc(guest.Info{Version: 1, Kernel: "6.1"})))
	f.Add(frame(3, enc(guest.Failure{Kind: guest.Exists, Text: "no", Errno: 17})))
	f.Add(bytes.Join([][]byte{frame(10, enc(map[string]int{"pid": 4})), frame(11, []byte("out")), frame(12, []byte("err")),
		frame(9, enc(map[string]int{"bytes": 1})), frame(13, enc(map[string]int{"status": 256})), frame(14, enc(map[string]string{}))}, nil))
	f.Add([]byte{2, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{2, 0, 1, 0, 0, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, said []byte) {
		c := guest.NewClient(func(context.Context) (net.Conn, error) { return script{Reader: bytes.NewReader(said)}, nil })
		_, _ = c.Info(t.Context())
		_, _ = c.Setup(t.Context(), guest.Setup{})
		_ = c.Sync(t.Context())
		n := 0
		k, err := c.Start(t.Context(), guest.Exec{}, func(_ int, b []byte) { n += len(b) })
		if err != nil {
			return
		}
		within(t, "the end of a command", k.Gone())
		if n > len(said) {
			t.Errorf("%d bytes of output of %d", n, len(said))
		}
	})
}

// FuzzMux feeds the host's end of the multiplexer.
func FuzzMux(f *testing.F) {
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})       // a ping
	f.Add([]byte{0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0})       // a stream of the guest's
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, 0xff, 0, 0, 0, 1}) // data beyond the window
	f.Add([]byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})       // go away
	f.Fuzz(func(t *testing.T, said []byte) {
		m, err := guest.Connect(t.Context(), script{Reader: io.MultiReader(strings.NewReader(guest.Hello), bytes.NewReader(said))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if conn, err := m.Open(ctx); err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
		within(t, "the end of the connection", m.Done())
		_ = m.Close()
	})
}
