package oci

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// maxDiffers is how many paths a [Report] lists.
const maxDiffers = 20

// ImportOptions says what [Import] makes.
type ImportOptions struct {
	// Name of the session; empty is that of the exported one, with a number
	// where it is taken.
	Name string
	// Base is the base of the workspace; empty is the recorded one.
	Base string
	// Devices allows device nodes.
	Devices bool
	Limits  Limits
	// Progress is told how many bytes were unpacked since it was last.
	Progress func(bytes int64)
}

// Report tells what an import did.
type Report struct {
	Snapshots int // that were made
	// Differs counts the paths where the base is not what the session was made
	// on; DiffersAt are the first of them.
	Differs   int
	DiffersAt []string
	// Owners and Xattrs count what could not be set without root.
	Owners, Xattrs int
}

// Import makes a session of the layout in a directory. It is there whole or not
// at all.
func Import(ctx context.Context, st *snapshots.Store, dir string, opt ImportOptions) (*snapshots.Session, Report, error) {
	var report Report
	l, err := openLayout(dir)
	if err != nil {
		return nil, report, err
	}
	defer l.Close()
	images, err := l.images()
	if err != nil {
		return nil, report, err
	}
	imp := snapshots.Import{Name: opt.Name, Rules: images[0].rules}
	for i, img := range images {
		spec := img.spec
		if i == 0 {
			// Where a project is shown is not for a layout to say.
			spec.Mount = ""
			if opt.Base != "" {
				spec.Base = opt.Base
			}
		}
		if spec.Image == nil && !filepath.IsAbs(spec.Base) && opt.Base == "" {
			return nil, report, fmt.Errorf("import %q: tree %q: annotation %s: %q is no absolute path: %w", dir, spec.Name, annBase, spec.Base, ErrDamaged)
		}
		imp.Trees = append(imp.Trees, spec)
	}
	limits := opt.Limits.withDefaults()
	im := &importer{
		ctx: ctx, layout: l, images: images, opt: opt, report: &report,
		compared: map[string]map[string]bool{}, left: budget{bytes: limits.Bytes, files: limits.Files},
	}
	if opt.Name == "" {
		imp.Name, err = st.FreeName(images[0].session)
		if err != nil {
			return nil, report, err
		}
	}
	sess, err := st.Import(ctx, imp, im.fill)
	if err != nil {
		return nil, report, fmt.Errorf("import %q: %w", dir, err)
	}
	return sess, report, nil
}

type importer struct {
	ctx    context.Context
	layout *source
	images []*image
	opt    ImportOptions
	report *Report
	left   budget
	// compared are paths of the bases, by the tree's name.
	compared map[string]map[string]bool
}

// fill makes the snapshots, in the order in which they were made.
func (im *importer) fill(to *snapshots.Importing) error {
	numbers := map[overlay.LayerID]bool{}
	for _, img := range im.images {
		for _, l := range img.layers {
			numbers[l.number] = true
		}
	}
	order := make([]overlay.LayerID, 0, len(numbers))
	for n := range numbers {
		order = append(order, n)
	}
	slices.Sort(order)
	for _, n := range order {
		if err := im.snapshot(to, n); err != nil {
			return err
		}
	}
	return nil
}

// snapshot applies all layers of one snapshot and seals.
func (im *importer) snapshot(to *snapshots.Importing, n overlay.LayerID) error {
	var of imageLayer
	for _, img := range im.images {
		for len(img.layers) > 0 && img.layers[0].number == n {
			of = img.layers[0]
			img.layers = img.layers[1:]
			if err := im.apply(to.Tree(img.spec.Name), of); err != nil {
				return err
			}
		}
	}
	if _, err := to.Seal(im.ctx, of.opt, of.time); err != nil {
		return err
	}
	im.report.Snapshots++
	return nil
}

func (im *importer) apply(t *overlay.Tree, l imageLayer) error {
	if im.compared[t.Name()] == nil {
		im.compared[t.Name()] = map[string]bool{}
	}
	face := t.Attach(nil)
	defer face.Detach()
	base, err := t.View(overlay.Stack{})
	if err != nil {
		return err
	}
	defer base.Detach()
	a := &applier{f: face, devices: im.opt.Devices, told: im.opt.Progress, report: im.report, compared: im.compared[t.Name()]}
	err = im.layout.each(l, &im.left, func(it *item, content io.Reader) error {
		if err := im.ctx.Err(); err != nil {
			return context.Cause(im.ctx)
		}
		if err := a.compareBase(base, it); err != nil {
			return err
		}
		return a.item(it, content)
	})
	if err != nil {
		return err
	}
	return a.endLayer()
}
