package snapshots

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/galleyfs/galley/overlay"
)

// sample is a manifest with every field in use.
func sample() *manifest {
	day := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return &manifest{
		ID: "abcdefg2", Name: "proof", Created: day, Boot: "b",
		Trees: []treeRecord{
			{TreeSpec: TreeSpec{Name: Workspace, Base: "/p", Mount: "/p"}, Stack: overlay.Stack{Sealed: []overlay.Range{{From: 5, To: 5}, {From: 7, To: 9}}, Active: 10}},
			{TreeSpec: TreeSpec{Name: "conf", Base: "/c", Mount: "/home/u/c"}, Stack: overlay.Stack{Active: 10}},
		},
		Last:     &lastRecord{Number: 9, Name: "green", Cause: Cause{Kind: CauseTool, Text: "edit"}, Time: day},
		Durable:  8,
		Next:     13,
		Building: 11,
		Retired:  []retired{{Layers: map[string][]overlay.Range{Workspace: {{From: 1, To: 4}}}, Time: day, Cause: Cause{Kind: CauseDiscard, Text: "hgfedcb2"}, Trash: "hgfedcb2"}},
		Rules:    Rules{Hide: []string{"**/.env"}},
	}
}

func encoded(t testing.TB, m *manifest) string {
	t.Helper()
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestManifestRoundTrip(t *testing.T) {
	m := sample()
	got, err := decodeManifest([]byte(encoded(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got); d != "" {
		t.Fatalf("after encoding and decoding (-want +got):\n%s", d)
	}
}

func TestManifestTampered(t *testing.T) {
	cases := []struct {
		name     string
		old, new string // replaced in the encoded sample
		change   func(*manifest)
		want     error
		says     string
	}{
		{name: "newer version", old: `"version": 1`, new: `"version": 2`, want: overlay.ErrFormat, says: "use a newer galley"},
		{name: "newer version with unknown fields", old: `"version": 1`, new: `"version": 7, "shiny": {}`, want: overlay.ErrFormat},
		{name: "no version", old: `"version": 1,`, new: ``, want: overlay.ErrCorrupt},
		{name: "version zero", old: `"version": 1`, new: `"version": 0`, want: overlay.ErrCorrupt},
		{name: "version text", old: `"version": 1`, new: `"version": "1"`, want: overlay.ErrCorrupt},
		{name: "unknown field", old: `"id"`, new: `"idd"`, want: overlay.ErrCorrupt, says: "idd"},
		{name: "cut short", old: "\"created\"", new: "\x00", want: overlay.ErrCorrupt},
		{name: "not UTF-8", old: "green", new: "gr\xffen", want: overlay.ErrCorrupt},
		{name: "id leads elsewhere", old: "abcdefg2", new: "../../..", want: overlay.ErrCorrupt},
		{name: "tree leads elsewhere", old: `"conf"`, new: `"../conf"`, want: overlay.ErrCorrupt},
		{name: "escape sequence in the name", old: `"proof"`, new: `"pro\u001b[2Jof"`, want: overlay.ErrCorrupt},
		{name: "relative base", old: `"/c"`, new: `"c"`, want: overlay.ErrCorrupt, says: "absolute"},
		{name: "base with ..", old: `"/c"`, new: `"/c/.."`, want: overlay.ErrCorrupt},
		{name: "negative layer", old: `"durable": 8`, new: `"durable": -8`, want: overlay.ErrCorrupt},
		{name: "huge layer", old: `"durable": 8`, new: `"durable": 4294967296`, want: overlay.ErrCorrupt},
		{name: "no trees", change: func(m *manifest) { m.Trees = nil }, want: overlay.ErrCorrupt},
		{name: "tree twice", change: func(m *manifest) { m.Trees[1].Name = Workspace }, want: overlay.ErrCorrupt, says: "twice"},
		{name: "no active layer", change: func(m *manifest) { m.Trees[0].Stack.Active = 0 }, want: overlay.ErrCorrupt},
		{name: "active layers differ", change: func(m *manifest) { m.Trees[1].Stack.Active = 11 }, want: overlay.ErrCorrupt},
		{name: "active below sealed", change: func(m *manifest) { m.Trees[0].Stack.Active, m.Trees[1].Stack.Active = 9, 9 }, want: overlay.ErrCorrupt},
		{name: "range backwards", change: func(m *manifest) { m.Trees[0].Stack.Sealed[1] = overlay.Range{From: 9, To: 7} }, want: overlay.ErrCorrupt},
		{name: "ranges overlap", change: func(m *manifest) { m.Trees[0].Stack.Sealed[1].From = 5 }, want: overlay.ErrCorrupt},
		{name: "retired layer in use", change: func(m *manifest) { m.Retired[0].Layers[Workspace][0].To = 5 }, want: overlay.ErrCorrupt, says: "in its stack"},
		{name: "retired of no tree", change: func(m *manifest) { m.Retired[0].Layers["x"] = nil }, want: overlay.ErrCorrupt},
		{name: "trash leads elsewhere", change: func(m *manifest) { m.Retired[0].Trash = "../abcde" }, want: overlay.ErrCorrupt},
		{name: "last not sealed", change: func(m *manifest) { m.Last.Number = 10 }, want: overlay.ErrCorrupt},
		{name: "snapshot name a number", change: func(m *manifest) { m.Last.Name = "12" }, want: overlay.ErrCorrupt},
		{name: "building the active layer", change: func(m *manifest) { m.Building = 10 }, want: overlay.ErrCorrupt},
		{name: "building a sealed layer", change: func(m *manifest) { m.Building = 8 }, want: overlay.ErrCorrupt},
		{name: "next layer in use", change: func(m *manifest) { m.Next = 10 }, want: overlay.ErrCorrupt},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := sample()
			if c.change != nil {
				c.change(m)
			}
			text := encoded(t, m)
			if c.old != "" {
				if !strings.Contains(text, c.old) {
					t.Fatalf("the sample has no %q", c.old)
				}
				text = strings.Replace(text, c.old, c.new, 1)
			}
			_, err := decodeManifest([]byte(text))
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%q does not say %q", err, c.says)
			}
		})
	}
}

