package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/galleyfs/galley/snapshots"
)

// ParseName reads the name of an image: NAME, NAME:TAG, REGISTRY/NAME:TAG or
// NAME@sha256:…; without a registry it is Docker Hub's, without a tag latest.
func ParseName(ref string, opts ...name.Option) (name.Reference, error) {
	r, err := name.ParseReference(ref, append(opts, name.WeakValidation)...)
	if err != nil {
		return nil, fmt.Errorf("%q names no image: %w; expected NAME:TAG or REGISTRY/NAME:TAG", ref, err)
	}
	return r, nil
}

// short is a whole name as people write it.
func short(full string) string {
	for _, p := range []string{name.DefaultRegistry + "/library/", name.DefaultRegistry + "/"} {
		if rest, ok := strings.CutPrefix(full, p); ok {
			return rest
		}
	}
	return full
}

// IsPath tells whether what stands in the place of an image's name is a file or
// directory: it begins as no name does.
func IsPath(ref string) bool {
	return strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, "./") || strings.HasPrefix(ref, "../") || ref == "." || ref == ".."
}

// Find finds an image that is there, by its name, by NAME@DIGEST, or by its
// digest or the beginning of that.
func (s *Store) Find(ref string) (*Image, error) {
	all, err := s.names()
	if err != nil {
		return nil, err
	}
	var found *record
	want := ""
	if r, err := ParseName(ref); err == nil {
		want = r.Name()
		found = byName(all, r)
	}
	if found == nil {
		if found, err = byDigest(all, ref); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, notFound(ref, want, all)
	}
	return s.imageOf(*found)
}

func (s *Store) imageOf(r record) (*Image, error) {
	img, err := s.load(r.Digest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", short(r.Name), err)
	}
	img.Name, img.Source = short(r.Name), r.Source
	return img, nil
}

func byName(all []record, r name.Reference) *record {
	for i, o := range all {
		if o.Name == r.Name() {
			return &all[i]
		}
	}
	d, ok := r.(name.Digest)
	if !ok {
		return nil
	}
	for i, o := range all {
		have, err := ParseName(o.Name)
		if err == nil && have.Context().Name() == d.Context().Name() && (o.Digest == d.DigestStr() || o.Index == d.DigestStr()) {
			return &all[i]
		}
	}
	return nil
}

// minPrefix is how much of a digest has to be given.
const minPrefix = 6

func byDigest(all []record, ref string) (*record, error) {
	prefix := strings.TrimPrefix(ref, "sha256:")
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, nil
	}
	var found *record
	for i, o := range all {
		if !strings.HasPrefix(o.Digest, "sha256:"+prefix) {
			continue
		}
		if found != nil && found.Digest != o.Digest {
			return nil, fmt.Errorf("%q begins the digests of several images; give more of it", ref)
		}
		found = &all[i]
	}
	return found, nil
}

func notFound(ref, want string, all []record) error {
	err := fmt.Errorf("image %q: %w here", ref, ErrNotFound)
	for _, o := range all {
		if a, _, _ := strings.Cut(o.Name, ":"); want != "" && strings.HasPrefix(want, a+":") {
			return fmt.Errorf("%w; there is %s", err, short(o.Name))
		}
	}
	return err
}

// OfTree is the image that a session's tree stands on, also when its name is
// gone or stands for another by now.
func (s *Store) OfTree(t snapshots.TreeSpec) (*Image, error) {
	if t.Image == nil {
		return nil, fmt.Errorf("tree %q stands on no image: %w", t.Name, ErrNotFound)
	}
	img, err := s.load(t.Image.Digest)
	if err != nil {
		return nil, err
	}
	img.Name = t.Image.Name
	return img, nil
}

// Ensure finds an image or fetches it: what --image means. A path, which begins
// with a slash or a dot, is imported, once for each state of the file.
func (s *Store) Ensure(ctx context.Context, ref string, opt PullOptions) (*Image, error) {
	if IsPath(ref) {
		return s.ensureFile(ctx, ref, opt)
	}
	img, err := s.Find(ref)
	if err == nil && (opt.Platform == "" || img.fits(opt.Platform)) {
		return img, nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	if _, serr := os.Stat(ref); err != nil && serr == nil && !strings.Contains(ref, "/") {
		return nil, fmt.Errorf("%w; for the file of that name write ./%s", err, ref)
	}
	return s.Pull(ctx, ref, opt)
}

func (s *Store) ensureFile(ctx context.Context, path string, opt PullOptions) (*Image, error) {
	stamp, err := stampOf(path)
	if err != nil {
		return nil, err
	}
	all, err := s.names()
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		if stamp != "" && o.Stamp == stamp {
			if img, err := s.imageOf(o); err == nil && (opt.Platform == "" || img.fits(opt.Platform)) {
				return img, nil
			}
		}
	}
	return s.Import(ctx, path, ImportOptions{Platform: opt.Platform, Limits: opt.Limits, Progress: opt.Progress})
}

// parsePlatform reads OS/ARCH or OS/ARCH/VARIANT; empty is this machine's.
func parsePlatform(text string) (v1.Platform, error) {
	if text == "" {
		return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	p, err := v1.ParsePlatform(text)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return v1.Platform{}, fmt.Errorf("platform %q: expected OS/ARCHITECTURE, such as linux/arm64", text)
	}
	return *p, nil
}

// fits tells whether the image is for a platform.
func (i *Image) fits(platform string) bool {
	want, err := parsePlatform(platform)
	if err != nil {
		return false
	}
	c := i.Config
	return c.OS == want.OS && c.Architecture == want.Architecture && (want.Variant == "" || c.Variant == want.Variant)
}

// checkPlatform refuses an image for another platform than the one asked for.
// Configurations that name none pass: they were made before there were several.
func (i *Image) checkPlatform(want v1.Platform) error {
	c := i.Config
	if c.OS == "" && c.Architecture == "" || i.fits(want.String()) {
		return nil
	}
	return fmt.Errorf("it is for %s, and %s is wanted: %w; --platform asks for another", i.Platform, want.String(), ErrPlatform)
}
