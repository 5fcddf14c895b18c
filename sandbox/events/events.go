// Package events is the record of what happens in a session, one line of JSON
// each: calls with their arguments, how they ended and what they changed,
// commands, mounts, what was denied.
//
// Every process that works in the session appends to the same file. A line is
// written by one call, so that lines of several writers do not mix.
package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// File is the record's name in the session's directory. Old is the one before.
const (
	File = "events.jsonl"
	Old  = File + ".old"
)

// MaxFile is how large the record grows, in bytes: then it begins anew, and the
// one before is kept beside it.
const MaxFile = 32 << 20

// maxLine bounds one event, in bytes.
const maxLine = 1 << 20

// What an event is about, in its field "event".
const (
	Call    = "call"    // a call of a tool or of the contract
	Command = "command" // a command of galley run
	Mount   = "mount"   // a directory of the host was mounted
	Denied  = "denied"  // something was refused for want of a right
	Start   = "start"   // a sandbox started
	End     = "end"     // it ended
)

// Log is the record, for writing. It is safe for concurrent use.
type Log struct {
	path string
	max  int64
	mu   sync.Mutex
}

// Open opens the record in a session's directory.
func Open(dir string) *Log { return &Log{path: filepath.Join(dir, File), max: MaxFile} }

// Logger writes events; each carries attrs. The message of a record is what
// the event is about.
func (l *Log) Logger(attrs ...any) *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch {
		case a.Key == slog.MessageKey:
			a.Key = "event"
		case a.Key == slog.LevelKey:
			return slog.Attr{}
		case a.Value.Kind() == slog.KindDuration:
			a.Value = slog.Float64Value(a.Value.Duration().Seconds())
		}
		return a
	}})).With(attrs...)
}

// Write appends a line. A record that has become too large begins anew first.
func (l *Log) Write(line []byte) (int, error) {
	if len(line) > maxLine {
		return 0, fmt.Errorf("an event of %d bytes; up to %d are written", len(line), maxLine)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return 0, err
		}
		n, again, err := l.append(f, line)
		_ = f.Close()
		if !again {
			return n, err
		}
	}
}

// append writes under the file's lock, which keeps another process from
// putting the file aside meanwhile. again is true where that has been done.
func (l *Log) append(f *os.File, line []byte) (n int, again bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return 0, false, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	if now, err := os.Lstat(l.path); err != nil || !os.SameFile(st, now) {
		return 0, true, nil
	}
	if st.Size() > 0 && st.Size()+int64(len(line)) > l.max {
		return 0, true, os.Rename(l.path, filepath.Join(filepath.Dir(l.path), Old))
	}
	n, err = f.Write(line)
	return n, false, err
}

// Event is a line of the record, as far as all of them are alike. Raw is the
// line itself.
type Event struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"`
	// Client is for whom it happened, such as "mcp".
	Client string `json:"client,omitempty"`
	// Tool is the tool or the call of the contract; of a command it is empty.
	Tool     string          `json:"tool,omitempty"`
	Args     json.RawMessage `json:"args,omitempty"`
	Text     string          `json:"text,omitempty"` // of a command or a denial
	Failed   bool            `json:"failed,omitempty"`
	Code     string          `json:"code,omitempty"`
	Result   string          `json:"result,omitempty"`
	Exit     *int            `json:"exit,omitempty"`
	Duration float64         `json:"duration,omitempty"` // in seconds
	// Snapshot is the checkpoint that the call ended with, Changed how many
	// paths it has otherwise than the one before, and Changes the first of them.
	Snapshot int      `json:"snapshot,omitempty"`
	Changed  int      `json:"changed,omitempty"`
	Changes  []Change `json:"changes,omitempty"`
	// Others ran at the same time: what By does not tell may be theirs.
	Others []string `json:"others,omitempty"`

	Raw json.RawMessage `json:"-"`
}

// Change is a path that changed during a call.
type Change struct {
	Tree string `json:"tree,omitempty"`
	Path string `json:"path"`
	Kind string `json:"kind"`
	// By is whose change it is, where that is known; otherwise it is one of all
	// that ran.
	By []string `json:"by,omitempty"`
}

// Read gives fn the events of the record in a session's directory, the oldest
// first. With follow it goes on with those that are written later, until ctx
// ends, which is then no error. What is no event is passed over.
func Read(ctx context.Context, dir string, follow bool, fn func(Event) error) error {
	r := &reader{dir: dir, fn: fn}
	defer r.close()
	for {
		if err := r.more(); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPause):
		}
	}
}

// followPause is how often a reader that follows looks for more.
const followPause = 100 * time.Millisecond

type reader struct {
	dir  string
	fn   func(Event) error
	file *os.File
	last os.FileInfo // of the file that was read before
	kept []byte      // a line whose end is not written yet
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
}

// open opens a file of the record; nil where there is none.
func (r *reader) open(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.dir, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// next opens the record. One that was put aside since the last that was read
// is read first. The record is opened before it is looked for: should it be put
// aside just now, it is read where it then is, and once.
func (r *reader) next() error {
	now, err := r.open(File)
	if err != nil {
		return err
	}
	defer func() { r.file, r.kept = now, nil }()
	old, err := r.open(Old)
	if err != nil || old == nil {
		return err
	}
	defer old.Close()
	st, err := old.Stat()
	if err != nil || r.last != nil && os.SameFile(r.last, st) {
		return err
	}
	if now != nil {
		if mine, err := now.Stat(); err != nil || os.SameFile(mine, st) {
			return err
		}
	}
	r.file, r.kept, r.last = old, nil, st
	return r.rest()
}

// more reads what there is now, also where the record has begun anew.
func (r *reader) more() error {
	for {
		if r.file == nil {
			if err := r.next(); err != nil || r.file == nil {
				return err
			}
		}
		mine, err := r.file.Stat()
		if err != nil {
			return err
		}
		now, missing := os.Lstat(filepath.Join(r.dir, File))
		// Had it been put aside before, then nothing is written to it any more.
		if err := r.rest(); err != nil {
			return err
		}
		if missing == nil && os.SameFile(mine, now) {
			return nil
		}
		r.close()
		r.file, r.kept, r.last = nil, nil, mine
		if missing != nil {
			return nil
		}
	}
}

// rest reads to the end.
func (r *reader) rest() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.file.Read(buf)
		if lerr := r.lines(buf[:n]); lerr != nil {
			return lerr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *reader) lines(b []byte) error {
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		line := append(r.kept, b[:i]...)
		r.kept, b = nil, b[i+1:]
		var e Event
		if json.Unmarshal(line, &e) != nil || e.Event == "" {
			continue
		}
		e.Raw = line
		if err := r.fn(e); err != nil {
			return err
		}
	}
	if r.kept = append(r.kept, b...); len(r.kept) > 2*maxLine {
		r.kept = nil // no line of ours
	}
	return nil
}
