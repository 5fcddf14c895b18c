package tools

import (
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	register(basename, "basename")
	register(dirname, "dirname")
	register(realpath, "realpath")
	register(readlink, "readlink")
}

func basename(c *Call) int {
	opts, names, st, ok := c.parse(options{short: "as:z", ordered: true, long: map[string]rune{"multiple": 'a', "suffix": 's', "zero": 'z'}})
	if !ok {
		return st
	}
	multiple, suffix, end := false, "", "\n"
	for _, o := range opts {
		switch o.name {
		case 'a':
			multiple = true
		case 's':
			multiple, suffix = true, o.arg
		case 'z':
			end = "\x00"
		}
	}
	switch {
	case len(names) == 0:
		return c.usage(1, "missing operand")
	case !multiple && len(names) > 2:
		return c.usage(1, "extra operand '%s'", names[2])
	case !multiple && len(names) == 2:
		suffix, names = names[1], names[:1]
	}
	for _, n := range names {
		b := n
		if n != "" {
			b = path.Base(n)
		}
		if b != suffix {
			b = strings.TrimSuffix(b, suffix)
		}
		c.print(b + end)
	}
	return 0
}

func dirname(c *Call) int {
	opts, names, st, ok := c.parse(options{short: "z", long: map[string]rune{"zero": 'z'}})
	if !ok {
		return st
	}
	if len(names) == 0 {
		return c.usage(1, "missing operand")
	}
	end := "\n"
	if len(opts) > 0 {
		end = "\x00"
	}
	for _, n := range names {
		t := strings.TrimRight(n, "/")
		i := strings.LastIndexByte(t, '/')
		switch {
		case t == "" && n != "":
			n = "/"
		case i < 0:
			n = "."
		default:
			if n = strings.TrimRight(t[:i], "/"); n == "" {
				n = "/"
			}
		}
		c.print(n + end)
	}
	return 0
}

// real resolves a path; missing lets elements be missing.
func (c *Call) real(p string, missing bool) (string, error) {
	if p == "" {
		return "", unix.ENOENT
	}
	r, err := c.View.Real(c.abs(p))
	if err == nil || !missing {
		return r, err
	}
	clean := path.Clean(c.abs(p))
	if clean == "/" {
		return clean, nil
	}
	parent, perr := c.real(path.Dir(clean), true)
	if perr != nil {
		return "", err
	}
	return path.Join(parent, path.Base(clean)), nil
}

// relPath is target as seen from the directory base; both are resolved.
func relPath(base, target string) string {
	if base == target {
		return "."
	}
	b, t := strings.Split(strings.Trim(base, "/"), "/"), strings.Split(strings.Trim(target, "/"), "/")
	if base == "/" {
		b = nil
	}
	if target == "/" {
		t = nil
	}
	n := 0
	for n < len(b) && n < len(t) && b[n] == t[n] {
		n++
	}
	out := append([]string{}, strings.Split(strings.Repeat("..,", len(b)-n), ",")[:len(b)-n]...)
	return path.Join(append(out, t[n:]...)...)
}

func realpath(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "emLPqsz①:②:", long: map[string]rune{
		"canonicalize-existing": 'e', "canonicalize-missing": 'm', "no-symlinks": 's', "strip": 's', "quiet": 'q', "zero": 'z', "relative-to": '①', "relative-base": '②',
	}})
	if !ok {
		return st
	}
	var exist, missing, strip, quiet bool
	end, rel := "\n", ""
	for _, o := range opts {
		switch o.name {
		case 'e':
			exist = true
		case 'm':
			missing = true
		case 's':
			strip = true
		case 'q':
			quiet = true
		case 'z':
			end = "\x00"
		case '①':
			rel = o.arg
		}
	}
	if len(files) == 0 {
		return c.usage(1, "missing operand")
	}
	if rel != "" {
		var err error
		if rel, err = c.real(rel, true); err != nil {
			return c.die(1, "%s: %s", rel, msg(err))
		}
	}
	for _, f := range files {
		var r string
		var err error
		if strip && f != "" {
			r = path.Clean(c.abs(f))
		} else if r, err = c.real(f, missing); err == nil && exist {
			_, err = c.stat(f, true)
		}
		if err != nil {
			if !quiet {
				c.warn("%s: %s", f, msg(err))
			}
			c.status = 1
			continue
		}
		if rel != "" {
			r = relPath(rel, r)
		}
		c.print(r + end)
	}
	return c.status
}

