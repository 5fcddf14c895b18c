package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/events"
)

// A call is one call of a tool, or of the contract, on record: it begins with
// what was changed before put aside, and ends with a checkpoint and an event.
type call struct {
	s       *Set
	n       int
	name    string
	args    json.RawMessage // without secrets
	began   time.Time
	changes bool   // it may have changed something
	tree    string // identifies its process tree, where it has one; protected by s.mu
	command bool   // it is a command, with processes of its own; protected by s.mu
}

// outcome is how a call ended.
type outcome struct {
	text   string
	failed bool
	code   sandbox.Code
	exit   *int
}

// label tells a call from others of its name.
func (c *call) label() string { return fmt.Sprintf("%s #%d", c.name, c.n) }

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// begin puts a call on record.
func (s *Set) begin(ctx context.Context, name string, args json.RawMessage, changes bool) *call {
	c := &call{s: s, name: name, args: s.brief(args), began: time.Now(), changes: changes}
	s.mu.Lock()
	s.last++
	c.n = s.last
	started, first := s.sb != nil, len(s.busy) == 0
	if changes {
		s.busy[c.n] = c
	}
	s.mu.Unlock()
	if changes && first && started && s.opt.History != nil {
		// Nothing of Galley's tools ran: what changed meanwhile is not theirs.
		err := s.opt.History.Before(context.WithoutCancel(ctx), Checkpoint{Tool: name, Args: c.args, Start: c.began})
		if err != nil && !errors.Is(err, sandbox.Closed) {
			s.opt.Events.Error("checkpoint", "tool", name, "error", err.Error())
		}
	}
	return c
}

// end makes the call's checkpoint and writes its event.
func (c *call) end(ctx context.Context, o outcome) {
	s := c.s
	attrs := []slog.Attr{
		slog.String("tool", c.name), slog.Int("call", c.n), slog.String("client", s.client(ctx)), slog.Any("args", c.args),
		slog.Time("start", c.began), slog.Duration("duration", time.Since(c.began)),
	}
	if o.failed {
		attrs = append(attrs, slog.Bool("failed", true), slog.String("code", string(o.code)))
	}
	if o.exit != nil {
		attrs = append(attrs, slog.Int("exit", *o.exit))
	}
	attrs = append(attrs, slog.String("result", clip(o.text, maxEvent)))
	if c.changes {
		attrs = append(attrs, c.seal(ctx, o)...)
	}
	s.opt.Events.LogAttrs(ctx, slog.LevelInfo, events.Call, attrs...)
	switch {
	case o.code == sandbox.Permission || o.code == sandbox.ReadOnly:
		s.opt.Events.Info(events.Denied, "tool", c.name, "call", c.n, "client", s.client(ctx), "code", string(o.code), "text", clip(o.text, maxEvent))
	case strings.EqualFold(c.name, "mount") && !o.failed:
		s.opt.Events.Info(events.Mount, "tool", c.name, "call", c.n, "client", s.client(ctx), "args", c.args)
	}
}

// seal makes the checkpoint. The call counts as running until that is done,
// since what it changed may be found by the checkpoint of another.
func (c *call) seal(ctx context.Context, o outcome) []slog.Attr {
	s := c.s
	s.mu.Lock()
	var names, labels []string
	calls := s.trees()
	for n, b := range s.busy {
		if n != c.n {
			names = append(names, b.name)
			labels = append(labels, b.label())
		}
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.busy, c.n)
		s.mu.Unlock()
	}()
	slices.Sort(names)
	slices.Sort(labels)
	var attrs []slog.Attr
	if len(labels) > 0 {
		attrs = append(attrs, slog.Any("others", labels))
	}
	if s.opt.History == nil || o.code == sandbox.Invalid {
		return attrs
	}
	tool := c.name
	if len(names) > 0 {
		tool += " (at the same time: " + strings.Join(names, ", ") + ")"
	}
	self := c.label()
	if len(labels) > 0 {
		self = "" // then it is said of its changes, too
	}
	sealed, err := s.opt.History.Checkpoint(context.WithoutCancel(ctx), Checkpoint{
		Tool: tool, Args: c.args, Start: c.began, Duration: time.Since(c.began), Exit: o.exit, Calls: calls, Self: self,
	})
	if err != nil {
		if o.code != sandbox.Closed {
			s.opt.Events.Error("checkpoint", "tool", c.name, "call", c.n, "error", s.redactor.String(err.Error()))
		}
		return attrs
	}
	if sealed.Number != 0 {
		attrs = append(attrs, slog.Int("snapshot", sealed.Number), slog.Int("changed", sealed.Changed), slog.Any("changes", sealed.Changes))
	}
	return attrs
}

