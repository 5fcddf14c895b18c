package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots/oci"
)

// archived writes an image as docker save does.
func archived(t testing.TB, img v1.Image, ref string) string {
	t.Helper()
	tag, err := name.NewTag(ref)
	must(t, err)
	path := filepath.Join(t.TempDir(), "saved.tar")
	must(t, tarball.WriteToFile(path, tag, img))
	return path
}

func tarOfDir(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dir.tar")
	out, err := exec.Command("tar", "-C", dir, "-cf", path, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return path
}

func packedAs(t testing.TB, path, how string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	switch how {
	case "gzip":
		b = gzipOf(t, b)
	case "zstd":
		z, err := zstd.NewWriter(nil)
		must(t, err)
		b = z.EncodeAll(b, nil)
	}
	out := path + "." + how
	must(t, os.WriteFile(out, b, 0o644))
	return out
}

// The same image comes from a docker archive, from a layout in a directory or a
// tar, packed or not; from each it is the same layers.
func TestImportKinds(t *testing.T) {
	w := newWorld(t)
	img := sample(t)
	layers, err := img.Layers()
	must(t, err)
	var blobs [][]byte
	for _, l := range layers {
		r, err := l.Compressed()
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		blobs = append(blobs, b)
	}
	saved := archived(t, img, "example.org/saved:3")
	layout := writeLayout(t, func(stage string, l *layout) {
		if stage == "config" {
			c, err := img.ConfigFile()
			must(t, err)
			l.config.Config = c.Config
		}
	}, blobs...)
	layoutTar := tarOfDir(t, layout)
	for _, c := range []struct{ path, name, source string }{
		{saved, "example.org/saved:3", "docker-archive"}, {packedAs(t, saved, "gzip"), "example.org/saved:3", "docker-archive"},
		{layout, "layout:latest", "oci"}, {layoutTar, "dir:latest", "oci"}, {packedAs(t, layoutTar, "zstd"), "dir:latest", "oci"},
	} {
		t.Run(filepath.Base(c.path), func(t *testing.T) {
			got, err := w.images.Import(t.Context(), c.path, ImportOptions{})
			must(t, err)
			if got.Name != c.name || got.Source != c.source || len(got.Layers) != 2 || got.Config.User != "app" {
				t.Errorf("%s from %s: %d layers, user %q", got.Name, got.Source, len(got.Layers), got.Config.User)
			}
			w.look(w.session(got), func(f *overlay.Face) {
				if text(t, f, "old/three") != "3" || text(t, f, "etc/motd") != "hello" {
					t.Error("it is another image")
				}
			})
			named, err := w.images.Import(t.Context(), c.path, ImportOptions{Name: "mine:2"})
			if err != nil || named.Name != "mine:2" || named.Digest != got.Digest {
				t.Errorf("%+v, %v", named, err)
			}
		})
	}
	have, err := os.ReadDir(w.sessions.ImageLayersDir())
	must(t, err)
	if len(have) != 2 {
		t.Errorf("%d unpacked layers", len(have))
	}
	// A file is imported once for each state that it has.
	one, err := w.images.Ensure(t.Context(), saved, PullOptions{})
	must(t, err)
	must(t, os.Remove(filepath.Join(w.sessions.ImagesDir(), dirBlobs, one.manifest.Layers[0].Digest.Hex)))
	two, err := w.images.Ensure(t.Context(), saved, PullOptions{})
	if err != nil || two.Digest != one.Digest {
		t.Errorf("%+v, %v", two, err)
	}
}

// Old archives name a layer that occurs twice by a link, before or after it.
func TestDockerArchiveWithLinks(t *testing.T) {
	layer := plainTar(t, reg("x", "1"))
	_, diff := digestsOf(t, layer)
	want, err := parsePlatform("")
	must(t, err)
	config := `{"os":"linux","architecture":"` + want.Architecture + `","rootfs":{"type":"layers","diff_ids":["` + diff + `","` + diff + `"]}}`
	manifest := `[{"Config":"c.json","RepoTags":["linked:1"],"Layers":["a/layer.tar","b/layer.tar"]}]`
	for name, entries := range map[string][]file{
		"after":  {reg("a/layer.tar", string(layer)), sym("b/layer.tar", "../a/layer.tar"), reg("c.json", config), reg("manifest.json", manifest)},
		"before": {sym("a/layer.tar", "../c/layer.tar"), sym("b/layer.tar", "../c/layer.tar"), reg("c/layer.tar", string(layer)), reg("c.json", config), reg("manifest.json", manifest)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			path := filepath.Join(t.TempDir(), "saved.tar")
			must(t, os.WriteFile(path, plainTar(t, entries...), 0o644))
			img, err := w.images.Import(t.Context(), path, ImportOptions{})
			if err != nil || len(img.Layers) != 2 || img.Name != "linked:1" {
				t.Fatalf("%+v, %v", img, err)
			}
			w.look(w.session(img), func(f *overlay.Face) {
				if text(t, f, "x") != "1" {
					t.Error("it is another layer")
				}
			})
		})
	}
}

