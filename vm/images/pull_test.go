package images

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/galleyfs/galley/overlay"
)

// between is a registry whose answers a test may spoil.
type between struct {
	inner http.Handler
	// spoil answers a request itself, and reports that it did.
	spoil func(w http.ResponseWriter, r *http.Request, inner http.Handler) bool

	mu   sync.Mutex
	seen []string // requests for blobs, with their ranges
}

func (b *between) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		b.mu.Lock()
		b.seen = append(b.seen, strings.TrimSpace(r.URL.Path[strings.LastIndex(r.URL.Path, ":")+1:]+" "+r.Header.Get("Range")))
		b.mu.Unlock()
	}
	if b.spoil != nil && b.spoil(w, r, b.inner) {
		return
	}
	b.inner.ServeHTTP(w, r)
}

func (b *between) requests() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.seen...)
}

func newBetween(t testing.TB) (*between, string) {
	t.Helper()
	b := &between{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	s := httptest.NewServer(b)
	t.Cleanup(s.Close)
	return b, strings.TrimPrefix(s.URL, "http://")
}

// isBlob tells a fetch of a blob of some size.
func isBlob(r *http.Request, l v1.Layer) bool {
	d, err := l.Digest()
	return err == nil && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+d.String())
}

// noise is a layer whose content does not compress.
func noise(t testing.TB, name string, size int) v1.Layer {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // cannot fail
	return layerOf(t, reg(name, string(b)))
}

// A fetch that is cut off goes on where it ended: at once where the registry
// answers again, else with the next pull, in another process or after a restart.
func TestResume(t *testing.T) {
	w := newWorld(t)
	b, host := newBetween(t)
	l := noise(t, "noise", 600<<10)
	push(t, host+"/it:1", imageOf(t, v1.Config{}, layerOf(t, reg("small", "s")), l))
	size, err := l.Size()
	must(t, err)
	cuts := 0
	b.spoil = func(rw http.ResponseWriter, r *http.Request, inner http.Handler) bool {
		if !isBlob(r, l) || cuts == 0 {
			return false
		}
		cuts--
		inner.ServeHTTP(&cutter{ResponseWriter: rw, left: 100 << 10}, r)
		return true
	}
	cuts = 3
	var told Progress
	img, err := w.images.Pull(t.Context(), host+"/it:1", PullOptions{Progress: func(p Progress) { told = max1(told, p) }})
	must(t, err)
	if told.Total == 0 || told.Done != told.Total || told.Total < size {
		t.Errorf("progress ended at %+v", told)
	}
	ranges := 0
	for _, r := range b.requests() {
		if strings.Contains(r, "bytes=") {
			ranges++
		}
	}
	if ranges != 3 {
		t.Errorf("%d requests for the rest: %q", ranges, b.requests())
	}
	w.look(w.session(img), func(f *overlay.Face) {
		if _, a, err := f.Walk("noise"); err != nil || a.Size != 600<<10 {
			t.Errorf("%+v, %v", a, err)
		}
	})
	// Cut off for good, the next pull has the rest left to fetch.
	w2 := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.spoil = func(rw http.ResponseWriter, r *http.Request, inner http.Handler) bool {
		if !isBlob(r, l) {
			return false
		}
		inner.ServeHTTP(&cutter{ResponseWriter: rw, left: 300 << 10}, r)
		return true
	}
	stop := func(p Progress) {
		if p.Done > 200<<10 {
			cancel()
		}
	}
	if _, err := w2.images.Pull(ctx, host+"/it:1", PullOptions{Progress: stop}); !errors.Is(err, context.Canceled) {
		t.Fatalf("cut off: %v", err)
	}
	w2.nothing()
	if _, err := w2.images.GC(t.Context(), GCOptions{}); err != nil {
		t.Error(err)
	}
	b.spoil = nil
	before := len(b.requests())
	_, err = w2.images.Pull(t.Context(), host+"/it:1", PullOptions{})
	must(t, err)
	resumed := false
	for _, r := range b.requests()[before:] {
		resumed = resumed || strings.Contains(r, "bytes=")
	}
	if !resumed {
		t.Errorf("from the beginning: %q", b.requests()[before:])
	}
	// What is here is not fetched again, and needs no registry.
	before = len(b.requests())
	_, err = w2.images.Pull(t.Context(), host+"/it:1", PullOptions{})
	must(t, err)
	if more := b.requests()[before:]; len(more) > 0 {
		t.Errorf("fetched again: %q", more)
	}
	b.spoil = func(rw http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	if _, err := w2.images.Ensure(t.Context(), host+"/it:1", PullOptions{}); err != nil {
		t.Errorf("without a registry: %v", err)
	}
}

func max1(a, b Progress) Progress {
	if b.Stage != "fetch" {
		return a
	}
	return b
}

// cutter ends an answer after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		if f, ok := c.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// What a registry says and what it sends are compared; a lie leaves nothing.
func TestLyingRegistries(t *testing.T) {
	l := noise(t, "noise", 20<<10)
	real := imageOf(t, v1.Config{}, l)
	send := func(body []byte) func(http.ResponseWriter, *http.Request, http.Handler) bool {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isBlob(r, l) {
				_, _ = w.Write(body)
				return true
			}
			return false
		}
	}
	packed := func() []byte {
		r, err := l.Compressed()
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		return b
	}()
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 1
	for name, c := range map[string]struct {
		spoil func(http.ResponseWriter, *http.Request, http.Handler) bool
		want  error
	}{
		"another content": {send(flipped), ErrDamaged},
		"more content":    {send(append(bytes.Clone(packed), "more"...)), ErrDamaged},
		"endless content": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			for isBlob(r, l) {
				if _, err := w.Write(packed); err != nil {
					return true
				}
			}
			return false
		}, ErrDamaged},
		"no such blob": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if isBlob(r, l) {
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			return false
		}, ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			b, host := newBetween(t)
			push(t, host+"/it:1", real)
			b.spoil = c.spoil
			if _, err := w.images.Pull(t.Context(), host+"/it:1", PullOptions{}); !errors.Is(err, c.want) {
				t.Errorf("%v, not %v", err, c.want)
			}
			w.nothing()
			b.spoil = nil
			if _, err := w.images.Pull(t.Context(), host+"/it:1", PullOptions{}); err != nil {
				t.Errorf("when it tells the truth: %v", err)
			}
		})
	}
	for name, c := range map[string]struct {
		img  v1.Image
		want error
	}{
		"another platform":  {platformed(t, real, "plan9", "mips"), ErrPlatform},
		"elsewhere":         {elsewhere(t, real), ErrHostile},
		"digests too few":   {without(t, real), ErrDamaged},
		"type of a layer":   {mutateLayerType(t, real, "text/plain"), oErrForeign},
		"more than allowed": {real, ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			b, host := newBetween(t)
			push(t, host+"/it:1", real)
			b.spoil = serveImage(t, c.img)
			_, err := w.images.Pull(t.Context(), host+"/it:1", PullOptions{Limits: Limits{Packed: map[bool]int64{true: 1000}[name == "more than allowed"]}})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, not %v", err, c.want)
			}
			w.nothing()
		})
	}
}

