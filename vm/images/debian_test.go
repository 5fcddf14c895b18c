package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/treecmp"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/vm/images/imagestest"
)

// part is the beginning of a tar, in a file of the test's own: all of it, or in
// short mode what tells the same in less time.
func part(t testing.TB, path string) string {
	t.Helper()
	if !testing.Short() {
		return path
	}
	in, err := os.Open(path)
	must(t, err)
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "part.tar"))
	must(t, err)
	defer out.Close()
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for range 700 {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		must(t, w.WriteHeader(h))
		_, err = io.Copy(w, r)
		must(t, err)
	}
	must(t, w.Close())
	return out.Name()
}

// treeOfTar is what a tar says that a tree is, read by nothing of Galley's: as
// root by GNU tar and the kernel, else by its headers.
func treeOfTar(t testing.TB, path string) treecmp.Tree {
	t.Helper()
	if os.Geteuid() == 0 {
		root := filepath.Join(t.TempDir(), "reference")
		must(t, os.Mkdir(root, 0o755))
		cmd := exec.Command("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", path, "-C", root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
		tree, err := treecmp.Read(root)
		must(t, err)
		return tree
	}
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	at := map[string]int{}
	var tree treecmp.Tree
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
		if name == "" {
			name = "."
		}
		if h.Typeflag == tar.TypeLink {
			to := strings.TrimPrefix(h.Linkname, "./")
			e := tree[at[to]]
			e.Path = name
			at[name] = len(tree)
			tree = append(tree, e)
			same := []int{}
			for i, o := range tree {
				if o.Digest == e.Digest && (o.Path == to || o.Path == name || o.Linked == to) {
					same = append(same, i)
				}
			}
			for _, i := range same {
				tree[i].Nlink = uint64(len(same))
				if tree[i].Path != to {
					tree[i].Linked = to
				}
			}
			continue
		}
		e := treecmp.Entry{Path: name, Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), Mtime: h.ModTime.UnixNano(), Nlink: 1}
		switch h.Typeflag {
		case tar.TypeDir:
			e.Mode, e.Nlink = e.Mode|unix.S_IFDIR, 0
		case tar.TypeSymlink:
			e.Mode, e.Target = unix.S_IFLNK|0o777, h.Linkname
		case tar.TypeChar:
			e.Mode, e.Rdev = e.Mode|unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		case tar.TypeReg:
			e.Mode, e.Size = e.Mode|unix.S_IFREG, h.Size
			sum := sha256.New()
			_, err := io.Copy(sum, r)
			must(t, err)
			e.Digest = hex.EncodeToString(sum.Sum(nil))
		default:
			t.Fatalf("%s is of type %c", h.Name, h.Typeflag)
		}
		for key, val := range h.PAXRecords {
			if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				if e.Xattrs == nil {
					e.Xattrs = map[string]string{}
				}
				e.Xattrs[attr] = hex.EncodeToString([]byte(val))
			}
		}
		at[name] = len(tree)
		tree = append(tree, e)
	}
	slices.SortFunc(tree, func(a, b treecmp.Entry) int { return strings.Compare(a.Path, b.Path) })
	return tree
}

