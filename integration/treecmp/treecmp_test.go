package treecmp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var old = time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)

// sample makes a tree with one of each kind of entry an ordinary user can make.
func sample(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) string { return filepath.Join(root, name) }
	must(os.Mkdir(file("d"), 0o755))
	must(os.WriteFile(file("d/f"), []byte("content"), 0o644))
	must(os.Link(file("d/f"), file("d/g")))
	must(os.WriteFile(file("solo"), []byte("alone"), 0o600))
	must(os.Symlink("d/f", file("link")))
	must(unix.Mkfifo(file("fifo"), 0o644))
	must(unix.Setxattr(file("solo"), "user.note", []byte("x"), 0))
	for _, name := range []string{"d/f", "solo", "fifo", "d", "."} {
		must(os.Chtimes(file(name), old, old))
	}
	return root
}

func mustRead(t *testing.T, root string) Tree {
	t.Helper()
	tree, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestReadTakesDownEverything(t *testing.T) {
	tree := mustRead(t, sample(t))
	var got []string
	for _, e := range tree {
		got = append(got, e.Path)
	}
	if want := ". d d/f d/g fifo link solo"; strings.Join(got, " ") != want {
		t.Errorf("paths %q, want %q", got, want)
	}
}

// Each single change to a tree is seen, and named by path and field.
func TestDiffSeesEveryField(t *testing.T) {
	for name, c := range map[string]struct {
		change func(root string) error
		want   string
	}{
		"content": {func(r string) error { return rewrite(r+"/solo", "alonE") }, "solo: content"},
		"size":    {func(r string) error { return rewrite(r+"/solo", "alone!") }, "solo: size"},
		"mode":    {func(r string) error { return os.Chmod(r+"/solo", 0o640) }, "solo: mode is 0640, want 0600"},
		"mtime":   {func(r string) error { return os.Chtimes(r+"/solo", old, old.Add(1)) }, "solo: mtime"},
		"xattr":   {func(r string) error { return unix.Setxattr(r+"/solo", "user.note", []byte("y"), 0) }, "solo: xattrs"},
		"removed": {func(r string) error { return os.Remove(r + "/fifo") }, "fifo: missing"},
		"added":   {func(r string) error { return os.Mkdir(r+"/new", 0o755) }, "new: should not be there"},
		"target": {func(r string) error {
			return errorsOf(os.Remove(r+"/link"), os.Symlink("d/g", r+"/link"))
		}, "link: target"},
		"type": {func(r string) error {
			return errorsOf(os.Remove(r+"/link"), os.Mkdir(r+"/link", 0o777))
		}, "link: type is a directory, want a symbolic link"},
		"unlinked": {func(r string) error {
			return errorsOf(os.Remove(r+"/d/g"), rewrite(r+"/d/g", "content"), os.Chtimes(r+"/d/g", old, old))
		}, "d/g: linked with"},
	} {
		t.Run(name, func(t *testing.T) {
			root := sample(t)
			before := mustRead(t, root)
			if err := c.change(root); err != nil {
				t.Fatal(err)
			}
			lines := Diff(before, mustRead(t, root), Options{})
			if !strings.Contains(strings.Join(lines, "\n"), c.want) {
				t.Errorf("differences %q, want one that has %q", lines, c.want)
			}
		})
	}
}

func TestDiffOfEqualTrees(t *testing.T) {
	root := sample(t)
	if lines := Diff(mustRead(t, root), mustRead(t, root), Options{}); len(lines) != 0 {
		t.Errorf("differences between a tree and itself: %q", lines)
	}
}

func TestSince(t *testing.T) {
	since := old.Add(time.Hour)
	entry := func(at time.Time) Tree { return Tree{{Path: "f", Mode: unix.S_IFREG, Mtime: at.UnixNano()}} }
	for name, c := range map[string]struct {
		want, got time.Time
		same      bool
	}{
		"both touched":     {since.Add(1), since.Add(2), true},
		"neither touched":  {old, old, true},
		"set, other value": {old, old.Add(1), false},
		"set, but lost":    {old, since.Add(1), false},
		"touch lost":       {since.Add(1), old, false},
	} {
		t.Run(name, func(t *testing.T) {
			lines := Diff(entry(c.want), entry(c.got), Options{Since: since})
			if (len(lines) == 0) != c.same {
				t.Errorf("differences %q, same should be %v", lines, c.same)
			}
		})
	}
}

func TestLeavingOut(t *testing.T) {
	root := sample(t)
	before := mustRead(t, root)
	if err := errorsOf(rewrite(root+"/d/f", "other"), rewrite(root+"/d/extra", ""), rewrite(root+"/solo", "other one")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(root, "fifo"), old, old.Add(1)); err != nil {
		t.Fatal(err)
	}
	lines := Diff(before, mustRead(t, root), Options{
		Ignore:   func(path string) bool { return path == "d" },
		Content:  func(path string) bool { return path == "solo" },
		AnyMtime: func(path string) bool { return path == "fifo" },
	})
	if len(lines) != 0 {
		t.Errorf("differences in what was left out: %q", lines)
	}
}

func rewrite(path, content string) error {
	return os.WriteFile(path, []byte(content), 0o600)
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
