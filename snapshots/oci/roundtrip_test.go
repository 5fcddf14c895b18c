package oci

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
	"github.com/galleyfs/galley/snapshots"
)

func TestMain(m *testing.M) {
	unix.Umask(0) // as the generators expect
	if how := os.Getenv(killEnv); how != "" {
		if err := killHelper(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a store, a project and a session on it.
type world struct {
	t     testing.TB
	dir   string
	base  string
	store *snapshots.Store
	sess  *snapshots.Session
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.base = filepath.Join(w.dir, "project")
	must(t, os.MkdirAll(filepath.Join(w.base, "sub", "deep"), 0o755))
	for _, name := range []string{"kept", "a", "b", "sub/file", "sub/deep/file", "sub/h"} {
		must(t, os.WriteFile(filepath.Join(w.base, name), []byte("base "+name), 0o644))
	}
	must(t, os.Symlink("sub", filepath.Join(w.base, "link")))
	must(t, os.Link(filepath.Join(w.base, "kept"), filepath.Join(w.base, "kept2")))
	var err error
	w.store, err = snapshots.OpenStore(filepath.Join(w.dir, "home"), snapshots.StoreOptions{})
	must(t, err)
	t.Cleanup(func() { w.store.Close() })
	w.sess, err = w.store.Create(t.Context(), snapshots.Spec{Name: "work", Base: w.base})
	must(t, err)
	return w
}

// work opens the session and lets do work in it.
func (w *world) work(do func(l *snapshots.Live, f *overlay.Face)) {
	w.t.Helper()
	l, err := w.sess.Open(w.t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(w.t, err)
	f := l.Tree(snapshots.Workspace).Attach(nil)
	do(l, f)
	f.Detach()
	must(w.t, l.Close())
	must(w.t, w.sess.Reload())
}

// random does random work and seals count times.
func (w *world) random(seed uint64, count int) {
	w.work(func(l *snapshots.Live, f *overlay.Face) {
		dir, err := overlaytest.OpenDir(w.base)
		must(w.t, err)
		ref, err := overlaytest.Import(dir)
		must(w.t, err)
		must(w.t, dir.Close())
		fs := overlaytest.NewFaceFS(f)
		g := overlaytest.NewGenerator(seed, ref)
		for i := range count {
			for range 60 {
				o := g.Next()
				if os.Getuid() != 0 {
					o.Mode |= 0o700 // what its owner may not read cannot be exported
				}
				_ = overlaytest.Step(ref, fs, o) // any tree will do
			}
			opt := snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseCommand, Text: fmt.Sprint("step ", i)}}
			if i%3 == 1 {
				opt.Name = fmt.Sprint("n", i)
			}
			_, err := l.Seal(w.t.Context(), opt)
			must(w.t, err)
		}
		fs.ReleaseAll()
	})
}

// picture is all that a view shows, by path.
func picture(t testing.TB, f *overlay.Face) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	var visit func(path string)
	visit = func(path string) {
		n, a, err := f.Walk(path)
		must(t, err)
		defer f.Forget(n, 1)
		s := fmt.Sprintf("%o %d:%d %d %v", a.Mode, a.UID, a.GID, a.Rdev, a.Mtime)
		if !a.IsDir() {
			if first[a.Ino] == "" {
				first[a.Ino] = path
			}
			// Not the number of links: that counts names of the base which
			// the session has removed without having met them.
			s += fmt.Sprintf(" linked to %q", first[a.Ino])
		}
		names, err := f.Listxattr(n)
		must(t, err)
		sort.Strings(names)
		for _, name := range names {
			v, err := f.Getxattr(n, name)
			must(t, err)
			s += fmt.Sprintf(" %s=%x", name, v)
		}
		switch a.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			sum, err := digestOf(f, n)
			must(t, err)
			s += fmt.Sprintf(" %d %s", a.Size, hex.EncodeToString(sum))
		case unix.S_IFLNK:
			target, err := f.Readlink(n)
			must(t, err)
			s += " -> " + target
		case unix.S_IFDIR:
			list, err := list(f, path)
			must(t, err)
			for _, name := range list {
				visit(join(path, name))
			}
		}
		out[path] = s
	}
	visit("")
	return out
}

// pictures are those of all snapshots of a session that have a layer.
func pictures(t testing.TB, sess *snapshots.Session, numbers []overlay.LayerID) []map[string]string {
	t.Helper()
	var out []map[string]string
	for _, n := range numbers {
		o, err := sess.OpenSealed(n)
		must(t, err)
		out = append(out, picture(t, o.Trees()[0].Face))
		must(t, o.Close())
	}
	return out
}

