package command

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/galleyfs/galley/sandbox"
)

// Host is what a sandbox brings along for its calls.
type Host struct {
	// Workdir is where commands run that name no directory.
	Workdir string
	// Closed is closed when the sandbox is.
	Closed <-chan struct{}
	// Open reports, as an error, whether the sandbox was closed.
	Open func(op string) error
	// Stat is the sandbox's.
	Stat func(ctx context.Context, r sandbox.StatRequest) (sandbox.FileInfo, error)
	// Launch starts a command of a request that was checked, in the directory
	// dir; one in the background may outlive its shell.
	Launch func(ctx context.Context, op string, r sandbox.BashRequest, dir string, background bool) (*Command, error)
}

// Calls are a sandbox's calls on commands: those of [sandbox.Sandbox], and the
// processes in the background.
type Calls struct {
	host Host

	mu      sync.Mutex
	last    int
	started map[string]*Background
	order   []string // their ids, the oldest first
}

// NewCalls makes the calls of a sandbox in which nothing runs yet.
func NewCalls(h Host) *Calls { return &Calls{host: h, started: map[string]*Background{}} }

// Bash is [sandbox.Sandbox.Bash].
func (s *Calls) Bash(ctx context.Context, r sandbox.BashRequest) (sandbox.BashResult, error) {
	if r.OpenStdin {
		return sandbox.BashResult{}, sandbox.Errorf(sandbox.Invalid, "bash", "", "OpenStdin is for background processes")
	}
	c, err := s.launch(ctx, "bash", r, false)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	return c.run(ctx, s.host.Closed)
}

// Start is [sandbox.Sandbox.Start].
func (s *Calls) Start(ctx context.Context, r sandbox.BashRequest) (sandbox.Process, error) {
	c, err := s.launch(ctx, "start", r, true)
	if err != nil {
		return nil, err
	}
	return s.add(c), nil
}

// launch checks a request and starts its command.
func (s *Calls) launch(ctx context.Context, op string, r sandbox.BashRequest, background bool) (*Command, error) {
	if err := s.host.Open(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	if err := Check(op, &r); err != nil {
		return nil, err
	}
	dir, err := checkDir(op, s.host.Workdir, r.Dir, func(p string) (sandbox.FileInfo, error) {
		return s.host.Stat(ctx, sandbox.StatRequest{Path: p})
	})
	if err != nil {
		return nil, err
	}
	return s.host.Launch(ctx, op, r, dir, background)
}

// add gives a command that was started in the background an id, and ends it
// when its time is over.
func (s *Calls) add(c *Command) *Background {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	b := &Background{Command: c, calls: s, id: fmt.Sprintf("p%d", s.last)}
	s.started[b.id] = b
	s.order = append(s.order, b.id)
	if c.req.Timeout > 0 {
		go b.watch(c.req.Timeout)
	}
	return b
}

// Process is [sandbox.Sandbox.Process].
func (s *Calls) Process(id string) (sandbox.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.started[id]
	if b == nil {
		return nil, sandbox.Errorf(sandbox.NotFound, "process", id, "there is no such background process")
	}
	return b, nil
}

// Processes is [sandbox.Sandbox.Processes].
func (s *Calls) Processes() []sandbox.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]sandbox.Process, 0, len(s.order))
	for _, id := range s.order {
		out = append(out, s.started[id])
	}
	return out
}

func (s *Calls) remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.started, id)
	s.order = slices.DeleteFunc(s.order, func(o string) bool { return o == id })
}
