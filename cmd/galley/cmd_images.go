package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/cmd/galley/internal/ui"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/images"
)

// imageInfo is one element of `galley images --json`, and what pull, image
// import and image from print.
type imageInfo struct {
	Kind     string         `json:"kind"` // "image"
	Name     string         `json:"name"`
	Digest   string         `json:"digest"`
	Platform string         `json:"platform"`
	Source   string         `json:"source"`
	Size     int64          `json:"size"`
	Layers   []images.Layer `json:"layers"`
	Config   images.Config  `json:"config"`
	Time     time.Time      `json:"time,omitzero"`
	// Sessions that stand on it.
	Sessions []string `json:"sessions"`
	Error    string   `json:"error,omitempty"`
}

func newImageInfo(i *images.Image) imageInfo {
	return imageInfo{
		Kind: "image", Name: i.Name, Digest: i.Digest, Platform: i.Platform, Source: i.Source, Size: i.Size,
		Layers: append([]images.Layer{}, i.Layers...), Config: i.Config, Sessions: []string{},
	}
}

const imageJSON = `{"kind": "image", "name", "digest", "platform", "source", "size", "time", "sessions": [name], "error",
 "layers": [{"digest", "diff_id", "size", "chain", "unpacked": bool}],
 "config": {"env", "user", "working_dir", "entrypoint", "cmd", "os", "architecture", …}}`

// withImages opens the images around a command.
func (e *env) withImages(ctx context.Context, fn func(context.Context, *snapshots.Store, *images.Store) error) error {
	return e.withStore(ctx, func(ctx context.Context, st *snapshots.Store) error {
		im, err := images.Open(st)
		if err != nil {
			return err
		}
		return fn(ctx, st, im)
	})
}

func imagesCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"images [--json]"},
		about: `
Lists the images that are here: by which name, of which digest, for which platform, how
large their layers are as they came, and how many sessions stand on them.`,
		json:     "[" + imageJSON + "]",
		examples: [][2]string{{"galley images", "the list"}, {"galley images --json | jq -r '.[].digest'", "the digests"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "images", Category: catImages, Usage: "list the images that are here", Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return e.withImages(c.Context, func(ctx context.Context, _ *snapshots.Store, im *images.Store) error {
				return listImages(ctx, e, im, c.Bool("json"))
			})
		},
	})
}

func listImages(ctx context.Context, e *env, im *images.Store, asJSON bool) error {
	all, err := im.List()
	if err != nil {
		return err
	}
	uses, err := im.InUse(ctx)
	if err != nil {
		return err
	}
	infos := make([]imageInfo, 0, len(all))
	for _, l := range all {
		i := newImageInfo(l.Image)
		i.Time = l.Time
		if l.Err != nil {
			i.Error = l.Err.Error()
		}
		for _, u := range uses[l.Digest] {
			i.Sessions = append(i.Sessions, u.Session)
		}
		infos = append(infos, i)
	}
	if asJSON {
		return ui.JSON(e.stdout, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintln(e.stderr, "galley: no images; galley pull NAME fetches one, galley image import FILE reads one")
		return nil
	}
	rows := [][]string{{"NAME", "DIGEST", "PLATFORM", "SIZE", "HERE SINCE", "SESSIONS"}}
	for _, i := range infos {
		size := ui.Bytes(i.Size)
		if i.Error != "" {
			size = "damaged"
		}
		rows = append(rows, []string{safeLine(i.Name), shortDigest(i.Digest), safeLine(i.Platform), size, ui.Age(time.Now(), i.Time), fmt.Sprint(len(i.Sessions))})
	}
	return ui.Table(e.stdout, rows)
}

// shortDigest is enough of a digest to tell it from others, and to give it.
func shortDigest(d string) string {
	const n = len("sha256:") + 12
	return d[:min(len(d), n)]
}

func imageCommand(e *env) *cli.Command {
	return manual{
		usage: []string{
			"image import [--platform OS/ARCH] [--max-size SIZE] [--json] FILE|DIR [NAME]",
			"image from [--tree NAME] [--json] SESSION[@N] NAME",
			"image show [--json] NAME",
			"image rm [--json] NAME…",
			"image gc [--dry-run] [--verify] [--json]",
		},
		about: `
Images are what guests boot: a file system in layers, and how it wants to be run. They
come from a registry (galley pull), from a file, or from a session that changed one. A
name is pinned to a digest when it comes; a session keeps the image that it was made on.`,
		examples: [][2]string{
			{"galley image import debian.tar", "what docker save, skopeo or mmdebstrap wrote"},
			{"galley image from app debian-with-jq", "the image of session app, with what was changed in it"},
			{"galley image rm debian:12", "the name, and what only it needed"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "image", Category: catImages, Usage: "import, make, show and remove images",
		Subcommands: []*cli.Command{imageImportCommand(e), imageFromCommand(e), imageShowCommand(e), imageRmCommand(e), imageGCCommand(e)},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef(c, "no action %q; there are import, from, show, rm and gc", c.Args().First())
			}
			return usagef(c, "expected import, from, show, rm or gc; galley images lists what is here")
		},
	})
}

