package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
)

// exportedInfo is what `galley export --json` and `galley push --json` print.
type exportedInfo struct {
	Session  string            `json:"session"`
	Snapshot overlay.LayerID   `json:"snapshot"`
	To       string            `json:"to"`
	Layers   int               `json:"layers"`
	Bytes    int64             `json:"bytes"`
	Images   map[string]string `json:"images,omitempty"` // digest of each tree's
}

func exportCommand(e *env) *cli.Command {
	return manual{
		usage: []string{
			"export [--flat] [--json] SESSION[@N|@NAME] DIR|FILE.tar",
			"export --patches DIR SESSION[@N|@NAME]",
		},
		about: `
Writes a session as an image layout of the Open Container Initiative, which galley import
brings back and other tools read: one layer for each snapshot on the way to the last (or
to the one named), with what it changed. The base is not in it. With --flat there is one
layer, and no history. The same snapshot gives the same digests each time.

--patches writes a series of git patches instead, one for each snapshot; git am does not
take them, git apply does, in the order of their names.`,
		json: `{"session", "snapshot", "to", "layers", "bytes", "images": {TREE: DIGEST}}`,
		examples: [][2]string{
			{"galley export app app.tar", "to take it elsewhere"},
			{"galley export app@green layout", "a directory, as other tools like it, of that snapshot"},
			{"galley export --patches series app", "for people without Galley"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "export", Category: catManage, Usage: "write a session as an image layout, or as patches", ArgsUsage: "SESSION",
		Flags: []cli.Flag{
			jsonFlag(), boolFlag("flat", "one layer for all changes, without the history"),
			&cli.StringFlag{Name: "patches", Usage: "write git patches to the new directory `DIR`"},
		},
		Action: func(c *cli.Context) error {
			patches := c.String("patches")
			if want := map[bool]int{true: 1, false: 2}[patches != ""]; c.NArg() != want {
				return usagef(c, "expected a session and where to write it")
			}
			if patches != "" && (c.Bool("flat") || c.Bool("json")) {
				return usagef(c, "--patches goes with neither --flat nor --json")
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				p, err := e.pointOf(ctx, st, c.Args().First())
				if err != nil {
					return err
				}
				if patches != "" {
					return e.exportPatches(ctx, p, patches)
				}
				return e.runExport(ctx, p, c.Args().Get(1), oci.ExportOptions{Flat: c.Bool("flat")}, c.Bool("json"))
			})
		},
	})
}

// counting adds up what progress is told in pieces.
func counting(p *ui.Progress) func(int64) {
	total := int64(0)
	return func(n int64) {
		total += n
		p.Set(total>>20, 0)
	}
}

func (e *env) runExport(ctx context.Context, p point, to string, opt oci.ExportOptions, asJSON bool) error {
	progress := e.progress("exporting (MiB)")
	defer progress.Close()
	opt.Progress = counting(progress)
	write := oci.Export
	if strings.HasSuffix(to, ".tar") {
		write = oci.ExportArchive
	}
	done, err := write(ctx, p.session, p.snapshot, to, opt)
	progress.Close()
	if err != nil {
		return err
	}
	return e.tellExported(p, to, done, asJSON)
}

func (e *env) tellExported(p point, to string, done oci.Exported, asJSON bool) error {
	if asJSON {
		return ui.JSON(e.stdout, exportedInfo{p.session.Name(), p.snapshot.Number, to, done.Layers, done.Bytes, done.Images})
	}
	fmt.Fprintf(e.stdout, "session %s at snapshot %d: %s, %s, to %s\n", safeLine(p.session.Name()), p.snapshot.Number,
		ui.Count(done.Layers, "layer", "layers"), ui.Bytes(done.Bytes), safeLine(to))
	for tree, digest := range done.Images {
		fmt.Fprintf(e.stdout, "  %-10s %s\n", tree, digest)
	}
	return nil
}

// exportPatches writes one patch for each snapshot that changed something.
func (e *env) exportPatches(ctx context.Context, p point, dir string) error {
	chain, err := p.session.Chain(p.snapshot)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return withHint(fmt.Errorf("export: %w", err), "name a directory that is not there yet")
	}
	from, err := p.session.Snapshot("0")
	if err != nil {
		return err
	}
	progress := e.progress("writing patches")
	defer progress.Close()
	count := 0
	for i, s := range chain {
		progress.Set(int64(i), int64(len(chain)))
		left, written, err := e.exportPatch(ctx, dir, count+1, point{p.session, from}, point{p.session, s})
		if err != nil {
			return errors.Join(err, os.RemoveAll(dir))
		}
		from = s
		if written {
			count++
		}
		for _, u := range left {
			progress.Close()
			fmt.Fprintf(e.stderr, "galley: snapshot %d: not in the patch: %s\n", s.Number, safeLine(u.String()))
		}
	}
	progress.Close()
	_, err = fmt.Fprintf(e.stdout, "%s in %s\n", ui.Count(count, "patch", "patches"), safeLine(dir))
	return err
}

func (e *env) exportPatch(ctx context.Context, dir string, n int, from, to point) (left []review.Uncarried, written bool, err error) {
	c, err := compare(ctx, from, to)
	if err != nil {
		return nil, false, err
	}
	defer c.Close()
	if c.set.Empty() {
		return nil, false, nil
	}
	name := fmt.Sprintf("%04d-snapshot-%d.patch", n, to.snapshot.Number)
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if ran := whatRan(newSnapshotInfo(to.snapshot, to.snapshot)); ran != "" {
		// Before the first line of a patch git reads nothing, but a line of the
		// text must not look like one.
		fmt.Fprintf(f, "# %s\n", safeLine(ran))
	}
	left, err = review.WritePatch(ctx, f, c.set, review.PatchOptions{})
	return left, true, err
}

func pushCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"push [--flat] [--json] REGISTRY/NAME:TAG SESSION[@N|@NAME]"},
		about: `
Writes a session to a registry of images, as galley export writes it to a directory, with
the credentials that docker login or podman login stored.`,
		json:     `as galley export`,
		examples: [][2]string{{"galley push localhost:5000/sessions/app:monday app", "for galley pull elsewhere"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "push", Category: catManage, Usage: "write a session to a registry", ArgsUsage: "REF SESSION",
		Flags: []cli.Flag{jsonFlag(), boolFlag("flat", "one layer for all changes, without the history")},
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef(c, "expected REGISTRY/NAME:TAG and a session")
			}
			ref, err := oci.ParseRef(c.Args().First())
			if err != nil {
				return usagef(c, "%v", err)
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				p, err := e.pointOf(ctx, st, c.Args().Get(1))
				if err != nil {
					return err
				}
				progress := e.progress("pushing (MiB)")
				defer progress.Close()
				done, err := oci.Push(ctx, p.session, p.snapshot, ref, oci.ExportOptions{Flat: c.Bool("flat"), Progress: counting(progress)})
				progress.Close()
				if err != nil {
					return err
				}
				return e.tellExported(p, ref.String(), done, c.Bool("json"))
			})
		},
	})
}
