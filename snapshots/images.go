package snapshots

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// A tree on an image has no base: at the bottom of its stack are the image's
// layers, sealed when the image was unpacked, in directories that all sessions
// and images have in common. Each lies in the directory of its chain, which
// names it and all below it, so that the nodes in its record are those of the
// layers that it stands on.

// dirImages holds what there is of images; package vm/images keeps it.
const dirImages = "images"

// dirImageLayers, in dirImages, has a directory for each unpacked layer, named
// by its chain.
const dirImageLayers = "layers"

// Image names the image that a tree stands on.
type Image struct {
	// Name is what it was called when the tree was made.
	Name string `json:"name"`
	// Digest of its manifest, "sha256:…".
	Digest string `json:"digest"`
	// Layers are the chains of its layers, in hexadecimal, the lowest first.
	Layers []string `json:"layers"`
}

// OnImage reports whether the tree stands on an image and not on a directory.
func (t TreeSpec) OnImage() bool { return t.Image != nil }

// ImagesDir is where the store keeps images.
func (s *Store) ImagesDir() string { return filepath.Join(s.home, dirImages) }

// ImageLayersDir is where the store keeps the unpacked layers of images.
func (s *Store) ImageLayersDir() string { return filepath.Join(s.home, dirImages, dirImageLayers) }

func (i *Image) check() error {
	digest, ok := strings.CutPrefix(i.Digest, "sha256:")
	if !ok || !validChain(digest) {
		return fmt.Errorf("image %q: digest %q: %w", i.Name, i.Digest, ErrBadName)
	}
	if len(i.Layers) > overlay.MaxImageLayers {
		return fmt.Errorf("image %q: %d layers; up to %d are possible", i.Name, len(i.Layers), overlay.MaxImageLayers)
	}
	for _, chain := range i.Layers {
		if !validChain(chain) {
			return fmt.Errorf("image %q: layer %q: %w", i.Name, chain, ErrBadName)
		}
	}
	if len(i.Name) > 4096 || strings.IndexByte(i.Name, 0) >= 0 {
		return fmt.Errorf("image: a name of %d bytes: %w", len(i.Name), ErrBadName)
	}
	return nil
}

// validChain tells the hexadecimal form of a SHA-256.
func validChain(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// Ranges are the numbers of the image's layers in a stack.
func (i *Image) Ranges() []overlay.Range {
	if i == nil || len(i.Layers) == 0 {
		return nil
	}
	return []overlay.Range{{From: overlay.Image, To: overlay.Image + overlay.LayerID(len(i.Layers)-1)}}
}

// withoutImages are ranges but for the layers of images.
func withoutImages(ranges []overlay.Range) []overlay.Range {
	if len(ranges) == 0 || ranges[0].From >= overlay.Image+overlay.MaxImageLayers {
		return ranges
	}
	return clip(ranges, overlay.Image+overlay.MaxImageLayers, maxLayer)
}

// newStack is the stack of a new tree.
func (t *TreeSpec) newStack(active overlay.LayerID) overlay.Stack {
	return overlay.Stack{Sealed: t.Image.Ranges(), Active: active}
}

// checkImage checks that the layers of an image are there.
func (s *Store) checkImage(i *Image) error {
	dirs, err := s.openImage(i)
	closeOrigins(s.fs, dirs)
	return err
}

// openImage opens the directories of an image's layers. The caller, or the tree
// that they are given to, closes them.
func (s *Store) openImage(i *Image) ([]overlay.LayerDir, error) {
	var out []overlay.LayerDir
	at := s.dir
	if s.lower >= 0 {
		at = s.lower
	}
	for n, chain := range i.Layers {
		rel := filepath.Join(dirImages, dirImageLayers, chain)
		fd, err := s.fs.Open(at, rel, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			closeOrigins(s.fs, out)
			return nil, fmt.Errorf("image %q: layer %d of %d, %s: %w; galley pull or galley image import brings it back",
				i.Name, n+1, len(i.Layers), filepath.Join(s.home, rel), err)
		}
		out = append(out, overlay.LayerDir{Only: overlay.Image + overlay.LayerID(n), FD: fd})
	}
	return out, nil
}

// openLower opens what a tree of m stands on: its base, by open, or its image,
// and the layers that it has in common with others.
func (s *Store) openLower(m *manifest, t TreeSpec, stack overlay.Stack, open func(string) (*overlay.Base, error)) (*overlay.Base, []overlay.LayerDir, error) {
	dirs, err := s.openOrigins(m, t.Name, stack)
	if err != nil {
		return nil, nil, err
	}
	if t.Image != nil {
		image, err := s.openImage(t.Image)
		if err != nil {
			closeOrigins(s.fs, dirs)
			return nil, nil, err
		}
		return nil, slices.Concat(dirs, image), nil
	}
	base, err := open(t.Base)
	if err != nil {
		closeOrigins(s.fs, dirs)
		return nil, nil, err
	}
	return base, dirs, nil
}

// withImages adds to a snapshot's stacks the images that trees stand on: a tree
// that came to the session later was its image until then.
func (m *manifest) withImages(s Snapshot) Snapshot {
	cloned := false
	for _, t := range m.Trees {
		image := t.Image.Ranges()
		if image == nil || len(without(image, s.Stacks[t.Name].Sealed)) == 0 {
			continue
		}
		if !cloned {
			stacks := make(map[string]overlay.Stack, len(s.Stacks)+1)
			for k, v := range s.Stacks {
				stacks[k] = v
			}
			s.Stacks, cloned = stacks, true
		}
		s.Stacks[t.Name] = overlay.Stack{Sealed: union(s.Stacks[t.Name].Sealed, image)}
	}
	return s
}

// ImageUse is one tree that stands on an image.
type ImageUse struct {
	// Session is the session's name, ID its id.
	Session, ID string
	// Trashed: the session is in the trash, and may come back.
	Trashed bool
	Image   Image
}

// ImagesInUse lists what images the sessions stand on, those in the trash
// included. An error means that no layer of an image may be removed.
func (s *Store) ImagesInUse(ctx context.Context) ([]ImageUse, error) {
	var out []ImageUse
	err := s.locked(func() error {
		for _, where := range []string{dirSessions, dirTrash} {
			ids, err := names(s.fs, s.dir, where)
			if err != nil {
				return fmt.Errorf("state directory %q: %w", s.home, err)
			}
			for _, id := range ids {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				if !validID(id) {
					continue
				}
				uses, err := s.imagesOf(filepath.Join(where, id))
				if err != nil {
					return err
				}
				out = append(out, uses...)
			}
		}
		return nil
	})
	return out, err
}

func (s *Store) imagesOf(rel string) ([]ImageUse, error) {
	b, err := hostfs.ReadFile(s.fs, s.dir, filepath.Join(rel, manifestFile), manifestLimit)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // the record of discarded paths, say
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(s.home, rel), err)
	}
	m, err := decodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(s.home, rel), err)
	}
	if m.Purged {
		return nil, nil
	}
	var out []ImageUse
	for _, t := range m.Trees {
		if t.Image != nil {
			out = append(out, ImageUse{m.Name, m.ID, strings.HasPrefix(rel, dirTrash+"/"), *t.Image})
		}
	}
	return out, nil
}