// imageFlags are the options of what brings an image.
func imageFlags() []cli.Flag {
	return []cli.Flag{
		jsonFlag(),
		&cli.StringFlag{Name: "platform", Usage: "take the image for `OS/ARCH` (default: this machine's)"},
		&cli.StringFlag{Name: "max-size", Usage: "refuse what unpacks to more than `SIZE`, such as 500M or 2G", Value: "64G"},
	}
}

func imageLimits(c *cli.Context) (l images.Limits, err error) {
	if l.Unpacked.Bytes, err = parseSize(c.String("max-size")); err != nil {
		return l, usagef(c, "--max-size: %v", err)
	}
	return l, nil
}

func imageImportCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"image import [--platform OS/ARCH] [--max-size SIZE] [--json] FILE|DIR [NAME]"},
		about: `
Reads an image from what docker save writes, from an OCI layout (a directory or a tar), or
makes one of a file system: a directory, or a tar of it. Tars may be compressed with gzip
or zstd. Without NAME it is called as the file says, or like the file. Nothing in the
file is trusted: what leads outside is refused, and then there is no image.`,
		json: imageJSON,
		examples: [][2]string{
			{"docker save debian:12 | zstd > d.tar.zst; galley image import d.tar.zst", "from docker"},
			{"mmdebstrap bookworm root.tar; galley image import root.tar debian:mine", "a file system of one's own"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "import", Usage: "read an image from a file or directory", ArgsUsage: "FILE|DIR NAME", Flags: imageFlags(),
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return usagef(c, "expected a file or directory, and perhaps a name")
			}
			limits, err := imageLimits(c)
			if err != nil {
				return err
			}
			return e.withImages(c.Context, func(ctx context.Context, _ *snapshots.Store, im *images.Store) error {
				p := newImageProgress(e)
				defer p.Close()
				img, err := im.Import(ctx, c.Args().First(), images.ImportOptions{
					Name: c.Args().Get(1), Platform: c.String("platform"), Limits: limits, Progress: p.tell,
				})
				p.Close()
				if errors.Is(err, images.ErrDamaged) {
					return withHint(err, "expected what docker save writes, an OCI layout or a file system, as a directory or a tar")
				}
				if err != nil {
					return imageError(err)
				}
				return e.tellImage(img, c.Bool("json"))
			})
		},
	})
}

func imageFromCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"image from [--tree NAME] [--json] SESSION[@N|@NAME] NAME"},
		about: `
Makes an image of a session's tree root: the image that it stands on, with one more layer
that has what the session changed in it. The old image stays what it is, and the session
goes on as it was. With @N it is what the tree was at snapshot N of galley log.`,
		json: imageJSON,
		examples: [][2]string{
			{"galley image from app debian-with-jq", "as session app has it now"},
			{"galley image from app@green tools:1", "as it was at the snapshot called green"},
		},
		exits: [][2]string{exitDone, {"1", "refused: nothing changed in it"}, exitErrors},
	}.apply(&cli.Command{
		Name: "from", Usage: "make an image of what a session changed", ArgsUsage: "SESSION NAME",
		Flags: []cli.Flag{jsonFlag(), &cli.StringFlag{Name: "tree", Usage: "the tree `NAME`, where a session has several on images"}},
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usagef(c, "expected a session and the name of the new image")
			}
			return e.withImages(c.Context, func(ctx context.Context, st *snapshots.Store, im *images.Store) error {
				return e.imageFrom(ctx, st, im, c.Args().First(), c.Args().Get(1), c.String("tree"), c.Bool("json"))
			})
		},
	})
}

func (e *env) imageFrom(ctx context.Context, st *snapshots.Store, im *images.Store, ref, name, tree string, asJSON bool) error {
	p, err := e.pointOf(ctx, st, ref)
	if err != nil {
		return err
	}
	progress := newImageProgress(e)
	defer progress.Close()
	img, err := im.From(ctx, p.session, p.snapshot, name, images.FromOptions{Tree: tree, Progress: progress.tell})
	progress.Close()
	if errors.Is(err, images.ErrNothing) {
		return refusef("%w since its image; there is nothing to make an image of", err)
	}
	if err != nil {
		return imageError(err)
	}
	return e.tellImage(img, asJSON)
}

func imageShowCommand(e *env) *cli.Command {
	return manual{
		usage:    []string{"image show [--json] NAME"},
		about:    "Shows an image: its digest, its layers, and how it wants to be run.",
		json:     imageJSON,
		examples: [][2]string{{"galley image show debian:12", "what it runs, as whom and where"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "show", Usage: "show an image", ArgsUsage: "IMAGE", Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "name an image")
			}
			return e.withImages(c.Context, func(_ context.Context, _ *snapshots.Store, im *images.Store) error {
				img, err := im.Find(c.Args().First())
				if err != nil {
					return imageError(err)
				}
				if c.Bool("json") {
					return ui.JSON(e.stdout, newImageInfo(img))
				}
				return e.printImage(img)
			})
		},
	})
}

func (e *env) printImage(i *images.Image) error {
	rows := [][]string{
		{"image", safeLine(i.Name)}, {"digest", i.Digest}, {"platform", safeLine(i.Platform)}, {"size", ui.Bytes(i.Size)},
		{"entrypoint", safeLine(strings.Join(i.Config.Entrypoint, " "))}, {"command", safeLine(strings.Join(i.Config.Cmd, " "))},
		{"user", safeLine(i.Config.User)}, {"directory", safeLine(i.Config.Dir(""))},
	}
	for _, v := range i.Config.Env {
		rows = append(rows, []string{"environment", safeLine(v)})
	}
	for _, l := range i.Layers {
		rows = append(rows, []string{"layer", l.Digest + "  " + ui.Bytes(l.Size)})
	}
	for _, r := range rows {
		if r[1] != "" {
			fmt.Fprintf(e.stdout, "%-12s %s\n", r[0], r[1])
		}
	}
	return nil
}

func imageRmCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"image rm [--json] NAME…"},
		about: `
Removes names of images, and what only they needed. A digest stands for all names of it.
Sessions that stand on an image keep its layers until they are gone.`,
		json:     `{"names": [name], "blobs", "layers", "bytes", "kept": [session]}`,
		examples: [][2]string{{"galley image rm debian:12 sha256:1f3a9c", "one by its name, one by its digest"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "rm", Usage: "remove images", ArgsUsage: "IMAGE…", Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return usagef(c, "name the images to remove")
			}
			return e.withImages(c.Context, func(ctx context.Context, _ *snapshots.Store, im *images.Store) error {
				r, err := im.Remove(ctx, c.Args().Slice()...)
				if err != nil {
					return imageError(err)
				}
				if c.Bool("json") {
					return ui.JSON(e.stdout, r)
				}
				for _, n := range r.Names {
					fmt.Fprintf(e.stdout, "removed %s\n", safeLine(n))
				}
				if len(r.Kept) > 0 {
					fmt.Fprintf(e.stdout, "its layers stay for session %s\n", safeLine(strings.Join(r.Kept, ", ")))
				}
				return nil
			})
		},
	})
}

func imageGCCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"image gc [--dry-run] [--verify] [--json]"},
		about: `
Removes what no name and no session needs of images, and what was cut off. galley gc does
so too. With --verify all that is kept is read, and what is damaged goes, to be fetched
again.`,
		json:     `{"names": [], "blobs", "layers", "bytes", "kept": []}`,
		examples: [][2]string{{"galley image gc --dry-run", "what would go"}, {"galley image gc --verify", "after trouble with a disk"}},
		exits:    [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "gc", Usage: "remove what no image and no session needs",
		Flags: []cli.Flag{jsonFlag(), boolFlag("dry-run", "only say what would go", "n"), boolFlag("verify", "read everything, and remove what is damaged")},
		Action: func(c *cli.Context) error {
			if err := noOperands(c); err != nil {
				return err
			}
			return e.withImages(c.Context, func(ctx context.Context, _ *snapshots.Store, im *images.Store) error {
				r, err := im.GC(ctx, images.GCOptions{DryRun: c.Bool("dry-run"), Verify: c.Bool("verify")})
				if err != nil {
					return imageError(err)
				}
				if c.Bool("json") {
					return ui.JSON(e.stdout, r)
				}
				verb := "removed"
				if c.Bool("dry-run") {
					verb = "would remove"
				}
				_, err = fmt.Fprintf(e.stdout, "%s %s and %s, %s\n", verb, ui.Count(r.Blobs, "blob", "blobs"),
					ui.Count(r.Layers, "unpacked layer", "unpacked layers"), ui.Bytes(r.Bytes))
				return err
			})
		},
	})
}

// tellImage says what image has come to be here.
func (e *env) tellImage(i *images.Image, asJSON bool) error {
	if asJSON {
		return ui.JSON(e.stdout, newImageInfo(i))
	}
	_, err := fmt.Fprintf(e.stdout, "image %s for %s: %s, %s\n  digest %s\n", safeLine(i.Name), safeLine(i.Platform),
		ui.Count(len(i.Layers), "layer", "layers"), ui.Bytes(i.Size), i.Digest)
	return err
}

// imageError adds what to do next.
func imageError(err error) error {
	switch {
	case errors.Is(err, images.ErrNotFound):
		return withHint(err, "galley images lists what is here", "galley pull NAME fetches one, galley image import FILE reads one")
	case errors.Is(err, images.ErrLimit):
		return withHint(err, "--max-size SIZE allows more, if it is trusted")
	}
	if n := (*net.OpError)(nil); errors.As(err, &n) {
		return withHint(err, "galley images lists what is here, which needs no network; galley image import FILE|DIR reads one")
	}
	return err
}

// imageProgress shows how far an image has come.
type imageProgress struct {
	*ui.Progress
	mu    sync.Mutex
	stage string
}

func newImageProgress(e *env) *imageProgress {
	return &imageProgress{Progress: e.progress("asking the registry")}
}

var imageStages = map[string]string{"fetch": "fetching (MiB)", "read": "reading (MiB)", "unpack": "unpacking (MiB)"}

func (p *imageProgress) tell(s images.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage != s.Stage {
		p.stage = s.Stage
		p.What(imageStages[s.Stage])
	}
	p.Set(s.Done>>20, s.Total>>20)
}

// imageNames are all names, for completion; it fails silently.
func imageNames(e *env) []string {
	var names []string
	_ = e.withImages(context.Background(), func(_ context.Context, _ *snapshots.Store, im *images.Store) error {
		all, err := im.List()
		for _, l := range all {
			names = append(names, l.Name)
		}
		return err
	})
	return names
}