func readlink(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "efmnqsvz", long: map[string]rune{"canonicalize": 'f', "canonicalize-existing": 'e', "canonicalize-missing": 'm', "no-newline": 'n', "quiet": 'q', "silent": 's', "verbose": 'v', "zero": 'z'}})
	if !ok {
		return st
	}
	mode, end, verbose := rune(0), "\n", false
	for _, o := range opts {
		switch o.name {
		case 'e', 'f', 'm':
			mode = o.name
		case 'n':
			end = ""
		case 'z':
			end = "\x00"
		case 'v':
			verbose = true
		}
	}
	if len(files) == 0 {
		return c.usage(1, "missing operand")
	}
	for _, f := range files {
		var r string
		var err error
		if mode != 0 {
			if r, err = c.real(f, mode == 'm'); err == nil && mode == 'e' {
				_, err = c.stat(f, true)
			}
		} else {
			var i interface{ Mode() fs.FileMode }
			if i, err = c.stat(f, false); err == nil && i.Mode()&fs.ModeSymlink == 0 {
				err = unix.EINVAL
			}
			if err == nil {
				r, err = c.View.Readlink(c.abs(f))
			}
		}
		if err != nil {
			if verbose {
				c.warn("%s: %s", f, msg(err))
			}
			c.status = 1
			continue
		}
		c.print(r + end)
	}
	return c.status
}

// fnmatch matches a shell pattern; "*" matches slashes, too, as in find.
func fnmatch(pat, name string, fold bool) bool {
	if fold {
		pat, name = strings.ToLower(pat), strings.ToLower(name)
	}
	return wild([]byte(pat), []byte(name))
}

// wild matches with the usual two positions to go back to, in time that is the
// product of the lengths at worst.
func wild(p, s []byte) bool {
	pi, si, star, mark := 0, 0, -1, 0
	for si < len(s) {
		if pi < len(p) {
			if p[pi] == '*' {
				star, mark = pi, si
				pi++
				continue
			}
			if n, ok := one(p[pi:], s[si]); ok {
				pi += n
				si++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		pi, si = star+1, mark
	}
	for pi < len(p) && p[pi] == '*' {
		pi++
	}
	return pi == len(p)
}

// one matches one byte with the element at the beginning of the pattern.
func one(p []byte, b byte) (int, bool) {
	switch p[0] {
	case '?':
		return 1, true
	case '\\':
		if len(p) > 1 {
			return 2, p[1] == b
		}
	case '[':
		i := 1
		neg := false
		if i < len(p) && (p[i] == '!' || p[i] == '^') {
			neg = true
			i++
		}
		ok := false
		for first := true; i < len(p) && (p[i] != ']' || first); first = false {
			if p[i] == '[' && i+1 < len(p) && p[i+1] == ':' {
				if j := strings.Index(string(p[i:]), ":]"); j > 0 {
					if in := classes[string(p[i+2:i+j])]; in != nil && in(b) {
						ok = true
					}
					i += j + 2
					continue
				}
			}
			lo := p[i]
			if lo == '\\' && i+1 < len(p) {
				i++
				lo = p[i]
			}
			hi := lo
			if i+2 < len(p) && p[i+1] == '-' && p[i+2] != ']' {
				hi = p[i+2]
				i += 2
			}
			if b >= lo && b <= hi {
				ok = true
			}
			i++
		}
		if i < len(p) {
			return i + 1, ok != neg
		}
	}
	return 1, p[0] == b
}
