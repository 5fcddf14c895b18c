// Package sandboxtest is the conformance suite of the contract in package
// sandbox: every sandbox runs it, and all run the same cases. What a sandbox
// declares to lack (sandbox.Info.Lacks) is tested, too: it must answer
// sandbox.NotSupported.
package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/galleyfs/galley/sandbox"
)

// patience is how long anything may take before a test gives up. It decides
// nothing else.
const patience = 60 * time.Second

// Harness is how the suite gets a sandbox.
type Harness struct {
	// Open opens a sandbox whose working directory shows the host directory
	// base. The suite closes it.
	Open func(t *testing.T, base string) sandbox.Sandbox
	// Kind is what Info.Kind must be.
	Kind string
	// Groups are the groups of cases to run; none is all of them, which is what
	// a sandbox has to pass.
	Groups []string
}

// minCases is how many cases the suite has at least; fewer mean that a table
// was lost.
const minCases = 200

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	top := t.TempDir()
	base := filepath.Join(top, "base")
	plantFixtures(t, base)
	before := snapshotOf(t, base)
	sb := h.Open(t, base)
	s := &suite{h: h, sb: sb, info: sb.Info(), top: top}
	for _, group := range []struct {
		name  string
		cases func(*suite) []testCase
	}{
		{"info", infoCases}, {"paths", pathCases}, {"read", readCases}, {"write", writeCases}, {"edit", editCases},
		{"stat", statCases}, {"list", listCases}, {"glob", globCases}, {"grep", grepCases}, {"view", viewCases},
		{"bash", bashCases}, {"output", outputCases}, {"process", processCases}, {"lacks", lackCases},
		{"concurrency", concurrencyCases}, {"mount", mountCases},
	} {
		if len(h.Groups) > 0 && !slices.Contains(h.Groups, group.name) {
			continue
		}
		t.Run(group.name, func(t *testing.T) {
			for _, c := range group.cases(s) {
				s.count.Add(1)
				t.Run(c.name, func(t *testing.T) { c.run(s.begin(t)) })
			}
		})
	}
	t.Run("closed", func(t *testing.T) { s.closed(t) })
	if n := s.count.Load(); n < minCases && len(h.Groups) == 0 {
		t.Errorf("the suite has only %d cases, and had %d", n, minCases)
	}
	t.Run("base untouched", func(t *testing.T) {
		if after := snapshotOf(t, base); after != before {
			t.Errorf("the base was written to:\nbefore:\n%s\nafter:\n%s", before, after)
		}
	})
}

type suite struct {
	h     Harness
	sb    sandbox.Sandbox
	info  sandbox.Info
	top   string // a directory of the host, outside the sandbox
	count atomic.Int64
}

type testCase struct {
	name string
	run  func(c *tc)
}

// tc is one case at work. dir is a path of its own, relative to the working
// directory, where it may write.
type tc struct {
	*testing.T
	s   *suite
	sb  sandbox.Sandbox
	ctx context.Context
	dir string
}

var serial atomic.Int64

func (s *suite) begin(t *testing.T) *tc {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return &tc{T: t, s: s, sb: s.sb, ctx: ctx, dir: fmt.Sprintf("scratch/%d", serial.Add(1))}
}

// in is a path in the case's own directory.
func (c *tc) in(name string) string { return c.dir + "/" + name }

// abs is the absolute path of one that is relative to the working directory.
func (c *tc) abs(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return strings.TrimSuffix(c.s.info.Workdir, "/") + "/" + name
}

// wantCode checks the code of an error, and that it is a proper one.
func (c *tc) wantCode(err error, want sandbox.Code) bool {
	c.Helper()
	if got := sandbox.CodeOf(err); got != want {
		c.Errorf("error %v (code %q), want code %q", err, got, want)
		return false
	}
	if want == "" {
		return true
	}
	var e *sandbox.Error
	if !errors.As(err, &e) {
		c.Errorf("error %v is a %T, want a *sandbox.Error", err, err)
		return false
	}
	if e.Op == "" || e.Message == "" {
		c.Errorf("error %#v lacks its operation or its message", e)
	}
	if !errors.Is(err, want) {
		c.Errorf("errors.Is(%v, %q) is false", err, want)
	}
	return true
}

// wantOffset checks the position that an error names.
func (c *tc) wantOffset(err error, want int) {
	c.Helper()
	var e *sandbox.Error
	if errors.As(err, &e) && e.Offset != want {
		c.Errorf("error %v has the offset %d, want %d", err, e.Offset, want)
	}
}

func (c *tc) ok(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// write makes a file.
func (c *tc) write(name, content string) {
	c.Helper()
	_, err := c.sb.Write(c.ctx, sandbox.WriteRequest{Path: name, Content: []byte(content)})
	c.ok(err)
}

// wantFile checks what a file holds.
func (c *tc) wantFile(name, want string) {
	c.Helper()
	r, err := c.sb.Read(c.ctx, sandbox.ReadRequest{Path: name})
	if err != nil {
		c.Errorf("%v", err)
		return
	}
	if string(r.Content) != want {
		c.Errorf("%s holds %q, want %q", name, short(string(r.Content)), short(want))
	}
}

// bash runs a command that must end with status 0, and returns its output.
func (c *tc) bash(command string) string {
	c.Helper()
	r, err := c.sb.Bash(c.ctx, sandbox.BashRequest{Command: command})
	if err != nil || r.ExitCode != 0 {
		c.Fatalf("%s: status %d, %v\n%s", command, r.ExitCode, err, r.Output)
	}
	return string(r.Output)
}

func short(s string) string {
	if len(s) > 300 {
		return s[:150] + "…" + s[len(s)-150:]
	}
	return s
}

// snapshotOf describes a tree of the host: names, types, modes and content.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content string
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", data[:min(len(data), 2000)])
		case info.Mode()&os.ModeSymlink != 0:
			if content, err = os.Readlink(p); err != nil {
				return err
			}
		}
		fmt.Fprintf(&b, "%s %v %d %s\n", strings.TrimPrefix(p, dir), info.Mode(), info.ModTime().UnixNano(), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// closed checks what a closed sandbox answers, and that commands end with it.
func (s *suite) closed(t *testing.T) {
	p, err := s.sb.Start(t.Context(), sandbox.BashRequest{Command: "sleep 600"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.sb.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := p.Wait(ctx); err != nil && !errors.Is(err, sandbox.Closed) {
		t.Errorf("a process of a closed sandbox: %v", err)
	}
	c := s.begin(t)
	for name, call := range map[string]func() error{
		"read":  func() error { _, err := s.sb.Read(ctx, sandbox.ReadRequest{Path: "text.txt"}); return err },
		"write": func() error { _, err := s.sb.Write(ctx, sandbox.WriteRequest{Path: "x"}); return err },
		"glob":  func() error { _, err := s.sb.Glob(ctx, sandbox.GlobRequest{Pattern: "*"}); return err },
		"bash":  func() error { _, err := s.sb.Bash(ctx, sandbox.BashRequest{Command: "true"}); return err },
		"start": func() error { _, err := s.sb.Start(ctx, sandbox.BashRequest{Command: "true"}); return err },
		"mount": func() error {
			_, err := s.sb.Mount(ctx, sandbox.MountRequest{Host: s.top, Path: "/mnt/x"})
			return err
		},
	} {
		s.count.Add(1)
		t.Run(name, func(t *testing.T) { c.T = t; c.wantCode(call(), sandbox.Closed) })
	}
	if err := s.sb.Close(); err != nil {
		t.Errorf("closing it again: %v", err)
	}
}
