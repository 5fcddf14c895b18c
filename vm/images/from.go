package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
)

// FromOptions says how [Store.From] makes an image.
type FromOptions struct {
	// Tree is the session's tree; empty is the first that stands on an image.
	Tree     string
	Progress func(Progress)
}

// From makes an image of what a session's tree on an image was at a snapshot: the
// image, with one more layer that has what the session changed.
func (s *Store) From(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot, as string, opt FromOptions) (*Image, error) {
	release, err := s.Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	r, err := ParseName(as)
	if err != nil {
		return nil, err
	}
	spec, err := treeOn(sess, opt.Tree)
	if err != nil {
		return nil, err
	}
	base, err := s.OfTree(spec)
	if err != nil {
		return nil, fmt.Errorf("the image below: %w", err)
	}
	for _, l := range base.Layers {
		if h, _ := hexOf(l.Digest); !s.hasBlob(h, l.Size) {
			return nil, fmt.Errorf("layer %s of image %s is missing; pull or import it again: %w", l.Digest, base.Name, ErrDamaged)
		}
	}
	p, err := s.changesOf(ctx, sess, snap, spec, opt)
	if err != nil {
		return nil, err
	}
	digest, err := s.extend(base, p, sess, snap)
	if err != nil {
		return nil, err
	}
	img, err := s.load(digest)
	if err == nil {
		_, err = s.unpack(ctx, img, Limits{}, opt.Progress)
	}
	if err != nil {
		return nil, err
	}
	if err := s.put(record{Name: r.Name(), Digest: digest, Platform: base.Platform, Source: "session"}); err != nil {
		return nil, err
	}
	img.Name, img.Source = short(r.Name()), "session"
	return img, nil
}

// treeOn is the session's tree on an image.
func treeOn(sess *snapshots.Session, name string) (snapshots.TreeSpec, error) {
	for _, t := range sess.Trees() {
		if t.OnImage() && (name == "" || t.Name == name) {
			return t, nil
		}
	}
	if name == "" {
		name = snapshots.Root
	}
	return snapshots.TreeSpec{}, fmt.Errorf("session %s has no tree %q on an image: %w", sess.Name(), name, snapshots.ErrNotFound)
}

// changesOf writes what differs from the image as a layer.
func (s *Store) changesOf(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot, spec snapshots.TreeSpec, opt FromOptions) (p oci.Packed, err error) {
	sealed, err := sess.OpenStacks(snap)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, sealed.Close()) }()
	old, err := sealed.View(spec.Name, overlay.Stack{Sealed: spec.Image.Ranges()})
	if err != nil {
		return p, err
	}
	defer old.Detach()
	at := slices.IndexFunc(sealed.Trees(), func(t snapshots.SealedTree) bool { return t.Name == spec.Name })
	now := sealed.Trees()[at].Face
	tell := &teller{fn: opt.Progress, stage: "read"}
	p, err = s.putLayer(func(w io.Writer) (oci.Packed, error) { return oci.WriteChanges(ctx, w, old, now, tell.add) })
	if err == nil && p.Entries == 0 {
		err = fmt.Errorf("session %s, tree %s: %w", sess.Name(), spec.Name, ErrNothing)
	}
	return p, err
}

// extend writes the manifest and the configuration of an image with a layer more.
func (s *Store) extend(base *Image, p oci.Packed, sess *snapshots.Session, snap snapshots.Snapshot) (string, error) {
	text, err := s.small(base.manifest.Config.Digest.String(), base.manifest.Config.Size)
	if err != nil {
		return "", err
	}
	// What this program does not know of a configuration is to stay in it.
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return "", fmt.Errorf("configuration: %w: %w", ErrDamaged, err)
	}
	c := base.config.DeepCopy()
	c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: p.DiffID})
	made := v1.Time{Time: snap.Time.UTC()}
	c.History = append(c.History, v1.History{Created: made, CreatedBy: "galley image from " + sess.Name()})
	for key, v := range map[string]any{"created": made, "rootfs": c.RootFS, "history": c.History} {
		if raw[key], err = json.Marshal(v); err != nil {
			return "", err
		}
	}
	if text, err = json.Marshal(raw); err != nil {
		return "", err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: slices.Clone(base.manifest.Layers)}
	for i := range m.Layers {
		m.Layers[i].MediaType = ociType(m.Layers[i].MediaType)
	}
	m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCILayer, Size: p.Size, Digest: v1.Hash{Algorithm: "sha256", Hex: p.Digest}})
	return s.putManifest(m, text)
}

// ociType is the name that the image specification has for a layer of docker's.
func ociType(t types.MediaType) types.MediaType {
	switch t {
	case types.DockerLayer:
		return types.OCILayer
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer
	}
	return t
}
