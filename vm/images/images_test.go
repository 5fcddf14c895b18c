package images

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// sample is an image of two layers, in which something of each kind is.
func sample(t testing.TB) v1.Image {
	return imageOf(t, v1.Config{
		Env: []string{"PATH=/bin", "LANG=C"}, User: "app", WorkingDir: "/srv", Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"},
	},
		layerOf(t,
			dir("bin"), reg("bin/sh", "#!").mode(0o4755), dir("etc"), reg("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:70:71:An app:/srv:\n"),
			reg("etc/shadow", "root:*").owned(0, 42).mode(0o640), reg("etc/group", "root:x:0:\nlog:x:4:app\nappg:x:71:\n"),
			dir("srv").owned(70, 71), sym("sbin", "bin").owned(3, 4), lnk("bin/bash", "bin/sh"),
			dir("old"), reg("old/one", "1"), reg("old/two", "2"), reg("gone", "x"),
		),
		layerOf(t, reg(".wh.gone", ""), dir("old"), reg("old/.wh..wh..opq", ""), reg("old/three", "3"), dir("etc"), reg("etc/motd", "hello"),
			reg("srv/data", "payload").owned(70, 71).mode(0o600)))
}

// An image is pulled, pinned and unpacked once, sessions stand on its layers
// without a copy, and what one does to them another does not see.
func TestPullAndStandOn(t *testing.T) {
	w := newWorld(t)
	ref := newRegistry(t) + "/things/sample:1"
	push(t, ref, sample(t))
	img, err := w.images.Ensure(t.Context(), ref, PullOptions{})
	must(t, err)
	if img.Name != ref || len(img.Layers) != 2 || img.Config.User != "app" || img.Config.WorkingDir != "/srv" {
		t.Errorf("%+v", img)
	}
	one, two := w.session(img), w.session(img)
	layers, err := os.ReadDir(w.sessions.ImageLayersDir())
	must(t, err)
	if len(layers) != 2 {
		t.Errorf("%d unpacked layers", len(layers))
	}
	w.look(one, func(f *overlay.Face) {
		for path, want := range map[string]string{"bin/bash": "#!", "old/three": "3", "etc/motd": "hello", "srv/data": "payload"} {
			if got := text(t, f, path); got != want {
				t.Errorf("%s is %q", path, got)
			}
		}
		for _, path := range []string{"gone", "old/one", "old/two", ".wh.gone", "old/.wh..wh..opq"} {
			if _, _, err := f.Walk(path); overlay.Errno(err) != unix.ENOENT {
				t.Errorf("%s: %v", path, err)
			}
		}
		for path, want := range map[string]overlay.Attr{
			"etc/shadow": {GID: 42, Mode: unix.S_IFREG | 0o640}, "sbin": {UID: 3, GID: 4, Mode: unix.S_IFLNK | 0o777},
			"srv": {UID: 70, GID: 71, Mode: unix.S_IFDIR | 0o755}, "bin/sh": {Mode: unix.S_IFREG | 0o4755}, "": {Mode: unix.S_IFDIR | 0o755},
		} {
			_, a, err := f.Walk(path)
			must(t, err)
			if a.UID != want.UID || a.GID != want.GID || a.Mode != want.Mode {
				t.Errorf("%q is of %d:%d with mode %o", path, a.UID, a.GID, a.Mode)
			}
		}
		_, a, err := f.Walk("bin/sh")
		must(t, err)
		if _, b, _ := f.Walk("bin/bash"); a.Nlink != 2 || a.Ino != b.Ino {
			t.Errorf("hard links: %d names, inodes %d and %d", a.Nlink, a.Ino, b.Ino)
		}
		u, err := UserIn(f, img.Config.User)
		want := User{UID: 70, GID: 71, Groups: []uint32{4}, Name: "app", Home: "/srv"}
		if err != nil || !reflect.DeepEqual(u, want) {
			t.Errorf("user %+v, %v", u, err)
		}
	})
	w.work(one, func(f *overlay.Face) { write(t, f, "etc/motd", "changed"); unlink(t, f, "bin/bash") })
	w.look(two, func(f *overlay.Face) {
		if got := text(t, f, "etc/motd"); got != "hello" || text(t, f, "bin/bash") != "#!" {
			t.Errorf("the other session sees %q", got)
		}
	})
	// A fork, a rollback and a discard lead where they do in any tree.
	fork, err := w.sessions.Fork(t.Context(), one, snapshots.Fork{At: one.Last().Number})
	must(t, err)
	w.look(fork, func(f *overlay.Face) {
		if got := text(t, f, "etc/motd"); got != "changed" {
			t.Errorf("the fork sees %q", got)
		}
	})
	live, err := one.Open(t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(t, err)
	_, err = live.Rollback(t.Context(), snapshots.Rollback{To: 0})
	must(t, err)
	must(t, live.Close())
	w.look(one, func(f *overlay.Face) {
		if got := text(t, f, "etc/motd"); got != "hello" {
			t.Errorf("rolled back it sees %q", got)
		}
	})
	live, err = fork.Open(t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(t, err)
	_, err = live.Discard(t.Context(), snapshots.Discard{})
	must(t, err)
	must(t, live.Close())
	w.look(fork, func(f *overlay.Face) {
		if got := text(t, f, "etc/motd"); got != "hello" || text(t, f, "bin/bash") != "#!" {
			t.Errorf("after a discard it sees %q", got)
		}
		if err := f.Delta(func(e overlay.Entry) error { t.Errorf("differs from its image at %q", e.Path); return nil }); err != nil {
			t.Error(err)
		}
	})
}

// A tree on an image that came to a session later was its image before.
func TestAddTreeOnImage(t *testing.T) {
	w := newWorld(t)
	ref := newRegistry(t) + "/sample"
	push(t, ref, sample(t))
	img, err := w.images.Pull(t.Context(), ref, PullOptions{})
	must(t, err)
	sess, err := w.sessions.Create(t.Context(), snapshots.Spec{Base: filepath.Join(w.dir, "project")})
	must(t, err)
	live, err := sess.Open(t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(t, err)
	first, err := live.Seal(t.Context(), snapshots.SealOptions{Name: "before"})
	must(t, err)
	root, err := w.images.Root(t.Context(), img, nil)
	must(t, err)
	must(t, live.AddTree(t.Context(), root, snapshots.OpenOptions{}))
	must(t, live.Close())
	w.work(sess, func(f *overlay.Face) { write(t, f, "etc/motd", "changed") })
	live, err = sess.Open(t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(t, err)
	_, err = live.Rollback(t.Context(), snapshots.Rollback{To: first.Number})
	must(t, err)
	must(t, live.Close())
	w.look(sess, func(f *overlay.Face) {
		if got := text(t, f, "etc/motd"); got != "hello" {
			t.Errorf("rolled back it sees %q", got)
		}
	})
	live, err = sess.Open(t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(t, err)
	_, err = live.Prune(t.Context(), snapshots.Prune{KeepLast: 1})
	must(t, err)
	must(t, live.Close())
	w.look(sess, func(f *overlay.Face) {
		if got := text(t, f, "etc/motd"); got != "hello" {
			t.Errorf("pruned it sees %q", got)
		}
	})
}

// What sessions need is not removed, and the rest is.
func TestRemoveAndGC(t *testing.T) {
	w := newWorld(t)
	host := newRegistry(t)
	push(t, host+"/a:1", sample(t))
	push(t, host+"/b:1", imageOf(t, v1.Config{}, layerOf(t, reg("only-b", "b"))))
	a, err := w.images.Pull(t.Context(), host+"/a:1", PullOptions{})
	must(t, err)
	b, err := w.images.Pull(t.Context(), host+"/b:1", PullOptions{})
	must(t, err)
	_, err = w.images.Root(t.Context(), b, nil)
	must(t, err)
	sess := w.session(a)
	release, err := w.images.Hold(t.Context())
	must(t, err)
	if _, err := w.images.GC(t.Context(), GCOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("gc while images are held: %v", err)
	}
	release()
	got, err := w.images.Remove(t.Context(), host+"/b:1")
	if err != nil || got.Blobs != 3 || got.Layers != 1 || len(got.Kept) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = w.images.Remove(t.Context(), strings.TrimPrefix(a.Digest, "sha256:")[:12])
	if err != nil || got.Blobs != 0 || got.Layers != 0 || len(got.Kept) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := w.images.Find(host + "/a:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a removed name: %v", err)
	}
	w.look(sess, func(f *overlay.Face) {
		if text(t, f, "etc/motd") != "hello" {
			t.Error("its image is gone")
		}
	})
	root := sess.Trees()[1]
	if img, err := w.images.OfTree(root); err != nil || img.Config.User != "app" {
		t.Errorf("%+v, %v", img, err)
	}
	trashed, err := w.sessions.Remove(sess)
	must(t, err)
	if got, err = w.images.GC(t.Context(), GCOptions{}); err != nil || got.Layers != 0 {
		t.Errorf("for what is in the trash: %+v, %v", got, err)
	}
	must(t, w.sessions.Purge(trashed.ID))
	if got, err = w.images.GC(t.Context(), GCOptions{}); err != nil || got.Layers != 2 || got.Blobs != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	left, err := os.ReadDir(w.sessions.ImageLayersDir())
	must(t, err)
	if len(left) != 0 {
		t.Errorf("%d layers left", len(left))
	}
}

// What a session changed becomes a layer of a new image, which can be stood on
// and goes into a registry; the old one stays what it was.
func TestImageFromSession(t *testing.T) {
	w := newWorld(t)
	host := newRegistry(t)
	push(t, host+"/a:1", sample(t))
	a, err := w.images.Pull(t.Context(), host+"/a:1", PullOptions{})
	must(t, err)
	sess := w.session(a)
	if _, err := w.images.From(t.Context(), sess, sess.Last(), "mine", FromOptions{}); !errors.Is(err, ErrNothing) {
		t.Errorf("an image of no change: %v", err)
	}
	snap := w.work(sess, func(f *overlay.Face) {
		write(t, f, "etc/motd", "changed")
		unlink(t, f, "bin/bash")
		write(t, f, "srv/new", "new")
		n, _, err := f.Walk("srv/data")
		must(t, err)
		uid := uint32(99)
		_, err = f.Setattr(n, overlay.SetAttr{UID: &uid})
		must(t, err)
		must(t, f.Rename(f.Root(), "old", f.Root(), "older", 0))
	})
	mine, err := w.images.From(t.Context(), sess, snap, "mine", FromOptions{})
	must(t, err)
	if mine.Name != "mine:latest" || len(mine.Layers) != 3 || mine.Config.User != "app" || mine.Layers[1].Chain != a.Layers[1].Chain {
		t.Errorf("%+v", mine)
	}
	other := w.session(mine)
	check := func(f *overlay.Face) {
		t.Helper()
		if text(t, f, "etc/motd") != "changed" || text(t, f, "srv/new") != "new" || text(t, f, "older/three") != "3" {
			t.Error("changes are missing")
		}
		for _, path := range []string{"bin/bash", "old"} {
			if _, _, err := f.Walk(path); overlay.Errno(err) != unix.ENOENT {
				t.Errorf("%s: %v", path, err)
			}
		}
		_, at, err := f.Walk("srv/data")
		must(t, err)
		if at.UID != 99 || at.GID != 71 || at.Mode != unix.S_IFREG|0o600 {
			t.Errorf("srv/data is of %d:%d with mode %o", at.UID, at.GID, at.Mode)
		}
	}
	w.look(other, check)
	w.look(w.session(a), func(f *overlay.Face) {
		if text(t, f, "etc/motd") != "hello" {
			t.Error("the old image changed")
		}
	})
	again, err := w.images.Find("mine")
	if err != nil || again.Digest != mine.Digest {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestConfig(t *testing.T) {
	c := Config{Env: []string{"A=1", "B=2"}, Entrypoint: []string{"/e"}, Cmd: []string{"x"}, WorkingDir: "/w"}
	for _, x := range []struct{ got, want any }{
		{first(c.Command(nil)), []string{"/e", "x"}},
		{first(c.Command([]string{"y", "z"})), []string{"/e", "y", "z"}},
		{first(Config{Cmd: []string{"sh"}}.Command(nil)), []string{"sh"}},
		{c.Environ("B", "C=3", "A=9"), []string{"PATH=" + DefaultPath, "A=9", "C=3"}},
		{Config{Env: []string{"PATH=/x"}}.Environ(), []string{"PATH=/x"}},
		{c.Dir(""), "/w"}, {c.Dir("sub"), "/w/sub"}, {c.Dir("/else/"), "/else"}, {Config{}.Dir(""), "/"},
	} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("%q, not %q", x.got, x.want)
		}
	}
	if _, err := (Config{}).Command(nil); !errors.Is(err, ErrNoCommand) {
		t.Error(err)
	}
}

func first[T any](v T, _ error) T { return v }

func TestResolveUser(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\napp:x:70:71:An app:/srv:/bin/sh\n5:x:80:80::/five:\nhuge:x:4294967296:1::/:\n")
	group := []byte("root:x:0:\nlog:x:4:other,app\nadm:x:5:app\nappg:x:71:app\nhuge:x:4294967296:\n")
	for spec, want := range map[string]User{
		"":         {Name: "root", Home: "/root"},
		"0":        {Name: "root", Home: "/root"},
		"app":      {UID: 70, GID: 71, Groups: []uint32{4, 5}, Name: "app", Home: "/srv"},
		"70":       {UID: 70, GID: 71, Groups: []uint32{4, 5}, Name: "app", Home: "/srv"},
		"app:log":  {UID: 70, GID: 4, Name: "app", Home: "/srv"},
		"app:9":    {UID: 70, GID: 9, Name: "app", Home: "/srv"},
		"1234":     {UID: 1234},
		"1234:adm": {UID: 1234, GID: 5},
		":adm":     {GID: 5, Name: "root", Home: "/root"},
		"5":        {UID: 80, GID: 80, Name: "5", Home: "/five"},
	} {
		got, err := ResolveUser(spec, passwd, group)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %+v, %v; not %+v", spec, got, err, want)
		}
	}
	for spec, want := range map[string]error{
		"nobody": ErrNoUser, "app:nobody": ErrNoUser, "4294967296": unix.ERANGE, "2147483648": unix.ERANGE, "-1": ErrNoUser, "app:": unix.EINVAL,
		"0:99999999999": unix.ERANGE, "huge": ErrNoUser,
	} {
		if got, err := ResolveUser(spec, passwd, group); !errors.Is(err, want) {
			t.Errorf("%q is %+v, %v; not %v", spec, got, err, want)
		}
	}
	if u, err := ResolveUser("7:8", nil, nil); err != nil || !reflect.DeepEqual(u, User{UID: 7, GID: 8}) {
		t.Errorf("%+v, %v", u, err)
	}
}
