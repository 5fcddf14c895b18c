package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
)

func TestMain(m *testing.M) {
	unix.Umask(0)
	if spec := os.Getenv(killedAt); spec != "" {
		os.Exit(importAndDie(spec))
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a store with a project beside it.
type world struct {
	t        testing.TB
	dir      string
	sessions *snapshots.Store
	images   *Store
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	must(t, os.Mkdir(filepath.Join(w.dir, "project"), 0o755))
	var err error
	w.sessions, err = snapshots.OpenStore(filepath.Join(w.dir, "home"), snapshots.StoreOptions{})
	must(t, err)
	t.Cleanup(func() { _ = w.sessions.Close() })
	w.images, err = Open(w.sessions)
	must(t, err)
	return w
}

// session makes a session with a tree on an image.
func (w *world) session(img *Image) *snapshots.Session {
	w.t.Helper()
	root, err := w.images.Root(w.t.Context(), img, nil)
	must(w.t, err)
	sess, err := w.sessions.Create(w.t.Context(), snapshots.Spec{
		Base: filepath.Join(w.dir, "project"), Extra: []snapshots.TreeSpec{root},
	})
	must(w.t, err)
	return sess
}

// work changes the tree root and seals.
func (w *world) work(sess *snapshots.Session, fn func(*overlay.Face)) snapshots.Snapshot {
	w.t.Helper()
	live, err := sess.Open(w.t.Context(), snapshots.OpenOptions{NoWatch: true})
	must(w.t, err)
	face := live.Tree(snapshots.Root).Attach(nil)
	fn(face)
	face.Detach()
	snap, err := live.Seal(w.t.Context(), snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseAsked}})
	must(w.t, err)
	must(w.t, live.Close())
	return snap
}

// look shows what a snapshot has in the tree root.
func (w *world) look(sess *snapshots.Session, fn func(*overlay.Face)) {
	w.t.Helper()
	sealed, err := sess.OpenSealed(sess.Last().Number)
	must(w.t, err)
	for _, t := range sealed.Trees() {
		if t.Name == snapshots.Root {
			fn(t.Face)
		}
	}
	must(w.t, sealed.Close())
}

// registry is one on the loopback, in this process.
func newRegistry(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(ref)
	must(t, err)
	must(t, remote.Write(r, img))
}

// day is the time of all that tests make.
var day = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// file is an entry of a layer, with its content.
type file struct {
	tar.Header
	text string
}

func reg(name, text string) file {
	return file{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}, text}
}
func dir(name string) file {
	return file{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}
func sym(name, to string) file {
	return file{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}}
}
func lnk(name, to string) file {
	return file{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}}
}

func (f file) owned(uid, gid int) file          { f.Uid, f.Gid = uid, gid; return f }
func (f file) mode(m int64) file                { f.Mode = m; return f }
func (f file) record(key, val string) file      { f.PAXRecords = map[string]string{key: val}; return f }
func (f file) with(fn func(*tar.Header)) file   { fn(&f.Header); return f }
func plainTar(t testing.TB, fs ...file) []byte  { return writeTar(t, tar.FormatPAX, fs) }
func zipped(t testing.TB, fs ...file) []byte    { return gzipOf(t, plainTar(t, fs...)) }
func layerOf(t testing.TB, fs ...file) v1.Layer { return blobLayer(t, zipped(t, fs...)) }

func writeTar(t testing.TB, format tar.Format, fs []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range fs {
		f.Format = format
		if f.ModTime.IsZero() {
			f.ModTime = day
		}
		must(t, w.WriteHeader(&f.Header))
		_, err := io.WriteString(w, f.text)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	must(t, err)
	must(t, z.Close())
	return out.Bytes()
}

func blobLayer(t testing.TB, b []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	must(t, err)
	return l
}

// imageOf is an image for this machine, of layers.
func imageOf(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	want, err := parsePlatform("")
	must(t, err)
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: want.OS, Architecture: want.Architecture, Config: config})
	must(t, err)
	img, err = mutate.AppendLayers(img, layers...)
	must(t, err)
	return img
}

func text(t testing.TB, f *overlay.Face, path string) string {
	t.Helper()
	n, a, err := f.Walk(path)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	defer f.Forget(n, 1)
	b := make([]byte, a.Size)
	_, err = f.Read(n, b, 0)
	must(t, err)
	return string(b)
}

func write(t testing.TB, f *overlay.Face, path, text string) {
	t.Helper()
	dir, _, err := f.Walk(parentOf(path))
	must(t, err)
	defer f.Forget(dir, 1)
	n, _, err := f.Lookup(dir, filepath.Base(path))
	if overlay.Errno(err) == unix.ENOENT {
		n, _, err = f.Create(dir, filepath.Base(path), 0o644, overlay.Caller{})
	}
	must(t, err)
	defer f.Forget(n, 1)
	zero := int64(0)
	_, err = f.Setattr(n, overlay.SetAttr{Size: &zero})
	must(t, err)
	_, err = f.Write(n, []byte(text), 0)
	must(t, err)
}

func unlink(t testing.TB, f *overlay.Face, path string) {
	t.Helper()
	dir, _, err := f.Walk(parentOf(path))
	must(t, err)
	defer f.Forget(dir, 1)
	must(t, f.Unlink(dir, filepath.Base(path)))
}

var oErrForeign = oci.ErrForeign

func marshalJSON(v any) ([]byte, error) { return json.Marshal(v) }
