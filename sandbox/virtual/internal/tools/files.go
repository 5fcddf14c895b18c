package tools

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	register(rm, "rm")
	register(unlink, "unlink")
	register(mkdir, "mkdir")
	register(rmdir, "rmdir")
	register(ln, "ln")
	register(touch, "touch")
	register(truncateTool, "truncate")
	register(mkfifo, "mkfifo")
	register(mktemp, "mktemp")
	register(func(*Call) int { return 0 }, "sync")
}

type remover struct {
	c                              *Call
	recursive, force, dir, verbose bool
}

func rm(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "dfiIrRv①::②②", long: map[string]rune{
		"dir": 'd', "force": 'f', "recursive": 'r', "verbose": 'v', "interactive": '①', "preserve-root": '②', "no-preserve-root": '②', "one-file-system": '②',
	}})
	if !ok {
		return st
	}
	r := remover{c: c}
	for _, o := range opts {
		switch o.name {
		case 'd':
			r.dir = true
		case 'f':
			r.force = true
		case 'r', 'R':
			r.recursive = true
		case 'v':
			r.verbose = true
		}
	}
	if len(files) == 0 && !r.force {
		return c.usage(1, "missing operand")
	}
	for _, f := range files {
		base := path.Base(strings.TrimRight(f, "/"))
		switch {
		case strings.TrimRight(f, "/") == "" && f != "" && r.recursive:
			c.fail("it is dangerous to operate recursively on '/'")
			c.warn("use --no-preserve-root to override this failsafe")
			continue
		case (base == "." || base == "..") && f != "":
			c.fail("refusing to remove '.' or '..' directory: skipping '%s'", f)
			continue
		}
		r.one(f, true)
	}
	return c.status
}

func (r *remover) one(p string, operand bool) bool {
	c := r.c
	if c.Ctx.Err() != nil {
		return false
	}
	i, err := c.stat(p, false)
	if err != nil {
		if !r.force || !isNotExist(err) && !errors.Is(err, unix.ENOTDIR) {
			c.fail("cannot remove '%s': %s", p, msg(err))
		}
		return false
	}
	if !i.IsDir() {
		if err := c.View.Remove(c.abs(p), false); err != nil {
			c.fail("cannot remove '%s': %s", p, msg(err))
			return false
		}
		if r.verbose {
			c.printf("removed '%s'\n", p)
		}
		return true
	}
	if !r.recursive && !r.dir {
		c.fail("cannot remove '%s': Is a directory", p)
		return false
	}
	if r.recursive {
		entries, err := c.View.ReadDir(c.abs(p))
		if err != nil {
			c.fail("cannot remove '%s': %s", p, msg(err))
			return false
		}
		all := true
		for _, e := range entries {
			all = r.one(strings.TrimRight(p, "/")+"/"+e.Name(), false) && all
		}
		if !all {
			return false
		}
	}
	if err := c.View.Remove(c.abs(p), true); err != nil {
		c.fail("cannot remove '%s': %s", p, msg(err))
		return false
	}
	if r.verbose {
		c.printf("removed directory '%s'\n", p)
	}
	return true
}

func unlink(c *Call) int {
	if len(c.Args) != 1 {
		return c.usage(1, "missing operand")
	}
	if err := c.View.Remove(c.abs(c.Args[0]), false); err != nil {
		return c.die(1, "cannot unlink '%s': %s", c.Args[0], msg(err))
	}
	return 0
}

func mkdir(c *Call) int {
	opts, dirs, st, ok := c.parse(options{short: "m:pv", long: map[string]rune{"mode": 'm', "parents": 'p', "verbose": 'v'}})
	if !ok {
		return st
	}
	var parents, verbose bool
	var mode func(uint32, bool, uint32) uint32
	for _, o := range opts {
		switch o.name {
		case 'm':
			if mode, ok = parseMode(o.arg); !ok {
				return c.die(1, "invalid mode '%s'", o.arg)
			}
		case 'p':
			parents = true
		case 'v':
			verbose = true
		}
	}
	if len(dirs) == 0 {
		return c.usage(1, "missing operand")
	}
	for _, d := range dirs {
		_, there := c.stat(d, true)
		var err error
		switch {
		case d == "":
			err = unix.ENOENT
		case parents:
			err = c.mkdirAll(d, 0o777)
		default:
			err = c.View.Mkdir(c.abs(d), 0o777&^c.Umask)
		}
		if err != nil {
			c.fail("cannot create directory '%s': %s", d, msg(err))
			continue
		}
		if mode != nil && there != nil {
			_ = c.View.Chmod(c.abs(d), mode(0o777, true, c.Umask))
		}
		if verbose && there != nil {
			c.printf("%s: created directory '%s'\n", c.Name, d)
		}
	}
	return c.status
}

