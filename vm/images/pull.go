package images

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/galleyfs/galley/snapshots/oci"
)

// PullOptions says how [Store.Pull] fetches; the zero value is the default.
type PullOptions struct {
	// Platform as OS/ARCHITECTURE; empty is this machine's.
	Platform string
	// Mirrors are asked before the registry that a name has: "HOST" for all of
	// them, "REGISTRY=HOST" for one.
	Mirrors []string
	// Insecure lets registries be spoken to without TLS. Those on the loopback
	// are anyway.
	Insecure bool
	Limits   Limits
	// Progress may be called by several goroutines, one at a time.
	Progress func(Progress)
	// Transport is how registries are reached; nil is net/http's default.
	Transport http.RoundTripper
}

// Pull fetches an image from a registry, or only what has changed of it, unpacks
// it, and pins its digest under the name. Blobs that are there are not fetched again;
// one that was cut off goes on where it ended.
func (s *Store) Pull(ctx context.Context, ref string, opt PullOptions) (*Image, error) {
	release, err := s.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var opts []name.Option
	if opt.Insecure {
		opts = append(opts, name.Insecure)
	}
	r, err := ParseName(ref, opts...)
	if err != nil {
		return nil, err
	}
	want, err := parsePlatform(opt.Platform)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, from := range sources(r, opt) {
		p := &puller{s: s, ref: from, want: want, opt: opt, limits: opt.Limits.withDefaults()}
		img, err := p.pull(ctx, r)
		if err == nil {
			return img, nil
		}
		errs = append(errs, fmt.Errorf("pull %s: %w", from, describe(err)))
		if ctx.Err() != nil || errors.Is(err, ErrSession) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// sources are where a reference is looked for: mirrors, then its own registry.
func sources(r name.Reference, opt PullOptions) []name.Reference {
	var out []name.Reference
	for _, m := range opt.Mirrors {
		of, host, only := strings.Cut(m, "=")
		if !only {
			host = m
		} else if reg, err := name.NewRegistry(of, name.WeakValidation); err != nil || reg.Name() != r.Context().RegistryStr() {
			continue
		}
		sep := ":"
		if _, ok := r.(name.Digest); ok {
			sep = "@"
		}
		var opts []name.Option
		if opt.Insecure {
			opts = append(opts, name.Insecure)
		}
		if at, err := ParseName(host+"/"+r.Context().RepositoryStr()+sep+r.Identifier(), opts...); err == nil {
			out = append(out, at)
		}
	}
	return append(out, r)
}

// describe says what a registry's answer means.
func describe(err error) error {
	var te *transport.Error
	if !errors.As(err, &te) {
		return err
	}
	switch te.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w there: %w", ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("the registry refuses; docker login or podman login stores credentials, and the name may be wrong: %w", err)
	}
	return err
}

type puller struct {
	s      *Store
	ref    name.Reference
	want   v1.Platform
	opt    PullOptions
	limits Limits
	client *http.Client
	tell   *teller
}

func (p *puller) options(ctx context.Context) []remote.Option {
	out := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	if p.opt.Transport != nil {
		out = append(out, remote.WithTransport(p.opt.Transport))
	}
	return out
}

// pull fetches from one registry and gives the image the name as.
func (p *puller) pull(ctx context.Context, as name.Reference) (*Image, error) {
	d, err := remote.Get(p.ref, p.options(ctx)...)
	if err != nil {
		return nil, err
	}
	rec := record{Name: as.Name(), Platform: p.want.String(), Source: "registry"}
	text, digest := d.Manifest, d.Digest.String()
	if d.MediaType.IsIndex() {
		if rec.Index, err = p.keep(text, digest); err != nil {
			return nil, err
		}
		if text, digest, err = p.choose(ctx, text); err != nil {
			return nil, err
		}
	} else if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("it is of type %q and no image: %w", d.MediaType, oci.ErrForeign)
	}
	img, err := p.fetch(ctx, text, digest)
	if err != nil {
		return nil, err
	}
	rec.Digest = digest
	if _, err := p.s.unpack(ctx, img, p.limits, p.opt.Progress); err != nil {
		return nil, err
	}
	if err := p.s.put(rec); err != nil {
		return nil, err
	}
	img.Name, img.Source = short(rec.Name), rec.Source
	return img, nil
}

// keep stores a manifest or an index under the digest that it must have.
func (p *puller) keep(text []byte, digest string) (string, error) {
	if len(text) > maxJSON {
		return "", fmt.Errorf("manifest of %d bytes: %w", len(text), ErrLimit)
	}
	want, err := hexOf(digest)
	if err != nil {
		return "", err
	}
	_, _, err = p.s.putBlob(strings.NewReader(string(text)), want, int64(len(text)))
	return digest, err
}

