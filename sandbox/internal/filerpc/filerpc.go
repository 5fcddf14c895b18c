// Package filerpc carries the calls on files over a byte stream, to a process
// that lives where the files are.
package filerpc

import (
	"context"
	"errors"
	"io"
	"net/rpc"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

const service = "Files"

// Args is a request with a number by which it can be cancelled.
type Args[T any] struct {
	Call    uint64
	Request T
}

// Reply is a result, which may come with an error.
type Reply[T any] struct {
	Result T
	Error  *Failure
}

// Failure is a [sandbox.Error] as it goes over the wire.
type Failure struct {
	Code              sandbox.Code
	Op, Path, Message string
	Offset, Count     int
	Errno             syscall.Errno
}

// Server is the far end's methods.
type Server struct {
	ops *files.Ops

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
}

// Serve answers calls on conn until it ends.
func Serve(conn io.ReadWriteCloser, ops *files.Ops) error {
	s := rpc.NewServer()
	if err := s.RegisterName(service, &Server{ops: ops, cancels: map[uint64]context.CancelFunc{}}); err != nil {
		return err
	}
	s.ServeConn(conn)
	return nil
}

func serve[A, R any](s *Server, a *Args[A], r *Reply[R], call func(context.Context, A) (R, error)) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	s.cancels[a.Call] = cancel
	s.mu.Unlock()
	var err error
	r.Result, err = call(ctx, a.Request)
	r.Error = failureOf(err)
	s.mu.Lock()
	delete(s.cancels, a.Call)
	s.mu.Unlock()
	return nil
}

func failureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	var e *sandbox.Error
	if !errors.As(err, &e) {
		e = sandbox.Errorf(sandbox.Failed, "", "", "%w", err)
	}
	f := &Failure{Code: e.Code, Op: e.Op, Path: e.Path, Message: e.Message, Offset: e.Offset, Count: e.Count}
	errors.As(err, &f.Errno)
	return f
}

func (f *Failure) err() error {
	if f == nil {
		return nil
	}
	e := &sandbox.Error{Code: f.Code, Op: f.Op, Path: f.Path, Message: f.Message, Offset: f.Offset, Count: f.Count}
	if f.Errno != 0 {
		e.Err = f.Errno
	}
	return e
}

// Cancel ends a call.
func (s *Server) Cancel(call uint64, _ *struct{}) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.cancels[call]; cancel != nil {
		cancel()
	}
	return nil
}

// The calls of the contract.
func (s *Server) Read(a *Args[sandbox.ReadRequest], r *Reply[sandbox.ReadResult]) error {
	return serve(s, a, r, s.ops.Read)
}
func (s *Server) Write(a *Args[sandbox.WriteRequest], r *Reply[sandbox.WriteResult]) error {
	return serve(s, a, r, s.ops.Write)
}
func (s *Server) Edit(a *Args[sandbox.EditRequest], r *Reply[sandbox.EditResult]) error {
	return serve(s, a, r, s.ops.Edit)
}
func (s *Server) Stat(a *Args[sandbox.StatRequest], r *Reply[sandbox.FileInfo]) error {
	return serve(s, a, r, s.ops.Stat)
}
func (s *Server) List(a *Args[sandbox.ListRequest], r *Reply[sandbox.ListResult]) error {
	return serve(s, a, r, s.ops.List)
}
func (s *Server) Glob(a *Args[sandbox.GlobRequest], r *Reply[sandbox.GlobResult]) error {
	return serve(s, a, r, s.ops.Glob)
}
func (s *Server) Grep(a *Args[sandbox.GrepRequest], r *Reply[sandbox.GrepResult]) error {
	return serve(s, a, r, s.ops.Grep)
}

// Client makes the calls. It is safe for concurrent use.
type Client struct {
	rpc  *rpc.Client
	next atomic.Uint64
}

// NewClient makes a client of a connection, which it takes over.
func NewClient(conn io.ReadWriteCloser) *Client { return &Client{rpc: rpc.NewClient(conn)} }

// Close ends the connection; calls that wait fail with [sandbox.Closed].
func (c *Client) Close() error { return c.rpc.Close() }

// call makes one call. A cancelled one is waited for, so that it has ended when
// its caller hears of it.
func call[A, R any](ctx context.Context, c *Client, op string, req A) (R, error) {
	a := &Args[A]{Call: c.next.Add(1), Request: req}
	r := &Reply[R]{}
	if err := ctx.Err(); err != nil {
		return r.Result, sandbox.Wrap(op, "", err)
	}
	done := c.rpc.Go(service+"."+method[op], a, r, make(chan *rpc.Call, 1)).Done
	var ended *rpc.Call
	select {
	case ended = <-done:
	case <-ctx.Done():
		c.rpc.Go(service+".Cancel", a.Call, &struct{}{}, make(chan *rpc.Call, 1))
		ended = <-done
	}
	if ended.Error != nil {
		return r.Result, sandbox.Errorf(sandbox.Closed, op, "", "the sandbox was closed, or the process in it that works on files has ended: %w", ended.Error)
	}
	return r.Result, r.Error.err()
}

var method = map[string]string{
	"read": "Read", "write": "Write", "edit": "Edit", "stat": "Stat", "list": "List", "glob": "Glob", "grep": "Grep",
}

// The calls of the contract. Empty lists, which the wire does not tell from
// none, are made anew.
func (c *Client) Read(ctx context.Context, r sandbox.ReadRequest) (sandbox.ReadResult, error) {
	return call[sandbox.ReadRequest, sandbox.ReadResult](ctx, c, "read", r)
}
func (c *Client) Write(ctx context.Context, r sandbox.WriteRequest) (sandbox.WriteResult, error) {
	return call[sandbox.WriteRequest, sandbox.WriteResult](ctx, c, "write", r)
}
func (c *Client) Edit(ctx context.Context, r sandbox.EditRequest) (sandbox.EditResult, error) {
	return call[sandbox.EditRequest, sandbox.EditResult](ctx, c, "edit", r)
}
func (c *Client) Stat(ctx context.Context, r sandbox.StatRequest) (sandbox.FileInfo, error) {
	return call[sandbox.StatRequest, sandbox.FileInfo](ctx, c, "stat", r)
}
func (c *Client) List(ctx context.Context, r sandbox.ListRequest) (sandbox.ListResult, error) {
	out, err := call[sandbox.ListRequest, sandbox.ListResult](ctx, c, "list", r)
	if out.Entries == nil {
		out.Entries = []sandbox.FileInfo{}
	}
	return out, err
}
func (c *Client) Glob(ctx context.Context, r sandbox.GlobRequest) (sandbox.GlobResult, error) {
	out, err := call[sandbox.GlobRequest, sandbox.GlobResult](ctx, c, "glob", r)
	if out.Paths == nil {
		out.Paths = []string{}
	}
	return out, err
}
func (c *Client) Grep(ctx context.Context, r sandbox.GrepRequest) (sandbox.GrepResult, error) {
	out, err := call[sandbox.GrepRequest, sandbox.GrepResult](ctx, c, "grep", r)
	if out.Matches == nil {
		out.Matches = []sandbox.GrepMatch{}
	}
	return out, err
}
