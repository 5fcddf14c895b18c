package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots/oci"
)

// ImportOptions says how [Store.Import] reads; the zero value is the default.
type ImportOptions struct {
	// Name that the image gets; empty is the one in the file, or one made from
	// the file's.
	Name     string
	Platform string
	Limits   Limits
	Progress func(Progress)
}

// Import reads an image from a file or a directory: what docker save writes, an
// OCI layout in a directory or a tar, or the file system of something, in a
// directory or a tar. The tar may be compressed with gzip or zstd.
func (s *Store) Import(ctx context.Context, file string, opt ImportOptions) (*Image, error) {
	release, err := s.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	img, err := s.importFile(ctx, file, opt)
	if err != nil {
		return nil, fmt.Errorf("import %q: %w", file, err)
	}
	return img, nil
}

func (s *Store) importFile(ctx context.Context, file string, opt ImportOptions) (*Image, error) {
	want, err := parsePlatform(opt.Platform)
	if err != nil {
		return nil, err
	}
	stamp, err := stampOf(file)
	if err != nil {
		return nil, err
	}
	im := &importer{
		ctx: ctx, s: s, opt: opt, want: want, limits: opt.Limits.withDefaults(),
		rec: record{Platform: want.String(), Stamp: stamp}, given: opt.Name, file: file,
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	var digest string
	switch {
	case st.IsDir():
		digest, err = im.dir(file)
	case st.Mode().IsRegular():
		digest, err = im.tar(file)
	default:
		err = fmt.Errorf("neither a file nor a directory: %w", unix.EINVAL)
	}
	if err != nil {
		return nil, err
	}
	return im.finish(digest)
}

// stampOf tells a file from what it is after a change; that of a directory is
// empty, for what changes below it does not show.
func stampOf(file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(abs, &st); err != nil {
		return "", fmt.Errorf("image %q: %w", file, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "", nil
	}
	return fmt.Sprintf("%s %d:%d %d %d.%d", abs, st.Dev, st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec), nil
}

type importer struct {
	ctx    context.Context
	s      *Store
	opt    ImportOptions
	want   v1.Platform
	limits Limits
	rec    record
	given  string // name that was asked for
	file   string
	tell   *teller
}

// finish checks the image and gives it its name.
func (im *importer) finish(digest string) (*Image, error) {
	img, err := im.s.load(digest)
	if err != nil {
		return nil, err
	}
	if isSession(img.manifest.Annotations) {
		return nil, fmt.Errorf("%w; galley import takes it", ErrSession)
	}
	if err := img.checkPlatform(im.want); err != nil {
		return nil, err
	}
	if err := checkLayers(img.manifest, im.limits); err != nil {
		return nil, err
	}
	for _, l := range img.Layers {
		if h, _ := hexOf(l.Digest); !im.s.hasBlob(h, l.Size) {
			return nil, fmt.Errorf("layer %s is missing in it: %w", l.Digest, ErrDamaged)
		}
	}
	full, err := im.name()
	if err != nil {
		return nil, err
	}
	if _, err := im.s.unpack(im.ctx, img, im.limits, im.opt.Progress); err != nil {
		return nil, err
	}
	im.rec.Name, im.rec.Digest = full, digest
	if err := im.s.put(im.rec); err != nil {
		return nil, err
	}
	img.Name, img.Source = short(full), im.rec.Source
	return img, nil
}

// name is the one asked for, the one in the file, or one like the file's.
func (im *importer) name() (string, error) {
	for _, n := range []string{im.given, im.rec.Name} {
		if n == "" {
			continue
		}
		r, err := ParseName(n)
		if err == nil {
			return r.Name(), nil
		}
		if n == im.given {
			return "", err
		}
	}
	abs, err := filepath.Abs(im.file)
	if err != nil {
		return "", err
	}
	base := strings.ToLower(filepath.Base(abs))
	for _, ext := range []string{".gz", ".tgz", ".zst", ".zstd", ".tar", ".oci"} {
		base = strings.TrimSuffix(base, ext)
	}
	clean := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, base), "-_.")
	if clean == "" {
		clean = "image"
	}
	r, err := ParseName(clean)
	if err != nil {
		return "", fmt.Errorf("%w; give the image a name", err)
	}
	return r.Name(), nil
}

