package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/images"
)

// gcInfo is what `galley gc --json` prints.
type gcInfo struct {
	DryRun  bool     `json:"dry_run"`
	Trash   []string `json:"trash"`   // ids of the trash that were past their time
	Layers  int      `json:"layers"`  // retired layers
	Orphans []string `json:"orphans"` // files that no record names
	Sockets []string `json:"sockets"` // control sockets without a process
	Mounts  []string `json:"mounts"`  // mounts whose server is gone
	// ImageLayers and ImageBlobs are of images that neither a name nor a session
	// needs.
	ImageLayers int `json:"image_layers"`
	ImageBlobs  int `json:"image_blobs"`

	Bytes int64    `json:"bytes"` // allocated bytes of the above
	Kept  []string `json:"kept"`  // what was left, with the reason
}

func gcCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"gc [--dry-run] [--older-than DAYS] [--json]"},
		about: `
Removes what is past its time: what was discarded more than 14 days ago, layers that
commits and discards retired, and what crashes left (mounts without a server, sockets
without a process, files that no record names), and what no image needs. Work that was neither committed nor
discarded is never touched.`,
		json: `{"dry_run", "trash": [id], "layers", "orphans": [path], "sockets": [path],
 "mounts": [dir], "image_layers", "image_blobs", "bytes", "kept": [text]}`,
		examples: [][2]string{
			{"galley gc --dry-run", "what would go"},
			{"galley gc --older-than 0", "empty the trash now"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "gc", Category: catManage, Usage: "remove what is past its time and what crashes left",
		Flags: []cli.Flag{
			boolFlag("dry-run", "only say what would go", "n"),
			&cli.IntFlag{Name: "older-than", Usage: "keep discarded things for `DAYS`", Value: -1, DefaultText: "14"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			opt := snapshots.GCOptions{DryRun: c.Bool("dry-run")}
			switch days := c.Int("older-than"); {
			case !c.IsSet("older-than"):
			case days < 0:
				return usagef(c, "--older-than %d: expected a number of days, 0 or more", days)
			case days == 0:
				opt.Retention = -1
			default:
				opt.Retention = time.Duration(days) * 24 * time.Hour
			}
			return e.withStore(c.Context, func(ctx context.Context, st *snapshots.Store) error {
				return runGC(ctx, e, st, opt, c.Bool("json"))
			})
		},
	})
}

func runGC(ctx context.Context, e *env, st *snapshots.Store, opt snapshots.GCOptions, asJSON bool) error {
	p := e.progress("cleaning up")
	defer p.Close()
	mounts, mountErr := deadMounts(ctx, opt.DryRun)
	r, err := st.GC(ctx, opt)
	if err != nil {
		return err
	}
	swept, err := gcImages(ctx, st, opt.DryRun, &r)
	p.Close()
	if err != nil {
		return err
	}
	info := gcInfo{DryRun: opt.DryRun, Trash: r.Trash, Layers: r.Layers, Orphans: r.Orphans, Sockets: r.Sockets, Mounts: mounts,
		ImageLayers: swept.Layers, ImageBlobs: swept.Blobs, Bytes: r.Bytes, Kept: r.Kept}
	if asJSON {
		err = ui.JSON(e.stdout, emptyLists(info))
	} else {
		printGC(e, info)
	}
	if err != nil {
		return err
	}
	return mountErr
}

// gcImages removes what nothing needs of images, and adds to the report what that
// frees. While images are fetched that is left for another time.
func gcImages(ctx context.Context, st *snapshots.Store, dryRun bool, r *snapshots.GCReport) (images.Removed, error) {
	im, err := images.Open(st)
	if err != nil {
		return images.Removed{}, err
	}
	swept, err := im.GC(ctx, images.GCOptions{DryRun: dryRun})
	if err != nil {
		// A session that cannot be read, say: it is told with the rest.
		r.Kept = append(r.Kept, err.Error())
		return images.Removed{}, nil
	}
	r.Bytes += swept.Bytes
	return swept, nil
}

// deadMounts unmounts, or only lists, the mounts whose server is gone.
func deadMounts(ctx context.Context, dryRun bool) ([]string, error) {
	find := fs.ClearDead
	if dryRun {
		find = fs.Dead
	}
	list, err := find(ctx)
	var dirs []string
	for _, m := range list {
		dirs = append(dirs, m.Dir)
	}
	return dirs, err
}

// emptyLists gives readers of the JSON an array where there is nothing.
func emptyLists(i gcInfo) gcInfo {
	for _, l := range []*[]string{&i.Trash, &i.Orphans, &i.Sockets, &i.Mounts, &i.Kept} {
		if *l == nil {
			*l = []string{}
		}
	}
	return i
}

func printGC(e *env, i gcInfo) {
	verb := "removed"
	if i.DryRun {
		verb = "would remove"
	}
	for _, line := range []struct {
		n         int
		one, many string
	}{
		{len(i.Trash), "discarded thing past its time", "discarded things past their time"},
		{i.Layers, "retired layer", "retired layers"},
		{len(i.Orphans), "leftover of a crash", "leftovers of crashes"},
		{len(i.Sockets), "socket without a process", "sockets without a process"},
		{len(i.Mounts), "mount without a server", "mounts without a server"},
		{i.ImageLayers, "unpacked layer of an image", "unpacked layers of images"},
		{i.ImageBlobs, "blob of an image", "blobs of images"},
	} {
		if line.n > 0 {
			fmt.Fprintf(e.stdout, "%s %s\n", verb, ui.Count(line.n, line.one, line.many))
		}
	}
	for _, k := range i.Kept {
		fmt.Fprintf(e.stdout, "kept %s\n", safeLine(k))
	}
	if len(i.Trash)+i.Layers+len(i.Orphans)+len(i.Sockets)+len(i.Mounts)+i.ImageLayers+i.ImageBlobs == 0 {
		fmt.Fprintln(e.stdout, "nothing to remove")
		return
	}
	fmt.Fprintf(e.stdout, "%s %s\n", verb, ui.Bytes(i.Bytes))
}