// serveImage answers for the manifest and the configuration of img.
func serveImage(t testing.TB, img v1.Image) func(http.ResponseWriter, *http.Request, http.Handler) bool {
	manifest, err := img.RawManifest()
	must(t, err)
	config, err := img.RawConfigFile()
	must(t, err)
	m, err := img.Manifest()
	must(t, err)
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		switch {
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", string(m.MediaType))
			_, _ = w.Write(manifest)
		case strings.HasSuffix(r.URL.Path, "/blobs/"+m.Config.Digest.String()):
			_, _ = w.Write(config)
		default:
			return false
		}
		return true
	}
}

// raw is an image of which the manifest, and perhaps the configuration, was
// written by hand.
type raw struct {
	v1.Image
	manifest *v1.Manifest
	config   []byte
}

func (r raw) Manifest() (*v1.Manifest, error) { return r.manifest, nil }
func (r raw) RawManifest() ([]byte, error)    { return marshalJSON(r.manifest) }
func (r raw) RawConfigFile() ([]byte, error)  { return r.config, nil }

func spoilt(t testing.TB, img v1.Image, change func(*v1.Manifest, *v1.ConfigFile)) v1.Image {
	t.Helper()
	m, err := img.Manifest()
	must(t, err)
	m = m.DeepCopy()
	c, err := img.ConfigFile()
	must(t, err)
	c = c.DeepCopy()
	change(m, c)
	text, err := marshalJSON(c)
	must(t, err)
	h, n, err := v1.SHA256(bytes.NewReader(text))
	must(t, err)
	m.Config.Digest, m.Config.Size = h, n
	return raw{img, m, text}
}

func platformed(t testing.TB, img v1.Image, os, arch string) v1.Image {
	return spoilt(t, img, func(_ *v1.Manifest, c *v1.ConfigFile) { c.OS, c.Architecture = os, arch })
}

func elsewhere(t testing.TB, img v1.Image) v1.Image {
	return spoilt(t, img, func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].URLs = []string{"http://127.0.0.1:1/x"} })
}

func without(t testing.TB, img v1.Image) v1.Image {
	return spoilt(t, img, func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs = nil })
}