func rmdir(c *Call) int {
	opts, dirs, st, ok := c.parse(options{short: "pv①", long: map[string]rune{"parents": 'p', "verbose": 'v', "ignore-fail-on-non-empty": '①'}})
	if !ok {
		return st
	}
	var parents, lax bool
	for _, o := range opts {
		parents = parents || o.name == 'p'
		lax = lax || o.name == '①'
	}
	if len(dirs) == 0 {
		return c.usage(1, "missing operand")
	}
	for _, d := range dirs {
		for {
			err := error(unix.ENOENT)
			if d != "" {
				err = c.View.Remove(c.abs(d), true)
			}
			if err != nil {
				if !lax || !errors.Is(err, unix.ENOTEMPTY) {
					c.fail("failed to remove '%s': %s", d, msg(err))
				}
				break
			}
			if d = path.Dir(strings.TrimRight(d, "/")); !parents || d == "." || d == "/" {
				break
			}
		}
	}
	return c.status
}

func ln(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "sfnrvt:TLPi", long: map[string]rune{
		"symbolic": 's', "force": 'f', "no-dereference": 'n', "relative": 'r', "verbose": 'v', "target-directory": 't', "no-target-directory": 'T', "logical": 'L', "physical": 'P',
	}})
	if !ok {
		return st
	}
	var sym, force, noderef, rel, verbose, noDir, logical bool
	dir := ""
	for _, o := range opts {
		switch o.name {
		case 's':
			sym = true
		case 'f':
			force = true
		case 'n':
			noderef = true
		case 'r':
			rel = true
		case 'v':
			verbose = true
		case 't':
			dir = o.arg
		case 'T':
			noDir = true
		case 'L':
			logical = true
		}
	}
	if len(files) == 1 && dir == "" {
		files = append(files, "./"+path.Base(strings.TrimRight(files[0], "/")))
		noDir = true
	}
	if noderef && len(files) == 2 && dir == "" {
		if i, err := c.stat(files[1], false); err == nil && i.Mode()&fs.ModeSymlink != 0 {
			noDir = true
		}
	}
	pairs, st, ok := c.targets(files, dir, noDir)
	if !ok {
		return st
	}
	kind := "hard"
	if sym {
		kind = "symbolic"
	}
	for _, p := range pairs {
		from, to := p[0], p[1]
		old, oerr := c.stat(to, false)
		if !sym {
			i, err := c.stat(from, logical)
			if err != nil {
				c.fail("failed to access '%s': %s", from, msg(err))
				continue
			}
			if i.IsDir() {
				c.fail("%s: hard link not allowed for directory", from)
				continue
			}
			if oerr == nil && force && old.Same(i) {
				c.fail("'%s' and '%s' are the same file", from, to)
				continue
			}
		}
		if oerr == nil && old.IsDir() && force {
			c.fail("%s: cannot overwrite directory", to)
			continue
		}
		if oerr == nil && force {
			if err := c.View.Remove(c.abs(to), false); err != nil {
				c.fail("cannot remove '%s': %s", to, msg(err))
				continue
			}
		}
		var err error
		target := from
		if sym {
			if rel {
				a, aerr := c.real(from, false)
				b, berr := c.real(path.Dir(to), false)
				if aerr == nil && berr == nil {
					target = relPath(b, a)
				}
			}
			err = c.View.Symlink(target, c.abs(to))
		} else {
			err = c.View.Link(c.abs(from), c.abs(to), logical)
		}
		switch {
		case err != nil && (sym || errors.Is(err, unix.EEXIST)):
			c.fail("failed to create %s link '%s': %s", kind, to, msg(err))
		case err != nil:
			c.fail("failed to create hard link '%s' => '%s': %s", to, from, msg(err))
		case verbose && sym:
			c.printf("'%s' -> '%s'\n", to, target)
		case verbose:
			c.printf("'%s' => '%s'\n", to, from)
		}
	}
	return c.status
}

func touch(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "acd:hmr:t:f", long: map[string]rune{"no-create": 'c', "date": 'd', "no-dereference": 'h', "reference": 'r'}})
	if !ok {
		return st
	}
	now := time.Now()
	at, mt := now, now
	var a, m, noCreate, noFollow bool
	for _, o := range opts {
		switch o.name {
		case 'a':
			a = true
		case 'm':
			m = true
		case 'c':
			noCreate = true
		case 'h':
			noFollow = true
		case 'd':
			t, ok := parseDate(o.arg, now.UTC())
			if !ok {
				return c.die(1, "invalid date format '%s'", o.arg)
			}
			at, mt = t, t
		case 'r':
			i, err := c.stat(o.arg, true)
			if err != nil {
				return c.die(1, "failed to get attributes of '%s': %s", o.arg, msg(err))
			}
			at, mt = time.Unix(i.Stat().Atim.Unix()), i.ModTime()
		case 't':
			form := map[int]string{8: "01021504", 10: "0601021504", 12: "200601021504", 11: "01021504.05", 13: "0601021504.05", 15: "200601021504.05"}[len(o.arg)]
			t, err := time.Parse(form, o.arg)
			if err != nil {
				return c.die(1, "invalid date format '%s'", o.arg)
			}
			if t.Year() == 0 {
				t = t.AddDate(now.Year(), 0, 0)
			}
			at, mt = t, t
		}
	}
	if len(files) == 0 {
		return c.usage(1, "missing file operand")
	}
	if a && !m {
		mt = time.Time{}
	}
	if m && !a {
		at = time.Time{}
	}
	for _, f := range files {
		_, err := c.stat(f, !noFollow)
		if err != nil {
			if noCreate && isNotExist(err) {
				continue
			}
			var w interface{ Close() error }
			if w, err = c.create(f, 0, 0o666); err != nil {
				c.fail("cannot touch '%s': %s", f, msg(err))
				continue
			}
			_ = w.Close()
			if at == now && mt == now {
				continue
			}
		}
		if err := c.View.Chtimes(c.abs(f), !noFollow, at, mt); err != nil {
			c.fail("setting times of '%s': %s", f, msg(err))
		}
	}
	return c.status
}

