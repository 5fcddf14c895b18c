package tools

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

func init() {
	register(cp, "cp")
	register(mv, "mv")
	register(install, "install")
}

// copier copies files and trees.
type copier struct {
	c                              *Call
	recursive, keep, follow, force bool
	noClobber, update, verbose     bool
	deref                          bool // -L; else links beneath an operand are copied as links
	link, symlink                  bool
	removeFirst                    bool
}

// targets resolves the operands of cp, mv, ln and install: the sources, and
// the destination for each of them.
func (c *Call) targets(files []string, dir string, noDir bool) (pairs [][2]string, status int, ok bool) {
	switch {
	case len(files) == 0:
		return nil, c.usage(1, "missing file operand"), false
	case dir == "" && len(files) == 1:
		return nil, c.usage(1, "missing destination file operand after '%s'", files[0]), false
	}
	dest := dir
	if dir == "" {
		dest = files[len(files)-1]
		files = files[:len(files)-1]
	}
	isDir := !noDir && c.isDir(dest)
	if noDir && len(files) > 1 {
		return nil, c.usage(1, "extra operand '%s'", files[1]), false
	}
	if !isDir && (len(files) > 1 || dir != "") {
		return nil, c.die(1, "target '%s'%s", dest, c.whyNoDir(dest)), false
	}
	for _, f := range files {
		d := dest
		if isDir {
			d = strings.TrimRight(dest, "/") + "/" + path.Base(strings.TrimRight(f, "/"))
			if strings.TrimRight(f, "/") == ".." || strings.HasSuffix(strings.TrimRight(f, "/"), "/..") || path.Base(f) == "." {
				d = dest + "/" + path.Base(f)
			}
		}
		pairs = append(pairs, [2]string{f, d})
	}
	return pairs, 0, true
}

func (c *Call) whyNoDir(p string) string {
	if _, err := c.stat(p, true); err != nil {
		return ": " + msg(err)
	}
	return ": Not a directory"
}

func cp(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "abdfilLnprRst:TuvxPH①::②:③", long: map[string]rune{
		"archive": 'a', "force": 'f', "interactive": 'i', "link": 'l', "dereference": 'L', "no-clobber": 'n', "no-dereference": 'P', "recursive": 'R', "symbolic-link": 's',
		"target-directory": 't', "no-target-directory": 'T', "update": 'u', "verbose": 'v', "preserve": '①', "no-preserve": '②', "parents": '③',
	}})
	if !ok {
		return st
	}
	k := copier{c: c, follow: true}
	dir, noDir, parents := "", false, false
	for _, o := range opts {
		switch o.name {
		case 'a':
			k.recursive, k.keep, k.follow = true, true, false
		case 'd', 'P':
			k.follow = false
		case 'f':
			k.force = true
		case 'l':
			k.link = true
		case 's':
			k.symlink = true
		case 'L':
			k.deref = true
		case 'n':
			k.noClobber = true
		case 'p', '①':
			k.keep = true
		case 'r', 'R':
			k.recursive = true
		case 't':
			dir = o.arg
		case 'T':
			noDir = true
		case 'u':
			k.update = true
		case 'v':
			k.verbose = true
		case '③':
			parents = true
		}
	}
	if parents {
		return c.die(1, "--parents is not supported in the virtual sandbox")
	}
	if k.recursive && !k.deref {
		k.follow = false
	}
	k.follow = k.follow || k.deref
	pairs, st, ok := c.targets(files, dir, noDir)
	if !ok {
		return st
	}
	for _, p := range pairs {
		k.one(p[0], p[1], true)
	}
	return c.status
}

// one copies one file or tree.
func (k *copier) one(from, to string, operand bool) {
	c := k.c
	if c.Ctx.Err() != nil {
		return
	}
	follow := k.follow || k.deref
	i, err := c.stat(from, follow)
	if err != nil {
		c.fail("cannot stat '%s': %s", from, msg(err))
		return
	}
	if i.IsDir() && !k.recursive {
		c.fail("-r not specified; omitting directory '%s'", from)
		return
	}
	old, err := c.stat(to, !i.IsDir() && i.Mode()&fs.ModeSymlink == 0)
	if err == nil {
		switch {
		case old.Same(i) && !i.IsDir():
			c.fail("'%s' and '%s' are the same file", from, to)
			return
		case k.noClobber && !i.IsDir():
			return
		case k.update && !i.IsDir() && !i.ModTime().After(old.ModTime()):
			return
		case old.IsDir() && !i.IsDir():
			c.fail("cannot overwrite directory '%s' with non-directory '%s'", to, from)
			return
		case !old.IsDir() && i.IsDir():
			c.fail("cannot overwrite non-directory '%s' with directory '%s'", to, from)
			return
		}
	}
	if k.verbose && !(i.IsDir() && err == nil) {
		c.printf("'%s' -> '%s'\n", from, to)
	}
	switch {
	case i.IsDir():
		k.dir(from, to, i, err == nil)
	case k.symlink:
		k.report(c.View.Symlink(from, c.abs(to)), "cannot create symbolic link '%s' to '"+from+"': %s", to)
	case k.link && i.Mode().IsRegular():
		k.report(c.View.Link(c.abs(from), c.abs(to), false), "cannot create hard link '%s' to '"+from+"': %s", to)
	case i.Mode()&fs.ModeSymlink != 0:
		k.symlinkTo(from, to, err == nil)
	case i.Mode().IsRegular() || i.Mode()&(fs.ModeCharDevice|fs.ModeNamedPipe) != 0:
		k.file(from, to, i, err == nil)
	default:
		c.fail("cannot copy '%s': it is no regular file, directory or link", from)
	}
}

