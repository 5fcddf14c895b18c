package tools_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/snapshotstest"
)

func TestMain(m *testing.M) {
	local.Init()
	// A process under the race detector waits for a second before it exits,
	// and every call in a sandbox is one.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == owner.Command {
		os.Exit(owner.Main(os.Args[2:]))
	}
	if st, err := os.Stat("/dev/fuse"); err == nil && os.Geteuid() == 0 && st.Mode().Perm() != 0o666 {
		if err := os.Chmod("/dev/fuse", 0o666); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// history notes what it is asked for.
type history struct {
	mu     sync.Mutex
	points []tools.Checkpoint
	before []tools.Checkpoint
}

func (h *history) Checkpoint(_ context.Context, c tools.Checkpoint) (tools.Sealed, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.points = append(h.points, c)
	return tools.Sealed{Number: len(h.points), Changed: 1, Changes: []events.Change{{Path: "x", Kind: "modified"}}}, nil
}

func (h *history) Before(_ context.Context, c tools.Checkpoint) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = append(h.before, c)
	return nil
}
func (h *history) Diff(context.Context, []string, bool) (string, error)  { return "", nil }
func (h *history) Log(context.Context, int) ([]tools.Point, error)       { return nil, nil }
func (h *history) Snapshot(context.Context, string) (tools.Point, error) { return tools.Point{}, nil }
func (h *history) RequestReview(context.Context, string) (tools.Review, error) {
	return tools.Review{}, nil
}
func (h *history) Rollback(context.Context, string) (now, before tools.Point, err error) {
	return now, before, sandbox.Errorf(sandbox.NotFound, "rollback", "x", "no such point")
}

func (h *history) last() tools.Checkpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.points) == 0 {
		return tools.Checkpoint{}
	}
	return h.points[len(h.points)-1]
}

func (h *history) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.points)
}

