package overlay

import (
	"testing"
)

// TestSwitchUnderOpenFiles rolls back under nodes that somebody holds: one that
// is on both sides changes, one that the new side lacks is as unlinked.
func TestSwitchUnderOpenFiles(t *testing.T) {
	tr, f, _ := newTestTree(t, map[string]string{"both": "base"})
	seal := func(next LayerID) {
		t.Helper()
		if err := tr.Prepare(next); err != nil {
			t.Fatal(err)
		}
		b := Quiesce(tr)
		defer b.Release()
		if err := b.Seal(next); err != nil {
			t.Fatal(err)
		}
	}
	both, _, err := f.Walk("both")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(both, []byte("ONE1"), 0); err != nil {
		t.Fatal(err)
	}
	seal(2)
	if _, err := f.Write(both, []byte("TWO2"), 0); err != nil {
		t.Fatal(err)
	}
	only, _, err := f.Create(f.Root(), "only", 0o644, self())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(only, []byte("later"), 0); err != nil {
		t.Fatal(err)
	}
	seal(3)
	if err := tr.Prepare(4); err != nil {
		t.Fatal(err)
	}
	b := Quiesce(tr)
	if err := b.Switch(0, Stack{Sealed: []Range{{1, 1}}, Active: 4}, nil); err != nil {
		t.Fatal(err)
	}
	b.Release()
	buf := make([]byte, 16)
	if c, err := f.Read(both, buf, 0); err != nil || string(buf[:c]) != "ONE1" {
		t.Errorf("a file of both sides: %q, %v", buf[:c], err)
	}
	if c, err := f.Read(only, buf, 0); err != nil || string(buf[:c]) != "later" {
		t.Errorf("a file that the new side lacks: %q, %v", buf[:c], err)
	}
	if _, err := f.Write(only, []byte("L"), 0); err != nil {
		t.Errorf("write to a file that the new side lacks: %v", err)
	}
	if a, err := f.Getattr(only); err != nil || a.Nlink != 0 || a.Size != 5 {
		t.Errorf("a file that the new side lacks: %+v, %v", a, err)
	}
	if c, err := f.Read(only, buf, 0); err != nil || string(buf[:c]) != "Later" {
		t.Errorf("after the write: %q, %v", buf[:c], err)
	}
	if _, _, err := f.Walk("only"); Errno(err) != 2 {
		t.Errorf("its name: %v, want ENOENT", err)
	}
	old, err := tr.View(Stack{Sealed: []Range{{1, 2}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, old, "only"); got != "later" {
		t.Errorf("the snapshot changed: %q", got)
	}
	if got := read(t, old, "both"); got != "TWO2" {
		t.Errorf("the snapshot changed: %q", got)
	}
	old.Detach()
	f.Detach()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
}
