package overlay

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func names(t *testing.T, f *Face, n *Node) string {
	t.Helper()
	var out []string
	must(t, f.ReadDir(n, 0, func(e DirEntry) bool { out = append(out, e.Name); return true }))
	return strings.Join(out, " ")
}

// TestHostRenamesADirectory: the session renamed a directory of the base, or
// changed something in it, and then the host renames or removes that directory.
// Whoever looks is told that it is gone, never shown an empty one; what the
// session wrote itself stays readable; and the delta still names both.
func TestHostRenamesADirectory(t *testing.T) {
	for _, c := range []struct {
		name    string
		session func(*testing.T, *Face)
		dir     string // of the view
		own     string // what the session wrote
	}{
		{"renamed by the session", func(t *testing.T, f *Face) {
			must(t, f.Rename(f.Root(), "d", f.Root(), "moved", 0))
		}, "moved", ""},
		{"changed by the session", func(t *testing.T, f *Face) {
			n, _ := walk(t, f, "d/sub/f")
			_, err := f.Write(n, []byte("mine"), 0)
			must(t, err)
			f.Forget(n, 1)
		}, "d", "d/sub/f"},
	} {
		for _, edit := range []struct {
			name string
			do   func(base string) error
		}{
			{"host renames it", func(b string) error { return os.Rename(b+"/d", b+"/elsewhere") }},
			{"host removes it", func(b string) error { return os.RemoveAll(b + "/d") }},
			{"host puts a file there", func(b string) error {
				_ = os.RemoveAll(b + "/d")
				return os.WriteFile(b+"/d", []byte("file"), 0o644)
			}},
		} {
			t.Run(strings.ReplaceAll(c.name+", "+edit.name, " ", "-"), func(t *testing.T) {
				tr, f, dir := newTestTree(t, map[string]string{"d/a": "1", "d/b": "2", "d/sub/f": "3"})
				c.session(t, f)
				sealTo(t, tr, 2)
				closeTree(t, tr, f)
				must(t, edit.do(filepath.Join(dir, "base")))
				tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
				defer closeTree(t, tr, f)
				n, _, err := f.Walk(c.dir)
				if err == nil {
					var shown []string
					err = f.ReadDir(n, 0, func(e DirEntry) bool { shown = append(shown, e.Name); return true })
					f.Forget(n, 1)
					if err == nil && len(shown) == 0 {
						t.Error("the view shows an empty directory")
					}
				}
				if err != nil && Errno(err) != unix.ESTALE && Errno(err) != unix.ENOENT {
					t.Errorf("error %v, want ESTALE or ENOENT", err)
				}
				if c.own != "" {
					if got := read(t, f, c.own); got != "mine" {
						t.Errorf("what the session wrote: %q", got)
					}
				}
				found := false
				must(t, f.Delta(func(e Entry) error {
					found = found || e.Path == c.dir
					return nil
				}))
				if !found {
					t.Errorf("the delta does not name %q", c.dir)
				}
			})
		}
	}
}

