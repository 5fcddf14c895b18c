package overlay

import (
	"os"
	"path/filepath"
	"testing"
)

func newTestTree(t *testing.T, base map[string]string) (*Tree, *Face, string) {
	t.Helper()
	dir := t.TempDir()
	b := filepath.Join(dir, "base")
	s := filepath.Join(dir, "state")
	for _, d := range []string{b, s} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range base {
		p := filepath.Join(b, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := InitState(nil, s, 1); err != nil {
		t.Fatal(err)
	}
	return openTestTree(t, dir, Stack{Active: 1})
}

// self is who runs the tests: only root can make files of others.
func self() Caller { return Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())} }

func openTestTree(t *testing.T, dir string, st Stack) (*Tree, *Face, string) {
	t.Helper()
	bb, err := OpenBase(nil, filepath.Join(dir, "base"))
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Open(Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: bb}, st)
	if err != nil {
		t.Fatal(err)
	}
	return tr, tr.Attach(nil), dir
}

func read(t *testing.T, f *Face, path string) string {
	t.Helper()
	n, a, err := f.Walk(path)
	if err != nil {
		t.Fatalf("walk %q: %v", path, err)
	}
	buf := make([]byte, a.Size)
	c, err := f.Read(n, buf, 0)
	if err != nil {
		t.Fatalf("read %q: %v", path, err)
	}
	f.Forget(n, 1)
	return string(buf[:c])
}

func TestSmoke(t *testing.T) {
	tr, f, dir := newTestTree(t, map[string]string{"a": "one", "d/b": "two", "d/e/c": "three", "x/y": "4"})
	if got := read(t, f, "d/e/c"); got != "three" {
		t.Fatal(got)
	}
	n, a0, err := f.Walk("d/b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(n, []byte("TW"), 0); err != nil {
		t.Fatal(err)
	}
	a1, err := f.Getattr(n)
	if err != nil || a1.Ino != a0.Ino {
		t.Fatal(a1, a0, err)
	}
	if got := read(t, f, "d/b"); got != "TWo" {
		t.Fatal(got)
	}
	root := f.Root()
	if err := f.Rename(root, "d", root, "D", 0); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f, "D/e/c"); got != "three" {
		t.Fatal(got)
	}
	if err := f.Unlink(root, "a"); err != nil {
		t.Fatal(err)
	}
	m, _, err := f.Create(root, "new", 0o640, self())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(m, []byte("fresh"), 0); err != nil {
		t.Fatal(err)
	}
	if err := tr.Prepare(2); err != nil {
		t.Fatal(err)
	}
	b := Quiesce(tr)
	if err := b.Seal(2); err != nil {
		t.Fatal(err)
	}
	b.Release()
	if _, err := f.Write(m, []byte("F"), 0); err != nil {
		t.Fatal(err)
	}
	check := func(f *Face) {
		t.Helper()
		if got := read(t, f, "new"); got != "Fresh" {
			t.Fatal(got)
		}
		if got := read(t, f, "D/b"); got != "TWo" {
			t.Fatal(got)
		}
		if _, _, err := f.Walk("a"); Errno(err) != 2 {
			t.Fatal(err)
		}
		if _, _, err := f.Walk("d"); Errno(err) != 2 {
			t.Fatal(err)
		}
	}
	check(f)
	old, _ := tr.View(Stack{Sealed: []Range{{1, 1}}})
	if got := read(t, old, "new"); got != "fresh" {
		t.Fatal(got)
	}
	old.Delta(func(e Entry) error { t.Logf("%+v", e); return nil })
	old.Detach()
	f.Detach()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
	check(f)
	os.WriteFile(filepath.Join(dir, "state/dirty"), nil, 0o600)
	f.Detach()
	tr.Attach(nil)
	// as after kill -9: open again without closing
	tr2, f2, _ := openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
	check(f2)
	_ = tr2
}