// dir reads a layout, or the file system, in a directory.
func (im *importer) dir(dir string) (string, error) {
	if _, err := os.Lstat(filepath.Join(dir, "oci-layout")); err != nil {
		im.rec.Source = "rootfs"
		return im.rootDir(dir)
	}
	im.rec.Source = "oci"
	index, err := readSmall(filepath.Join(dir, "index.json"))
	if err != nil {
		return "", err
	}
	return im.layout(index, func(d v1.Descriptor) error {
		h, err := hexOf(d.Digest.String())
		if err != nil || im.s.hasBlob(h, d.Size) {
			return err
		}
		f, err := openRegular(filepath.Join(dir, dirBlobs, h))
		if err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
		defer f.Close()
		_, _, err = im.s.putBlob(im.reading(f), h, d.Size)
		return err
	})
}

// reading reports what is read of r.
func (im *importer) reading(r io.Reader) io.Reader {
	if im.tell == nil {
		im.tell = &teller{fn: im.opt.Progress, stage: "read"}
	}
	return io.TeeReader(r, writerFunc(func(p []byte) (int, error) {
		im.tell.add(int64(len(p)))
		return len(p), context.Cause(im.ctx)
	}))
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// openRegular opens a file that is no link and no device.
func openRegular(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("a link: %w", ErrHostile)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	f := os.NewFile(uintptr(fd), path)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, fmt.Errorf("no regular file: %w", ErrHostile)
	}
	return f, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readUpTo(f, maxJSON)
}

func readUpTo(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes: %w", limit, ErrLimit)
	}
	return b, err
}

// layout chooses the image of a layout's index and brings its blobs by bring.
func (im *importer) layout(index []byte, bring func(v1.Descriptor) error) (string, error) {
	d, err := im.chooseImage(index, bring, 0)
	if err != nil {
		return "", err
	}
	if n := d.Annotations["org.opencontainers.image.ref.name"]; n != "" && strings.ContainsAny(n, ":/") {
		im.rec.Name = n
	}
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		im.rec.Name = n
	}
	text, err := im.bringSmall(d, bring)
	if err != nil {
		return "", err
	}
	m, err := parseManifest(text)
	if err != nil {
		return "", err
	}
	if err := checkLayers(m, im.limits); err != nil {
		return "", err
	}
	for _, b := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := bring(b); err != nil {
			return "", err
		}
	}
	return d.Digest.String(), nil
}

func (im *importer) bringSmall(d v1.Descriptor, bring func(v1.Descriptor) error) ([]byte, error) {
	if d.Size < 0 || d.Size > maxJSON {
		return nil, fmt.Errorf("blob %s of %d bytes: %w", d.Digest, d.Size, ErrLimit)
	}
	if err := bring(d); err != nil {
		return nil, err
	}
	return im.s.small(d.Digest.String(), d.Size)
}

// maxNested is how many indexes lie in each other at most.
const maxNested = 3

func (im *importer) chooseImage(index []byte, bring func(v1.Descriptor) error, depth int) (v1.Descriptor, error) {
	ix, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("index: %w: %w", ErrDamaged, err)
	}
	if len(ix.Manifests) == 1 && ix.Manifests[0].MediaType.IsIndex() {
		if depth == maxNested {
			return v1.Descriptor{}, fmt.Errorf("more than %d indexes in each other: %w", maxNested, ErrHostile)
		}
		inner, err := im.bringSmall(ix.Manifests[0], bring)
		if err != nil {
			return v1.Descriptor{}, err
		}
		d, err := im.chooseImage(inner, bring, depth+1)
		if d.Annotations == nil {
			d.Annotations = ix.Manifests[0].Annotations
		}
		return d, err
	}
	var names []string
	for _, d := range ix.Manifests {
		if d.MediaType.IsImage() && d.Platform == nil {
			names = append(names, d.Annotations["org.opencontainers.image.ref.name"])
		}
	}
	if len(names) > 1 {
		return v1.Descriptor{}, fmt.Errorf("it holds %d images (%s), and one is expected: %w", len(names), strings.Join(names, ", "), oci.ErrForeign)
	}
	return chooseIn(index, im.want)
}

