package overlay

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenDirs merges layers that something else made, in the kernel's format.
func TestOpenDirs(t *testing.T) {
	dir := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		p := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("b/f", "base")
	write("b/gone", "base")
	write("b/d/x", "base x")
	write("b/o/hidden", "base")
	write("a/f", "middle")
	write("a/o/shown", "middle")
	write("u/new", "upper")
	if err := os.Mkdir(filepath.Join(dir, "w"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "a/gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(dir, "a/o"), "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	d := Dirs{
		Lower: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")},
		Upper: filepath.Join(dir, "u"), Work: filepath.Join(dir, "w"), UserXattr: true,
	}
	for round := range 3 {
		tr, err := OpenDirs(d, nil)
		if err != nil {
			t.Fatal(err)
		}
		f := tr.Attach(nil)
		want := map[string]string{"f": "middle", "d/x": "base x", "o/shown": "middle", "new": "upper"}
		if round > 0 {
			want["f"] = "Middle"
		}
		for p, c := range want {
			if got := read(t, f, p); got != c {
				t.Errorf("round %d: %s: %q, want %q", round, p, got, c)
			}
		}
		for _, p := range []string{"gone", "o/hidden"} {
			if _, _, err := f.Walk(p); Errno(err) != unix.ENOENT {
				t.Errorf("round %d: %s: %v, want ENOENT", round, p, err)
			}
		}
		n, _, err := f.Walk("f")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(n, []byte("M"), 0); err != nil {
			t.Fatal(err)
		}
		f.Detach()
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "u/f"))
	if err != nil || string(b) != "Middle" {
		t.Errorf("upper directory: %q, %v", b, err)
	}
	b, err = os.ReadFile(filepath.Join(dir, "a/f"))
	if err != nil || string(b) != "middle" {
		t.Errorf("lower directory: %q, %v", b, err)
	}
}

// TestOpenDirsReadOnly looks at two lower directories without an upper one.
func TestOpenDirsReadOnly(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"a", "b", "w"} {
		if err := os.Mkdir(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "a/f"), []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := Dirs{Lower: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, Work: filepath.Join(dir, "w")}
	for range 2 {
		tr, err := OpenDirs(d, nil)
		if err != nil {
			t.Fatal(err)
		}
		f := tr.Attach(nil)
		if got := read(t, f, "f"); got != "one" {
			t.Errorf("f: %q", got)
		}
		if _, _, err := f.Create(f.Root(), "new", 0o644, self()); Errno(err) != unix.EROFS {
			t.Errorf("create: %v, want EROFS", err)
		}
		f.Detach()
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
