package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// ExportOptions says how [Export] writes.
type ExportOptions struct {
	// Flat writes one layer for each tree, and no history.
	Flat bool
	// Progress is told how many bytes of content were written since it was last.
	Progress func(bytes int64)
}

// Exported tells what [Export] wrote.
type Exported struct {
	Layers int
	Bytes  int64 // of all blobs
	// Images are the digests of the trees' images, by the tree's name.
	Images map[string]string
}

// Export writes a snapshot of a session as an image layout in the directory dir,
// which must not be there. It is there whole or not at all.
func Export(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot, dir string, opt ExportOptions) (Exported, error) {
	if _, err := os.Lstat(dir); err == nil {
		return Exported{}, fmt.Errorf("%q is there already; name a directory that is not: %w", dir, unix.EEXIST)
	}
	parent := filepath.Dir(filepath.Clean(dir))
	tmp, err := os.MkdirTemp(parent, ".galley-export-")
	if err != nil {
		return Exported{}, fmt.Errorf("export to %q: %w", dir, err)
	}
	defer os.RemoveAll(tmp)
	done, err := exportTo(ctx, sess, snap, tmp, opt)
	if err != nil {
		return done, fmt.Errorf("export session %s: %w", sess.Name(), err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // others may be meant to read it
		return done, err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, filepath.Clean(dir), unix.RENAME_NOREPLACE); err != nil {
		return done, fmt.Errorf("export to %q: %w", dir, err)
	}
	return done, nil
}

// exporter writes a layout.
type exporter struct {
	ctx    context.Context
	sess   *snapshots.Session
	dir    string
	opt    ExportOptions
	done   Exported
	chain  []snapshots.Snapshot
	sealed *snapshots.Sealed
	links  map[string]map[uint64][]string // see linksOf
}

func exportTo(ctx context.Context, sess *snapshots.Session, snap snapshots.Snapshot, dir string, opt ExportOptions) (done Exported, err error) {
	x := &exporter{ctx: ctx, sess: sess, dir: dir, opt: opt, done: Exported{Images: map[string]string{}}}
	x.chain = []snapshots.Snapshot{snap}
	if !opt.Flat {
		if x.chain, err = sess.Chain(snap); err != nil {
			return x.done, err
		}
	}
	if x.sealed, err = sess.OpenStacks(snap); err != nil {
		return x.done, err
	}
	defer func() { err = errors.Join(err, x.sealed.Close()) }()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return x.done, err
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	for i, t := range x.sealed.Trees() {
		d, err := x.image(t.TreeSpec, i == 0)
		if err != nil {
			return x.done, fmt.Errorf("tree %q: %w", t.Name, err)
		}
		index.Manifests = append(index.Manifests, d)
		x.done.Images[t.Name] = d.Digest.String()
	}
	if err := writeJSON(filepath.Join(dir, "index.json"), index); err != nil {
		return x.done, err
	}
	return x.done, writeJSON(filepath.Join(dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"})
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// image writes the image of one tree. Of a snapshot in which the tree did not
// change there is no layer, but for a named one in the first tree.
func (x *exporter) image(t snapshots.TreeSpec, first bool) (v1.Descriptor, error) {
	var none v1.Descriptor
	last := x.chain[len(x.chain)-1]
	config := v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, Created: v1.Time{Time: last.Time.UTC()},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}, Annotations: map[string]string{
		annFormat: strconv.Itoa(Format), annSession: x.sess.Name(), annTree: t.Name, annBase: t.Base, annMount: t.Mount,
		annCreated: last.Time.UTC().Format(time.RFC3339Nano),
	}}
	if t.Image != nil {
		b, err := json.Marshal(t.Image)
		if err != nil {
			return none, err
		}
		m.Annotations[annImage] = string(b)
	}
	if r := x.sess.Rules(); first && (len(r.Hide) > 0 || len(r.ReadOnly) > 0) {
		b, err := json.Marshal(r)
		if err != nil {
			return none, err
		}
		m.Annotations[annRules] = string(b)
	}
	old := overlay.Stack{Sealed: t.Image.Ranges()}
	for _, s := range x.chain {
		stack := overlay.Stack{Sealed: s.Stacks[t.Name].Sealed}
		d, diffID, err := x.layer(t.Name, old, stack, s, first && s.Name != "")
		if err != nil {
			return none, fmt.Errorf("snapshot %d: %w", s.Number, err)
		}
		old = stack
		if d == nil {
			continue
		}
		m.Layers = append(m.Layers, *d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, v1.History{
			Created: v1.Time{Time: s.Time.UTC()}, CreatedBy: s.Cause.Text, Comment: s.Name,
		})
	}
	x.done.Layers += len(m.Layers)
	var err error
	if m.Config, err = x.json(config, types.OCIConfigJSON); err != nil {
		return none, err
	}
	d, err := x.json(m, types.OCIManifestSchema1)
	d.Annotations = map[string]string{annRefName: t.Name}
	d.Platform = &v1.Platform{OS: config.OS, Architecture: config.Architecture}
	return d, err
}

// layer writes what a snapshot changed in one tree; nil where that is nothing and
// it need not be told.
func (x *exporter) layer(tree string, old, now overlay.Stack, s snapshots.Snapshot, always bool) (*v1.Descriptor, v1.Hash, error) {
	var none v1.Hash
	was, err := x.sealed.View(tree, old)
	if err != nil {
		return nil, none, err
	}
	defer was.Detach()
	is, err := x.sealed.View(tree, now)
	if err != nil {
		return nil, none, err
	}
	defer is.Detach()
	entries, err := compare(x.ctx, was, is, func() (map[uint64][]string, error) { return x.linksOf(tree) })
	if err != nil || len(entries) == 0 && !always {
		return nil, none, err
	}
	f, err := os.CreateTemp(filepath.Join(x.dir, "blobs", "sha256"), "layer-")
	if err != nil {
		return nil, none, err
	}
	p, err := writeLayer(f, is, entries, x.opt.Progress)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return nil, none, err
	}
	if err := os.Rename(f.Name(), filepath.Join(x.dir, "blobs", "sha256", p.digest)); err != nil {
		return nil, none, err
	}
	x.done.Bytes += p.size
	cause, err := json.Marshal(s.Cause)
	if err != nil {
		return nil, none, err
	}
	d := &v1.Descriptor{
		MediaType: types.OCILayer, Size: p.size, Digest: v1.Hash{Algorithm: "sha256", Hex: p.digest},
		Annotations: map[string]string{
			annSnapshot: strconv.Itoa(int(s.Number)), annCause: string(cause), annTime: s.Time.UTC().Format(time.RFC3339Nano),
		},
	}
	if s.Number == 0 {
		// A session before any change has no layer, unless a commit replaced
		// what it stood on.
		d.Annotations[annSnapshot] = "1"
	}
	if s.Name != "" {
		d.Annotations[annName] = s.Name
	}
	return d, v1.Hash{Algorithm: "sha256", Hex: p.diffID}, nil
}

// linksOf finds the names in the base of files that have several. That takes a
// walk over all of it, so it is done once, and only where it matters.
func (x *exporter) linksOf(tree string) (map[uint64][]string, error) {
	if m := x.links[tree]; m != nil {
		return m, nil
	}
	bottom := overlay.Stack{}
	for _, t := range x.sealed.Trees() {
		if t.Name == tree {
			bottom.Sealed = t.Image.Ranges()
		}
	}
	base, err := x.sealed.View(tree, bottom)
	if err != nil {
		return nil, err
	}
	defer base.Detach()
	m, err := linksIn(x.ctx, base)
	if err != nil {
		return nil, err
	}
	if x.links == nil {
		x.links = map[string]map[uint64][]string{}
	}
	x.links[tree] = m
	return m, nil
}

// json writes a blob of JSON.
func (x *exporter) json(v any, media types.MediaType) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	c := newCounted(io.Discard)
	_, _ = c.Write(b)
	d := v1.Descriptor{MediaType: media, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: c.digest()}}
	x.done.Bytes += d.Size
	return d, os.WriteFile(filepath.Join(x.dir, "blobs", "sha256", d.Digest.Hex), b, 0o644)
}