func truncateTool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "cs:r:o", long: map[string]rune{"no-create": 'c', "size": 's', "reference": 'r'}})
	if !ok {
		return st
	}
	size, rel, noCreate, has := int64(0), byte(0), false, false
	for _, o := range opts {
		switch o.name {
		case 'c':
			noCreate = true
		case 's':
			arg := o.arg
			if arg != "" && strings.IndexByte("+-<>/%", arg[0]) >= 0 {
				rel, arg = arg[0], arg[1:]
			}
			n, err := count(arg)
			if err != nil {
				return c.die(1, "Invalid number: '%s'", o.arg)
			}
			size, has = n, true
		case 'r':
			i, err := c.stat(o.arg, true)
			if err != nil {
				return c.die(1, "cannot stat '%s': %s", o.arg, msg(err))
			}
			size, has = i.Size(), true
		}
	}
	if !has {
		return c.usage(1, "you must specify either '--size' or '--reference'")
	}
	for _, f := range files {
		i, err := c.stat(f, true)
		if err != nil && noCreate {
			continue
		}
		n := size
		if err == nil {
			switch rel {
			case '+':
				n = i.Size() + size
			case '-':
				n = max(i.Size()-size, 0)
			case '<':
				n = min(i.Size(), size)
			case '>':
				n = max(i.Size(), size)
			}
		}
		w, err := c.create(f, 0, 0o666)
		if err == nil {
			_ = w.Close()
			err = c.View.Truncate(c.abs(f), n)
		}
		if err != nil {
			c.fail("cannot open '%s' for writing: %s", f, msg(err))
		}
	}
	return c.status
}

func mkfifo(c *Call) int {
	_, files, st, ok := c.parse(options{short: "m:"})
	if !ok {
		return st
	}
	for _, f := range files {
		if err := c.View.Mkfifo(c.abs(f), 0o666&^c.Umask); err != nil {
			c.fail("cannot create fifo '%s': %s", f, msg(err))
		}
	}
	return c.status
}

func mktemp(c *Call) int {
	opts, rest, st, ok := c.parse(options{short: "dp::qtu①:", long: map[string]rune{"directory": 'd', "tmpdir": 'p', "quiet": 'q', "dry-run": 'u', "suffix": '①'}})
	if !ok {
		return st
	}
	var dir, dry, inTmp bool
	parent, suffix := "", ""
	for _, o := range opts {
		switch o.name {
		case 'd':
			dir = true
		case 'p':
			inTmp, parent = true, o.arg
			if !o.has && len(rest) > 1 {
				parent, rest = rest[0], rest[1:]
			} else if !o.has && len(rest) == 1 && !strings.Contains(rest[0], "XXX") {
				parent, rest = rest[0], nil
			}
		case 't':
			inTmp = true
		case 'u':
			dry = true
		case '①':
			suffix = o.arg
		}
	}
	template := "tmp.XXXXXXXXXX"
	if len(rest) > 1 {
		return c.usage(1, "too many templates")
	}
	if len(rest) == 1 {
		template = rest[0]
	} else {
		inTmp = true
	}
	if inTmp && parent == "" {
		if parent = c.Getenv("TMPDIR"); parent == "" {
			parent = "/tmp"
		}
	}
	end := strings.LastIndex(template, "X") + 1
	begin := end
	for begin > 0 && template[begin-1] == 'X' {
		begin--
	}
	if end-begin < 3 {
		return c.die(1, "too few X's in template '%s'", template)
	}
	for range 100 {
		name := template[:begin] + randomName(end-begin) + template[end:] + suffix
		if inTmp {
			name = strings.TrimRight(parent, "/") + "/" + name
		}
		var err error
		switch {
		case dry:
			_, serr := c.stat(name, false)
			if serr == nil {
				err = unix.EEXIST
			}
		case dir:
			err = c.View.Mkdir(c.abs(name), 0o700)
		default:
			f, oerr := c.View.OpenFile(c.abs(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if err = oerr; err == nil {
				err = f.Close()
			}
		}
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			what := "file"
			if dir {
				what = "directory"
			}
			return c.die(1, "failed to create %s via template '%s': %s", what, fmt.Sprint(strings.TrimRight(parent, "/")+"/"+template), msg(err))
		}
		c.print(name + "\n")
		return 0
	}
	return c.die(1, "failed to create via template '%s': File exists", template)
}