func mutateLayerType(t testing.TB, img v1.Image, typ types.MediaType) v1.Image {
	return spoilt(t, img, func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].MediaType = typ })
}

// Of several platforms in an index the one asked for is taken, and one that is
// not there is an error that says which are.
func TestPlatforms(t *testing.T) {
	w := newWorld(t)
	host := newRegistry(t)
	ix := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range []string{"linux/amd64", "linux/arm64/v8", "linux/s390x"} {
		want, err := parsePlatform(p)
		must(t, err)
		img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: want.OS, Architecture: want.Architecture, Variant: want.Variant})
		must(t, err)
		img, err = mutate.AppendLayers(img, layerOf(t, reg("platform", p)))
		must(t, err)
		ix = mutate.AppendManifests(ix, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &want}})
	}
	// As buildkit adds them: no image, but of that type.
	att, err := random.Image(10, 1)
	must(t, err)
	ix = mutate.AppendManifests(ix, mutate.IndexAddendum{Add: att, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	ref, err := name.ParseReference(host + "/many:1")
	must(t, err)
	must(t, remote.WriteIndex(ref, ix))
	for _, p := range []string{"linux/arm64", "linux/s390x", "linux/amd64"} {
		img, err := w.images.Pull(t.Context(), ref.String(), PullOptions{Platform: p})
		must(t, err)
		w.look(w.session(img), func(f *overlay.Face) {
			if got := text(t, f, "platform"); !strings.HasPrefix(got, p) {
				t.Errorf("for %s it is %s", p, got)
			}
		})
	}
	_, err = w.images.Pull(t.Context(), ref.String(), PullOptions{Platform: "linux/riscv64"})
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/s390x") || strings.Contains(err.Error(), "unknown") {
		t.Error(err)
	}
	if _, err = w.images.Pull(t.Context(), ref.String(), PullOptions{Platform: "arm64"}); err == nil {
		t.Error("a platform without a system")
	}
	// Pinned: by the digest of the index, and by that of the manifest.
	d, err := ix.Digest()
	must(t, err)
	img, err := w.images.Ensure(t.Context(), host+"/many@"+d.String(), PullOptions{Platform: "linux/s390x"})
	must(t, err)
	again, err := w.images.Ensure(t.Context(), host+"/many@"+img.Digest, PullOptions{Platform: "linux/s390x"})
	must(t, err)
	if again.Digest != img.Digest || again.Platform != "linux/s390x" {
		t.Errorf("%s, and then %s for %s", img.Digest, again.Digest, again.Platform)
	}
}

// Credentials are those that docker keeps; a mirror is asked first, and the
// registry where the mirror has nothing; a token goes to nobody else.
func TestCredentialsAndMirrors(t *testing.T) {
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	w := newWorld(t)
	b, host := newBetween(t)
	push(t, host+"/private:1", imageOf(t, v1.Config{}, layerOf(t, reg("secret", "s"))))
	leaked := false
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		leaked = leaked || r.Header.Get("Authorization") != ""
		b.inner.ServeHTTP(rw, r)
	}))
	t.Cleanup(other.Close)
	b.spoil = func(rw http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if user, pass, ok := r.BasicAuth(); !ok || user != "me" || pass != "word" {
			rw.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(rw, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	if _, err := w.images.Pull(t.Context(), host+"/private:1", PullOptions{}); err == nil || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("without credentials: %v", err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("me:word"))
	must(t, os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`, host, auth), 0o600))
	img, err := w.images.Pull(t.Context(), host+"/private:1", PullOptions{})
	must(t, err)
	if leaked {
		t.Error("credentials went to where the registry redirected")
	}
	// A mirror, by its host for all, or for one registry.
	mirror := newRegistry(t)
	push(t, mirror+"/private:1", imageOf(t, v1.Config{}, layerOf(t, reg("secret", "from the mirror"))))
	for _, m := range []struct {
		mirror string
		same   bool
	}{{mirror, false}, {host + "=" + mirror, false}, {"other.example=" + mirror, true}, {"127.0.0.1:1", true}, {newRegistry(t), true}} {
		got, err := w.images.Pull(t.Context(), host+"/private:1", PullOptions{Mirrors: []string{m.mirror}})
		must(t, err)
		if (got.Digest == img.Digest) != m.same || got.Name != host+"/private:1" {
			t.Errorf("with mirror %q it is %s, called %s", m.mirror, got.Digest, got.Name)
		}
	}
	if _, err := w.images.Pull(t.Context(), host+"/private:2", PullOptions{Mirrors: []string{mirror}}); !errors.Is(err, ErrNotFound) {
		t.Errorf("nowhere: %v", err)
	}
}
