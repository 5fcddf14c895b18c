package tools

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/redact"
)

// process is a background process on record. It counts as a call that runs
// until its shell has ended, and secrets are struck from its output.
type process struct {
	sandbox.Process
	s *Set

	mu      sync.Mutex
	fresh   [3][]byte // polled and without secrets, of both, stdout and stderr
	streams [3]*redact.Stream
}

// Start starts a background process, on record. args is what that has of the
// request.
func (s *Set) Start(ctx context.Context, args any, r sandbox.BashRequest) (sandbox.Process, error) {
	return Do(ctx, s, "start", args, true, func(ctx context.Context, sb sandbox.Sandbox) (sandbox.Process, error) {
		return s.startProcess(ctx, sb, r)
	})
}

// startProcess starts a process as part of the call of ctx, which it outlives.
func (s *Set) startProcess(ctx context.Context, sb sandbox.Sandbox, r sandbox.BashRequest) (sandbox.Process, error) {
	r.Env = s.environ(r.Env)
	c := &call{s: s, began: time.Now(), changes: true, command: true}
	r.OnStart = c.runs
	inner, err := sb.Start(ctx, r)
	if err != nil {
		return nil, err
	}
	p := &process{Process: inner, s: s}
	for i := range p.streams {
		p.streams[i] = s.redactor.Stream(func(b []byte) { p.fresh[i] = append(p.fresh[i], b...) })
	}
	c.name = "Bash " + p.ID()
	if parent, ok := ctx.Value(callKey{}).(*call); ok {
		c.args = parent.args
	}
	s.mu.Lock()
	s.last++
	c.n = s.last
	s.busy[c.n] = c
	s.procs[p.ID()] = p
	s.mu.Unlock()
	background := context.WithoutCancel(ctx)
	s.ends.Go(func() {
		r, err := inner.Wait(background)
		o := outcome{exit: &r.ExitCode, failed: err != nil, code: sandbox.CodeOf(err)}
		c.end(background, o)
	})
	return p, nil
}

// Process finds a background process by its id.
func (s *Set) Process(ctx context.Context, id string) (sandbox.Process, error) {
	s.mu.Lock()
	p := s.procs[id]
	s.mu.Unlock()
	if p != nil {
		return p, nil
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return nil, err
	}
	// One that another than these tools started, or none.
	return sb.Process(id)
}

// Poll is [sandbox.Process.Poll]. What may be the beginning of a secret comes
// with the next one.
func (p *process) Poll(ctx context.Context, wait time.Duration) (sandbox.ProcessState, error) {
	st, err := p.Process.Poll(ctx, wait)
	if err != nil {
		return st, p.s.hide(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, out := range []*[]byte{&st.Output, &st.Stdout, &st.Stderr} {
		_, _ = p.streams[i].Write(*out)
		if !st.Running {
			p.streams[i].Close()
		}
		*out, p.fresh[i] = p.fresh[i], nil
	}
	return st, nil
}

// Wait is [sandbox.Process.Wait].
func (p *process) Wait(ctx context.Context) (sandbox.BashResult, error) {
	r, err := p.Process.Wait(ctx)
	r, _ = p.s.redactor.Value(r).(sandbox.BashResult)
	return r, p.s.hide(err)
}

// Release is [sandbox.Process.Release].
func (p *process) Release() error {
	p.s.mu.Lock()
	delete(p.s.procs, p.ID())
	p.s.mu.Unlock()
	return p.Process.Release()
}

// Bash runs a command for a call of [Do]: with the set's secrets as variables,
// which are struck from what OnOutput gets, piece by piece.
func (s *Set) Bash(ctx context.Context, sb sandbox.Sandbox, r sandbox.BashRequest) (sandbox.BashResult, error) {
	r.Env = s.environ(r.Env)
	follow(ctx, &r)
	on := r.OnOutput
	if on == nil || s.redactor.Empty() {
		return sb.Bash(ctx, r)
	}
	streams := map[sandbox.Stream]*redact.Stream{}
	for _, name := range []sandbox.Stream{sandbox.Stdout, sandbox.Stderr} {
		streams[name] = s.redactor.Stream(func(b []byte) { on(sandbox.Output{Stream: name, Data: b}) })
	}
	r.OnOutput = func(o sandbox.Output) { _, _ = streams[o.Stream].Write(o.Data) }
	res, err := sb.Bash(ctx, r)
	streams[sandbox.Stdout].Close()
	streams[sandbox.Stderr].Close()
	return res, err
}

// environ are the variables of a request with the secrets.
func (s *Set) environ(env map[string]string) map[string]string {
	if len(s.opt.Secrets) == 0 {
		return env
	}
	out := maps.Clone(s.opt.Secrets)
	maps.Copy(out, env)
	return out
}