// newSet makes tools over a local sandbox on an empty project.
func newSet(t *testing.T) (*tools.Set, *history, string) {
	t.Helper()
	base := t.TempDir()
	st, err := snapshots.OpenStore(t.TempDir(), snapshots.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	sess, err := st.Create(t.Context(), snapshots.Spec{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	h := &history{}
	set := tools.New(tools.Options{
		History: h, Client: "test", Secrets: map[string]string{"TOKEN": "s3cr3t-value"},
		Sandbox: func(ctx context.Context) (sandbox.Sandbox, error) {
			return local.Open(ctx, local.Options{Session: sess})
		},
	})
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
		snapshotstest.WaitIdle(t, sess.Dir())
	})
	return set, h, base
}

func call(t *testing.T, s *tools.Set, name string, args any) tools.Result {
	t.Helper()
	b, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Call(t.Context(), name, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type m map[string]any

func TestTools(t *testing.T) {
	set, h, base := newSet(t)
	numbers := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "line %d\n", i+1)
		}
		return b.String()
	}
	var pic bytes.Buffer
	if err := png.Encode(&pic, image.NewRGBA(image.Rect(0, 0, 2, 2))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "pic.png"), pic.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, tool string
		args       any
		failed     bool
		has        []string // in the text
		hasNot     []string
	}{
		{"write", "Write", m{"path": "a/f.txt", "content": "one\ntwo\n"}, false, []string{"Wrote a/f.txt (2 lines, 8 bytes)"}, nil},
		{"read", "Read", m{"path": "a/f.txt"}, false, []string{"one\ntwo\n"}, []string{"showing"}},
		{"read lines", "Read", m{"path": "a/f.txt", "offset": 2, "limit": 1}, false, []string{"two"}, []string{"one"}},
		{"read missing", "Read", m{"path": "missing"}, true, []string{"missing", "no such file"}, nil},
		{"read a directory", "Read", m{"path": "a"}, true, []string{"directory"}, nil},
		{"read past the end", "Read", m{"path": "a/f.txt", "offset": 9}, false, []string{"the file has 2 lines"}, nil},
		{"edit", "Edit", m{"path": "a/f.txt", "old": "two", "new": "2"}, false, []string{"1 replacement", "```diff", "-two", "+2"}, nil},
		{"edit nothing", "Edit", m{"path": "a/f.txt", "old": "two", "new": "3"}, true, []string{"not in the file"}, nil},
		{"edit with identical text", "Edit", m{"path": "a/f.txt", "old": "2", "new": "2"}, true, []string{"same"}, nil},
		{"long file", "Write", m{"path": "long", "content": numbers(5000)}, false, nil, nil},
		{"long file is paged", "Read", m{"path": "long"}, false, []string{"line 2000\n", "(showing lines 1-2000 of 5000, output truncated)"}, []string{"line 2001\n"}},
		{"next page", "Read", m{"path": "long", "offset": 2001}, false, []string{"line 4000\n", "(showing lines 2001-4000 of 5000"}, nil},
		{"wide file", "Write", m{"path": "wide", "content": strings.Repeat(strings.Repeat("x", 999)+"\n", 100)}, false, nil, nil},
		{"wide file is cut at a line", "Read", m{"path": "wide"}, false, []string{"(showing lines 1-51 of 100"}, nil},
		{"one long line", "Write", m{"path": "line", "content": strings.Repeat("é", 100_000)}, false, nil, nil},
		{"one long line is cut at a character", "Read", m{"path": "line"}, false, []string{"(line 1 is cut after"}, []string{"\ufffd"}},
		{"image", "Read", m{"path": "pic.png"}, false, []string{"image/png"}, nil},
		{"no image", "Write", m{"path": "fake.png", "content": "text"}, false, nil, nil},
		{"no image is said", "Read", m{"path": "fake.png"}, true, []string{"image/png", "text/plain"}, nil},
		{"bash", "Bash", m{"command": "echo hi; exit 3"}, false, []string{"hi\n(exit code: 3)"}, nil},
		{"bash without output", "Bash", m{"command": "true"}, false, []string{"(no output)"}, nil},
		{"bash elsewhere", "Bash", m{"command": "cat f.txt", "cwd": "a"}, false, []string{"one\n2\n"}, nil},
		{"timeout", "Bash", m{"command": "echo before; sleep 600", "timeout": 1}, true, []string{"before\nCommand timed out after 1 seconds"}, nil},
		{"head and tail", "Bash", m{"command": "seq 1 100000"}, false, []string{"1\n2\n3\n", "99999\n100000", "output truncated", "/tmp/galley/output-"}, []string{"50000\n"}},
		{"binary output", "Bash", m{"command": `printf '\xff'`}, false, []string{"\ufffd"}, nil},
		{"secret is given and struck", "Bash", m{"command": "echo $TOKEN"}, false, []string{"[REDACTED:TOKEN]"}, []string{"s3cr3t"}},
		{"secret in a file", "Bash", m{"command": "echo $TOKEN > leak"}, false, nil, nil},
		{"secret in a file is struck", "Read", m{"path": "leak"}, false, []string{"[REDACTED:TOKEN]"}, []string{"s3cr3t"}},
		{"secret among matches is struck", "Grep", m{"pattern": "s3cr3t"}, false, []string{"[REDACTED:TOKEN]"}, []string{"s3cr3t"}},
		{"glob", "Glob", m{"pattern": "**/*.txt"}, false, []string{"1 match for **/*.txt", "a/f.txt"}, nil},
		{"glob with an error", "Glob", m{"pattern": "[a"}, true, []string{"offset 0"}, nil},
		{"grep", "Grep", m{"pattern": "LINE 4999", "case": false}, false, []string{"1 match in", "long:4999: line 4999"}, nil},
		{"grep with an error", "Grep", m{"pattern": "a("}, true, []string{"RE2"}, nil},
		{"mount of nothing", "Mount", m{"host": "/galley-missing", "path": "/mnt/x"}, true, []string{"no such file"}, nil},
		{"unknown argument", "Read", m{"path": "a/f.txt", "lines": 3}, true, []string{`unknown field "lines"`, "limit, offset, path (required)"}, nil},
		{"wrong type", "Read", m{"path": 3}, true, []string{"path"}, nil},
		{"no object", "Read", []int{1}, true, []string{"the arguments of Read"}, nil},
		{"NUL in a path", "Write", m{"path": "a\x00b", "content": ""}, true, []string{"NUL byte at offset 1"}, nil},
		{"nothing changed", "Diff", m{}, false, []string{"(nothing changed)"}, nil},
		{"no such point", "Rollback", m{"to": "x"}, true, []string{"no such point"}, nil},
		{"no such process", "Bash", m{"process": "p99"}, true, []string{"no such background process"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := call(t, set, tc.tool, tc.args)
			if r.Failed != tc.failed {
				t.Errorf("failed: %v", r.Failed)
			}
			for _, s := range tc.has {
				if !strings.Contains(r.Text, s) {
					t.Errorf("the text has no %q:\n%.2000s", s, r.Text)
				}
			}
			for _, s := range tc.hasNot {
				if strings.Contains(r.Text, s) {
					t.Errorf("the text has %q", s)
				}
			}
			if len(r.Text) > 60<<10 {
				t.Errorf("the text has %d bytes", len(r.Text))
			}
			if tc.name == "image" && (r.Image == nil || !bytes.Equal(r.Image.Data, pic.Bytes())) {
				t.Error("no image, or another one")
			}
		})
	}
	t.Run("the whole output can be paged", func(t *testing.T) {
		r := call(t, set, "Bash", m{"command": "seq 1 30000"})
		b, err := json.Marshal(r.Data)
		if err != nil {
			t.Fatal(err)
		}
		var out struct{ File string }
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatal(err)
		}
		if p := call(t, set, "Read", m{"path": out.File, "offset": 15000, "limit": 2}); !strings.HasPrefix(p.Text, "15000\n15001\n") {
			t.Errorf("%q", p.Text)
		}
	})
	t.Run("checkpoints", func(t *testing.T) {
		n := h.count()
		call(t, set, "Read", m{"path": "long"})
		call(t, set, "Glob", m{"pattern": "*"})
		if h.count() != n {
			t.Error("a call that only reads made a checkpoint")
		}
		call(t, set, "Bash", m{"command": "exit 4"})
		if c := h.last(); h.count() != n+1 || c.Tool != "Bash" || c.Exit == nil || *c.Exit != 4 || !strings.Contains(string(c.Args), "exit 4") {
			t.Errorf("checkpoint %+v", c)
		}
	})
	t.Run("a stale edit is refused to the one who read", func(t *testing.T) {
		call(t, set, "Read", m{"path": "a/f.txt"})
		call(t, set, "Bash", m{"command": "echo other > a/f.txt"})
		if r := call(t, set, "Edit", m{"path": "a/f.txt", "old": "other", "new": "x"}); !r.Failed || r.Code != sandbox.Stale {
			t.Errorf("%+v", r)
		}
		r, err := set.Call(tools.WithClient(t.Context(), "another"), "Edit", []byte(`{"path":"a/f.txt","old":"other","new":"x"}`), nil)
		if err != nil || r.Failed {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("background", func(t *testing.T) { checkBackground(t, set) })
	t.Run("overlapping calls are named together", func(t *testing.T) { checkOverlap(t, set, h) })
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := set.Call(ctx, "Bash", []byte(`{"command":"echo up; while :; do sleep 0.1; echo more; done"}`), func(string) { cancel() })
		if err != nil || !r.Failed || r.Code != sandbox.Canceled {
			t.Errorf("%+v, %v", r, err)
		}
	})
	if _, err := set.Call(t.Context(), "Commit", nil, nil); !errors.Is(err, sandbox.NotFound) {
		t.Errorf("a tool that does not exist: %v", err)
	}
	if _, err := os.Stat(filepath.Join(base, "long")); err == nil {
		t.Error("the base was written to")
	}
}