func digestsOf(t testing.TB, b []byte) (hexDigest, digest string) {
	t.Helper()
	h, _, err := v1.SHA256(bytes.NewReader(b))
	must(t, err)
	return h.Hex, h.String()
}

// Files that are not what they say are refused, by name, and leave nothing.
func TestDamagedImports(t *testing.T) {
	good := zipped(t, reg("x", "1"))
	onLayer := func(change func(*v1.Descriptor)) func(string, *layout) {
		return func(stage string, l *layout) {
			if stage == "manifest" {
				change(&l.manifest.Layers[0])
			}
		}
	}
	onIndex := func(change func(*v1.IndexManifest)) func(string, *layout) {
		return func(stage string, l *layout) {
			if stage == "index" {
				change(&l.index)
			}
		}
	}
	zeros := strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		change func(string, *layout)
		want   error
	}{
		"size of a layer":    {onLayer(func(d *v1.Descriptor) { d.Size++ }), ErrDamaged},
		"negative size":      {onLayer(func(d *v1.Descriptor) { d.Size = -1 }), ErrLimit},
		"huge size":          {onLayer(func(d *v1.Descriptor) { d.Size = 1 << 60 }), ErrLimit},
		"digest of a layer":  {onLayer(func(d *v1.Descriptor) { d.Digest.Hex = zeros }), ErrDamaged},
		"digest of a path":   {onLayer(func(d *v1.Descriptor) { d.Digest.Hex = "../../index.json" }), ErrDamaged},
		"other digest":       {onLayer(func(d *v1.Descriptor) { d.Digest.Algorithm = "sha512" }), ErrDamaged},
		"type of a layer":    {onLayer(func(d *v1.Descriptor) { d.MediaType = "text/plain" }), oErrForeign},
		"layer of elsewhere": {onLayer(func(d *v1.Descriptor) { d.URLs = []string{"http://127.0.0.1/"} }), ErrHostile},
		"foreign layer":      {onLayer(func(d *v1.Descriptor) { d.MediaType = types.DockerForeignLayer }), ErrHostile},
		"unpacked digest": {func(s string, l *layout) {
			if s == "config" {
				l.config.RootFS.DiffIDs[0].Hex = zeros
			}
		}, ErrDamaged},
		"unpacked digest of a path": {func(s string, l *layout) {
			if s == "config" {
				l.config.RootFS.DiffIDs[0].Hex = "../../../" + zeros[9:]
			}
		}, ErrDamaged},
		"number of digests": {func(s string, l *layout) { l.config.RootFS.DiffIDs = nil }, ErrDamaged},
		"another platform":  {func(s string, l *layout) { l.config.Architecture = "vax" }, ErrPlatform},
		"no layers": {func(s string, l *layout) {
			if s == "config" {
				l.config.RootFS.DiffIDs = nil
			} else {
				l.manifest.Layers = nil
			}
		}, oErrForeign},
		"many layers": {func(s string, l *layout) {
			for range 1000 {
				if s == "config" {
					l.config.RootFS.DiffIDs = append(l.config.RootFS.DiffIDs, l.config.RootFS.DiffIDs[0])
				} else if s == "manifest" {
					l.manifest.Layers = append(l.manifest.Layers, l.manifest.Layers[0])
				}
			}
		}, ErrLimit},
		"a session": {func(s string, l *layout) {
			if s == "manifest" {
				l.manifest.Annotations = map[string]string{"io.github.galleyfs.galley.format": "1"}
			}
		}, ErrSession},
		"empty index": {onIndex(func(i *v1.IndexManifest) { i.Manifests = nil }), ErrPlatform},
		"two images":  {onIndex(func(i *v1.IndexManifest) { i.Manifests = append(i.Manifests, i.Manifests[0]) }), oErrForeign},
		"an index in itself": {onIndex(func(i *v1.IndexManifest) {
			i.Manifests[0].MediaType = types.OCIImageIndex
		}), ErrPlatform},
		"digest of the manifest": {onIndex(func(i *v1.IndexManifest) { i.Manifests[0].Digest.Hex = zeros }), ErrDamaged},
		"large manifest":         {onIndex(func(i *v1.IndexManifest) { i.Manifests[0].Size = 1 << 40 }), ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir := writeLayout(t, c.change, good)
			for _, from := range []string{dir, tarOfDir(t, dir)} {
				if _, err := w.images.Import(t.Context(), from, ImportOptions{}); !errors.Is(err, c.want) {
					t.Errorf("%s: %v, not %v", filepath.Base(from), err, c.want)
				} else if !strings.Contains(err.Error(), from) {
					t.Errorf("it does not name the file: %v", err)
				}
			}
			w.nothing()
		})
	}
	t.Run("blobs that are links and pipes", func(t *testing.T) {
		w := newWorld(t)
		dir := writeLayout(t, nil, good)
		blobs, err := filepath.Glob(filepath.Join(dir, dirBlobs, "*"))
		must(t, err)
		for _, b := range blobs {
			must(t, os.Rename(b, b+".moved"))
			must(t, os.Symlink(b+".moved", b))
		}
		if _, err := w.images.Import(t.Context(), dir, ImportOptions{}); !errors.Is(err, ErrHostile) {
			t.Error(err)
		}
		for _, b := range blobs {
			must(t, os.Remove(b))
			must(t, unix.Mkfifo(b, 0o600))
		}
		if _, err := w.images.Import(t.Context(), dir, ImportOptions{}); !errors.Is(err, ErrHostile) {
			t.Error(err)
		}
		w.nothing()
	})
	for name, entries := range map[string][]file{
		"no configuration": {reg("manifest.json", `[{"Config":"c.json","Layers":[]}]`)},
		"no layer":         {reg("manifest.json", `[{"Config":"c.json","Layers":["l.tar"]}]`), reg("c.json", `{"rootfs":{"diff_ids":[]}}`)},
		"no JSON":          {reg("manifest.json", "[")},
		"a path":           {reg("manifest.json", `[{"Config":"../../etc/passwd","Layers":["/etc/passwd"]}]`)},
	} {
		t.Run("docker archive, "+name, func(t *testing.T) {
			w := newWorld(t)
			path := filepath.Join(t.TempDir(), "saved.tar")
			must(t, os.WriteFile(path, plainTar(t, entries...), 0o644))
			if _, err := w.images.Import(t.Context(), path, ImportOptions{}); !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			w.nothing()
		})
	}
	t.Run("several in a docker archive", func(t *testing.T) {
		w := newWorld(t)
		path := filepath.Join(t.TempDir(), "saved.tar")
		must(t, os.WriteFile(path, plainTar(t, reg("manifest.json", `[{},{}]`)), 0o644))
		if _, err := w.images.Import(t.Context(), path, ImportOptions{}); !errors.Is(err, oci.ErrForeign) {
			t.Error(err)
		}
	})
	t.Run("a device", func(t *testing.T) {
		w := newWorld(t)
		if _, err := w.images.Import(t.Context(), "/dev/null", ImportOptions{}); !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
}

// A blob that a disk has damaged is told when it is needed, and found by gc.
func TestDamagedStore(t *testing.T) {
	w := newWorld(t)
	img, err := w.images.Import(t.Context(), writeLayout(t, nil, zipped(t, reg("x", "1"))), ImportOptions{Name: "it"})
	must(t, err)
	blob := filepath.Join(w.sessions.ImagesDir(), dirBlobs, img.manifest.Layers[0].Digest.Hex)
	b, err := os.ReadFile(blob)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(blob, b, 0o600))
	must(t, os.RemoveAll(filepath.Join(w.sessions.ImageLayersDir(), img.Layers[0].Chain)))
	if _, err := w.images.Root(t.Context(), img, nil); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "gc --verify") {
		t.Error(err)
	}
	// What an unpacking that was killed leaves goes, too.
	must(t, os.MkdirAll(filepath.Join(w.sessions.ImagesDir(), stagePrefix+"dead", "state", "layers"), 0o700))
	got, err := w.images.GC(t.Context(), GCOptions{Verify: true})
	if err != nil || got.Blobs != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(w.sessions.ImagesDir(), stagePrefix+"dead")); err == nil {
		t.Error("what was half made is left")
	}
	must(t, os.WriteFile(filepath.Join(w.sessions.ImagesDir(), namesFile), []byte("{"), 0o600))
	if _, err := w.images.List(); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// A user's file in an image may be anything.
