package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
)

// overlayRequest is what `galley overlay` was asked for: directories to merge,
// where, and how. All paths are absolute.
type overlayRequest struct {
	Dirs    overlay.Dirs
	Dir     string
	Options fs.MountOptions
}

func overlayCommand(e *env) *cli.Command {
	return manual{
		usage: []string{"overlay [--foreground] -o lowerdir=A[:B…][,upperdir=U,workdir=W][,OPTIONS] DIR"},
		about: `
Merges directories that you have, as mount(8) does with -t overlay: the bare engine, with
no session. Reads come from the first directory that has a name, from the left; writes
go to upperdir, in the format of the kernel's overlayfs. Without upperdir the view is
read-only. workdir is an empty directory on upperdir's file system, which Galley keeps
its records in. None of these may be in another. The mount stays until galley unmount takes
it down.

OPTIONS of overlayfs are userxattr, redirect_dir=on, metacopy=on, index=on and xino=on|auto,
the last four being what the engine always does. Of mounts in general they are ro, rw, exec,
noexec, noatime, relatime, allow_other, fsname=NAME, subtype=NAME and writeback. A backslash
keeps the colon or comma after it. Any other option is refused.`,
		examples: [][2]string{
			{"galley overlay -o lowerdir=/srv/app,upperdir=/tmp/up,workdir=/tmp/work /mnt/app", "changes to /srv/app, in /tmp/up"},
			{"galley overlay -o lowerdir=/patch:/srv/app /mnt/app", "two trees as one, to look at"},
		},
		exits: [][2]string{exitDone, exitErrors},
	}.apply(&cli.Command{
		Name: "overlay", Category: catMount, Usage: "merge directories that you have, with no session", ArgsUsage: "DIR",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "o", Usage: "mount `OPTIONS`"},
			boolFlag("foreground", "stay until the mount is taken down", "f"),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef(c, "expected one directory to mount on")
			}
			r, err := parseOverlay(c.StringSlice("o"))
			if err != nil {
				return usagef(c, "%w", err)
			}
			if err := e.clearDeadAt(c.Context, c.Args().First()); err != nil {
				return err
			}
			if r.Dir, err = mountPoint(c.Args().First()); err != nil {
				return err
			}
			return e.runOverlay(c.Context, r, c.Bool("foreground"))
		},
	})
}

// parseOverlay sorts the options into those of overlayfs and those of the mount.
func parseOverlay(lists []string) (overlayRequest, error) {
	var r overlayRequest
	var rest []string
	for _, opt := range splitEscaped(strings.Join(lists, ","), ',') {
		key, val, _ := strings.Cut(opt, "=")
		taken, err := r.take(key, val)
		if err != nil {
			return r, err
		}
		if !taken {
			rest = append(rest, opt)
		}
	}
	var err error
	if r.Options, err = fs.ParseMountOptions(strings.Join(rest, ",")); err != nil {
		return r, err
	}
	switch d := &r.Dirs; {
	case len(d.Lower) == 0:
		return r, fmt.Errorf("no lowerdir: expected -o lowerdir=A[:B…], with the lowest directory last")
	case d.Upper != "" && d.Work == "":
		return r, fmt.Errorf("upperdir without workdir: expected an empty directory on the same file system, as workdir=W")
	case d.Upper == "" && d.Work != "":
		return r, fmt.Errorf("workdir without upperdir: expected both, or neither for a read-only view")
	case d.Upper == "":
		r.Options.ReadOnly = true
		return r, nil
	}
	return r, r.checkApart()
}

// checkApart refuses directories of which one is in another, where what is
// written to one would show in the other: a view would hold itself.
func (r *overlayRequest) checkApart() error {
	type named struct{ option, dir string }
	upper, work := named{"upperdir", r.Dirs.Upper}, named{"workdir", r.Dirs.Work}
	pairs := [][2]named{{upper, work}}
	for _, dir := range r.Dirs.Lower {
		lower := named{"lowerdir", dir}
		pairs = append(pairs, [2]named{upper, lower}, [2]named{work, lower})
	}
	for _, p := range pairs {
		for _, p := range [][2]named{p, {p[1], p[0]}} {
			inside, err := isWithin(p[0].dir, p[1].dir)
			if err != nil {
				return err
			}
			if inside {
				return fmt.Errorf("%s %q is in %s %q, or the same: expected directories of which none is in another",
					p[0].option, p[0].dir, p[1].option, p[1].dir)
			}
		}
	}
	return nil
}

// isWithin reports whether dir is at or below above, whatever the two are
// called.
func isWithin(dir, above string) (bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	top, err := os.Stat(above)
	if err != nil {
		return false, err
	}
	for {
		info, err := os.Stat(real)
		if err != nil {
			return false, err
		}
		if os.SameFile(info, top) {
			return true, nil
		}
		if real == "/" {
			return false, nil
		}
		real = filepath.Dir(real)
	}
}

// take takes an option of overlayfs; false for one that is not.
func (r *overlayRequest) take(key, val string) (bool, error) {
	dir := func(to *string) error {
		if val == "" {
			return fmt.Errorf("option %q: needs a directory, as in %s=DIR", key, key)
		}
		abs, err := existingDir(key, unescape(val))
		*to = abs
		return err
	}
	always := func(good ...string) error {
		for _, g := range good {
			if val == g {
				return nil
			}
		}
		return fmt.Errorf("option %q: the engine always works as with %s=%s; leave it out", key+"="+val, key, good[0])
	}
	switch key {
	case "lowerdir":
		r.Dirs.Lower = nil
		for _, part := range splitEscaped(val, ':') {
			var abs string
			val = part
			if err := dir(&abs); err != nil {
				return true, err
			}
			r.Dirs.Lower = append(r.Dirs.Lower, abs)
		}
		return true, nil
	case "upperdir":
		return true, dir(&r.Dirs.Upper)
	case "workdir":
		return true, dir(&r.Dirs.Work)
	case "userxattr":
		r.Dirs.UserXattr = true
		return true, nil
	case "redirect_dir", "metacopy", "index":
		return true, always("on")
	case "xino":
		return true, always("on", "auto")
	}
	return false, nil
}

// existingDir makes a path absolute and insists on a directory.
func existingDir(what, dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%s: resolve %q: %w", what, dir, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("%s: expected a directory: %w", what, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s %q: expected a directory, found a file", what, dir)
	}
	return abs, nil
}

// splitEscaped splits at separators that no backslash precedes. The backslashes
// stay.
func splitEscaped(s string, sep byte) []string {
	var out []string
	from := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case sep:
			out = append(out, s[from:i])
			from = i + 1
		}
	}
	return append(out, s[from:])
}

// unescape removes the backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// runOverlay starts the process that serves the mount.
func (e *env) runOverlay(ctx context.Context, r overlayRequest, foreground bool) error {
	done, err := startOverlay(ctx, r)
	if err != nil {
		return fmt.Errorf("mount %q: %w", r.Dir, err)
	}
	// The mount works whether or not this finds a file to open.
	_ = fs.Prime(r.Dir)
	fmt.Fprintf(e.stderr, "galley: the merged directories are at %s; galley unmount %s takes them down\n", safePath(r.Dir), safePath(r.Dir))
	if !foreground {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fs.Unmount(context.WithoutCancel(ctx), r.Dir)
	}
}
