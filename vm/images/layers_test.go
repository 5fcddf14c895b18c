package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/treecmp"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots/oci"
)

// treeOf takes down what a face shows, as treecmp does of a directory.
func treeOf(t testing.TB, f *overlay.Face) treecmp.Tree {
	t.Helper()
	var out treecmp.Tree
	first := map[uint64]string{}
	for dirs := []string{""}; len(dirs) > 0; {
		at := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		n, a, err := f.Walk(at)
		must(t, err)
		if at == "" {
			out = append(out, entryOf(t, f, n, &a, "."))
		}
		must(t, f.ReadDir(n, 0, func(e overlay.DirEntry) bool {
			if e.Name != "." && e.Name != ".." {
				dirs = append(dirs, strings.TrimPrefix(at+"/"+e.Name, "/"))
			}
			return true
		}))
		f.Forget(n, 1)
		// Those that are no directories are described here, the others when it is
		// their turn.
		var sub []string
		for _, p := range dirs {
			if parentOf(p) != at {
				sub = append(sub, p)
				continue
			}
			n, a, err := f.Walk(p)
			must(t, err)
			out = append(out, entryOf(t, f, n, &a, p))
			if a.IsDir() {
				sub = append(sub, p)
			}
			f.Forget(n, 1)
		}
		dirs = sub
	}
	slices.SortFunc(out, func(a, b treecmp.Entry) int { return strings.Compare(a.Path, b.Path) })
	for i := range out {
		e := &out[i]
		if e.Nlink < 2 {
			continue
		}
		n, a, err := f.Walk(e.Path)
		must(t, err)
		f.Forget(n, 1)
		if p, ok := first[a.Ino]; ok {
			e.Linked = p
		} else {
			first[a.Ino] = e.Path
		}
	}
	return out
}

func entryOf(t testing.TB, f *overlay.Face, n *overlay.Node, a *overlay.Attr, path string) treecmp.Entry {
	t.Helper()
	e := treecmp.Entry{Path: path, Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime.Sec*1e9 + int64(a.Mtime.Nsec)}
	var err error
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size, e.Nlink = a.Size, uint64(a.Nlink)
		h := sha256.New()
		_, err = io.Copy(h, io.NewSectionReader(readerAt(func(p []byte, off int64) (int, error) {
			got, err := f.Read(n, p, off)
			if err == nil && got == 0 {
				err = io.EOF
			}
			return got, err
		}), 0, a.Size))
		e.Digest = hex.EncodeToString(h.Sum(nil))
	case unix.S_IFLNK:
		e.Nlink = uint64(a.Nlink)
		e.Target, err = f.Readlink(n)
	case unix.S_IFDIR:
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Nlink, e.Rdev = uint64(a.Nlink), a.Rdev
	default:
		e.Nlink = uint64(a.Nlink)
	}
	must(t, err)
	names, err := f.Listxattr(n)
	must(t, err)
	for _, name := range names {
		val, err := f.Getxattr(n, name)
		must(t, err)
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[name] = hex.EncodeToString(val)
	}
	return e
}

type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// layout writes an OCI layout of blobs as layers, whatever is in them. change
// may spoil the manifest, the configuration or the index.
type layout struct {
	layers   [][]byte
	config   v1.ConfigFile
	manifest v1.Manifest
	index    v1.IndexManifest
}