func TestUserInHostileImage(t *testing.T) {
	w := newWorld(t)
	h := func(typ byte, name string) file {
		return file{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o644}}
	}
	for name, c := range map[string]struct {
		entries []file
		want    error
	}{
		"a pipe":                {[]file{dir("etc"), h(tar.TypeFifo, "etc/passwd")}, ErrHostile},
		"a directory":           {[]file{dir("etc"), dir("etc/passwd")}, ErrHostile},
		"a link that leads out": {[]file{dir("etc"), sym("etc/passwd", "../../../../etc/shadow"), reg("etc/shadow", "it:x:7:8::/:\n")}, nil},
		"a link in a circle":    {[]file{dir("etc"), sym("etc/passwd", "passwd")}, unix.ELOOP},
		"not there":             {[]file{dir("etc")}, ErrNoUser},
		"large":                 {[]file{dir("etc"), reg("etc/passwd", strings.Repeat("#\n", maxAccounts/2+1))}, ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := w.images.Import(t.Context(), writeLayout(t, nil, zipped(t, c.entries...)), ImportOptions{Name: "it"})
			must(t, err)
			w.look(w.session(img), func(f *overlay.Face) {
				u, err := UserIn(f, "it")
				if !errors.Is(err, c.want) || err == nil && u.UID != 7 {
					t.Errorf("%+v, %v", u, err)
				}
			})
		})
	}
}