func differences(a, b map[string]string) string {
	var out []string
	for p, s := range a {
		if b[p] != s {
			out = append(out, fmt.Sprintf("%q\n\twas %s\n\tnow %s", p, s, b[p]))
		}
	}
	for p, s := range b {
		if _, ok := a[p]; !ok {
			out = append(out, fmt.Sprintf("%q\n\tonly now %s", p, s))
		}
	}
	slices.Sort(out)
	return strings.Join(out[:min(len(out), 8)], "\n")
}

// roundTrip exports and imports a session, compares every snapshot of the import,
// and returns the layout.
func (w *world) roundTrip(name string) string {
	t := w.t
	t.Helper()
	last := w.sess.Last()
	dir := filepath.Join(w.dir, name)
	done, err := Export(t.Context(), w.sess, last, dir, ExportOptions{})
	must(t, err)
	again, err := Export(t.Context(), w.sess, last, dir+"-again", ExportOptions{})
	must(t, err)
	if !reflect.DeepEqual(done, again) {
		t.Errorf("two exports of one snapshot: %v and %v", done, again)
	}
	got, report, err := Import(t.Context(), w.store, dir, ImportOptions{Name: name, Devices: true})
	must(t, err)
	if report.Differs > 0 {
		t.Errorf("on the same base: %+v", report)
	}
	l, err := openLayout(dir)
	must(t, err)
	defer l.Close()
	images, err := l.images()
	must(t, err)
	var numbers []overlay.LayerID
	for _, layer := range images[0].layers {
		numbers = append(numbers, layer.number)
	}
	history, err := got.History()
	must(t, err)
	if len(history) != len(numbers) {
		t.Fatalf("%d snapshots of %d", len(history), len(numbers))
	}
	for i, snap := range history {
		want, err := w.sess.Snapshot(fmt.Sprint(numbers[i]))
		must(t, err)
		if want.Name != snap.Name || want.Cause.Text != snap.Cause.Text || !want.Time.Equal(snap.Time) {
			t.Errorf("snapshot %v became %v", want, snap)
		}
		was, is := pictures(t, w.sess, numbers[i:i+1])[0], pictures(t, got, []overlay.LayerID{snap.Number})[0]
		if d := differences(was, is); d != "" {
			t.Fatalf("snapshot %d is another tree as an import:\n%s", want.Number, d)
		}
	}
	return dir
}

func seeds(t *testing.T, n int) []uint64 {
	if testing.Short() {
		n = (n + 2) / 3
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(i + 1)
	}
	return out
}

// A session that was exported and imported is the same at every snapshot.
func TestRandomSessionsComeBack(t *testing.T) {
	for _, seed := range seeds(t, 6) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			w := newWorld(t)
			w.random(seed, 8)
			dir := w.roundTrip("back")
			readByTar(t, dir)
		})
	}
}

// readByTar has tar(1) list and unpack every layer.
func readByTar(t *testing.T, dir string) {
	t.Helper()
	l, err := openLayout(dir)
	must(t, err)
	defer l.Close()
	images, err := l.images()
	must(t, err)
	for _, layer := range images[0].layers {
		blob := filepath.Join(dir, "blobs", "sha256", layer.desc.Digest.Hex)
		out, err := exec.Command("tar", "--warning=no-unknown-keyword", "-tzf", blob).CombinedOutput()
		if err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
		count := 0
		_, err = readAll(blob, func(*item) { count++ })
		must(t, err)
		if lines := strings.Count(string(out), "\n"); lines < count {
			t.Errorf("tar lists %d entries of %d", lines, count)
		}
	}
}

func TestFlatExport(t *testing.T) {
	w := newWorld(t)
	w.random(77, 5)
	dir := filepath.Join(w.dir, "flat")
	done, err := Export(t.Context(), w.sess, w.sess.Last(), dir, ExportOptions{Flat: true})
	must(t, err)
	if done.Layers != 1 {
		t.Errorf("%d layers", done.Layers)
	}
	got, _, err := Import(t.Context(), w.store, dir, ImportOptions{Name: "flat", Devices: true})
	must(t, err)
	was := pictures(t, w.sess, []overlay.LayerID{w.sess.Last().Number})[0]
	is := pictures(t, got, []overlay.LayerID{got.Last().Number})[0]
	if d := differences(was, is); d != "" {
		t.Fatalf("another tree:\n%s", d)
	}
}

