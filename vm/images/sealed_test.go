package images

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/snapshots"
)

// inodes lists all that the layers of an image have with what every change of an
// inode leaves: its ctime, beside its names, size, mode and owner.
func (w *world) inodes(chains []string) string {
	w.t.Helper()
	var b strings.Builder
	for _, chain := range chains {
		must(w.t, filepath.WalkDir(filepath.Join(w.sessions.ImageLayersDir(), chain), func(path string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(path, &st)
			}
			fmt.Fprintln(&b, path, st.Ino, st.Nlink, st.Mode, st.Uid, st.Gid, st.Size, st.Mtim, st.Ctim)
			return err
		}))
	}
	return b.String()
}

// onLayers is a new tree on layers of images.
func (w *world) onLayers(chains []string, fn func(*overlay.Face)) {
	w.t.Helper()
	dirs, err := (&unpacker{s: w.images}).open(chains)
	must(w.t, err)
	state := w.t.TempDir()
	must(w.t, overlay.InitState(hostfs.OS, state, 1))
	tree, err := overlay.Open(overlay.Config{Name: snapshots.Root, StateDir: state, LayerDirs: dirs, KeepOwners: true, NoWatch: true}, overlay.Stack{
		Active: 1, Sealed: []overlay.Range{{From: overlay.Image, To: overlay.Image + overlay.LayerID(len(chains)-1)}},
	})
	must(w.t, err)
	face := tree.Attach(nil)
	fn(face)
	face.Detach()
	must(w.t, tree.Close())
}