// tarKind is what a tar holds.
type tarKind struct {
	layout, docker bool
	index          []byte
	manifest       []byte // of docker save
	diffID         string // of the whole tar, unpacked
	entries        int
}

// tar reads an image from a file.
func (im *importer) tar(file string) (string, error) {
	f, err := openTar(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	kind, err := im.look(f)
	if err != nil {
		return "", err
	}
	again := func() (io.ReadCloser, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return oci.Plain(f)
	}
	switch {
	case kind.layout:
		im.rec.Source = "oci"
		if err := im.blobsOf(again); err != nil {
			return "", err
		}
		return im.layout(kind.index, func(d v1.Descriptor) error {
			h, err := hexOf(d.Digest.String())
			if err == nil && !im.s.hasBlob(h, d.Size) {
				err = fmt.Errorf("blob %s of %d bytes is not in it: %w", d.Digest, d.Size, ErrDamaged)
			}
			return err
		})
	case kind.docker:
		im.rec.Source = "docker-archive"
		return im.dockerArchive(kind.manifest, again)
	case kind.entries == 0:
		return "", fmt.Errorf("an empty tar: %w", ErrDamaged)
	}
	im.rec.Source = "rootfs"
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	blob, size, err := im.s.putBlob(im.reading(f), "", -1)
	if err != nil {
		return "", err
	}
	return im.single(blob, size, kind.diffID)
}

func openTar(file string) (*os.File, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// look reads through a tar once and finds out what it holds.
func (im *importer) look(f io.Reader) (*tarKind, error) {
	plain, err := oci.Plain(im.reading(f))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	k, h := &tarKind{}, sha256.New()
	r := io.TeeReader(bufio.NewReaderSize(plain, 256<<10), h)
	for t := tar.NewReader(r); ; {
		hdr, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("no tar: %w: %w", ErrDamaged, err)
		}
		k.entries++
		switch name := strings.TrimPrefix(hdr.Name, "./"); {
		case hdr.Typeflag != tar.TypeReg:
		case name == "oci-layout":
			k.layout = true
		case name == "index.json":
			if k.index, err = readUpTo(t, maxJSON); err != nil {
				return nil, fmt.Errorf("index.json: %w", err)
			}
		case name == "manifest.json":
			k.docker = true
			if k.manifest, err = readUpTo(t, maxJSON); err != nil {
				return nil, fmt.Errorf("manifest.json: %w", err)
			}
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	k.layout = k.layout && k.index != nil
	k.diffID = hex.EncodeToString(h.Sum(nil))
	return k, nil
}

// blobsOf keeps all blobs in the tar of a layout. Those that the image does not
// name go with the next gc.
func (im *importer) blobsOf(open func() (io.ReadCloser, error)) error {
	left := im.limits.Packed
	return eachEntry(open, func(hdr *tar.Header, r io.Reader) error {
		h, ok := strings.CutPrefix(strings.TrimPrefix(hdr.Name, "./"), dirBlobs+"/")
		if !ok || hdr.Typeflag != tar.TypeReg {
			return nil
		}
		if _, err := hexOf("sha256:" + h); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
		if left -= hdr.Size; left < 0 {
			return fmt.Errorf("entry %q: more than %d bytes: %w", hdr.Name, im.limits.Packed, ErrLimit)
		}
		if im.s.hasBlob(h, hdr.Size) {
			return nil
		}
		_, _, err := im.s.putBlob(r, h, hdr.Size)
		return err
	})
}

func eachEntry(open func() (io.ReadCloser, error), fn func(*tar.Header, io.Reader) error) error {
	plain, err := open()
	if err != nil {
		return err
	}
	defer plain.Close()
	for t := tar.NewReader(plain); ; {
		hdr, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err := fn(hdr, t); err != nil {
			return err
		}
	}
}

// dockerManifest is an element of the manifest.json that docker save writes.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerArchive keeps the layers of what docker save wrote, plain as they are.
func (im *importer) dockerArchive(manifest []byte, open func() (io.ReadCloser, error)) (string, error) {
	var list []dockerManifest
	if err := json.Unmarshal(manifest, &list); err != nil {
		return "", fmt.Errorf("manifest.json: %w: %w", ErrDamaged, err)
	}
	if len(list) != 1 {
		return "", fmt.Errorf("it holds %d images; docker save one of them: %w", len(list), oci.ErrForeign)
	}
	one := list[0]
	if len(one.Layers) > im.limits.Layers {
		return "", fmt.Errorf("%d layers, more than %d: %w", len(one.Layers), im.limits.Layers, ErrLimit)
	}
	if len(one.RepoTags) > 0 {
		im.rec.Name = one.RepoTags[0]
	}
	d := &dockerReader{im: im, config: path.Clean(one.Config), want: map[string]bool{}, layers: map[string]v1.Descriptor{}, links: map[string]string{}}
	for _, l := range one.Layers {
		d.want[path.Clean(l)] = true
	}
	// A layer that occurs twice is a link to the other, which may come first.
	if err := eachEntry(open, d.entry); err != nil {
		return "", err
	}
	if len(d.missing()) > 0 {
		for _, name := range d.missing() {
			if to, ok := d.links[name]; ok {
				d.want[to] = true
			}
		}
		if err := eachEntry(open, d.entry); err != nil {
			return "", err
		}
	}
	return d.finish(one.Layers)
}

type dockerReader struct {
	im     *importer
	config string
	text   []byte
	want   map[string]bool
	layers map[string]v1.Descriptor
	links  map[string]string
	size   int64
}

func (d *dockerReader) entry(hdr *tar.Header, r io.Reader) (err error) {
	name := path.Clean(strings.TrimPrefix(hdr.Name, "/"))
	switch {
	case hdr.Typeflag == tar.TypeSymlink:
		d.links[name] = path.Join(path.Dir(name), hdr.Linkname)
	case hdr.Typeflag == tar.TypeLink:
		d.links[name] = path.Clean(hdr.Linkname)
	case hdr.Typeflag != tar.TypeReg:
	case name == d.config:
		d.text, err = readUpTo(r, maxJSON)
	case d.want[name] && d.layers[name].Size == 0:
		if d.size += hdr.Size; d.size > d.im.limits.Packed {
			return fmt.Errorf("entry %q: more than %d bytes: %w", hdr.Name, d.im.limits.Packed, ErrLimit)
		}
		var h string
		var n int64
		if h, n, err = d.im.s.putBlob(r, "", hdr.Size); err == nil {
			d.layers[name] = v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: n, Digest: v1.Hash{Algorithm: "sha256", Hex: h}}
		}
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", hdr.Name, err)
	}
	return nil
}

func (d *dockerReader) find(name string) (v1.Descriptor, bool) {
	name = path.Clean(name)
	if l, ok := d.layers[name]; ok {
		return l, true
	}
	l, ok := d.layers[d.links[name]]
	return l, ok
}

func (d *dockerReader) missing() (out []string) {
	for name := range d.want {
		if _, ok := d.find(name); !ok {
			out = append(out, name)
		}
	}
	return out
}

func (d *dockerReader) finish(layers []string) (string, error) {
	if d.text == nil {
		return "", fmt.Errorf("the configuration %q is not in it: %w", d.config, ErrDamaged)
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, name := range layers {
		l, ok := d.find(name)
		if !ok {
			return "", fmt.Errorf("the layer %q is not in it: %w", name, ErrDamaged)
		}
		m.Layers = append(m.Layers, l)
	}
	return d.im.s.putManifest(m, d.text)
}

// putManifest keeps a configuration and the manifest that has it, and returns
// the digest.
func (s *Store) putManifest(m v1.Manifest, config []byte) (string, error) {
	h, n, err := s.putBlob(bytes.NewReader(config), "", int64(len(config)))
	if err != nil {
		return "", err
	}
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Size: n, Digest: v1.Hash{Algorithm: "sha256", Hex: h}}
	digest, _, err := s.putJSON(m)
	return "sha256:" + digest, err
}

// single makes an image of one layer.
func (im *importer) single(blob string, size int64, diffID string) (string, error) {
	c := v1.ConfigFile{
		OS: im.want.OS, Architecture: im.want.Architecture, Variant: im.want.Variant,
		Config: v1.Config{Env: []string{"PATH=" + DefaultPath}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: diffID}}},
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	return im.s.putManifest(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{{
		MediaType: types.OCILayer, Size: size, Digest: v1.Hash{Algorithm: "sha256", Hex: blob},
	}}}, text)
}
