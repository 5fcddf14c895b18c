package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// maxJSON bounds a manifest, an index or a configuration.
const maxJSON = 8 << 20

func (s *Store) blobPath(hex string) string { return s.path(dirBlobs, hex) }

// hasBlob tells whether a blob is there, with the size that is promised.
func (s *Store) hasBlob(hex string, size int64) bool {
	st, err := os.Lstat(s.blobPath(hex))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// putBlob keeps what r has, and says under which digest. want, unless empty, is
// the hexadecimal digest that it must have, and size, unless negative, its size.
func (s *Store) putBlob(r io.Reader, want string, size int64) (hexDigest string, n int64, err error) {
	f, err := os.CreateTemp(s.path(dirBlobs), stagePrefix)
	if err != nil {
		return "", 0, err
	}
	defer func() {
		if f != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	h := sha256.New()
	limited := r
	if size >= 0 {
		limited = io.LimitReader(r, size+1)
	}
	if n, err = io.Copy(io.MultiWriter(f, h), limited); err != nil {
		return "", n, err
	}
	hexDigest = hex.EncodeToString(h.Sum(nil))
	if size >= 0 && n != size {
		return "", n, fmt.Errorf("blob sha256:%s: %d bytes are promised, and it has others: %w", want, size, ErrDamaged)
	}
	if want != "" && hexDigest != want {
		return "", n, fmt.Errorf("blob sha256:%s: its content has the digest %s: %w", want, hexDigest, ErrDamaged)
	}
	if err := f.Sync(); err != nil {
		return "", n, err
	}
	if err := os.Rename(f.Name(), s.blobPath(hexDigest)); err != nil {
		return "", n, err
	}
	err = errors.Join(f.Close(), syncDir(s.path(dirBlobs)))
	f = nil
	return hexDigest, n, err
}

// putJSON keeps v and describes it.
func (s *Store) putJSON(v any) (hexDigest string, size int64, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", 0, err
	}
	return s.putBlob(bytes.NewReader(b), "", int64(len(b)))
}

// openBlob opens a blob to be read up to its size. check, called after it was
// read, compares its digest.
func (s *Store) openBlob(digest string, size int64) (r io.ReadCloser, check func() error, err error) {
	name, err := hexOf(digest)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.Open(s.blobPath(name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil, fmt.Errorf("blob %s is missing; pull or import the image again: %w", digest, ErrDamaged)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	f := os.NewFile(uintptr(fd), name)
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || size >= 0 && st.Size() != size) {
		err = fmt.Errorf("%d bytes, and %d are promised: %w", st.Size(), size, ErrDamaged)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	h := sha256.New()
	tee := io.TeeReader(f, h)
	check = func() error {
		if _, err := io.Copy(io.Discard, tee); err != nil {
			return fmt.Errorf("blob %s: %w", digest, err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != name {
			return fmt.Errorf("blob %s: its content has the digest sha256:%s; galley image gc --verify removes it, then pull again: %w", digest, got, ErrDamaged)
		}
		return nil
	}
	return struct {
		io.Reader
		io.Closer
	}{tee, f}, check, nil
}

// small reads and checks a whole blob of JSON.
func (s *Store) small(digest string, size int64) ([]byte, error) {
	r, check, err := s.openBlob(digest, size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err == nil && len(b) > maxJSON {
		err = fmt.Errorf("more than %d bytes: %w", maxJSON, ErrLimit)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	return b, check()
}

// Layer is one layer of an image.
type Layer struct {
	// Digest of its blob and DiffID, the digest of the tar in it.
	Digest string `json:"digest"`
	DiffID string `json:"diff_id"`
	Size   int64  `json:"size"`
	// Chain names it and those below it, in hexadecimal.
	Chain string `json:"chain"`
	// Unpacked tells whether it is there as a layer.
	Unpacked bool `json:"unpacked"`
}

// Image is an image that is there.
type Image struct {
	// Name by which it was found, short where it can be.
	Name string `json:"name"`
	// Digest of its manifest.
	Digest   string `json:"digest"`
	Platform string `json:"platform"`
	Source   string `json:"source,omitempty"`
	// Size of all its blobs.
	Size   int64   `json:"size"`
	Config Config  `json:"config"`
	Layers []Layer `json:"layers"`

	manifest *v1.Manifest
	config   *v1.ConfigFile
}

// load reads an image's manifest and configuration and checks that they agree.
func (s *Store) load(digest string) (*Image, error) {
	img, err := s.read(digest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", digest, err)
	}
	return img, nil
}

func (s *Store) read(digest string) (*Image, error) {
	text, err := s.small(digest, -1)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(text)
	if err != nil {
		return nil, err
	}
	config, err := s.small(m.Config.Digest.String(), m.Config.Size)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	img, err := newImage(digest, m, config)
	if err != nil {
		return nil, err
	}
	img.Size += int64(len(text))
	for i := range img.Layers {
		_, err := os.Stat(s.sessions.ImageLayersDir() + "/" + img.Layers[i].Chain)
		img.Layers[i].Unpacked = err == nil
	}
	return img, nil
}

func parseManifest(text []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", ErrDamaged, err)
	}
	if m.Config.Size < 0 || m.Config.Size > maxJSON {
		return nil, fmt.Errorf("configuration of %d bytes: %w", m.Config.Size, ErrLimit)
	}
	return m, nil
}

// newImage puts together what manifest and configuration say.
func newImage(digest string, m *v1.Manifest, config []byte) (*Image, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(config))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w: %w", ErrDamaged, err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%d layers and %d digests of them: %w", len(m.Layers), len(c.RootFS.DiffIDs), ErrDamaged)
	}
	img := &Image{Digest: digest, Platform: platformOf(c), Config: configOf(c), Size: m.Config.Size, manifest: m, config: c}
	chain := ""
	for i, l := range m.Layers {
		if _, err := hexOf(l.Digest.String()); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if l.Size < 0 {
			return nil, fmt.Errorf("layer %d: a size of %d: %w", i+1, l.Size, ErrDamaged)
		}
		diff, err := hexOf(c.RootFS.DiffIDs[i].String())
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		chain = nextChain(chain, diff)
		img.Layers = append(img.Layers, Layer{Digest: l.Digest.String(), DiffID: "sha256:" + diff, Size: l.Size, Chain: chain})
		img.Size += l.Size
	}
	return img, nil
}

// nextChain is the chain of a layer on another, as the image specification
// makes its ChainID.
func nextChain(below, diff string) string {
	if below == "" {
		return diff
	}
	sum := sha256.Sum256([]byte("sha256:" + below + " sha256:" + diff))
	return hex.EncodeToString(sum[:])
}

func platformOf(c *v1.ConfigFile) string {
	parts := []string{c.OS, c.Architecture}
	if c.Variant != "" {
		parts = append(parts, c.Variant)
	}
	return strings.Join(parts, "/")
}
