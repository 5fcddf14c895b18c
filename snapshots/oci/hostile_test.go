package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/snapshots"
)

func pack(t testing.TB, hdrs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	w := tar.NewWriter(zip)
	for _, h := range hdrs {
		h.Format = tar.FormatPAX
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		must(t, w.WriteHeader(&h))
		if h.Size > 0 {
			_, err := io.CopyN(w, zeroReader{}, h.Size)
			must(t, err)
		}
	}
	must(t, w.Close())
	must(t, zip.Close())
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func reg(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
}
func sym(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func lnk(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// forged writes a layout with one layer, and lets change its parts.
type forged struct {
	layer    []byte
	config   v1.ConfigFile
	manifest v1.Manifest
	index    v1.IndexManifest
}

func blobOf(dir string, b []byte) v1.Descriptor {
	c := newCounted(io.Discard)
	_, _ = c.Write(b)
	_ = os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755)
	_ = os.WriteFile(filepath.Join(dir, "blobs", "sha256", c.digest()), b, 0o644)
	return v1.Descriptor{Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: c.digest()}}
}

func forge(t testing.TB, base string, layer []byte, change func(stage string, f *forged)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	f := &forged{layer: layer}
	told := func(stage string) {
		if change != nil {
			change(stage, f)
		}
	}
	ld := blobOf(dir, layer)
	ld.MediaType = types.OCILayer
	ld.Annotations = map[string]string{annSnapshot: "1", annTime: time.Unix(1e9, 0).UTC().Format(time.RFC3339Nano)}
	plain := newCounted(io.Discard)
	if zip, err := gzip.NewReader(bytes.NewReader(layer)); err == nil {
		_, _ = io.CopyN(plain, zip, 1<<30)
	}
	f.config = v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{
		Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: plain.digest()}},
	}}
	told("config")
	b, err := json.Marshal(f.config)
	must(t, err)
	f.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: blobOf(dir, b),
		Layers: []v1.Descriptor{ld}, Annotations: map[string]string{
			annFormat: "1", annSession: "forged", annTree: snapshots.Workspace, annBase: base, annMount: base,
		}}
	told("manifest")
	b, err = json.Marshal(f.manifest)
	must(t, err)
	md := blobOf(dir, b)
	md.MediaType = types.OCIManifestSchema1
	f.index = v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{md}}
	told("index")
	must(t, writeJSON(filepath.Join(dir, "index.json"), f.index))
	must(t, writeJSON(filepath.Join(dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"}))
	return dir
}

// Layers that ask for what no export writes are refused, and nothing is changed:
// not outside, not in the base, not in the store.
func TestHostileLayers(t *testing.T) {
	type layer struct {
		name string
		hdrs []tar.Header
		want error
	}
	withRecord := func(h tar.Header, key, val string) tar.Header {
		h.PAXRecords = map[string]string{key: val}
		return h
	}
	with := func(h tar.Header, change func(*tar.Header)) tar.Header { change(&h); return h }
	long := strings.Repeat("n", 256)
	cases := []layer{
		{"parent", []tar.Header{reg("../outside")}, ErrHostile},
		{"parent in the middle", []tar.Header{reg("sub/../../outside")}, ErrHostile},
		{"parent at the end", []tar.Header{dir("sub/..")}, ErrHostile},
		{"parent of the root", []tar.Header{dir("..")}, ErrHostile},
		{"absolute", []tar.Header{reg("/outside")}, ErrHostile},
		{"absolute after dot", []tar.Header{reg(".//outside")}, ErrHostile},
		{"double slash", []tar.Header{reg("sub//x")}, ErrHostile},
		{"dot in the middle", []tar.Header{reg("sub/./x")}, ErrHostile},
		{"file dot", []tar.Header{reg(".")}, ErrHostile},
		{"link dot", []tar.Header{sym(".", "/")}, ErrHostile},
		{"long name", []tar.Header{reg(long)}, ErrHostile},
		{"very long path", []tar.Header{reg(strings.Repeat("d/", maxPath/2) + "f")}, ErrHostile},
		{"whiteout of nothing", []tar.Header{reg(".wh.")}, ErrHostile},
		{"whiteout of dot", []tar.Header{reg(".wh..")}, ErrHostile},
		{"whiteout of parent", []tar.Header{reg(".wh...")}, ErrHostile},
		{"whiteout outside", []tar.Header{reg("../.wh.project")}, ErrHostile},
		{"whiteout below a whiteout", []tar.Header{reg(".wh.sub/x")}, ErrHostile},
		{"whiteout with content", []tar.Header{with(reg(".wh.a"), func(h *tar.Header) { h.Size = 3 })}, ErrHostile},
		{"whiteout that is a directory", []tar.Header{dir(".wh.a")}, ErrHostile},
		{"whiteout that is a link", []tar.Header{sym(".wh.a", "/")}, ErrHostile},
		{"unknown marker", []tar.Header{reg(".wh..wh.plnk")}, ErrHostile},
		{"opaque root", []tar.Header{reg(opaqueMarker)}, ErrHostile},
		{"opaque afterwards", []tar.Header{dir("sub"), reg("sub/x"), reg("sub/" + opaqueMarker)}, ErrHostile},
		{"opaque file", []tar.Header{reg("a/" + opaqueMarker)}, ErrHostile},
		{"twice", []tar.Header{reg("x"), reg("x")}, ErrHostile},
		{"twice as whiteout", []tar.Header{reg("x"), reg(".wh.x")}, ErrHostile},
		{"twice in two spellings", []tar.Header{reg("x"), reg("./x")}, ErrHostile},
		{"below a symbolic link", []tar.Header{sym("s", "/"), reg("s/outside")}, ErrHostile},
		{"below a symbolic link of the base", []tar.Header{reg("link/x")}, ErrHostile},
		{"below a symbolic link in two spellings", []tar.Header{sym("s", ".."), dir("s/t")}, ErrHostile},
		{"below a file", []tar.Header{reg("x"), reg("x/y")}, ErrHostile},
		{"whiteout through a link", []tar.Header{sym("s", "/"), reg("s/.wh.etc")}, ErrHostile},
		{"opaque through a link", []tar.Header{sym("s", "/"), reg("s/" + opaqueMarker)}, ErrHostile},
		{"below what is gone", []tar.Header{reg(".wh.sub"), reg("sub/x")}, unix.ENOENT},
		{"hard link outside", []tar.Header{lnk("x", "../secret")}, ErrHostile},
		{"hard link absolute", []tar.Header{lnk("x", "/etc/passwd")}, ErrHostile},
		{"hard link to itself", []tar.Header{lnk("x", "x")}, ErrHostile},
		{"hard link through a link", []tar.Header{sym("s", "/etc"), lnk("x", "s/passwd")}, unix.ENOTDIR},
		{"hard link to a directory", []tar.Header{lnk("x", "sub")}, ErrHostile},
		{"hard link to nothing", []tar.Header{lnk("x", "nothing")}, unix.ENOENT},
		{"hard link to a marker", []tar.Header{lnk("x", ".wh.y")}, ErrHostile},
		{"device", []tar.Header{{Typeflag: tar.TypeChar, Name: "x", Devmajor: 1, Devminor: 3}}, ErrHostile},
		{"whiteout device", []tar.Header{{Typeflag: tar.TypeChar, Name: "x"}}, ErrHostile},
		{"reserved type", []tar.Header{{Typeflag: '7', Name: "x"}}, ErrHostile},
		{"overlay attribute", []tar.Header{withRecord(dir("d"), schilyXattr+"trusted.overlay.redirect", "/etc")}, ErrHostile},
		{"user overlay attribute", []tar.Header{withRecord(dir("d"), schilyXattr+"user.overlay.opaque", "y")}, ErrHostile},
		{"attribute without a name", []tar.Header{withRecord(reg("x"), schilyXattr, "y")}, ErrHostile},
		{"attribute in no hexadecimal", []tar.Header{withRecord(reg("x"), paxXattr+"zz", "00.")}, ErrDamaged},
		{"socket with content", []tar.Header{with(withRecord(reg("x"), paxSocket, "1"), func(h *tar.Header) { h.Size = 1 })}, ErrHostile},
		{"escaped parent", []tar.Header{reg(escapePrefix + "2e2e")}, ErrHostile},
		{"escaped slash", []tar.Header{reg(escapePrefix + "612f62")}, ErrHostile},
		{"escaped nothing", []tar.Header{reg(escapePrefix)}, ErrHostile},
		{"record that leads outside", []tar.Header{withRecord(reg("x"), paxWas, `{"path":"Li4vc2VjcmV0","exists":true}`)}, ErrHostile},
		{"record that is no JSON", []tar.Header{withRecord(reg("x"), paxWas, "{")}, ErrDamaged},
		{"large", []tar.Header{with(reg("x"), func(h *tar.Header) { h.Size = 2 << 20 })}, ErrLimit},
		{"many", many(600), ErrLimit},
	}
	w := newWorld(t)
	must(t, os.WriteFile(filepath.Join(w.dir, "secret"), []byte("secret"), 0o600))
	before := listing(t, w.dir)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			layout := forge(t, w.base, pack(t, c.hdrs...), nil)
			_, _, err := Import(t.Context(), w.store, layout, ImportOptions{Limits: Limits{Bytes: 2 << 20, Files: 500}})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, not %v", err, c.want)
			}
		})
	}
	w.nothingLeft("work")
	if after := listing(t, w.dir); before != after {
		t.Errorf("changed:\n%s\nnow:\n%s", before, after)
	}
}

