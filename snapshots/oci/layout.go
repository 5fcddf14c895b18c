package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/snapshots"
)

// source is an image layout that is read. Everything in it is what somebody else
// wrote.
type source struct {
	fs   hostfs.FS
	dir  int
	path string // for messages
}

// openLayout opens the layout in a directory that a person named.
func openLayout(path string) (*source, error) {
	dir, err := hostfs.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("layout %q: %w", path, err)
	}
	l := &source{fs: hostfs.OS, dir: dir, path: path}
	b, err := hostfs.ReadFile(l.fs, dir, "oci-layout", maxJSON)
	if err != nil {
		_ = l.Close()
		if err == unix.ENOENT {
			return nil, fmt.Errorf("%q: no file oci-layout in it: %w", path, ErrForeign)
		}
		return nil, fmt.Errorf("%q: oci-layout: %w", path, err)
	}
	var v struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("%q: oci-layout: %w: %w", path, ErrDamaged, err)
	}
	if v.Version != "1.0.0" {
		_ = l.Close()
		return nil, fmt.Errorf("%q: image layout version %q, this program knows 1.0.0: %w", path, v.Version, overlay.ErrFormat)
	}
	return l, nil
}

func (l *source) Close() error { return l.fs.Close(l.dir) }

// blobFile is a blob that is read, up to the size that its descriptor says.
type blobFile struct {
	l    *source
	fd   int
	off  int64
	size int64
	h    hash.Hash
	want string
}

// blob opens a blob. Its digest is compared by check, after it was read.
func (l *source) blob(d v1.Descriptor) (*blobFile, error) {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 64 || strings.Trim(d.Digest.Hex, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("digest %q: not a SHA-256: %w", d.Digest, ErrDamaged)
	}
	fd, err := l.fs.Open(l.dir, "blobs/sha256/"+d.Digest.Hex, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == unix.ENOENT {
		return nil, fmt.Errorf("blob %s is missing: %w", d.Digest, ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	b := &blobFile{l: l, fd: fd, size: d.Size, h: sha256.New(), want: d.Digest.Hex}
	var st unix.Statx_t
	if err = l.fs.Stat(fd, "", &st); err == nil {
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			err = fmt.Errorf("no regular file: %w", ErrHostile)
		case int64(st.Size) != d.Size:
			err = fmt.Errorf("%d bytes, and %d are promised: %w", st.Size, d.Size, ErrDamaged)
		}
	}
	if err != nil {
		_ = b.Close()
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return b, nil
}

func (b *blobFile) Close() error { return b.l.fs.Close(b.fd) }

func (b *blobFile) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), b.size-b.off)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	n, err := b.l.fs.Pread(b.fd, p, b.off)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	b.h.Write(p[:n])
	b.off += int64(n)
	return n, err
}

// check reads what is left and compares the digest.
func (b *blobFile) check() error {
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	if got := hex.EncodeToString(b.h.Sum(nil)); got != b.want {
		return fmt.Errorf("blob sha256:%s: its content has the digest %s: %w", b.want, got, ErrDamaged)
	}
	return nil
}

// small reads and checks a whole blob of JSON.
func (l *source) small(d v1.Descriptor) ([]byte, error) {
	if d.Size < 0 || d.Size > maxJSON {
		return nil, fmt.Errorf("blob %s: %d bytes: %w", d.Digest, d.Size, ErrLimit)
	}
	b, err := l.blob(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	out, err := io.ReadAll(b)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return out, b.check()
}

// image is one tree in a layout.
type image struct {
	spec    snapshots.TreeSpec
	session string
	rules   snapshots.Rules
	layers  []imageLayer
}

// imageLayer is a layer with what its snapshot was.
type imageLayer struct {
	desc   v1.Descriptor
	diffID string
	number overlay.LayerID
	opt    snapshots.SealOptions
	time   time.Time
}

// images reads what the layout says of the trees, the workspace first.
func (l *source) images() ([]*image, error) {
	b, err := hostfs.ReadFile(l.fs, l.dir, "index.json", maxJSON)
	if err != nil {
		return nil, fmt.Errorf("%q: index.json: %w", l.path, err)
	}
	out, err := l.imagesOf(b)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", l.path, err)
	}
	return out, nil
}

func (l *source) imagesOf(index []byte) ([]*image, error) {
	ix, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return nil, fmt.Errorf("index.json: %w: %w", ErrDamaged, err)
	}
	if len(ix.Manifests) == 0 || len(ix.Manifests) > maxImages {
		return nil, fmt.Errorf("%d images: %w", len(ix.Manifests), ErrForeign)
	}
	var out []*image
	for _, d := range ix.Manifests {
		if d.MediaType == types.OCIImageIndex && len(ix.Manifests) == 1 {
			// A session of several trees out of a registry: one index, once.
			inner, err := l.small(d)
			if err != nil {
				return nil, err
			}
			if ix, err = v1.ParseIndexManifest(bytes.NewReader(inner)); err != nil {
				return nil, fmt.Errorf("index %s: %w: %w", d.Digest, ErrDamaged, err)
			}
			break
		}
	}
	if len(ix.Manifests) > maxImages {
		return nil, fmt.Errorf("%d images: %w", len(ix.Manifests), ErrForeign)
	}
	names := map[string]bool{}
	for _, d := range ix.Manifests {
		if !d.MediaType.IsImage() {
			return nil, fmt.Errorf("%s is of type %q and no image: %w", d.Digest, d.MediaType, ErrForeign)
		}
		img, err := l.image(d)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", d.Digest, err)
		}
		if names[img.spec.Name] {
			return nil, fmt.Errorf("image %s: a second tree %q: %w", d.Digest, img.spec.Name, ErrDamaged)
		}
		names[img.spec.Name] = true
		if img.spec.Name == snapshots.Workspace {
			out = append([]*image{img}, out...)
		} else {
			out = append(out, img)
		}
	}
	if !names[snapshots.Workspace] {
		return nil, fmt.Errorf("no tree %q: %w", snapshots.Workspace, ErrForeign)
	}
	return out, nil
}

