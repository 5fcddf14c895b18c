package filerpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
	"github.com/galleyfs/galley/sandbox/internal/osfs"
)

// A call goes there and back with all that it has: names that are not UTF-8,
// content that is not text, the whole of an edit, errors with their position.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	here, there := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- Serve(there, files.New(osfs.FS{}, dir)) }()
	c := NewClient(here)
	if _, err := c.Write(t.Context(), sandbox.WriteRequest{Path: "f", Content: []byte("a\x00\xff")}); err != nil {
		t.Fatal(err)
	}
	odd := "\xff\xfe"
	if err := os.WriteFile(filepath.Join(dir, odd), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := c.List(t.Context(), sandbox.ListRequest{})
	if err != nil || len(l.Entries) != 2 || l.Entries[1].Name() != odd || l.Entries[0].ModTime.IsZero() {
		t.Errorf("%+v, %v", l, err)
	}
	r, err := c.Read(t.Context(), sandbox.ReadRequest{Path: "f"})
	if err != nil || string(r.Content) != "a\x00\xff" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := c.Write(t.Context(), sandbox.WriteRequest{Path: "g", Content: []byte("one one")}); err != nil {
		t.Fatal(err)
	}
	e, err := c.Edit(t.Context(), sandbox.EditRequest{Path: "g", Old: []byte("one"), New: []byte("two")})
	if !errors.Is(err, sandbox.Ambiguous) || e.Count != 2 || string(e.Before) != "one one" {
		t.Errorf("%+v, %v", e, err)
	}
	_, err = c.Read(t.Context(), sandbox.ReadRequest{Path: "a\x00"})
	var se *sandbox.Error
	if !errors.As(err, &se) || se.Offset != 1 || se.Code != sandbox.Invalid {
		t.Errorf("%#v", err)
	}
	if _, err := c.Read(t.Context(), sandbox.ReadRequest{Path: "none"}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Glob(ctx, sandbox.GlobRequest{Pattern: "*"}); !errors.Is(err, sandbox.Canceled) {
		t.Error(err)
	}
	_ = c.Close()
	if _, err := c.Stat(t.Context(), sandbox.StatRequest{Path: "f"}); !errors.Is(err, sandbox.Closed) {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A process that takes nothing of what it is sent holds nobody up who gives up
// waiting, and is given up.
func TestNothingTaken(t *testing.T) {
	defer func(d time.Duration) { cancelPatience = d }(cancelPatience)
	cancelPatience = 50 * time.Millisecond
	here, there := net.Pipe()
	defer there.Close()
	c := NewClient(here)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Read(ctx, sandbox.ReadRequest{Path: "f"})
		done <- err
	}()
	// Some of the call has come, so that the rest is on its way.
	if _, err := there.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, sandbox.Canceled) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a cancelled call holds its caller up")
	}
	if _, err := c.Stat(t.Context(), sandbox.StatRequest{Path: "f"}); !errors.Is(err, sandbox.Closed) {
		t.Errorf("the next call: %v", err)
	}
}

// said is the other end of a connection that has said all it will, whatever it
// hears. It says it once it was asked.
type said struct {
	b     io.Reader
	asked chan struct{}
}

func (s *said) Read(b []byte) (int, error) {
	<-s.asked
	return s.b.Read(b)
}

func (s *said) Write(b []byte) (int, error) {
	select {
	case <-s.asked:
	default:
		close(s.asked)
	}
	return len(b), nil
}

func (s *said) Close() error { return nil }

// FuzzAnswers feeds a client what a hostile guest may answer.
func FuzzAnswers(f *testing.F) {
	message := func(h head, body any) []byte {
		a, _ := encMode.Marshal(h)
		b, _ := encMode.Marshal(body)
		out := binary.BigEndian.AppendUint32(nil, uint32(len(a)+len(b)))
		return append(append(out, a...), b...)
	}
	f.Add(message(head{Call: 1}, sandbox.GrepResult{Matches: []sandbox.GrepMatch{{Path: "a", Line: 1, Text: []byte("x")}}, Count: 1}))
	f.Add(message(head{Call: 1, Error: &failure{Code: sandbox.NotFound, Message: "no", Errno: 2}}, nil))
	f.Add(message(head{Call: 1, Error: &failure{Errno: 2}}, nil))
	f.Add(message(head{Call: 7}, sandbox.ListResult{Entries: []sandbox.FileInfo{{Path: "\xff", ModTime: time.Unix(1, 2)}}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xa1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, call := range []func(*Client) error{
			func(c *Client) error { _, err := c.Grep(t.Context(), sandbox.GrepRequest{Pattern: "x"}); return err },
			func(c *Client) error { _, err := c.List(t.Context(), sandbox.ListRequest{}); return err },
			func(c *Client) error { _, err := c.Read(t.Context(), sandbox.ReadRequest{Path: "x"}); return err },
		} {
			c := NewClient(&said{bytes.NewReader(b), make(chan struct{})})
			if err := call(c); err != nil && sandbox.CodeOf(err) == "" {
				t.Errorf("an error without a code: %v", err)
			}
		}
	})
}