func many(n int) (out []tar.Header) {
	for i := range n {
		out = append(out, reg("f"+strings.Repeat("x", i%200)+string(rune('a'+i%26))+strings.Repeat("y", i/200)))
	}
	return out
}

// listing is all below a directory but the store.
func listing(t testing.TB, dir string) string {
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == filepath.Join(dir, "home") {
			return filepath.SkipDir
		}
		st, err := e.Info()
		if err == nil {
			b.WriteString(path + " " + st.Mode().String() + " " + st.ModTime().String() + "\n")
		}
		return err
	}))
	return b.String()
}

// Layouts that are not what they say are refused, and nothing is changed.
func TestDamagedLayouts(t *testing.T) {
	w := newWorld(t)
	good := pack(t, reg("x"))
	annotate := func(key, val string) func(string, *forged) {
		return func(stage string, f *forged) {
			if stage == "manifest" {
				f.manifest.Annotations[key] = val
			}
		}
	}
	onLayer := func(change func(*v1.Descriptor)) func(string, *forged) {
		return func(stage string, f *forged) {
			if stage == "manifest" {
				change(&f.manifest.Layers[0])
			}
		}
	}
	onIndex := func(change func(*v1.IndexManifest)) func(string, *forged) {
		return func(stage string, f *forged) {
			if stage == "index" {
				change(&f.index)
			}
		}
	}
	zeros := hex64("0")
	cases := []struct {
		name   string
		layer  []byte
		change func(string, *forged)
		want   error
	}{
		{"newer", good, annotate(annFormat, "2"), overlay.ErrFormat},
		{"no number", good, annotate(annFormat, "x"), ErrDamaged},
		{"another image", good, func(s string, f *forged) { delete(f.manifest.Annotations, annFormat) }, ErrForeign},
		{"no workspace", good, annotate(annTree, "other"), ErrForeign},
		{"base in the store", good, annotate(annBase, w.store.Home()), snapshots.ErrBadBase},
		{"no base", good, annotate(annBase, "relative"), ErrDamaged},
		{"rules", good, annotate(annRules, "["), ErrDamaged},
		{"size of a layer", good, onLayer(func(d *v1.Descriptor) { d.Size++ }), ErrDamaged},
		{"negative size", good, onLayer(func(d *v1.Descriptor) { d.Size = -1 }), ErrDamaged},
		{"digest of a layer", good, onLayer(func(d *v1.Descriptor) { d.Digest.Hex = zeros }), ErrDamaged},
		{"digest that is a path", good, onIndex(func(i *v1.IndexManifest) { i.Manifests[0].Digest.Hex = "../../index.json" }), ErrDamaged},
		{"type of a layer", good, onLayer(func(d *v1.Descriptor) { d.MediaType = "text/plain" }), ErrForeign},
		{"number of a snapshot", good, onLayer(func(d *v1.Descriptor) { d.Annotations[annSnapshot] = "-1" }), ErrDamaged},
		{"time of a snapshot", good, onLayer(func(d *v1.Descriptor) { d.Annotations[annTime] = "yesterday" }), ErrDamaged},
		{"name of a snapshot", good, onLayer(func(d *v1.Descriptor) { d.Annotations[annName] = "../x" }), snapshots.ErrBadName},
		{"cause of a snapshot", good, onLayer(func(d *v1.Descriptor) { d.Annotations[annCause] = "{" }), ErrDamaged},
		{"two of one number", good, func(s string, f *forged) {
			if s == "config" {
				f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, f.config.RootFS.DiffIDs[0])
			} else if s == "manifest" {
				f.manifest.Layers = append(f.manifest.Layers, f.manifest.Layers[0])
			}
		}, ErrDamaged},
		{"unpacked digest", good, func(s string, f *forged) {
			if s == "config" {
				f.config.RootFS.DiffIDs[0].Hex = zeros
			}
		}, ErrDamaged},
		{"number of digests", good, func(s string, f *forged) { f.config.RootFS.DiffIDs = nil }, ErrDamaged},
		{"empty index", good, onIndex(func(i *v1.IndexManifest) { i.Manifests = nil }), ErrForeign},
		{"many images", good, onIndex(func(i *v1.IndexManifest) {
			for range maxImages {
				i.Manifests = append(i.Manifests, i.Manifests[0])
			}
		}), ErrForeign},
		{"one tree twice", good, onIndex(func(i *v1.IndexManifest) { i.Manifests = append(i.Manifests, i.Manifests[0]) }), ErrDamaged},
		{"an index in itself", good, onIndex(func(i *v1.IndexManifest) { i.Manifests[0].MediaType = types.OCIImageIndex }), ErrForeign},
		{"truncated", good[:len(good)-20], nil, ErrDamaged},
		{"no gzip", []byte("not packed"), nil, ErrDamaged},
		{"empty layer", nil, nil, ErrDamaged},
		{"no tar", gzipped(t, bytes.Repeat([]byte("no tar "), 200)), nil, ErrDamaged},
		{"bomb", gzipped(t, make([]byte, 8<<20)), nil, ErrLimit},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			layout := forge(t, w.base, c.layer, c.change)
			_, _, err := Import(t.Context(), w.store, layout, ImportOptions{Limits: Limits{Bytes: 4 << 20}})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, not %v", err, c.want)
			}
		})
	}
	t.Run("blob that is a link", func(t *testing.T) {
		layout := forge(t, w.base, good, nil)
		blobs, err := filepath.Glob(filepath.Join(layout, "blobs", "sha256", "*"))
		must(t, err)
		for _, b := range blobs {
			must(t, os.Rename(b, b+".moved"))
			must(t, os.Symlink(b+".moved", b))
		}
		if _, _, err := Import(t.Context(), w.store, layout, ImportOptions{}); !errors.Is(err, unix.ELOOP) {
			t.Error(err)
		}
	})
	t.Run("blob that is a pipe", func(t *testing.T) {
		layout := forge(t, w.base, good, nil)
		blobs, err := filepath.Glob(filepath.Join(layout, "blobs", "sha256", "*"))
		must(t, err)
		for _, b := range blobs {
			must(t, os.Remove(b))
			must(t, unix.Mkfifo(b, 0o600))
		}
		if _, _, err := Import(t.Context(), w.store, layout, ImportOptions{}); !errors.Is(err, ErrHostile) {
			t.Error(err)
		}
	})
	t.Run("no layout", func(t *testing.T) {
		if _, _, err := Import(t.Context(), w.store, t.TempDir(), ImportOptions{}); !errors.Is(err, ErrForeign) {
			t.Error(err)
		}
	})
	w.nothingLeft("work")
}

