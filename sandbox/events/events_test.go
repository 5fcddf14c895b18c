package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestManyWriters: lines of several writers do not mix, none is lost where the
// record begins anew, and one who follows sees each once and in order.
func TestManyWriters(t *testing.T) {
	const writers, each = 4, 200
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			l := Open(dir)
			l.max = 128 << 10 // which is less than all, and more than half of it
			log := l.Logger("session", "s")
			for i := range each {
				log.Info(Call, "tool", fmt.Sprint(w), "call", i, "args", json.RawMessage(`{"a":1}`), "result", strings.Repeat("x", 100), "duration", 1500*time.Millisecond)
			}
		})
	}
	enough := errors.New("enough")
	next := map[string]int{}
	seen := 0
	err := Read(ctx, dir, true, func(e Event) error {
		var n struct{ Call int }
		if err := json.Unmarshal(e.Raw, &n); err != nil {
			return err
		}
		if next[e.Tool] != n.Call || e.Event != Call || e.Duration != 1.5 || string(e.Args) != `{"a":1}` || e.Time.IsZero() {
			return fmt.Errorf("event %s, want number %d", e.Raw, next[e.Tool])
		}
		next[e.Tool]++
		if seen++; seen == writers*each {
			return enough
		}
		return nil
	})
	all.Wait()
	if !errors.Is(err, enough) {
		t.Errorf("%d of %d events, %v", seen, writers*each, err)
	}
	if _, err := os.Stat(filepath.Join(dir, Old)); err != nil {
		t.Errorf("the record did not begin anew: %v", err)
	}
	again := 0
	if err := Read(ctx, dir, false, func(Event) error { again++; return nil }); err != nil || again != seen {
		t.Errorf("%d events when read again, %v", again, err)
	}
}

// TestDamagedRecord: what is no event is passed over.
func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	log := Open(dir).Logger()
	log.Info(Mount, "text", "one")
	f, err := os.OpenFile(filepath.Join(dir, File), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("{\"event\n\n\x00\xff\n[]\n{}\n" + strings.Repeat("y", 3*maxLine) + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	log.Info(Mount, "text", "two")
	var got []string
	if err := Read(t.Context(), dir, false, func(e Event) error { got = append(got, e.Text); return nil }); err != nil || strings.Join(got, " ") != "one two" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Open(dir).Write(make([]byte, maxLine+1)); err == nil {
		t.Error("a line without bounds was written")
	}
	if err := Read(t.Context(), t.TempDir(), false, func(Event) error { return nil }); err != nil {
		t.Errorf("no record: %v", err)
	}
}
