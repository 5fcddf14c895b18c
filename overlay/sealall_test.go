package overlay

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// stubborn is a host that sets no times while told so, as a full disk may not.
type stubborn struct {
	hostfs.FS
	fail bool
}

func (h *stubborn) Utimes(dirfd int, name string, ts *[2]unix.Timespec) error {
	if h.fail {
		return unix.ENOSPC
	}
	return h.FS.Utimes(dirfd, name, ts)
}

// TestSealCutsAllTreesOrNone: where one tree of a session cannot be sealed, the
// others are not either, and both go on in the layer they had; the same seal
// can be asked for again.
func TestSealCutsAllTreesOrNone(t *testing.T) {
	t1, f1, dir1 := newTestTree(t, map[string]string{"f": "one"})
	t2, f2, dir2 := newTestTree(t, map[string]string{"g": "two"})
	closeTree(t, t2, f2)
	h := &stubborn{FS: hostfs.OS}
	t2, f2 = openOn(t, h, dir2, 0)
	change := func(text string) {
		t.Helper()
		for f, name := range map[*Face]string{f1: "f", f2: "g"} {
			n, _ := walk(t, f, name)
			_, err := f.Write(n, []byte(text), 0)
			must(t, err)
			f.Forget(n, 1)
		}
	}
	seal := func() error {
		must(t, t1.Prepare(2))
		must(t, t2.Prepare(2))
		b := Quiesce(t1, t2)
		defer b.Release()
		return b.Seal(2)
	}
	change("ONE")
	h.fail = true
	for range 2 {
		if err := seal(); Errno(err) != unix.ENOSPC {
			t.Fatalf("seal: %v, want %v", err, unix.ENOSPC)
		}
		for _, tr := range []*Tree{t1, t2} {
			if s := tr.Stack(); s.Active != 1 || len(s.Sealed) != 0 || !tr.Dirty() {
				t.Errorf("after a seal that failed: %+v, changed: %v", s, tr.Dirty())
			}
		}
	}
	h.fail = false
	change("TWO")
	must(t, seal())
	change("new")
	for _, f := range []*Face{f1, f2} {
		if s := f.t.Stack(); s.Active != 2 {
			t.Errorf("after the seal: %+v", s)
		}
	}
	closeTree(t, t1, f1)
	closeTree(t, t2, f2)
	for dir, name := range map[string]string{dir1: "f", dir2: "g"} {
		base, err := OpenBase(nil, filepath.Join(dir, "base"))
		must(t, err)
		tr, err := Open(Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: base, ReadOnly: true}, Stack{Sealed: []Range{{1, 1}}})
		must(t, err)
		f := tr.Attach(nil)
		if got := read(t, f, name); got != "TWO" {
			t.Errorf("%s as it was sealed: %q", name, got)
		}
		closeTree(t, tr, f)
		tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
		if got := read(t, f, name); got != "new" {
			t.Errorf("%s on top: %q", name, got)
		}
		closeTree(t, tr, f)
	}
}