// trees are the calls that run, by what identifies their process trees. All
// calls on files are made by one process: it is known whose a change of that is
// while there is one such call.
//
// Preconditions: mu is held.
func (s *Set) trees() map[string]string {
	out := map[string]string{}
	files := ""
	for _, c := range s.busy {
		switch {
		case c.tree != "":
			out[c.tree] = c.label()
		case c.command: // of which nothing is known
		case files == "":
			files = c.label()
		default:
			files = "-"
		}
	}
	if f, ok := s.sb.(interface{ FilesTree() string }); ok && files != "" && files != "-" {
		if tree := f.FilesTree(); tree != "" {
			out[tree] = files
		}
	}
	return out
}

// runs notes the process tree of a call.
func (c *call) runs(tree string) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.tree = tree
}

// follow has a command tell its call of its process tree.
func follow(ctx context.Context, r *sandbox.BashRequest) {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		c.s.mu.Lock()
		c.command = true
		c.s.mu.Unlock()
		r.OnStart = c.runs
	}
}

// Do makes a call of the contract on the sandbox, on record like one of a tool,
// and strikes secrets from what it returns. args is what the record has of the
// request. changes says that the call may change something.
func Do[R any](ctx context.Context, s *Set, name string, args any, changes bool, fn func(context.Context, sandbox.Sandbox) (R, error)) (R, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		raw = nil
	}
	c := s.begin(ctx, name, raw, changes)
	var r R
	sb, err := s.sandbox(ctx)
	if err == nil {
		r, err = fn(withCall(ctx, c), sb)
	}
	if _, running := any(r).(sandbox.Process); !running {
		r, _ = s.redactor.Value(r).(R)
	}
	err = s.hide(err)
	o := outcome{failed: err != nil, code: sandbox.CodeOf(err)}
	if err != nil {
		o.text = err.Error()
	}
	if b, ok := any(r).(sandbox.BashResult); ok {
		o.exit = &b.ExitCode
	}
	c.end(ctx, o)
	return r, err
}

// hide strikes secrets from an error.
func (s *Set) hide(err error) error {
	if err == nil || s.redactor.Empty() {
		return err
	}
	var e *sandbox.Error
	if !errors.As(err, &e) {
		return s.redactor.Error(err)
	}
	out := *e
	out.Path, out.Message = s.redactor.String(e.Path), s.redactor.String(e.Message)
	return &out
}

const (
	// maxEvent is how much of a result an event has, and of arguments, too,
	// which is what the history keeps of them.
	maxEvent = 2048
	// maxShown is how much of one string it has, where arguments have more.
	maxShown = 256
)

// brief are arguments for the record: without secrets, and not longer than the
// record wants them, of long strings the beginning.
func (s *Set) brief(args json.RawMessage) json.RawMessage {
	if len(args) == 0 || !json.Valid(args) {
		return nil
	}
	args = s.redactor.JSON(args)
	if len(args) <= maxEvent {
		return args
	}
	var v any
	if err := json.Unmarshal(args, &v); err != nil {
		return nil
	}
	short, err := json.Marshal(shorten(v))
	if err != nil || len(short) > maxEvent {
		return json.RawMessage(fmt.Sprintf(`{"bytes":%d}`, len(args)))
	}
	return short
}

func shorten(v any) any {
	switch v := v.(type) {
	case string:
		if len(v) > maxShown {
			return clip(v, maxShown) + fmt.Sprintf(" (%d bytes)", len(v))
		}
	case []any:
		for i := range v {
			v[i] = shorten(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = shorten(v[k])
		}
	}
	return v
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
