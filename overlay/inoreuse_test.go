package overlay

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// reusing is a host that gives one object the number of another that is gone.
type reusing struct {
	hostfs.FS
	object, number atomic.Uint64
}

func (h *reusing) Stat(dirfd int, name string, st *unix.Statx_t) error {
	err := h.FS.Stat(dirfd, name, st)
	if err == nil && st.Ino == h.object.Load() {
		st.Ino = h.number.Load()
	}
	return err
}

func (h *reusing) Getdents(fd int, buf []byte) (int, error) {
	n, err := h.FS.Getdents(fd, buf)
	for b := buf[:max(n, 0)]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] {
		if binary.NativeEndian.Uint64(b) == h.object.Load() {
			binary.NativeEndian.PutUint64(b, h.number.Load())
		}
	}
	return n, err
}

// TestNumberUsedAgain: the session changed a file, the host removes it and gives
// its number to a new one. The view has two files of two numbers, which stay what
// they are when both are changed, over a seal and a remount.
func TestNumberUsedAgain(t *testing.T) {
	for _, typ := range []string{"file", "directory"} {
		t.Run(typ, func(t *testing.T) {
			tr, f, dir := newTestTree(t, map[string]string{"old": "old"})
			closeTree(t, tr, f)
			h := &reusing{FS: hostfs.OS}
			tr, f = openOn(t, h, dir, 0)
			write := func(path, text string) {
				t.Helper()
				n, _, err := f.Walk(path)
				must(t, err)
				_, err = f.Write(n, []byte(text), 0)
				must(t, err)
				f.Forget(n, 1)
			}
			number := func(path string) uint64 {
				t.Helper()
				n, a, err := f.Walk(path)
				must(t, err)
				f.Forget(n, 1)
				return a.Ino
			}
			write("old", "mine")
			was := number("old")

			base := filepath.Join(dir, "base")
			fresh := filepath.Join(base, "new")
			in := "new"
			must(t, os.Remove(filepath.Join(base, "old")))
			if typ == "directory" {
				must(t, os.Mkdir(fresh, 0o755))
				in = "new/in"
			}
			must(t, os.WriteFile(filepath.Join(base, in), []byte("host"), 0o644))
			var st unix.Stat_t
			must(t, unix.Lstat(fresh, &st))
			h.number.Store(was)
			h.object.Store(st.Ino)

			other := number("new")
			check := func(when, old, host string) {
				t.Helper()
				if a, b := number("old"), number("new"); a != was || b != other || a == b {
					t.Errorf("%s: old is number %d and new %d; want %d and %d", when, a, b, was, other)
				}
				if a, b := read(t, f, "old"), read(t, f, in); a != old || b != host {
					t.Errorf("%s: old has %q and %s %q, want %q and %q", when, a, in, b, old, host)
				}
				must(t, f.ReadDir(f.Root(), 0, func(e DirEntry) bool {
					if want := number(e.Name); e.Ino != want {
						t.Errorf("%s: %s is listed as %d, and is %d", when, e.Name, e.Ino, want)
					}
					return true
				}))
			}
			check("at first", "mine", "host")
			write(in, "ours")
			write("old", "MINE")
			check("changed", "MINE", "ours")
			closeTree(t, tr, f)
			tr, f = openOn(t, h, dir, 0)
			check("opened again", "MINE", "ours")
			sealTo(t, tr, 2)
			write("old", "more")
			check("sealed", "more", "ours")
			closeTree(t, tr, f)
		})
	}
}
