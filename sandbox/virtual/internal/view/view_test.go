package view

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// newFace is a face of a tree over a host directory, or over nothing.
func newFace(t *testing.T, base string) *overlay.Face {
	t.Helper()
	tree, _ := overlaytest.OpenTree(t, base)
	f := tree.Attach(nil)
	t.Cleanup(f.Detach)
	return f
}

func put(t *testing.T, v *View, p, content string) {
	t.Helper()
	f, err := v.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	if _, err := f.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func get(v *View, p string) (string, error) {
	f, err := v.OpenFile(p, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 100)
	n, _ := f.ReadAt(b, 0)
	return string(b[:n]), nil
}

// twoTrees is a view with a second tree at /m, read-only at /ro, and /w/link
// and the like leading between them.
func twoTrees(t *testing.T) *View {
	t.Helper()
	base := t.TempDir()
	for name, content := range map[string]string{"f": "of m\n", "sub/g": "g of m\n"} {
		p := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v := New(newFace(t, ""), uint32(os.Getuid()), uint32(os.Getgid()), 1000)
	for _, d := range []string{"/w", "/m", "/ro", "/w/d"} {
		if err := v.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, v, "/w/f", "of w\n")
	put(t, v, "/m/covered", "x")
	for p, target := range map[string]string{"/w/link": "../m/sub", "/w/loop": "loop", "/w/dots": "d/../../m/f", "/w/self": ".", "/w/abs": "/m/f"} {
		if err := v.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Mount("/m", newFace(t, base), false); err != nil {
		t.Fatal(err)
	}
	if err := v.Mount("/ro", newFace(t, base), true); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPathsAcrossTrees(t *testing.T) {
	v := twoTrees(t)
	for p, want := range map[string]string{
		"/m/f": "of m\n", "/w/f": "of w\n", "/w/link/g": "g of m\n", "/w/link/../f": "of m\n", "/w/dots": "of m\n", "/w/self/self/f": "of w\n", "/w/abs": "of m\n",
		"/../../w/f": "of w\n", "//w//./f": "of w\n", "/m/../w/f": "of w\n", "/m/sub/../../w/d/../f": "of w\n", "/ro/f": "of m\n",
	} {
		if got, err := get(v, p); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", p, got, err, want)
		}
	}
	for p, want := range map[string]error{
		"/m/covered": unix.ENOENT, "/w/loop": unix.ELOOP, "/w/f/": unix.ENOTDIR, "/w/f/x": unix.ENOTDIR, "/w/f/..": unix.ENOTDIR, "/w/f/.": unix.ENOTDIR, "/no/..": unix.ENOENT, "w/f": unix.EINVAL, "/w/\x00": unix.EINVAL, "/w/no/x": unix.ENOENT,
	} {
		if _, err := get(v, p); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", p, err, want)
		}
	}
	for p, want := range map[string]string{"/w/link": "/m/sub", "/w/new": "/w/new", "/w/link/new": "/m/sub/new", "/": "/", "/w/d/..": "/w", "/m/..": "/"} {
		if got, err := v.Real(p); err != nil || got != want {
			t.Errorf("Real %s: %q, %v; want %q", p, got, err, want)
		}
	}
}

func TestChangesAcrossTrees(t *testing.T) {
	v := twoTrees(t)
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"rename across":      {v.Rename("/w/f", "/m/f2", false), unix.EXDEV},
		"link across":        {v.Link("/w/f", "/m/f2", false), unix.EXDEV},
		"rename a mount":     {v.Rename("/m", "/n", false), unix.EBUSY},
		"remove a mount":     {v.Remove("/m", true), unix.EBUSY},
		"rename over":        {v.Rename("/w/d", "/m", false), unix.EBUSY},
		"mount twice":        {v.Mount("/m", nil, false), unix.EEXIST},
		"make in read-only":  {v.Mkdir("/ro/x", 0o755), unix.EROFS},
		"make over":          {v.Mkdir("/ro/f", 0o755), unix.EEXIST},
		"remove read-only":   {v.Remove("/ro/f", false), unix.EROFS},
		"chmod read-only":    {v.Chmod("/ro/f", 0o600), unix.EROFS},
		"truncate read-only": {v.Truncate("/ro/f", 0), unix.EROFS},
		"rename read-only":   {v.Rename("/ro/f", "/ro/g", false), unix.EROFS},
		"remove the root":    {v.Remove("/", true), unix.EBUSY},
		"remove dot":         {v.Remove("/w/d/.", true), unix.EINVAL},
		"not replaced":       {v.Rename("/w/f", "/w/d", true), unix.EEXIST},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if _, err := v.OpenFile("/ro/f", os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	if _, err := v.OpenFile("/ro/new", os.O_WRONLY|os.O_CREATE, 0o644); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	// A file that was removed and renamed over can still be read.
	put(t, v, "/w/open", "still\n")
	f, err := v.OpenFile("/w/open", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := v.Rename("/w/f", "/w/open", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("STILL")); err != nil {
		t.Error(err)
	}
	b := make([]byte, 6)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "STILL\n" {
		t.Errorf("%q, %v", b, err)
	}
	if got, err := get(v, "/w/open"); err != nil || got != "of w\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDevices(t *testing.T) {
	v := New(newFace(t, ""), 0, 0, 1000)
	for _, d := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/../dev/null"} {
		i, err := v.Stat(d, true)
		if err != nil || i.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("%s: %v, %v", d, i, err)
		}
	}
	f, err := v.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if _, err := v.OpenFile("/dev/kmsg", os.O_RDONLY, 0); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}
