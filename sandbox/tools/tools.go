// Package tools are the tools that an agent is given: Read, Write, Edit, Bash,
// Glob, Grep and Mount over any sandbox, and Diff, Log, Snapshot, Rollback and
// RequestReview over its session. Names, arguments, limits and messages are
// those that models know. There is no tool that commits, and nothing here
// holds a way to.
//
// A call takes JSON and gives text for the model, images, and the same as
// data. Every call that may have changed something ends with a checkpoint in
// the session's history that names it, and every call is an event. Where calls
// overlap, the checkpoint names all that ran, and the event says of each change
// whose it was, where that is known.
package tools

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/sandbox/internal/strictjson"
	"github.com/galleyfs/galley/sandbox/redact"
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
	// Before seals what was changed outside of calls before the first of
	// those that c names began.
	Before(ctx context.Context, c Checkpoint) error
	// Checkpoint seals what a call changed.
	Checkpoint(ctx context.Context, c Checkpoint) (Sealed, error)
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
	// Calls are the calls that run, by what identifies their process trees,
	// where they have such, and Self is the one that ends, where it was alone.
	Calls map[string]string
	Self  string
}

// Sealed is what a checkpoint holds.
type Sealed struct {
	// Number is the point's, 0 where nothing had changed since the one before.
	Number int
	// Changed is how many paths changed, and Changes are the first of them.
	Changed int
	Changes []events.Change
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
	// everything that the tools return or record; see package redact.
	Secrets map[string]string
	// Events gets one record for each call, mount and denial, as package events
	// names them; nil discards them.
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

	start    sync.Mutex // one start at a time
	redactor *redact.Redactor
	ends     sync.WaitGroup // of background processes, whose checkpoints come later

	mu     sync.Mutex
	sb     sandbox.Sandbox
	closed bool
	busy   map[int]*call // changing calls under way, by number
	last   int           // number of the latest call
	output int           // number of the latest stored output
	procs  map[string]*process
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
	return &Set{opt: o, id: hex.EncodeToString(id[:]), redactor: redact.New(o.Secrets), busy: map[int]*call{}, procs: map[string]*process{}}
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
	s.opt.Events.Info(events.Start, "client", s.opt.Client, "sandbox", sb.Info())
	if s.opt.History != nil {
		err := s.opt.History.Before(context.WithoutCancel(ctx), Checkpoint{Tool: s.opt.Client, Start: time.Now()})
		if err != nil {
			s.opt.Events.Error("checkpoint", "error", s.redactor.String(err.Error()))
		}
	}
	return sb, nil
}

// Close ends the sandbox, if it was started, with all that runs in it.
func (s *Set) Close() error {
	s.start.Lock()
	defer s.start.Unlock()
	s.mu.Lock()
	s.closed = true
	sb, procs := s.sb, slices.Collect(maps.Values(s.procs))
	s.mu.Unlock()
	if sb == nil {
		return nil
	}
	// What runs in the background ends first, so that its checkpoint is made.
	for _, p := range procs {
		_ = p.Kill()
	}
	s.ends.Wait()
	err := sb.Close()
	s.opt.Events.Info(events.End, "client", s.opt.Client)
	return err
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
	c := s.begin(ctx, t.Name, args, !t.ReadOnly && t.Name != "Snapshot" && t.Name != "Rollback")
	r, err := t.call(withCall(ctx, c), s, args, progress)
	if err != nil {
		r.Failed, r.Code = true, sandbox.CodeOf(err)
		text := messageOf(err)
		if r.Text != "" {
			text = r.Text + "\n" + text
		}
		r.Text = text
	}
	r.Text = s.redactor.String(r.Text)
	r.Data = s.redactor.Value(r.Data)
	o := outcome{text: r.Text, failed: r.Failed, code: r.Code}
	if b, ok := r.Data.(*bashOutput); ok && b != nil && !b.Running {
		o.exit = &b.ExitCode
	}
	c.end(ctx, o)
	return r, nil
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
	return strictjson.Decode[T](tool, "the arguments", args, func() string { return fieldsOf(tool) })
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