func writeLayout(t testing.TB, change func(stage string, l *layout), layers ...[]byte) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layout")
	must(t, os.MkdirAll(filepath.Join(out, dirBlobs), 0o755))
	blob := func(b []byte) v1.Descriptor {
		sum := sha256.Sum256(b)
		d := v1.Descriptor{Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
		must(t, os.WriteFile(filepath.Join(out, dirBlobs, d.Digest.Hex), b, 0o644))
		return d
	}
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		must(t, err)
		return b
	}
	want, err := parsePlatform("")
	must(t, err)
	l := &layout{layers: layers, config: v1.ConfigFile{OS: want.OS, Architecture: want.Architecture, RootFS: v1.RootFS{Type: "layers"}}}
	told := func(stage string) {
		if change != nil {
			change(stage, l)
		}
	}
	for _, b := range layers {
		plain := b
		if r, err := oci.Plain(bytes.NewReader(b)); err == nil {
			if all, err := io.ReadAll(io.LimitReader(r, 1<<26)); err == nil {
				plain = all
			}
		}
		sum := sha256.Sum256(plain)
		l.config.RootFS.DiffIDs = append(l.config.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])})
	}
	told("config")
	l.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: blob(marshal(l.config))}
	for _, b := range layers {
		d := blob(b)
		d.MediaType = types.OCILayer
		l.manifest.Layers = append(l.manifest.Layers, d)
	}
	told("manifest")
	md := blob(marshal(l.manifest))
	md.MediaType = types.OCIManifestSchema1
	l.index = v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{md}}
	told("index")
	must(t, os.WriteFile(filepath.Join(out, "index.json"), marshal(l.index), 0o644))
	must(t, os.WriteFile(filepath.Join(out, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return out
}

// outside lists all below a directory but the store.
func outside(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == filepath.Join(dir, "home") {
			return filepath.SkipDir
		}
		st, err := e.Info()
		if err == nil {
			fmt.Fprintln(&b, path, st.Mode(), st.ModTime(), st.Size())
		}
		return err
	}))
	return b.String()
}

// nothing fails unless the store has neither names nor layers nor what was being
// made.
func (w *world) nothing() {
	w.t.Helper()
	all, err := w.images.List()
	must(w.t, err)
	layers, err := os.ReadDir(w.sessions.ImageLayersDir())
	must(w.t, err)
	left, err := filepath.Glob(filepath.Join(w.sessions.ImagesDir(), stagePrefix+"*"))
	must(w.t, err)
	if len(all)+len(layers)+len(left) > 0 {
		w.t.Errorf("there are %d images, %d layers and, half made, %q", len(all), len(layers), left)
	}
}

type hostileCase struct {
	name    string
	entries []file
	want    error  // nil: it is taken
	there   string // a path that is then in the image
}

