package filerpc

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// server answers the calls of one stream.
type server struct {
	link link
	ops  *files.Ops

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
}

// Serve answers calls on conn until it ends, and closes it. Calls that are under
// way are cancelled then.
func Serve(conn io.ReadWriteCloser, ops *files.Ops) error {
	s := &server{link: link{rw: conn}, ops: ops, cancels: map[uint64]context.CancelFunc{}}
	ctx, cancel := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	defer conn.Close()
	for {
		h, body, err := s.link.receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Op == opCancel {
			s.cancel(h.Call)
			continue
		}
		call, done := s.begin(ctx, h.Call)
		calls.Go(func() {
			defer done()
			s.answer(call, h, body)
		})
	}
}

// begin notes a call, so that it can be cancelled.
func (s *server) begin(ctx context.Context, n uint64) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancels[n] = cancel
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.cancels, n)
	}
}

func (s *server) cancel(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.cancels[n]; cancel != nil {
		cancel()
	}
}

// answer makes a call and sends what came of it.
func (s *server) answer(ctx context.Context, h head, body []byte) {
	result, err := s.call(ctx, h.Op, body)
	err = s.link.send(head{Call: h.Call, Error: failureOf(err)}, result)
	if err == nil {
		return
	}
	// Where the connection is at its end this one is lost, too.
	if errors.Is(err, errTooLarge) {
		err = sandbox.Errorf(sandbox.TooLarge, h.Op, "", "the result is larger than can be told: %w; ask for less with a limit", err)
	}
	_ = s.link.send(head{Call: h.Call, Error: failureOf(err)}, nil)
}

// call decodes a request and makes the call.
func (s *server) call(ctx context.Context, op string, body []byte) (any, error) {
	switch op {
	case "read":
		return one(ctx, op, body, s.ops.Read)
	case "write":
		return one(ctx, op, body, s.ops.Write)
	case "edit":
		return one(ctx, op, body, s.ops.Edit)
	case "stat":
		return one(ctx, op, body, s.ops.Stat)
	case "list":
		return one(ctx, op, body, s.ops.List)
	case "glob":
		return one(ctx, op, body, s.ops.Glob)
	case "grep":
		return one(ctx, op, body, s.ops.Grep)
	}
	return nil, sandbox.Errorf(sandbox.NotSupported, op, "", "there is no such call on files")
}

func one[A, R any](ctx context.Context, op string, body []byte, call func(context.Context, A) (R, error)) (any, error) {
	var req A
	if err := decMode.Unmarshal(body, &req); err != nil {
		return nil, sandbox.Errorf(sandbox.Invalid, op, "", "the request does not decode: %w", err)
	}
	return call(ctx, req)
}
