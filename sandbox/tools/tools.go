// Package tools are the tools that an agent is given: Read, Write, Edit, Bash,
// Glob, Grep and Mount over any sandbox, and Diff, Log, Snapshot, Rollback and
// RequestReview over its session. Names, arguments, limits and messages are
// those that models know. There is no tool that commits, and nothing here
// holds a way to.
//
// A call takes JSON and gives text for the model, images, and the same as
// data. Every call that may have changed something ends with a checkpoint in
// the session's history that names it. Where such calls overlap, the
// checkpoint names all that ran, because whose a change was is then unknown.
package tools

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/galleyfs/galley/sandbox"
)

// Tool describes one tool.
type Tool struct {
	Name        string
	Title       string
	Description string
	// Input and Output are JSON schemas of the arguments and of
	// [Result.Data].
	Input, Output *jsonschema.Schema
	// ReadOnly: it changes nothing. Destructive: what it changes may be lost
	// from sight, if not from the history. Idempotent: twice is as good as once.
	ReadOnly, Destructive, Idempotent bool

	call func(ctx context.Context, s *Set, args json.RawMessage, progress Progress) (Result, error)
}

// Result is what a call gives back.
type Result struct {
	// Text is for the model.
	Text string
	// Image is a picture that was read, instead of text.
	Image *Image
	// Data is the same for programs, as the tool's Output describes it.
	Data any
	// Failed: the text says what went wrong. The model sees it and goes on.
	Failed bool
	// Code is the code of a failure.
	Code sandbox.Code
}

// Image is a picture.
type Image struct {
	MIME string
	Data []byte
}

// Progress gets a line of what a call is doing, now and then; it may be nil.
type Progress func(message string)

// History is the session's, as far as an agent may use it.
type History interface {
	// Checkpoint seals what a call changed.
	Checkpoint(ctx context.Context, c Checkpoint) error
	// Diff describes the session's changes; with paths, only those.
	Diff(ctx context.Context, paths []string, summary bool) (string, error)
	// Log lists the latest points of the history.
	Log(ctx context.Context, limit int) ([]Point, error)
	// Snapshot names what the session is now.
	Snapshot(ctx context.Context, name string) (Point, error)
	// Rollback makes a point what the session shows; before is where it was.
	Rollback(ctx context.Context, to string) (now, before Point, err error)
	// RequestReview asks a person to look at the changes, and returns what
	// names them.
	RequestReview(ctx context.Context, message string) (Review, error)
}

// Checkpoint is what a call did.
type Checkpoint struct {
	// Tool is the tool, or the tools where calls overlapped.
	Tool     string
	Args     json.RawMessage
	Start    time.Time
	Duration time.Duration
	Exit     *int
}

// Point is a point of the history.
type Point struct {
	Number  int       `json:"number"`
	Name    string    `json:"name,omitempty"`
	What    string    `json:"what"`
	Time    time.Time `json:"time"`
	Changed int       `json:"changed"`
	Paths   []string  `json:"paths,omitempty"`
}

// Review is a request for a review.
type Review struct {
	Digest  string `json:"digest"`
	Changes int    `json:"changes"`
	Summary string `json:"summary"`
	Command string `json:"command"` // what the person types
}

// Options configures a [Set].
type Options struct {
	// Sandbox starts the sandbox; it is called once, by the first call that
	// needs it, and the set closes what it returns.
	Sandbox func(ctx context.Context) (sandbox.Sandbox, error)
	// History may be nil: then there are no checkpoints, and its tools say that
	// they are not supported.
	History History
	// Client tells one user of a sandbox from another, for stale edits.
	Client string
	// Secrets are given to every command as variables, and struck from
	// everything that the tools return: values of four bytes or more.
	Secrets map[string]string
	// Events gets one record for each call; nil discards them.
	Events *slog.Logger
}

type clientKey struct{}

// WithClient says for whom the calls under the context are: one user of the
// sandbox of several, who is refused a stale edit of what that one read.
func WithClient(ctx context.Context, client string) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// client is for whom a call is.
func (s *Set) client(ctx context.Context) string {
	if c, ok := ctx.Value(clientKey{}).(string); ok && c != "" {
		return c
	}
	return s.opt.Client
}

// Set is the tools over one sandbox. It is safe for concurrent use.
type Set struct {
	opt Options
	id  string // tells the files of stored output from another set's

	start  sync.Mutex // one start at a time
	mu     sync.Mutex
	sb     sandbox.Sandbox
	closed bool
	busy   map[int]string // changing calls under way
	last   int            // number of the latest
	output int            // number of the latest stored output
}

// New makes the tools.
func New(o Options) *Set {
	if o.Client == "" {
		o.Client = "tools"
	}
	if o.Events == nil {
		o.Events = slog.New(slog.DiscardHandler)
	}
	var id [4]byte
	_, _ = rand.Read(id[:])
	return &Set{opt: o, id: hex.EncodeToString(id[:]), busy: map[int]string{}}
}

// sandbox starts the sandbox where that has not been done.
func (s *Set) sandbox(ctx context.Context) (sandbox.Sandbox, error) {
	s.start.Lock()
	defer s.start.Unlock()
	s.mu.Lock()
	sb, closed := s.sb, s.closed
	s.mu.Unlock()
	if closed {
		return nil, sandbox.Errorf(sandbox.Closed, "start", "", "the tools were closed")
	}
	if sb != nil {
		return sb, nil
	}
	sb, err := s.opt.Sandbox(ctx)
	if err != nil {
		return nil, sandbox.Errorf(sandbox.Failed, "start", "", "the sandbox did not start: %w", err)
	}
	s.mu.Lock()
	s.sb = sb
	s.mu.Unlock()
	return sb, nil
}

