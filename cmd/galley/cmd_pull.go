package main

import (
	"context"
	"errors"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/oci"
	"github.com/galleyfs/galley/vm/images"
)

// mirrorsVariable names registries to ask first, separated by commas.
const mirrorsVariable = "GALLEY_MIRRORS"

func pullCommand(e *env) *cli.Command {
	return manual{
		usage: []string{
			"pull [--platform OS/ARCH] [--mirror HOST]… [--insecure] [--max-size SIZE] [--json] NAME[:TAG]|NAME@DIGEST",
			"pull [--base DIR] [--devices] [--max-size SIZE] [--json] REGISTRY/NAME:TAG [SESSION]",
		},
		about: `
Fetches an image from a registry, pins its digest under the name, and unpacks its layers
once for all sessions. What is here already is not fetched again, and what was cut off
goes on where it ended. Credentials are those that docker login or podman login stored.

Where the registry has a session there that galley push wrote, it becomes a session, as
galley import makes it of a directory.`,
		json: imageJSON + "\nA session: " + importsJSON,
		examples: [][2]string{
			{"galley pull debian:12", "from Docker Hub, for this machine"},
			{"galley pull --platform linux/arm64 debian:12", "for another kind of machine"},
			{"galley pull --mirror mirror.example.org debian:12", "from a mirror, if it has it"},
			{"galley pull localhost:5000/sessions/app:monday", "a session that galley push wrote there"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "pull", Category: catImages, Usage: "fetch an image, or a session, from a registry", ArgsUsage: "REF NAME",
		Flags: append(imageFlags(),
			&cli.StringSliceFlag{Name: "mirror", Usage: "ask `HOST` first, or for one registry REGISTRY=HOST (also $" + mirrorsVariable + ")"},
			boolFlag("insecure", "speak to the registry without TLS, as is done on the loopback anyway"),
			&cli.StringFlag{Name: "base", Usage: "of a session: the directory `DIR` is the base, not the recorded one"},
			boolFlag("devices", "of a session: import device nodes too"),
		),
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 || c.NArg() > 2 {
				return usagef(c, "expected the name of an image, or REGISTRY/NAME:TAG of a session and perhaps a name for it")
			}
			limits, err := imageLimits(c)
			if err != nil {
				return err
			}
			ref, err := images.ParseName(c.Args().First())
			if err != nil {
				return usagef(c, "%v", err)
			}
			opt := images.PullOptions{
				Platform: c.String("platform"), Mirrors: e.mirrors(c.StringSlice("mirror")), Insecure: c.Bool("insecure"), Limits: limits,
			}
			session, err := importOptions(c, c.Args().Get(1))
			if err != nil {
				return err
			}
			return e.withImages(c.Context, func(ctx context.Context, st *snapshots.Store, im *images.Store) error {
				err := e.pullImage(ctx, im, c.Args().First(), opt, c.Bool("json"))
				if !errors.Is(err, images.ErrSession) {
					return err
				}
				return e.runImport(c.Bool("json"), session, func(o oci.ImportOptions) (*snapshots.Session, oci.Report, error) {
					return oci.Pull(ctx, st, ref, o)
				})
			})
		},
	})
}

func (e *env) pullImage(ctx context.Context, im *images.Store, ref string, opt images.PullOptions, asJSON bool) error {
	p := newImageProgress(e)
	defer p.Close()
	opt.Progress = p.tell
	img, err := im.Pull(ctx, ref, opt)
	p.Close()
	if err != nil {
		return imageError(err)
	}
	return e.tellImage(img, asJSON)
}

// mirrors are those given, and those of the environment.
func (e *env) mirrors(given []string) []string {
	for m := range strings.SplitSeq(e.getenv(mirrorsVariable), ",") {
		if m = strings.TrimSpace(m); m != "" {
			given = append(given, m)
		}
	}
	return given
}
