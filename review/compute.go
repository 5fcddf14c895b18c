package review

import (
	"context"
	"fmt"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// TreeInput is one tree of a session, at one sealed point.
type TreeInput struct {
	// Name of the tree in its session.
	Name string
	// View of the sealed layers: usually FaceView of a read-only face.
	View View
	// FS reads the base; nil is hostfs.OS.
	FS hostfs.FS
	// BaseFD is a descriptor of the base's root, open for reading or
	// O_PATH; -1 for an empty base. It stays the caller's.
	BaseFD int
}

// tree is a TreeInput with what is derived from it.
type tree struct {
	name string
	view View
	base oldSide
}

// Options of Compute.
type Options struct {
	// NoSimilarity switches off the search for renames among pairs of a
	// deletion and an addition that the session did not record as one.
	NoSimilarity bool
	// MaxPairs bounds that search: with more candidate pairs than this only
	// exact ones are found. Default 250,000.
	MaxPairs int
}

// Compute lists what the views differ in from their bases.
func Compute(ctx context.Context, inputs []TreeInput, opts Options) (*ChangeSet, error) {
	var changes []Change
	var trees []*tree
	var idle []idleEntry
	for _, in := range inputs {
		fs := in.FS
		if fs == nil {
			fs = hostfs.OS
		}
		t := &tree{name: in.Name, view: in.View, base: hostDir{fs, in.BaseFD}}
		found, same, err := computeTree(ctx, t, opts)
		if err != nil {
			return nil, fmt.Errorf("compare the tree %s with its base: %w", in.Name, err)
		}
		trees = append(trees, t)
		changes = append(changes, found...)
		idle = append(idle, same...)
	}
	cs := newChangeSet(trees, changes)
	cs.idle = idle
	return cs, nil
}

func newChangeSet(trees []*tree, changes []Change) *ChangeSet {
	return &ChangeSet{Changes: changes, trees: trees, digest: digestOf(changes)}
}