// TestFactsOfWhatIsHidden: for each entry of the base that a session first
// changes or hides, the record keeps what it was, also over a remount.
func TestFactsOfWhatIsHidden(t *testing.T) {
	tr, f, dir := newTestTree(t, map[string]string{"written": "w", "removed": "r", "moved": "m", "mode": "x", "d/in": "i", "over": "o", "other": "p"})
	base := filepath.Join(dir, "base")
	must(t, os.Symlink("target", base+"/link"))
	want := map[string]unix.Stat_t{}
	for _, p := range []string{"written", "removed", "moved", "mode", "d", "d/in", "over", "link"} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(base, p), &st))
		want[p] = st
	}
	n, _ := walk(t, f, "written")
	_, err := f.Write(n, []byte("W"), 0)
	must(t, err)
	f.Forget(n, 1)
	must(t, f.Unlink(f.Root(), "removed"))
	must(t, f.Rename(f.Root(), "moved", f.Root(), "there", 0))
	mode := uint32(0o600)
	n, _ = walk(t, f, "mode")
	_, err = f.Setattr(n, SetAttr{Mode: &mode})
	must(t, err)
	f.Forget(n, 1)
	d, _ := walk(t, f, "d")
	must(t, f.Unlink(d, "in"))
	f.Forget(d, 1)
	must(t, f.Rmdir(f.Root(), "d"))
	must(t, f.Rename(f.Root(), "other", f.Root(), "over", 0))
	must(t, f.Unlink(f.Root(), "link"))
	for range 2 {
		for path, st := range want {
			w, ok := f.WasAt(path)
			if !ok || !w.Exists || w.ID != (HostID{st.Dev, st.Ino}) || w.Mode != st.Mode || w.Size != st.Size ||
				w.UID != st.Uid || w.Mtime != (Time{st.Mtim.Sec, uint32(st.Mtim.Nsec)}) || w.Ctime != (Time{st.Ctim.Sec, uint32(st.Ctim.Nsec)}) {
				t.Errorf("%s: recorded %+v, %v; it was %+v", path, w, ok, st)
			}
		}
		if w, _ := f.WasAt("written"); !w.HasDigest {
			t.Error("no digest of what was copied up")
		}
		if w, _ := f.WasAt("link"); w.Target != "target" {
			t.Errorf("the link pointed to %q", w.Target)
		}
		closeTree(t, tr, f)
		tr, f, _ = openTestTree(t, dir, Stack{Active: 1})
	}
	closeTree(t, tr, f)
}

// TestInodeNumbersStay: through copy-up, rename, seal and remount, for files,
// directories and links, of the base and of the session.
func TestInodeNumbersStay(t *testing.T) {
	tr, f, dir := newTestTree(t, map[string]string{"f": "1", "d/g": "2"})
	must(t, os.Symlink("f", filepath.Join(dir, "base", "l")))
	must(t, os.Link(filepath.Join(dir, "base", "f"), filepath.Join(dir, "base", "f2")))
	n, _, err := f.Create(f.Root(), "own", 0o644, self())
	must(t, err)
	f.Forget(n, 1)
	paths := []string{"", "f", "f2", "d", "d/g", "l", "own"}
	ino := map[string]uint64{}
	look := func(when string) {
		t.Helper()
		for _, p := range paths {
			n, a := walk(t, f, p)
			if p != "" {
				f.Forget(n, 1)
			}
			if ino[p] == 0 {
				ino[p] = a.Ino
			}
			if a.Ino != ino[p] {
				t.Errorf("%s: %q has inode %d, had %d", when, p, a.Ino, ino[p])
			}
		}
	}
	look("at first")
	for _, p := range []string{"f", "d/g", "own"} {
		n, _ := walk(t, f, p)
		_, err := f.Write(n, []byte("X"), 0)
		must(t, err)
		f.Forget(n, 1)
	}
	mode := uint32(0o700)
	d, _ := walk(t, f, "d")
	_, err = f.Setattr(d, SetAttr{Mode: &mode})
	must(t, err)
	look("after copy-up")
	must(t, f.Rename(f.Root(), "f", d, "moved", 0))
	must(t, f.Rename(d, "moved", f.Root(), "f", 0))
	f.Forget(d, 1)
	look("after renames")
	sealTo(t, tr, 2)
	look("after a seal")
	n, _ = walk(t, f, "f")
	_, err = f.Write(n, []byte("Y"), 0)
	must(t, err)
	f.Forget(n, 1)
	look("after the next copy-up")
	closeTree(t, tr, f)
	tr, f, _ = openTestTree(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
	look("after a remount")
	if ino["f"] != ino["f2"] {
		t.Errorf("two names of one file have inodes %d and %d", ino["f"], ino["f2"])
	}
	closeTree(t, tr, f)
}