// Close ends the sandbox, if it was started, with all that runs in it.
func (s *Set) Close() error {
	s.start.Lock()
	defer s.start.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.sb == nil {
		return nil
	}
	return s.sb.Close()
}

// Tools lists the tools, in a fixed order.
func Tools() []Tool { return slices.Clone(all) }

// Find is the tool of that name.
func Find(name string) (Tool, bool) {
	for _, t := range all {
		if t.Name == name {
			return t, true
		}
	}
	return Tool{}, false
}

// Call makes one call. The error is for a tool that does not exist; everything
// else that goes wrong is a result that failed, for the model to read.
func (s *Set) Call(ctx context.Context, name string, args json.RawMessage, progress Progress) (Result, error) {
	t, ok := Find(name)
	if !ok {
		var names []string
		for _, t := range all {
			names = append(names, t.Name)
		}
		return Result{}, sandbox.Errorf(sandbox.NotFound, "call", name, "no such tool; there are %s", strings.Join(names, ", "))
	}
	if progress == nil {
		progress = func(string) {}
	}
	began := time.Now()
	r, err := s.guarded(ctx, t, args, progress)
	if err != nil {
		r.Failed, r.Code = true, sandbox.CodeOf(err)
		text := messageOf(err)
		if r.Text != "" {
			text = r.Text + "\n" + text
		}
		r.Text = text
	}
	r.Text = s.redact(r.Text)
	s.event(ctx, t, args, r, time.Since(began))
	return r, nil
}

// guarded makes a call and, where it may have changed something, the
// checkpoint.
func (s *Set) guarded(ctx context.Context, t Tool, args json.RawMessage, progress Progress) (Result, error) {
	if t.ReadOnly || t.Name == "Snapshot" || t.Name == "Rollback" {
		return t.call(ctx, s, args, progress)
	}
	began := time.Now()
	n := s.begin(t.Name)
	r, err := t.call(ctx, s, args, progress)
	names := s.end(n)
	if s.opt.History == nil || sandbox.CodeOf(err) == sandbox.Invalid {
		return r, err
	}
	c := Checkpoint{Tool: names, Args: args, Start: began, Duration: time.Since(began)}
	if b, ok := r.Data.(*bashOutput); ok && b != nil && !b.Running {
		c.Exit = &b.ExitCode
	}
	if cerr := s.opt.History.Checkpoint(context.WithoutCancel(ctx), c); cerr != nil && !errors.Is(err, sandbox.Closed) {
		s.opt.Events.Error("checkpoint", "tool", t.Name, "error", cerr)
	}
	return r, err
}

// begin notes a changing call.
func (s *Set) begin(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.busy[s.last] = name
	return s.last
}

// end notes its end, and names it with all that still run.
func (s *Set) end(n int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := s.busy[n]
	delete(s.busy, n)
	others := make([]string, 0, len(s.busy))
	for _, o := range s.busy {
		others = append(others, o)
	}
	if len(others) == 0 {
		return name
	}
	slices.Sort(others)
	return name + " (at the same time: " + strings.Join(others, ", ") + ")"
}

// event records a call.
func (s *Set) event(ctx context.Context, t Tool, args json.RawMessage, r Result, took time.Duration) {
	s.opt.Events.LogAttrs(ctx, slog.LevelInfo, "tool",
		slog.String("tool", t.Name), slog.String("client", s.client(ctx)), slog.String("args", s.redact(clip(string(args), maxEvent))),
		slog.Bool("failed", r.Failed), slog.String("code", string(r.Code)), slog.String("result", clip(r.Text, maxEvent)), slog.Duration("took", took))
}

// maxEvent is how much of arguments and results an event has.
const maxEvent = 2048

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// redact strikes secrets.
func (s *Set) redact(text string) string {
	for name, value := range s.opt.Secrets {
		if len(value) >= 4 {
			text = strings.ReplaceAll(text, value, "[REDACTED:"+name+"]")
		}
	}
	return text
}

// messageOf is an error for the model.
func messageOf(err error) string {
	var e *sandbox.Error
	if !errors.As(err, &e) {
		return "Error: " + err.Error()
	}
	if e.Path != "" {
		return fmt.Sprintf("Error: %q: %s", e.Path, e.Message)
	}
	return "Error: " + e.Message
}

// maxArgs bounds the arguments of a call, in bytes.
const maxArgs = sandbox.MaxWrite + 1<<20

// decode reads arguments strictly: a misspelt one is an error, not a default.
func decode[T any](tool string, args json.RawMessage) (T, error) {
	var in T
	if len(args) > maxArgs {
		return in, sandbox.Errorf(sandbox.TooLarge, tool, "", "the arguments have %d bytes; up to %d are possible", len(args), maxArgs)
	}
	if len(bytes.TrimSpace(args)) == 0 {
		args = json.RawMessage("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(args))
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return in, nil
		}
		err = errors.New("something follows the JSON object")
	}
	e := sandbox.Errorf(sandbox.Invalid, tool, "", "the arguments of %s: %s; expected %s", tool, strings.TrimPrefix(err.Error(), "json: "), fieldsOf(tool))
	e.Offset = int(dec.InputOffset())
	return in, e
}

// fieldsOf lists a tool's arguments for a message.
func fieldsOf(tool string) string {
	t, ok := Find(tool)
	if !ok {
		return "a JSON object"
	}
	var out []string
	for name := range t.Input.Properties {
		if slices.Contains(t.Input.Required, name) {
			name += " (required)"
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// schema is the schema of a type, which is fixed when the program is built.
func schema[T any]() *jsonschema.Schema {
	s, err := jsonschema.For[T](nil)
	if err != nil {
		panic(err)
	}
	return s
}