// choose finds the manifest for the platform in an index.
func (p *puller) choose(ctx context.Context, index []byte) (text []byte, digest string, err error) {
	md, err := chooseIn(index, p.want)
	if err != nil {
		return nil, "", err
	}
	at, err := ParseName(p.ref.Context().Name() + "@" + md.Digest.String())
	if err != nil {
		return nil, "", err
	}
	if p.opt.Insecure {
		if at, err = ParseName(at.Name(), name.Insecure); err != nil {
			return nil, "", err
		}
	}
	d, err := remote.Get(at, p.options(ctx)...)
	if err != nil {
		return nil, "", err
	}
	if !d.MediaType.IsImage() {
		return nil, "", fmt.Errorf("in the index it is of type %q and no image: %w", d.MediaType, oci.ErrForeign)
	}
	return d.Manifest, d.Digest.String(), nil
}

// chooseIn picks the image of an index for a platform. Indexes in indexes are
// not followed.
func chooseIn(index []byte, want v1.Platform) (v1.Descriptor, error) {
	ix, err := v1.ParseIndexManifest(strings.NewReader(string(index)))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("index: %w: %w", ErrDamaged, err)
	}
	if isSession(ix.Annotations) {
		return v1.Descriptor{}, ErrSession
	}
	var have []string
	var images []v1.Descriptor
	for _, d := range ix.Manifests {
		if !d.MediaType.IsImage() {
			continue
		}
		images = append(images, d)
		if d.Platform == nil {
			continue
		}
		if d.Platform.OS == want.OS && d.Platform.Architecture == want.Architecture && (want.Variant == "" || want.Variant == d.Platform.Variant) {
			return d, nil
		}
		if d.Platform.OS != "unknown" && !slices.Contains(have, d.Platform.String()) {
			have = append(have, d.Platform.String())
		}
	}
	if len(have) == 0 && len(images) == 1 {
		return images[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("%s is wanted, and there is %s: %w; --platform asks for another", want.String(), strings.Join(append(have, "no other")[:max(len(have), 1)], ", "), ErrPlatform)
}

// isSession tells by annotations what galley push wrote.
func isSession(annotations map[string]string) bool { return oci.IsSession(annotations) }

// fetch brings all blobs of an image.
func (p *puller) fetch(ctx context.Context, text []byte, digest string) (*Image, error) {
	m, err := parseManifest(text)
	if err != nil {
		return nil, err
	}
	if isSession(m.Annotations) {
		return nil, ErrSession
	}
	if err := checkLayers(m, p.limits); err != nil {
		return nil, err
	}
	total := m.Config.Size
	for _, l := range m.Layers {
		total += l.Size
	}
	p.tell = &teller{fn: p.opt.Progress, stage: "fetch", total: total}
	if err := p.connect(ctx); err != nil {
		return nil, err
	}
	if err := p.blob(ctx, m.Config); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	config, err := p.s.small(m.Config.Digest.String(), m.Config.Size)
	if err != nil {
		return nil, err
	}
	img, err := newImage(digest, m, config)
	if err == nil {
		err = img.checkPlatform(p.want)
	}
	if err != nil {
		return nil, err
	}
	const atOnce = 3
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, l := range m.Layers {
		g.Go(func() error {
			if err := p.blob(gctx, l); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// The manifest last: what it names is all there.
	if _, err := p.keep(text, digest); err != nil {
		return nil, err
	}
	return p.s.load(digest)
}

// checkLayers refuses what is not worth fetching.
func checkLayers(m *v1.Manifest, limits Limits) error {
	if len(m.Layers) > limits.Layers {
		return fmt.Errorf("%d layers, more than %d: %w", len(m.Layers), limits.Layers, ErrLimit)
	}
	left := limits.Packed
	for i, l := range m.Layers {
		if !l.MediaType.IsLayer() {
			return fmt.Errorf("layer %d is of type %q: %w", i+1, l.MediaType, oci.ErrForeign)
		}
		if len(l.URLs) > 0 || !l.MediaType.IsDistributable() {
			return fmt.Errorf("layer %d is to be fetched from elsewhere than the registry: %w", i+1, ErrHostile)
		}
		if left -= l.Size; l.Size < 0 || left < 0 {
			return fmt.Errorf("layer %d of %d bytes: %w of %d bytes for an image", i+1, l.Size, ErrLimit, limits.Packed)
		}
	}
	return nil
}

// connect makes the client that fetches blobs, with the registry's credentials.
func (p *puller) connect(ctx context.Context) error {
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, p.ref.Context())
	if err != nil {
		return err
	}
	base := p.opt.Transport
	if base == nil {
		base = remote.DefaultTransport
	}
	rt, err := transport.NewWithContext(ctx, p.ref.Context().Registry, auth, base, []string{p.ref.Scope(transport.PullScope)})
	if err != nil {
		return err
	}
	p.client = &http.Client{Transport: rt}
	return nil
}

// remove is os.Remove for what may be gone.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