func hostileCases() []hostileCase {
	long := strings.Repeat("n", 256)
	h := func(typ byte, name string) file {
		return file{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o644}}
	}
	return []hostileCase{
		{"parent", []file{reg("../outside", "")}, ErrHostile, ""},
		{"parent in the middle", []file{reg("sub/../../outside", "")}, ErrHostile, ""},
		{"parent at the end", []file{dir("sub/..")}, ErrHostile, ""},
		{"parent of the root", []file{dir("..")}, ErrHostile, ""},
		{"absolute", []file{reg("/outside", "")}, nil, "outside"},
		{"absolute after dot", []file{reg(".//outside", "")}, nil, "outside"},
		{"dot in the middle", []file{dir("sub"), reg("sub/./x", "")}, nil, "sub/x"},
		{"root", []file{dir("."), dir("/"), reg("x", "")}, nil, "x"},
		{"file dot", []file{reg(".", "")}, ErrHostile, ""},
		{"link dot", []file{sym(".", "/")}, ErrHostile, ""},
		{"long name", []file{reg(long, "")}, ErrHostile, ""},
		{"long name of what has no entry", []file{reg(long+"/x", "")}, ErrHostile, ""},
		{"very long path", []file{reg(strings.Repeat("d/", 1<<15)+"f", "")}, ErrHostile, ""},
		{"whiteout of nothing", []file{reg(".wh.", "")}, ErrHostile, ""},
		{"whiteout of dot", []file{reg(".wh..", "")}, ErrHostile, ""},
		{"whiteout of parent", []file{reg(".wh...", "")}, ErrHostile, ""},
		{"whiteout outside", []file{reg("../.wh.project", "")}, ErrHostile, ""},
		{"whiteout below a whiteout", []file{reg(".wh.sub/x", "")}, ErrHostile, ""},
		{"whiteout with content", []file{reg("a", ""), reg(".wh.a", "abc"), reg("b", "")}, nil, "b"},
		{"whiteout of what is not there", []file{reg(".wh.a", ""), reg("no/.wh.b", ""), reg("b", "")}, nil, "b"},
		{"mark of aufs", []file{reg(".wh..wh.plnk", ""), reg("b", "")}, nil, "b"},
		{"opaque root", []file{reg("a", ""), reg(".wh..wh..opq", "")}, nil, "a"},
		{"opaque afterwards", []file{dir("sub"), reg("sub/x", ""), reg("sub/.wh..wh..opq", "")}, nil, "sub/x"},
		{"opaque file", []file{reg("a", ""), reg("a/.wh..wh..opq", "")}, ErrHostile, ""},
		{"twice", []file{reg("x", "1"), reg("x", "2")}, nil, "x"},
		{"twice, a directory", []file{dir("d"), reg("d/x", ""), dir("d")}, nil, "d/x"},
		{"a link in the place of a directory", []file{dir("d"), reg("d/x", ""), sym("d", "/"), reg("d/y", "")}, nil, "y"},
		{"below a symbolic link", []file{sym("s", "/"), reg("s/outside", "")}, nil, "outside"},
		{"below a link that leads up", []file{sym("s", "../../../.."), reg("s/x", "")}, nil, "x"},
		{"below a link of a link", []file{dir("d"), sym("s", "d"), sym("r", "/s"), reg("r/x", "")}, nil, "d/x"},
		{"below a link to proc", []file{sym("s", "/proc/self/root"), reg("s/x", "")}, nil, "proc/self/root/x"},
		{"below a link to itself", []file{sym("s", "s"), reg("s/x", "")}, unix.ELOOP, ""},
		{"below links in a circle", []file{sym("a", "b/c"), sym("b", "a"), reg("a/x", "")}, unix.ELOOP, ""},
		{"below a file", []file{reg("x", ""), reg("x/y", "")}, ErrHostile, ""},
		{"whiteout through a link", []file{sym("s", "/"), dir("etc"), reg("s/.wh.etc", ""), reg("b", "")}, nil, "b"},
		{"opaque through a link", []file{sym("s", "/"), reg("s/.wh..wh..opq", "")}, nil, "s"},
		{"below what is gone", []file{reg(".wh.sub", ""), reg("sub/x", "")}, nil, "sub/x"},
		{"hard link outside", []file{lnk("x", "../secret")}, ErrHostile, ""},
		{"hard link absolute", []file{lnk("x", "/etc/passwd")}, unix.ENOENT, ""},
		{"hard link to itself", []file{lnk("x", "x")}, ErrHostile, ""},
		{"hard link to itself through a link", []file{sym("s", "/"), reg("x", ""), lnk("s/x", "x")}, ErrHostile, ""},
		{"hard link to the root", []file{lnk("x", "/")}, ErrHostile, ""},
		{"hard link through a link", []file{sym("s", "/etc"), lnk("x", "s/passwd")}, unix.ENOENT, ""},
		{"hard link to a directory", []file{dir("sub"), lnk("x", "sub")}, ErrHostile, ""},
		{"hard link to nothing", []file{lnk("x", "nothing")}, unix.ENOENT, ""},
		{"hard link to a marker", []file{lnk("x", ".wh.y")}, ErrHostile, ""},
		{"hard link to a symbolic link", []file{sym("s", "/etc/passwd"), lnk("x", "s")}, nil, "x"},
		{"hard link before what it leads to", []file{lnk("x", "y"), reg("y", "")}, unix.ENOENT, ""},
		{"device", []file{h(tar.TypeChar, "null").with(func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 })}, nil, "null"},
		{"disk", []file{h(tar.TypeBlock, "sda").with(func(h *tar.Header) { h.Devmajor = 8 })}, nil, "sda"},
		{"whiteout device", []file{h(tar.TypeChar, "x")}, ErrHostile, ""},
		{"pipe", []file{h(tar.TypeFifo, "x")}, nil, "x"},
		{"contiguous file", []file{h(tar.TypeCont, "x")}, nil, "x"},
		{"unknown type", []file{h('Z', "x")}, ErrHostile, ""},
		{"overlay attribute", []file{dir("d").record("SCHILY.xattr.trusted.overlay.redirect", "/etc")}, ErrHostile, ""},
		{"user overlay attribute", []file{dir("d").record("SCHILY.xattr.user.overlay.opaque", "y")}, ErrHostile, ""},
		{"attribute without a name", []file{reg("x", "").record("SCHILY.xattr.", "y")}, ErrHostile, ""},
		{"attribute of a link", []file{sym("x", "y").record("SCHILY.xattr.user.x", "y")}, nil, "x"},
		{"large attribute", []file{reg("x", "").record("SCHILY.xattr.user.x", strings.Repeat("v", 64<<10+1))}, ErrHostile, ""},
		{"owner that is none", []file{reg("x", "").owned(1<<32-1, 0)}, ErrHostile, ""},
		{"owner beyond", []file{reg("x", "").owned(1<<33, 0)}, ErrHostile, ""},
		{"largest owner", []file{reg("x", "").owned(1<<32-2, 1<<32-2)}, nil, "x"},
		{"mode with a type", []file{reg("x", "").mode(0o100644)}, nil, "x"},
		{"set-user-id", []file{reg("x", "").mode(0o6777)}, nil, "x"},
		{"mode of nothing", []file{dir("d").mode(0), reg("d/x", "").mode(0)}, nil, "d/x"},
		{"escaped parent", []file{reg(".galley-name.2e2e", "")}, ErrHostile, ""},
		{"escaped slash", []file{reg(".galley-name.612f62", "")}, ErrHostile, ""},
		{"empty link", []file{sym("x", "")}, ErrHostile, ""},
		{"long link", []file{sym("x", strings.Repeat("t", 4096))}, ErrHostile, ""},
		{"newlines and escapes", []file{reg("a\n\x1b[2J", "")}, nil, "a\n\x1b[2J"},
		{"no UTF-8", []file{reg("a\xff\xfe", "")}, nil, "a\xff\xfe"},
	}
}

