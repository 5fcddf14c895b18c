package overlay

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// byName hides every ".env" and makes all below "docs" read-only.
type byName struct{}

func (byName) Hidden(path string, _ bool) bool { return filepath.Base(path) == ".env" }
func (byName) ReadOnly(path string, _ bool) bool {
	return path == "docs" || strings.HasPrefix(path, "docs/")
}

// TestRulesHoldForTheFile tries the ways around a rule that spell the file
// differently.
func TestRulesHoldForTheFile(t *testing.T) {
	dir := t.TempDir()
	base, state := filepath.Join(dir, "base"), filepath.Join(dir, "state")
	for _, d := range []string{"base/sub", "base/docs", "base/a", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"sub/.env", "docs/page", "plain"} {
		if err := os.WriteFile(filepath.Join(base, p), []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"a/innocent": "sub/.env", "a/copy": "docs/page"} {
		if err := os.Link(filepath.Join(base, to), filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := InitState(nil, state, 1); err != nil {
		t.Fatal(err)
	}
	b, err := OpenBase(nil, base)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Open(Config{StateDir: state, Base: b, Rules: byName{}}, Stack{Active: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := tr.Attach(nil)
	defer func() {
		f.Detach()
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}()
	dirNode := func(path string) *Node {
		t.Helper()
		n, _, err := f.Walk(path)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	wantErr := func(what string, err error, want unix.Errno) {
		t.Helper()
		if Errno(err) != want {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	for _, p := range []string{"sub/.env", "a/innocent"} {
		_, _, err := f.Walk(p)
		wantErr("look up "+p, err, unix.ENOENT)
	}
	if err := f.Rename(f.Root(), "sub", f.Root(), "moved", 0); err != nil {
		t.Fatal(err)
	}
	_, _, err = f.Walk("moved/.env")
	wantErr("after the rename of its directory", err, unix.ENOENT)
	for _, p := range []string{"moved", "a"} {
		if err := f.ReadDir(dirNode(p), 0, func(e DirEntry) bool {
			if e.Name == ".env" || e.Name == "innocent" {
				t.Errorf("%s lists %s", p, e.Name)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = f.Create(dirNode("moved"), ".env", 0o644, self())
	wantErr("create in its place", err, unix.EACCES)
	wantErr("rename onto its name", f.Rename(f.Root(), "plain", dirNode("a"), ".env", 0), unix.EACCES)
	wantErr("remove its directory", f.Rmdir(f.Root(), "moved"), unix.ENOTEMPTY)

	page := dirNode("docs/page")
	_, err = f.Write(page, []byte("x"), 0)
	wantErr("write", err, unix.EROFS)
	_, err = f.Write(dirNode("a/copy"), []byte("x"), 0)
	wantErr("write by another name", err, unix.EROFS)
	wantErr("unlink", f.Unlink(dirNode("docs"), "page"), unix.EROFS)
	wantErr("move away", f.Rename(f.Root(), "docs", f.Root(), "d2", 0), unix.EROFS)
	_, _, err = f.Mkdir(dirNode("docs"), "new", 0o755, self())
	wantErr("mkdir", err, unix.EROFS)
}
