package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/galleyfs/galley/snapshots"
)

// remoteOptions uses the credentials that other tools have stored.
func remoteOptions(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
}

// ParseRef reads the name of an image in a registry.
func ParseRef(ref string) (name.Reference, error) {
	r, err := name.ParseReference(ref, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("%q names no image: %w; expected REGISTRY/NAME:TAG", ref, err)
	}
	return r, nil
}

// Push exports a snapshot to a registry. A session of several trees becomes an
// index of their images.
func Push(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot, ref name.Reference, opt ExportOptions) (Exported, error) {
	tmp, err := os.MkdirTemp("", "galley-push-")
	if err != nil {
		return Exported{}, err
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "layout")
	done, err := Export(ctx, sess, snap, dir, opt)
	if err != nil {
		return done, err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return done, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return done, err
	}
	if len(m.Manifests) > 1 {
		err = remote.WriteIndex(ref, index, remoteOptions(ctx)...)
	} else {
		var img v1.Image
		if img, err = index.Image(m.Manifests[0].Digest); err == nil {
			err = remote.Write(ref, img, remoteOptions(ctx)...)
		}
	}
	if err != nil {
		return done, fmt.Errorf("push to %s: %w", ref, err)
	}
	return done, nil
}

// errNotASession is what [Pull] answers for an image of another kind.
var errNotASession = fmt.Errorf("an image, but %w; galley pull takes what galley push made", ErrForeign)

// Pull makes a session of what [Push] wrote.
func Pull(ctx context.Context, st *snapshots.Store, ref name.Reference, opt ImportOptions) (*snapshots.Session, Report, error) {
	tmp, err := os.MkdirTemp("", "galley-pull-")
	if err != nil {
		return nil, Report{}, err
	}
	defer os.RemoveAll(tmp)
	if err := fetch(ctx, ref, tmp, opt.Limits.withDefaults()); err != nil {
		return nil, Report{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return Import(ctx, st, tmp, opt)
}

// fetch writes what a registry has under a name as a layout. Nothing is fetched
// before it is known to be a session and within the limits.
func fetch(ctx context.Context, ref name.Reference, dir string, limits Limits) error {
	d, err := remote.Get(ref, remoteOptions(ctx)...)
	if err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	var images []v1.Image
	switch {
	case d.MediaType.IsIndex():
		index, err := d.ImageIndex()
		if err != nil {
			return err
		}
		m, err := index.IndexManifest()
		if err != nil {
			return err
		}
		if len(m.Manifests) > maxImages {
			return fmt.Errorf("%d images: %w", len(m.Manifests), ErrForeign)
		}
		for _, md := range m.Manifests {
			if !md.MediaType.IsImage() {
				return errNotASession
			}
			img, err := index.Image(md.Digest)
			if err != nil {
				return err
			}
			images = append(images, img)
		}
	case d.MediaType.IsImage():
		img, err := d.Image()
		if err != nil {
			return err
		}
		images = append(images, img)
	default:
		return errNotASession
	}
	left := limits.Bytes
	for _, img := range images {
		m, err := img.Manifest()
		if err != nil {
			return err
		}
		if m.Annotations[annFormat] == "" {
			return errNotASession
		}
		for _, l := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if left -= l.Size; l.Size < 0 || left < 0 {
				return fmt.Errorf("blob %s: %w", l.Digest, ErrLimit)
			}
		}
	}
	for _, img := range images {
		if err := path.AppendImage(limited{img}); err != nil {
			return err
		}
	}
	return nil
}

// limited is an image of which no blob is read beyond the size that the manifest
// promises.
type limited struct{ v1.Image }

func (l limited) Layers() ([]v1.Layer, error) {
	m, err := l.Manifest()
	if err != nil {
		return nil, err
	}
	all, err := l.Image.Layers()
	if err != nil || len(all) != len(m.Layers) {
		return nil, errors.Join(err, fmt.Errorf("%d layers of %d: %w", len(all), len(m.Layers), ErrDamaged))
	}
	for i := range all {
		all[i] = limitedLayer{all[i], m.Layers[i].Size}
	}
	return all, nil
}

type limitedLayer struct {
	v1.Layer
	size int64
}

func (l limitedLayer) Compressed() (io.ReadCloser, error) {
	r, err := l.Layer.Compressed()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, l.size), r}, nil
}

// IsSession tells by the annotations of an image, or of an index, what
// [Push] wrote.
func IsSession(annotations map[string]string) bool { return annotations[annFormat] != "" }