func (l *source) image(d v1.Descriptor) (*image, error) {
	text, err := l.small(d)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	format, ok := m.Annotations[annFormat]
	if !ok {
		return nil, fmt.Errorf("an image without the annotation %s: %w", annFormat, ErrForeign)
	}
	v, err := strconv.ParseUint(format, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %q: %w", annFormat, format, ErrDamaged)
	}
	if v != Format {
		return nil, fmt.Errorf("it has format %d and this program knows format %d; import it with the program that made it or a newer one: %w", v, Format, overlay.ErrFormat)
	}
	img := &image{session: m.Annotations[annSession], spec: snapshots.TreeSpec{
		Name: m.Annotations[annTree], Base: m.Annotations[annBase], Mount: m.Annotations[annMount],
	}}
	if text := m.Annotations[annImage]; text != "" {
		if err := json.Unmarshal([]byte(text), &img.spec.Image); err != nil {
			return nil, fmt.Errorf("annotation %s: %w: %w", annImage, ErrDamaged, err)
		}
	}
	if rules := m.Annotations[annRules]; rules != "" {
		if err := json.Unmarshal([]byte(rules), &img.rules); err != nil {
			return nil, fmt.Errorf("annotation %s: %w: %w", annRules, ErrDamaged, err)
		}
	}
	config, err := l.small(m.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w: %w", ErrDamaged, err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) || len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%d layers and %d digests of them: %w", len(m.Layers), len(c.RootFS.DiffIDs), ErrDamaged)
	}
	for i, ld := range m.Layers {
		layer, err := layerOf(ld)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", ld.Digest, err)
		}
		if i > 0 && layer.number <= img.layers[i-1].number {
			return nil, fmt.Errorf("layer %s: snapshot %d after %d: %w", ld.Digest, layer.number, img.layers[i-1].number, ErrDamaged)
		}
		layer.diffID = c.RootFS.DiffIDs[i].Hex
		img.layers = append(img.layers, layer)
	}
	return img, nil
}

func layerOf(d v1.Descriptor) (imageLayer, error) {
	out := imageLayer{desc: d}
	if !d.MediaType.IsLayer() {
		return out, fmt.Errorf("of type %q: %w", d.MediaType, ErrForeign)
	}
	n, err := strconv.ParseUint(d.Annotations[annSnapshot], 10, 31)
	if err != nil || n == 0 {
		return out, fmt.Errorf("annotation %s: %q: %w", annSnapshot, d.Annotations[annSnapshot], ErrDamaged)
	}
	out.number = overlay.LayerID(n)
	out.opt.Name = d.Annotations[annName]
	if cause := d.Annotations[annCause]; cause != "" {
		if err := json.Unmarshal([]byte(cause), &out.opt.Cause); err != nil {
			return out, fmt.Errorf("annotation %s: %w: %w", annCause, ErrDamaged, err)
		}
	}
	if out.time, err = time.Parse(time.RFC3339Nano, d.Annotations[annTime]); err != nil {
		return out, fmt.Errorf("annotation %s: %w: %w", annTime, ErrDamaged, err)
	}
	if y := out.time.Year(); y < 1970 || y > 9000 {
		return out, fmt.Errorf("annotation %s: the year %d: %w", annTime, y, ErrDamaged)
	}
	return out, nil
}

// each reads one layer whole, and compares both its digests.
func (l *source) each(layer imageLayer, left *budget, fn func(*item, io.Reader) error) error {
	b, err := l.blob(layer.desc)
	if err != nil {
		return err
	}
	defer b.Close()
	diffID, err := readLayer(b, left, fn)
	// A wrong digest explains whatever else is wrong.
	if cerr := b.check(); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", layer.desc.Digest, err)
	}
	if diffID != layer.diffID {
		return fmt.Errorf("layer %s: unpacked it has the digest %s and not %s: %w", layer.desc.Digest, diffID, layer.diffID, ErrDamaged)
	}
	return nil
}

func digestOf(f *overlay.Face, n *overlay.Node) ([]byte, error) {
	h := sha256.New()
	buf := make([]byte, 128<<10)
	for off := int64(0); ; {
		got, err := f.Read(n, buf, off)
		if err != nil {
			return nil, err
		}
		if got == 0 {
			return h.Sum(nil), nil
		}
		h.Write(buf[:got])
		off += int64(got)
	}
}