func (k *copier) report(err error, format, name string) {
	if err != nil {
		k.c.fail(format, name, msg(err))
	}
}

func (k *copier) symlinkTo(from, to string, there bool) {
	target, err := k.c.View.Readlink(k.c.abs(from))
	if err == nil && there {
		err = k.c.View.Remove(k.c.abs(to), false)
	}
	if err == nil {
		err = k.c.View.Symlink(target, k.c.abs(to))
	}
	k.report(err, "cannot create symbolic link '%s': %s", to)
}

func (k *copier) dir(from, to string, i *view.Info, there bool) {
	c := k.c
	// A directory cannot be copied into itself: it would never end.
	if a, err := c.View.Real(c.abs(from)); err == nil {
		if b, err := c.View.Real(c.abs(to)); err == nil && (b == a || strings.HasPrefix(b, a+"/")) {
			c.fail("cannot copy a directory, '%s', into itself, '%s'", from, to)
			return
		}
	}
	entries, err := c.View.ReadDir(c.abs(from))
	if err != nil {
		c.fail("cannot access '%s': %s", from, msg(err))
		return
	}
	if !there {
		if err := c.View.Mkdir(c.abs(to), uint32(i.Mode().Perm())&^c.Umask|0o700); err != nil {
			c.fail("cannot create directory '%s': %s", to, msg(err))
			return
		}
	}
	for _, e := range entries {
		k.one(strings.TrimRight(from, "/")+"/"+e.Name(), strings.TrimRight(to, "/")+"/"+e.Name(), false)
	}
	if !there {
		mode := i.Stat().Mode & 0o7777
		if !k.keep {
			mode &^= c.Umask | 0o7000
		}
		k.report(c.View.Chmod(c.abs(to), mode), "setting permissions for '%s': %s", to)
	}
	if k.keep {
		k.report(c.View.Chtimes(c.abs(to), true, i.ModTime(), i.ModTime()), "preserving times for '%s': %s", to)
	}
}

func (k *copier) file(from, to string, i *view.Info, there bool) {
	c := k.c
	r, err := c.open(from)
	if err != nil {
		c.fail("cannot open '%s' for reading: %s", from, msg(err))
		return
	}
	defer r.Close()
	if there && k.removeFirst {
		_ = c.View.Remove(c.abs(to), false)
	}
	if !there {
		if l, err := c.stat(to, false); err == nil && l.Mode()&fs.ModeSymlink != 0 {
			c.fail("not writing through dangling symlink '%s'", to)
			return
		}
	}
	if strings.HasSuffix(to, "/") {
		c.fail("cannot create regular file '%s': Not a directory", to)
		return
	}
	w, err := c.create(to, truncate, uint32(i.Mode().Perm()))
	if err != nil && there && k.force && errors.Is(err, unix.EACCES) {
		_ = c.View.Remove(c.abs(to), false)
		w, err = c.create(to, truncate, uint32(i.Mode().Perm()))
	}
	if err != nil {
		c.fail("cannot create regular file '%s': %s", to, msg(err))
		return
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 128<<10))
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		c.fail("error writing '%s': %s", to, msg(err))
		return
	}
	if k.keep {
		k.report(c.View.Chmod(c.abs(to), i.Stat().Mode&0o7777), "preserving permissions for '%s': %s", to)
		at := time.Unix(i.Stat().Atim.Unix())
		k.report(c.View.Chtimes(c.abs(to), true, at, i.ModTime()), "preserving times for '%s': %s", to)
	}
}

