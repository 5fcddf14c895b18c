package oci

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

func registryFor(t *testing.T, image string) name.Reference {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	ref, err := ParseRef(strings.TrimPrefix(s.URL, "http://") + "/" + image)
	must(t, err)
	return ref
}

// A session goes through a registry, one of several trees too.
func TestPushAndPull(t *testing.T) {
	w := newWorld(t)
	extra := filepath.Join(w.dir, "extra")
	must(t, os.Mkdir(extra, 0o755))
	w.random(3, 4)
	numbers := func(s *snapshots.Session) []overlay.LayerID { return []overlay.LayerID{s.Last().Number} }
	was := pictures(t, w.sess, numbers(w.sess))
	for _, c := range []string{"one tree", "two trees"} {
		t.Run(c, func(t *testing.T) {
			if c == "two trees" {
				must(t, w.sess.AddTree(t.Context(), snapshots.TreeSpec{Name: "extra", Base: extra}))
				w.work(func(l *snapshots.Live, f *overlay.Face) {
					x := l.Tree("extra").Attach(nil)
					put(t, x, "x", "in the other tree")
					x.Detach()
					_, err := l.Seal(t.Context(), snapshots.SealOptions{Name: "both"})
					must(t, err)
				})
			}
			ref := registryFor(t, "sessions/work:one")
			_, err := Push(t.Context(), w.sess, w.sess.Last(), ref, ExportOptions{})
			must(t, err)
			got, _, err := Pull(t.Context(), w.store, ref, ImportOptions{Devices: true})
			must(t, err)
			if d := differences(was[0], pictures(t, got, numbers(got))[0]); d != "" {
				t.Errorf("another tree:\n%s", d)
			}
			if len(got.Trees()) != len(w.sess.Trees()) {
				t.Errorf("%d trees of %d", len(got.Trees()), len(w.sess.Trees()))
			}
			if c == "two trees" {
				o, err := got.OpenSealed(got.Last().Number)
				must(t, err)
				defer o.Close()
				if a, err := o.Trees()[1].Face.Look("x"); err != nil || a == nil || a.Size != 17 {
					t.Errorf("the other tree: %v, %v", a, err)
				}
			}
		})
	}
}

// An image of another kind is no session, and what is not there is said to be so.
func TestPullOfSomethingElse(t *testing.T) {
	w := newWorld(t)
	ref := registryFor(t, "images/other:latest")
	img, err := random.Image(100, 1)
	must(t, err)
	must(t, remote.Write(ref, img))
	if _, _, err := Pull(t.Context(), w.store, ref, ImportOptions{}); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	none := registryFor(t, "images/none:latest")
	if _, _, err := Pull(t.Context(), w.store, none, ImportOptions{}); err == nil {
		t.Error("an image that is not there was pulled")
	}
	if _, err := ParseRef("no reference"); err == nil {
		t.Error("not a reference, and accepted")
	}
	w.nothingLeft("work")
}

// A tar file of a layout is the same session; one with anything else in it is
// refused.
func TestArchive(t *testing.T) {
	w := newWorld(t)
	w.random(9, 4)
	was := pictures(t, w.sess, []overlay.LayerID{w.sess.Last().Number})
	file := filepath.Join(w.dir, "session.tar")
	_, err := ExportArchive(t.Context(), w.sess, w.sess.Last(), file, ExportOptions{})
	must(t, err)
	again := filepath.Join(w.dir, "again.tar")
	_, err = ExportArchive(t.Context(), w.sess, w.sess.Last(), again, ExportOptions{})
	must(t, err)
	a, err := os.ReadFile(file)
	must(t, err)
	b, err := os.ReadFile(again)
	must(t, err)
	if string(a) != string(b) {
		t.Error("two exports of one snapshot differ")
	}
	got, _, err := ImportArchive(t.Context(), w.store, file, ImportOptions{Devices: true})
	must(t, err)
	if d := differences(was[0], pictures(t, got, []overlay.LayerID{got.Last().Number})[0]); d != "" {
		t.Errorf("another tree:\n%s", d)
	}
	must(t, os.RemoveAll(got.Dir()))
	for name, content := range map[string][]byte{
		"outside": unzipped(t, pack(t, reg("../x"))), "link": unzipped(t, pack(t, sym("index.json", "/etc/passwd"))),
		"twice": unzipped(t, pack(t, reg("index.json"), reg("index.json"))), "other": unzipped(t, pack(t, reg("blobs/md5/x"))),
		"nothing": nil, "short": a[:len(a)/2], "no tar": []byte(strings.Repeat("x", 2000)),
	} {
		bad := filepath.Join(t.TempDir(), "bad.tar")
		must(t, os.WriteFile(bad, content, 0o600))
		if _, _, err := ImportArchive(t.Context(), w.store, bad, ImportOptions{Name: "bad"}); err == nil {
			t.Errorf("%s: imported", name)
		}
	}
	w.nothingLeft("work")
}