func TestManifestWithTail(t *testing.T) {
	if _, err := decodeManifest([]byte(encoded(t, sample()) + "{}")); !errors.Is(err, overlay.ErrCorrupt) {
		t.Fatalf("something after the manifest: got %v, want ErrCorrupt", err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(encoded(f, sample())))
	f.Add([]byte(`{"version":1,"id":"abcdefg2","name":"a","created":"2026-01-01T00:00:00Z","boot":"","trees":[]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeManifest(b)
		if err != nil {
			if !errors.Is(err, overlay.ErrCorrupt) && !errors.Is(err, overlay.ErrFormat) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		// What decodes is safe to use and to write back.
		_ = m.last()
		again, err := decodeManifest([]byte(encoded(t, m)))
		if err != nil {
			t.Fatalf("does not decode after encoding: %v", err)
		}
		if d := cmp.Diff(m, again); d != "" {
			t.Fatalf("changed by encoding (-want +got):\n%s", d)
		}
	})
}

func FuzzHistoryLine(f *testing.F) {
	f.Add([]byte(`{"v":1,"number":3,"name":"a","cause":{"kind":"asked"},"time":"2026-01-01T00:00:00Z","stacks":{"workspace":{"sealed":[{"from":1,"to":3}]}}}`))
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeHistoryLine(b)
		if err != nil {
			if !errors.Is(err, overlay.ErrCorrupt) && !errors.Is(err, overlay.ErrFormat) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if l.Number == 0 {
			t.Fatal("a line without a number was taken")
		}
	})
}

func FuzzDiscardRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"abcdefg2","session":"hgfedcb2","name":"n","base":"/b","time":"2026-01-01T00:00:00Z","paths":1,"stacks":{},"after":4}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeDiscard(b)
		if err == nil && (!validID(r.ID) || !validID(r.Session)) {
			t.Fatalf("ids %q and %q were taken", r.ID, r.Session)
		}
	})
}