func mv(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "finvt:Tu", long: map[string]rune{
		"force": 'f', "interactive": 'i', "no-clobber": 'n', "verbose": 'v', "target-directory": 't', "no-target-directory": 'T', "update": 'u',
	}})
	if !ok {
		return st
	}
	var noClobber, verbose, noDir, update bool
	dir := ""
	for _, o := range opts {
		switch o.name {
		case 'n':
			noClobber = true
		case 'f', 'i':
			noClobber = false
		case 'v':
			verbose = true
		case 't':
			dir = o.arg
		case 'T':
			noDir = true
		case 'u':
			update = true
		}
	}
	pairs, st, ok := c.targets(files, dir, noDir)
	if !ok {
		return st
	}
	for _, p := range pairs {
		from, to := p[0], p[1]
		i, err := c.stat(from, false)
		if err != nil {
			c.fail("cannot stat '%s': %s", from, msg(err))
			continue
		}
		old, oerr := c.stat(to, false)
		switch {
		case oerr == nil && noClobber, oerr == nil && update && !i.ModTime().After(old.ModTime()):
			continue
		case oerr == nil && old.Same(i) && !i.IsDir():
			c.fail("'%s' and '%s' are the same file", from, to)
			continue
		case oerr == nil && old.IsDir() && !i.IsDir():
			c.fail("cannot overwrite directory '%s' with non-directory", to)
			continue
		case oerr == nil && !old.IsDir() && i.IsDir():
			c.fail("cannot overwrite non-directory '%s' with directory '%s'", to, from)
			continue
		}
		if !i.IsDir() && strings.HasSuffix(to, "/") {
			c.fail("cannot move '%s' to '%s': Not a directory", from, to)
			continue
		}
		err = c.View.Rename(c.abs(from), c.abs(to), false)
		if errors.Is(err, unix.EXDEV) {
			k := copier{c: c, recursive: true, keep: true, removeFirst: true}
			before := c.status
			c.status = 0
			k.one(from, to, true)
			failed := c.status
			c.status = max(before, failed)
			if failed == 0 {
				(&remover{c: c, recursive: true, force: true}).one(from, true)
			}
			err = nil
		}
		switch {
		case err == nil && verbose:
			c.printf("renamed '%s' -> '%s'\n", from, to)
		case errors.Is(err, unix.EINVAL):
			c.fail("cannot move '%s' to a subdirectory of itself, '%s'", from, to)
		case err != nil:
			c.fail("cannot move '%s' to '%s': %s", from, to, msg(err))
		}
	}
	return c.status
}

func install(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "dDm:vt:Tcps", long: map[string]rune{"directory": 'd', "mode": 'm', "verbose": 'v', "target-directory": 't'}})
	if !ok {
		return st
	}
	mode, dirs, parents, dir, noDir := "755", false, false, "", false
	for _, o := range opts {
		switch o.name {
		case 'd':
			dirs = true
		case 'D':
			parents = true
		case 'm':
			mode = o.arg
		case 't':
			dir = o.arg
		case 'T':
			noDir = true
		}
	}
	m, ok := parseMode(mode)
	if !ok {
		return c.die(1, "invalid mode '%s'", mode)
	}
	perm := m(0, false, 0)
	if dirs {
		for _, d := range files {
			if err := c.mkdirAll(d, 0o755); err != nil {
				c.fail("cannot create directory '%s': %s", d, msg(err))
				continue
			}
			_ = c.View.Chmod(c.abs(d), perm)
		}
		return c.status
	}
	if parents && len(files) == 2 {
		if err := c.mkdirAll(path.Dir(files[1]), 0o755); err != nil {
			return c.die(1, "cannot create directory '%s': %s", path.Dir(files[1]), msg(err))
		}
	}
	pairs, st, ok := c.targets(files, dir, noDir)
	if !ok {
		return st
	}
	k := copier{c: c, follow: true, removeFirst: true}
	for _, p := range pairs {
		before := c.status
		c.status = 0
		k.one(p[0], p[1], true)
		if c.status == 0 {
			_ = c.View.Chmod(c.abs(p[1]), perm)
		}
		c.status = max(before, c.status)
	}
	return c.status
}

// mkdirAll makes a directory and its parents.
func (c *Call) mkdirAll(p string, perm uint32) error {
	err := c.View.Mkdir(c.abs(p), perm&^c.Umask)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		if c.isDir(p) {
			return nil
		}
		return err
	case !errors.Is(err, unix.ENOENT) || path.Dir(p) == p:
		return err
	}
	if err := c.mkdirAll(path.Dir(strings.TrimRight(p, "/")), 0o777); err != nil {
		return err
	}
	if err = c.View.Mkdir(c.abs(p), perm&^c.Umask); errors.Is(err, unix.EEXIST) && c.isDir(p) {
		return nil
	}
	return err
}