func hex64(s string) string { return strings.Repeat(s, 64) }

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	_, err := zip.Write(b)
	must(t, errors.Join(err, zip.Close()))
	return out.Bytes()
}

// Few bytes that unpack to very many are refused long before they are all read.
func TestBombIsRefused(t *testing.T) {
	if testing.Short() {
		t.Log("the ratio is looked at above 256 MiB only")
	}
	bomb := pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: ratioFree + 64<<20})
	_, err := readLayer(bytes.NewReader(bomb), &budget{1 << 40, 100}, func(_ *item, content io.Reader) error {
		_, err := io.Copy(io.Discard, content)
		return err
	})
	if !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
}

func FuzzLayer(f *testing.F) {
	for _, hdrs := range [][]tar.Header{
		{dir("d"), reg("d/x"), lnk("d/y", "d/x"), sym("s", "d")}, {reg(".wh.a"), reg("../x")},
		{dir("sub"), reg("sub/" + opaqueMarker), reg("sub/" + escapePrefix + "2e")},
	} {
		f.Add(unzipped(f, pack(f, hdrs...)))
	}
	w := newWorld(f)
	before := listing(f, w.dir)
	f.Fuzz(func(t *testing.T, plain []byte) {
		if len(plain) > 64<<10 {
			return
		}
		// A tree of its own: a session costs a sync of the whole file system.
		state := t.TempDir()
		must(t, overlay.InitState(hostfs.OS, state, 1))
		base, err := overlay.OpenBase(hostfs.OS, w.base)
		must(t, err)
		tree, err := overlay.Open(overlay.Config{Name: "fuzz", StateDir: state, Base: base, NoWatch: true}, overlay.Stack{Active: 1})
		must(t, err)
		face := tree.Attach(nil)
		a := &applier{f: face, report: &Report{}, compared: map[string]bool{}}
		_, err = readLayer(bytes.NewReader(gzipped(t, plain)), &budget{1 << 20, 100}, a.item)
		if err == nil {
			_ = a.endLayer()
		}
		_ = picture(t, face)
		face.Detach()
		must(t, tree.Close())
		if after := listing(t, w.dir); before != after {
			t.Fatalf("changed:\n%s\nnow:\n%s", before, after)
		}
	})
}