// Layers that ask for what leads outside are refused, or confined to the image,
// in one layer and spread over two; nothing else on the machine changes.
func TestHostileLayers(t *testing.T) {
	for _, c := range hostileCases() {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			must(t, os.WriteFile(filepath.Join(w.dir, "secret"), []byte("secret"), 0o600))
			before := outside(t, w.dir)
			img, err := w.images.Import(t.Context(), writeLayout(t, nil, zipped(t, c.entries...)), ImportOptions{Name: "it"})
			if !errors.Is(err, c.want) || err != nil && c.want == nil {
				t.Fatalf("%v, not %v", err, c.want)
			}
			if err != nil {
				w.nothing()
			} else {
				w.look(w.session(img), func(f *overlay.Face) {
					if _, _, err := f.Walk(c.there); err != nil {
						t.Errorf("%q: %v", c.there, err)
					}
					treeOf(t, f)
				})
			}
			for cut := 1; cut < len(c.entries) && (cut < 2 || !testing.Short()); cut++ {
				two := writeLayout(t, nil, zipped(t, c.entries[:cut]...), zipped(t, c.entries[cut:]...))
				img, err := w.images.Import(t.Context(), two, ImportOptions{Name: fmt.Sprint("split-", cut)})
				if err == nil {
					w.look(w.session(img), func(f *overlay.Face) { treeOf(t, f) })
				}
			}
			if after := outside(t, w.dir); before != after {
				t.Errorf("changed:\n%s\nnow:\n%s", before, after)
			}
			for _, p := range []string{"/outside", "/y"} {
				if _, err := os.Lstat(p); err == nil {
					t.Errorf("%s is there", p)
				}
			}
		})
	}
}