// A Debian made of its packages goes into a registry and comes out of it as the
// tree that it was, and what a session does to it becomes an image that another
// registry takes.
func TestDebian(t *testing.T) {
	debian := part(t, imagestest.Debian(t))
	want := treeOfTar(t, debian)
	base, err := tarball.LayerFromFile(debian, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	must(t, err)
	busybox, err := tarball.LayerFromFile(imagestest.Busybox(t))
	must(t, err)
	w := newWorld(t)
	host := newRegistry(t)
	push(t, host+"/debian:mini", imageOf(t, v1.Config{Cmd: []string{"/bin/bash"}}, base))
	img, err := w.images.Pull(t.Context(), host+"/debian:mini", PullOptions{})
	must(t, err)
	sess := w.session(img)
	w.look(sess, func(f *overlay.Face) {
		for i, line := range treecmp.Diff(want, treeOf(t, f), treecmp.Options{}) {
			if t.Error(line); i > 20 {
				break
			}
		}
		if u, err := UserIn(f, "www-data"); err != nil || u.UID != 33 || u.Home != "/var/www" {
			t.Errorf("%+v, %v", u, err)
		}
	})
	// The same below another layer, which is all that is unpacked for it.
	push(t, host+"/debian:box", imageOf(t, v1.Config{}, base, busybox))
	fetched := int64(0)
	box, err := w.images.Pull(t.Context(), host+"/debian:box", PullOptions{Progress: func(p Progress) {
		if p.Stage == "unpack" {
			fetched = p.Done
		}
	}})
	must(t, err)
	if box.Layers[0].Chain != img.Layers[0].Chain || fetched > 8<<20 {
		t.Errorf("%d bytes were unpacked for a layer of Busybox", fetched)
	}
	w.look(w.session(box), func(f *overlay.Face) {
		if u, err := UserIn(f, "app:log"); err != nil || u.UID != 1000 || u.GID != 4 {
			t.Errorf("%+v, %v", u, err)
		}
	})
	snap := w.work(sess, func(f *overlay.Face) {
		write(t, f, "etc/motd", "changed")
		unlink(t, f, "etc/debian_version")
	})
	mine, err := w.images.From(t.Context(), sess, snap, "mine", FromOptions{})
	must(t, err)
	w.look(w.session(mine), func(f *overlay.Face) {
		got := treeOf(t, f)
		changed := treecmp.Diff(want, got, treecmp.Options{AnyMtime: func(p string) bool { return p == "etc" }})
		for _, line := range changed {
			if !strings.HasPrefix(line, "etc/motd:") && !strings.HasPrefix(line, "etc/debian_version:") {
				t.Error(line)
			}
		}
	})
}

// A layer of more than two GiB is unpacked whole, and what is zero in it takes no
// place.
func TestLargeLayer(t *testing.T) {
	size := int64(2<<30 + 300<<20)
	if testing.Short() {
		size = 48 << 20
	}
	// Every 1 MiB has 8 KiB of what does not compress, and its number.
	block := func(i int64) []byte {
		b := make([]byte, 8<<10)
		_, _ = rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b) // cannot fail
		binary.LittleEndian.PutUint64(b, uint64(i))
		return b
	}
	var packed bytes.Buffer
	diff := sha256.New()
	zeros := make([]byte, 1<<20-8<<10)
	hole := gzipOf(t, zeros)
	member := func(b []byte) { // of a gzip file of several: the holes are packed once
		_, _ = diff.Write(b)
		z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
		must(t, err)
		_, err = z.Write(b)
		must(t, err)
		must(t, z.Close())
	}
	var header bytes.Buffer
	tw := tar.NewWriter(&header)
	must(t, tw.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: size, ModTime: day}))
	member(header.Bytes())
	for i := range size >> 20 {
		member(block(i))
		_, _ = diff.Write(zeros)
		packed.Write(hole)
	}
	member(make([]byte, 1024))
	img, err := importPacked(t, packed.Bytes(), diff)
	must(t, err)
	img.w.look(img.w.session(img.Image), func(f *overlay.Face) {
		n, a, err := f.Walk("large")
		must(t, err)
		if a.Size != size || a.Blocks*512 > size/16 {
			t.Errorf("%d bytes, of which %d take place", a.Size, a.Blocks*512)
		}
		got := make([]byte, 8<<10)
		for _, i := range []int64{0, 1, size>>21 + 1, size>>20 - 1} {
			if _, err := f.Read(n, got, i<<20); err != nil || !bytes.Equal(got, block(i)) {
				t.Errorf("at MiB %d: %v", i, err)
			}
			if _, err := f.Read(n, got, i<<20+64<<10); err != nil || len(bytes.Trim(got, "\x00")) > 0 {
				t.Errorf("after MiB %d it is not zero: %v", i, err)
			}
		}
	})
}

type imported struct {
	*Image
	w *world
}

func importPacked(t testing.TB, packed []byte, diff hash.Hash) (imported, error) {
	w := newWorld(t)
	dir := writeLayout(t, func(stage string, l *layout) {
		if stage == "config" {
			l.config.RootFS.DiffIDs = []v1.Hash{{Algorithm: "sha256", Hex: hex.EncodeToString(diff.Sum(nil))}}
		}
	}, packed)
	img, err := w.images.Import(t.Context(), dir, ImportOptions{Name: "large"})
	if err == nil && img == nil {
		err = errors.New("no image")
	}
	return imported{img, w}, err
}
