package overlay

import "testing"

// A directory of the base that a sealed layer holds only as a parent is first
// hidden by its removal in a later layer: then its facts must be recorded.
func TestRemovalAfterSealRecordsFacts(t *testing.T) {
	tr, f, _ := newTestTree(t, map[string]string{"d/e/x": "1"})
	defer func() {
		f.Detach()
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}()
	remove := func(dir, name string, isDir bool) {
		t.Helper()
		n, _, err := f.Walk(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Forget(n, 1)
		if isDir {
			err = f.Rmdir(n, name)
		} else {
			err = f.Unlink(n, name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove("d/e", "x", false)
	if err := tr.Prepare(2); err != nil {
		t.Fatal(err)
	}
	b := Quiesce(tr)
	err := b.Seal(2)
	b.Release()
	if err != nil {
		t.Fatal(err)
	}
	remove("d", "e", true)
	remove("", "d", true)
	for _, path := range []string{"d", "d/e", "d/e/x"} {
		if w, ok := f.WasAt(path); !ok || !w.Exists || w.Path != path {
			t.Errorf("WasAt(%q) = %+v, %v", path, w, ok)
		}
	}
}