func checkBackground(t *testing.T, set *tools.Set) {
	t.Helper()
	r := call(t, set, "Bash", m{"command": "read x; echo got $x; sleep 600", "background": true})
	b, err := json.Marshal(r.Data)
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ Process string }
	if err := json.Unmarshal(b, &out); err != nil || out.Process == "" {
		t.Fatalf("%s, %v", b, err)
	}
	r = call(t, set, "Bash", m{"process": out.Process, "input": "word\n", "wait": 30})
	if !strings.Contains(r.Text, "got word") || !strings.Contains(r.Text, "is running") {
		t.Errorf("%q", r.Text)
	}
	r = call(t, set, "Bash", m{"process": out.Process, "signal": "kill", "wait": 30})
	if !strings.Contains(r.Text, "has ended, exit code: 137") {
		t.Errorf("%q", r.Text)
	}
}

// checkOverlap runs a command during another; the latter's end is of both.
func checkOverlap(t *testing.T, set *tools.Set, h *history) {
	t.Helper()
	var both sync.WaitGroup
	both.Go(func() {
		r, err := set.Call(t.Context(), "Bash", []byte(`{"command":"touch up; until [ -e go ]; do sleep 0.02; done"}`), nil)
		if err != nil || r.Failed {
			t.Errorf("%+v, %v", r, err)
		}
	})
	call(t, set, "Bash", m{"command": "until [ -e up ]; do sleep 0.02; done"})
	call(t, set, "Write", m{"path": "w", "content": ""})
	if c := h.last(); c.Tool != "Write (at the same time: Bash)" {
		t.Errorf("checkpoint of %q", c.Tool)
	}
	call(t, set, "Write", m{"path": "go", "content": ""})
	both.Wait()
}