func unzipped(t testing.TB, b []byte) []byte {
	zip, err := gzip.NewReader(bytes.NewReader(b))
	must(t, err)
	out, err := io.ReadAll(zip)
	must(t, err)
	return out
}

// FuzzLayout reads an index, a manifest and a configuration that somebody wrote.
func FuzzLayout(f *testing.F) {
	w := newWorld(f)
	layer := pack(f, reg("x"))
	seed := forge(f, w.base, layer, nil)
	ix, err := os.ReadFile(filepath.Join(seed, "index.json"))
	must(f, err)
	f.Add(ix, []byte(`{"schemaVersion":2,"annotations":{"`+annFormat+`":"1"}}`), []byte(`{"rootfs":{"type":"layers"}}`))
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		dir := t.TempDir()
		cd, md := blobOf(dir, config), blobOf(dir, manifest)
		_ = blobOf(dir, layer)
		l, err := openLayoutFiles(t, dir, index)
		must(t, err)
		defer l.Close()
		_, _ = l.imagesOf(index)
		md.MediaType = types.OCIManifestSchema1
		var m v1.Manifest
		if json.Unmarshal(manifest, &m) == nil {
			m.Config = cd
			if b, err := json.Marshal(m); err == nil {
				md = blobOf(dir, b)
			}
		}
		_, _ = l.image(md)
	})
}

func openLayoutFiles(t testing.TB, dir string, index []byte) (*source, error) {
	must(t, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644))
	must(t, writeJSON(filepath.Join(dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"}))
	return openLayout(dir)
}
