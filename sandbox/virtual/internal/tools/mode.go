package tools

import (
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	register(chmod, "chmod")
	register(chown, "chown", "chgrp")
}

// parseMode reads an octal or symbolic mode. The outcome makes a new mode of
// an old one, of a directory or not, under an umask.
func parseMode(s string) (func(old uint32, dir bool, umask uint32) uint32, bool) {
	if isDigits(s) {
		n, err := strconv.ParseUint(s, 8, 32)
		return func(old uint32, dir bool, _ uint32) uint32 {
			if dir && len(s) < 5 {
				return uint32(n) | old&0o6000
			}
			return uint32(n)
		}, err == nil && n <= 0o7777
	}
	type op struct {
		who, perm string
		op        byte
	}
	var ops []op
	for _, clause := range strings.Split(s, ",") {
		i := 0
		for i < len(clause) && strings.IndexByte("ugoa", clause[i]) >= 0 {
			i++
		}
		who := clause[:i]
		if i >= len(clause) {
			return nil, false
		}
		for i < len(clause) {
			if strings.IndexByte("+-=", clause[i]) < 0 {
				return nil, false
			}
			o := op{who: who, op: clause[i]}
			i++
			j := i
			for i < len(clause) && strings.IndexByte("rwxXstugo", clause[i]) >= 0 {
				i++
			}
			o.perm = clause[j:i]
			ops = append(ops, o)
		}
	}
	return func(m uint32, dir bool, umask uint32) uint32 {
		for _, o := range ops {
			mask := uint32(0)
			who := o.who
			if who == "" {
				who = "a"
				mask = umask
			}
			bits, clear := uint32(0), uint32(0)
			for _, w := range who {
				shift := map[rune][]uint32{'u': {6}, 'g': {3}, 'o': {0}, 'a': {6, 3, 0}}[w]
				for _, sh := range shift {
					clear |= 7 << sh
					for _, p := range o.perm {
						switch p {
						case 'r':
							bits |= 4 << sh
						case 'w':
							bits |= 2 << sh
						case 'x':
							bits |= 1 << sh
						case 'X':
							if dir || m&0o111 != 0 {
								bits |= 1 << sh
							}
						case 's':
							if sh == 6 {
								bits |= unix.S_ISUID
							}
							if sh == 3 {
								bits |= unix.S_ISGID
							}
						case 't':
							bits |= unix.S_ISVTX
						case 'u':
							bits |= m >> 6 & 7 << sh
						case 'g':
							bits |= m >> 3 & 7 << sh
						case 'o':
							bits |= m & 7 << sh
						}
					}
				}
			}
			bits &^= mask
			switch o.op {
			case '+':
				m |= bits
			case '-':
				m &^= bits
			case '=':
				m = m&^clear | bits
			}
		}
		return m
	}, true
}

func chmod(c *Call) int {
	// A mode such as -x looks like an option.
	var args []string
	mode := ""
	var recursive, verbose, quiet bool
	ref := ""
	for i, a := range c.Args {
		switch {
		case a == "--":
			args = append(args, c.Args[i+1:]...)
		case a == "-R" || a == "--recursive":
			recursive = true
			continue
		case a == "-v" || a == "--verbose" || a == "-c" || a == "--changes":
			verbose = true
			continue
		case a == "-f" || a == "--silent" || a == "--quiet":
			quiet = true
			continue
		case strings.HasPrefix(a, "--reference="):
			ref = strings.TrimPrefix(a, "--reference=")
			continue
		case len(a) > 1 && a[0] == '-' && strings.Trim(a[1:], "rwxXstugo,=+-") != "":
			return c.usage(1, "invalid option -- '%c'", strings.TrimLeft(a, "-rwxXst")[0])
		case mode == "" && ref == "":
			mode = a
			continue
		default:
			args = append(args, a)
			continue
		}
		break
	}
	if ref != "" {
		i, err := c.stat(ref, true)
		if err != nil {
			return c.die(1, "failed to get attributes of '%s': %s", ref, msg(err))
		}
		mode = strconv.FormatUint(uint64(i.Stat().Mode&0o7777), 8)
	}
	switch {
	case mode == "":
		return c.usage(1, "missing operand")
	case len(args) == 0:
		return c.usage(1, "missing operand after '%s'", mode)
	}
	m, ok := parseMode(mode)
	if !ok {
		return c.usage(1, "invalid mode: '%s'", mode)
	}
	var one func(p string, operand bool)
	one = func(p string, operand bool) {
		i, err := c.stat(p, operand)
		if err != nil {
			if !quiet {
				c.warn("cannot access '%s': %s", p, msg(err))
			}
			c.status = 1
			return
		}
		if i.Mode()&fs.ModeSymlink != 0 {
			return
		}
		old := i.Stat().Mode & 0o7777
		want := m(old, i.IsDir(), c.Umask)
		if err := c.View.Chmod(c.abs(p), want); err != nil {
			c.fail("changing permissions of '%s': %s", p, msg(err))
		} else if verbose && old != want {
			c.printf("mode of '%s' changed from %04o (%s) to %04o (%s)\n", p, old, modeString(i.Stat().Mode)[1:], want, modeString(i.Stat().Mode&unix.S_IFMT | want)[1:])
		}
		if recursive && i.IsDir() {
			entries, err := c.View.ReadDir(c.abs(p))
			if err != nil {
				c.fail("cannot read directory '%s': %s", p, msg(err))
			}
			for _, e := range entries {
				one(strings.TrimRight(p, "/")+"/"+e.Name(), false)
			}
		}
	}
	for _, p := range args {
		one(p, true)
	}
	return c.status
}

// chown accepts what changes nothing: all files are the one user's.
func chown(c *Call) int {
	_, files, st, ok := c.parse(options{short: "RhvcfLPH", long: map[string]rune{"recursive": 'R', "no-dereference": 'h', "verbose": 'v', "changes": 'c', "silent": 'f'}})
	if !ok {
		return st
	}
	if len(files) < 2 {
		return c.usage(1, "missing operand")
	}
	mine := map[string]bool{"": true, userName: true, userName + ":": true, userName + ":" + userName: true, ":" + userName: true, userID: true, userID + ":" + userID: true}
	for _, f := range files[1:] {
		if _, err := c.stat(f, true); err != nil {
			c.fail("cannot access '%s': %s", f, msg(err))
		} else if !mine[files[0]] {
			c.fail("changing ownership of '%s': Operation not permitted", f)
		}
	}
	return c.status
}