// put makes or replaces a file by its path.
func put(t testing.TB, f *overlay.Face, path, text string) {
	t.Helper()
	dir, _, err := f.Walk(dirOf(path))
	must(t, err)
	defer f.Forget(dir, 1)
	name := path[strings.LastIndexByte(path, '/')+1:]
	n, _, err := f.Create(dir, name, unix.S_IFREG|0o644, overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	if overlay.Errno(err) == unix.EEXIST {
		n, _, err = f.Lookup(dir, name)
	}
	must(t, err)
	defer f.Forget(n, 1)
	zero := int64(0)
	_, err = f.Setattr(n, overlay.SetAttr{Size: &zero})
	must(t, err)
	_, err = f.Write(n, []byte(text), 0)
	must(t, err)
}

func rename(t testing.TB, f *overlay.Face, from, to string) {
	t.Helper()
	a, _, err := f.Walk(dirOf(from))
	must(t, err)
	defer f.Forget(a, 1)
	b, _, err := f.Walk(dirOf(to))
	must(t, err)
	defer f.Forget(b, 1)
	must(t, f.Rename(a, filepath.Base(from), b, filepath.Base(to), 0))
}

// A directory of the base that was renamed is whole at its new place, and other
// programs read all of it.
func TestOtherToolReadsALayout(t *testing.T) {
	w := newWorld(t)
	w.work(func(l *snapshots.Live, f *overlay.Face) {
		rename(t, f, "sub", "moved")
		put(t, f, "moved/new", "new")
		_, err := l.Seal(t.Context(), snapshots.SealOptions{Name: "one"})
		must(t, err)
		put(t, f, "moved/new", "newer")
		put(t, f, "top", "top")
		_, err = l.Seal(t.Context(), snapshots.SealOptions{Name: "two"})
		must(t, err)
	})
	dir := w.roundTrip("layout")
	out, err := exec.Command("skopeo", "inspect", "--raw", "oci:"+dir+":workspace").CombinedOutput()
	if err != nil || !strings.Contains(string(out), annSession) {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	bundle := filepath.Join(w.dir, "bundle")
	args := []string{"unpack", "--image", dir + ":workspace", bundle}
	if os.Getuid() != 0 {
		args = slices.Insert(args, 1, "--rootless")
	}
	if out, err := exec.Command("umoci", args...).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	for name, want := range map[string]string{
		"moved/new": "newer", "moved/file": "base sub/file", "moved/deep/file": "base sub/deep/file", "top": "top",
	} {
		b, err := os.ReadFile(filepath.Join(bundle, "rootfs", name))
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(bundle, "rootfs", "sub")); err == nil {
		t.Error("the old place is there")
	}
}

// What a later commit replaced is a part of what an older snapshot shows.
func TestBaseThatIsNotAsItWas(t *testing.T) {
	w := newWorld(t)
	w.work(func(l *snapshots.Live, f *overlay.Face) {
		put(t, f, "a", "changed")
		_, err := l.Seal(t.Context(), snapshots.SealOptions{Name: "one"})
		must(t, err)
	})
	dir := filepath.Join(w.dir, "out")
	_, err := Export(t.Context(), w.sess, w.sess.Last(), dir, ExportOptions{})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.base, "a"), []byte("a host edit, meanwhile"), 0o644))
	_, report, err := Import(t.Context(), w.store, dir, ImportOptions{})
	must(t, err)
	if report.Differs != 1 || !slices.Equal(report.DiffersAt, []string{"a"}) {
		t.Errorf("%+v", report)
	}
	other := filepath.Join(w.dir, "other")
	must(t, os.Mkdir(other, 0o755))
	sess, report, err := Import(t.Context(), w.store, dir, ImportOptions{Base: other, Name: "elsewhere"})
	must(t, err)
	if sess.Trees()[0].Base != other || report.Differs != 1 {
		t.Errorf("%+v, %+v", sess.Trees(), report)
	}
}

func TestImportKeepsTimesAndStops(t *testing.T) {
	w := newWorld(t)
	w.random(5, 3)
	dir := filepath.Join(w.dir, "out")
	_, err := Export(t.Context(), w.sess, w.sess.Last(), dir, ExportOptions{})
	must(t, err)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := fmt.Errorf("enough")
	_, _, err = Import(ctx, w.store, dir, ImportOptions{Name: "half", Devices: true, Progress: func(int64) { cancel(stop) }})
	if err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("a stopped import: %v", err)
	}
	w.nothingLeft("work")
}

// nothingLeft checks that the store has these sessions only, and no rest of an
// import.
func (w *world) nothingLeft(names ...string) {
	w.t.Helper()
	all, err := w.store.List()
	must(w.t, err)
	var have []string
	for _, i := range all {
		have = append(have, i.Name)
	}
	if !slices.Equal(have, names) {
		w.t.Errorf("sessions %q, not %q", have, names)
	}
	rest, err := filepath.Glob(filepath.Join(w.store.Home(), "import-*"))
	must(w.t, err)
	if len(rest) > 0 {
		w.t.Errorf("left behind: %q", rest)
	}
}

// readAll reads a layer in a file.
func readAll(path string, fn func(*item)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	limits := Limits{}.withDefaults()
	return readLayer(f, &budget{limits.Bytes, limits.Files}, func(it *item, _ io.Reader) error { fn(it); return nil })
}