// Whatever a session does to the tree that stands on an image, by every call
// that changes something and on every kind of entry, the layers that others stand
// on as well keep every inode as it was: also names that are hard links of one
// another, what a layer above hides, and through what comes after: a rollback, a
// prune, a discard, an image of it.
func TestImageLayersStayAsTheyAre(t *testing.T) {
	w := newWorld(t)
	img, err := w.images.Import(t.Context(), writeLayout(t, nil,
		zipped(t, dir("d"), reg("d/a", "linked"), lnk("d/b", "d/a"), lnk("c", "d/a"), reg("suid", "#!").mode(0o6755), sym("s", "d/a"),
			dir("keep"), reg("keep/x", "x"), reg("attr", "").record("SCHILY.xattr.user.x", "1"), dir("none").mode(0), reg("none/in", "in").mode(0)),
		zipped(t, lnk("e", "c"), reg("d/.wh.b", ""), dir("keep"), reg("keep/.wh..wh..opq", ""), reg("keep/y", "y"))), ImportOptions{Name: "it"})
	must(t, err)
	victim, sess := w.session(img), w.session(img)
	var chains []string
	for _, l := range img.Layers {
		chains = append(chains, l.Chain)
	}
	before := w.inodes(chains)
	unchanged := func(after string) {
		t.Helper()
		if now := w.inodes(chains); now != before {
			t.Fatalf("%s changed the layers:\n%s\nnow:\n%s", after, before, now)
		}
	}
	mode, id, zero, long := uint32(0o777), uint32(1234), int64(0), int64(1<<20)
	type call struct {
		name string
		fn   func(f *overlay.Face, n *overlay.Node) error
	}
	calls := []call{
		{"write", func(f *overlay.Face, n *overlay.Node) error { _, err := f.Write(n, []byte("HOSTILE"), 0); return err }},
		{"write that keeps times", func(f *overlay.Face, n *overlay.Node) error {
			_, err := f.WriteKeepTimes(n, []byte("HOSTILE"), 0)
			return err
		}},
		{"write that drops set-user-ID", func(f *overlay.Face, n *overlay.Node) error { _, err := f.WriteKill(n, []byte("H"), 0); return err }},
		{"append", func(f *overlay.Face, n *overlay.Node) error { _, err := f.Append(n, []byte("HOSTILE")); return err }},
		{"truncate", func(f *overlay.Face, n *overlay.Node) error {
			_, err := f.Setattr(n, overlay.SetAttr{Size: &zero})
			return err
		}},
		{"lengthen", func(f *overlay.Face, n *overlay.Node) error {
			_, err := f.Setattr(n, overlay.SetAttr{Size: &long})
			return err
		}},
		{"fallocate", func(f *overlay.Face, n *overlay.Node) error { return f.Fallocate(n, 0, 0, 4096) }},
		{"punch", func(f *overlay.Face, n *overlay.Node) error {
			return f.Fallocate(n, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1)
		}},
		{"copy into", func(f *overlay.Face, n *overlay.Node) error { _, err := f.CopyRange(n, 0, n, 100, 1); return err }},
		{"chmod", func(f *overlay.Face, n *overlay.Node) error {
			_, err := f.Setattr(n, overlay.SetAttr{Mode: &mode})
			return err
		}},
		{"chown", func(f *overlay.Face, n *overlay.Node) error {
			_, err := f.Setattr(n, overlay.SetAttr{UID: &id, GID: &id, KillSuidgid: true})
			return err
		}},
		{"utimes", func(f *overlay.Face, n *overlay.Node) error {
			_, err := f.Setattr(n, overlay.SetAttr{Atime: &overlay.Time{}, Mtime: &overlay.Time{}})
			return err
		}},
		{"setxattr", func(f *overlay.Face, n *overlay.Node) error { return f.Setxattr(n, "user.x", []byte("2"), 0) }},
		{"setcap", func(f *overlay.Face, n *overlay.Node) error {
			return f.Setxattr(n, "security.capability", []byte("\x01\x00\x00\x02"+strings.Repeat("\x00", 16)), 0)
		}},
		{"removexattr", func(f *overlay.Face, n *overlay.Node) error { return f.Removexattr(n, "user.x") }},
		{"drop privileges", func(f *overlay.Face, n *overlay.Node) error { return f.DropPrivileges(n) }},
		{"fsync", func(f *overlay.Face, n *overlay.Node) error { return f.Fsync(n, false) }},
		{"link", func(f *overlay.Face, n *overlay.Node) error { _, err := f.Link(n, f.Root(), "another"); return err }},
	}
	did := map[string]bool{}
	for _, path := range []string{"", "d/a", "e", "suid", "s", "attr", "keep", "none/in"} {
		for _, c := range calls {
			// Each call is the first that touches the layers.
			w.onLayers(chains, func(f *overlay.Face) {
				n, _, err := f.Walk(path)
				must(t, err)
				if c.fn(f, n) == nil {
					did[c.name] = true
				}
				f.Forget(n, 1)
			})
			unchanged(c.name + " of " + path)
		}
	}
	for _, c := range calls {
		if !did[c.name] {
			t.Errorf("%s never worked", c.name)
		}
	}
	w.work(sess, func(f *overlay.Face) {
		root := f.Root()
		keep, _, err := f.Walk("keep")
		must(t, err)
		must(t, f.Rename(root, "d", keep, "moved", 0))
		must(t, f.Rename(root, "c", root, "suid", unix.RENAME_EXCHANGE))
		must(t, f.Rename(root, "e", root, "attr", 0))
		must(t, f.Unlink(root, "s"))
		must(t, f.Unlink(keep, "y"))
		_, _, err = f.Create(root, "s", 0o644, overlay.Caller{})
		must(t, err)
		unchanged("work on names")
	})
	_, err = w.images.From(t.Context(), sess, sess.Last(), "made", FromOptions{})
	must(t, err)
	live, err := sess.Open(t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(t, err)
	_, err = live.Rollback(t.Context(), snapshots.Rollback{To: 0})
	must(t, err)
	unchanged("a rollback")
	_, err = live.Prune(t.Context(), snapshots.Prune{KeepNamed: true})
	must(t, err)
	unchanged("a prune")
	_, err = live.Discard(t.Context(), snapshots.Discard{})
	must(t, err)
	must(t, live.Close())
	unchanged("a discard")
	w.look(victim, func(f *overlay.Face) {
		if got := text(t, f, "d/a") + text(t, f, "c") + text(t, f, "e") + text(t, f, "keep/y"); got != "linkedlinkedlinkedy" {
			t.Errorf("the other session sees %q", got)
		}
	})
}