// Few bytes that unpack to very many, more entries than allowed, and layers
// larger than allowed are refused, early.
func TestBombs(t *testing.T) {
	zeros := func(n int64) []file {
		return []file{{tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: n}, strings.Repeat("\x00", int(n))}}
	}
	var many []file
	for i := range 600 {
		many = append(many, reg(fmt.Sprint("f", i), ""))
	}
	z, err := zstd.NewWriter(nil)
	must(t, err)
	small := Limits{Unpacked: oci.Limits{Bytes: 4 << 20, Files: 500}}
	for name, c := range map[string]struct {
		layer  []byte
		limits Limits
		want   error
	}{
		"gzip":    {zipped(t, zeros(8<<20)...), small, ErrLimit},
		"zstd":    {z.EncodeAll(plainTar(t, zeros(8<<20)...), nil), small, ErrLimit},
		"plain":   {plainTar(t, zeros(8<<20)...), small, ErrLimit},
		"entries": {zipped(t, many...), small, ErrLimit},
		// Directories that no entry names count, too, and so do their paths.
		"implied": {zipped(t, reg(strings.Repeat("a/", 600)+"f", "")), small, ErrLimit},
		"deep":    {zipped(t, reg(strings.Repeat("a/", 30000)+"f", "")), Limits{}, ErrLimit},
		"packed":  {plainTar(t, zeros(1<<20)...), Limits{Packed: 1 << 20}, ErrLimit},
		"xz":      {[]byte("\xfd7zXZ\x00 and so on"), Limits{}, oci.ErrForeign},
		"no tar":  {gzipOf(t, bytes.Repeat([]byte("no tar "), 200)), Limits{}, ErrDamaged},
		"cut off": {zipped(t, reg("x", "text"))[:40], Limits{}, ErrDamaged},
		"text":    {[]byte("not packed"), Limits{}, ErrDamaged},
		"nothing": {nil, Limits{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.images.Import(t.Context(), writeLayout(t, nil, c.layer), ImportOptions{Name: "bomb", Limits: c.limits})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, not %v", err, c.want)
			}
			if c.want != nil {
				w.nothing()
			}
		})
	}
}

// What GNU tar writes, in each of its formats and with holes, is unpacked as it
// is in the directory.
func TestTarFormats(t *testing.T) {
	w := newWorld(t)
	root := filepath.Join(w.dir, "root")
	deep := filepath.Join(root, strings.Repeat("directory/", 12))
	must(t, os.MkdirAll(deep, 0o750))
	must(t, os.WriteFile(filepath.Join(deep, strings.Repeat("long-name-", 9)), []byte("deep"), 0o640))
	must(t, os.WriteFile(filepath.Join(root, "file"), bytes.Repeat([]byte("text"), 5000), 0o4755))
	must(t, os.Link(filepath.Join(root, "file"), filepath.Join(root, "name")))
	must(t, os.Symlink("file", filepath.Join(root, "link")))
	must(t, unix.Mkfifo(filepath.Join(root, "pipe"), 0o622))
	f, err := os.Create(filepath.Join(root, "holes"))
	must(t, err)
	for _, off := range []int64{0, 1 << 20, 5<<20 + 123} {
		_, err := f.WriteAt([]byte("data"), off)
		must(t, err)
	}
	must(t, f.Truncate(9<<20))
	must(t, f.Close())
	must(t, unix.Chmod(filepath.Join(root, "directory"), 0o1777))
	want, err := treecmp.Read(root)
	must(t, err)
	for _, format := range []string{"--format=gnu", "--format=gnu -S", "--format=pax", "--format=pax -S", "--format=pax -S --sparse-version=0.1", "--format=oldgnu -S", "DIR"} {
		t.Run(format, func(t *testing.T) {
			from := root
			if format != "DIR" {
				from = filepath.Join(t.TempDir(), "root.tar")
				args := append(strings.Fields(format), "--numeric-owner", "-C", root, "-cf", from, ".")
				if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
					t.Fatalf("tar: %v\n%s", err, out)
				}
			}
			img, err := w.images.Import(t.Context(), from, ImportOptions{Name: "formats"})
			must(t, err)
			w.look(w.session(img), func(f *overlay.Face) {
				opt := treecmp.Options{}
				if strings.Contains(format, "gnu") {
					opt.AnyMtime = func(string) bool { return true } // whole seconds
				}
				for _, line := range treecmp.Diff(want, treeOf(t, f), opt) {
					t.Error(line)
				}
				n, a, err := f.Walk("holes")
				must(t, err)
				if a.Blocks*512 > 1<<20 {
					t.Errorf("a file of holes takes %d bytes", a.Blocks*512)
				}
				f.Forget(n, 1)
			})
		})
	}
}
