package tools

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

func init() {
	register(du, "du")
	register(tree, "tree")
}

func du(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "abchkmsd:Sx①:②", long: map[string]rune{
		"all": 'a', "bytes": 'b', "total": 'c', "human-readable": 'h', "summarize": 's', "max-depth": 'd', "exclude": '①', "apparent-size": '②',
	}})
	if !ok {
		return st
	}
	var all, bytewise, total, hum, sum, apparent bool
	depth, unit := 1<<30, int64(1024)
	for _, o := range opts {
		switch o.name {
		case 'a':
			all = true
		case 'b':
			bytewise, apparent, unit = true, true, 1
		case 'c':
			total = true
		case 'h':
			hum = true
		case 'm':
			unit = 1 << 20
		case 's':
			sum = true
		case 'd':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 0 {
				return c.usage(1, "invalid maximum depth '%s'", o.arg)
			}
			depth = n
		case '②':
			apparent = true
		}
	}
	if sum {
		depth = 0
	}
	if len(files) == 0 {
		files = []string{"."}
	}
	seen := map[[2]uint64]bool{}
	show := func(n int64, name string) {
		switch {
		case hum:
			c.printf("%s\t%s\n", human(n), name)
		case bytewise:
			c.printf("%d\t%s\n", n, name)
		default:
			c.printf("%d\t%s\n", (n+unit-1)/unit, name)
		}
	}
	var walk func(p string, level int) int64
	walk = func(p string, level int) int64 {
		i, err := c.stat(p, false)
		if err != nil {
			c.fail("cannot access '%s': %s", p, msg(err))
			return 0
		}
		st := i.Stat()
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if !i.IsDir() && st.Nlink > 1 && seen[key] {
			return 0
		}
		seen[key] = true
		n := st.Blocks * 512
		if apparent {
			n = st.Size
		}
		if i.IsDir() {
			entries, err := c.View.ReadDir(c.abs(p))
			if err != nil {
				c.fail("cannot read directory '%s': %s", p, msg(err))
			}
			for _, e := range entries {
				if c.broken() {
					return n
				}
				n += walk(strings.TrimRight(p, "/")+"/"+e.Name(), level+1)
			}
		}
		if level == 0 || level <= depth && (all || i.IsDir()) {
			show(n, p)
		}
		return n
	}
	var sumAll int64
	for _, f := range files {
		sumAll += walk(f, 0)
	}
	if total {
		show(sumAll, "total")
	}
	return c.status
}

func tree(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "adfL:I:P:nCFi①②", long: map[string]rune{"noreport": '①', "dirsfirst": '②'}})
	if !ok {
		return st
	}
	var all, dirsOnly, full, noReport, dirsFirst, mark bool
	level, ignore, only := 1<<30, "", ""
	for _, o := range opts {
		switch o.name {
		case 'a':
			all = true
		case 'd':
			dirsOnly = true
		case 'f':
			full = true
		case 'F':
			mark = true
		case 'L':
			n, err := strconv.Atoi(o.arg)
			if err != nil || n < 1 {
				fmt.Fprintln(c.Stderr, "tree: Invalid level, must be greater than 0.")
				return 1
			}
			level = n
		case 'I':
			ignore = o.arg
		case 'P':
			only = o.arg
		case '①':
			noReport = true
		case '②':
			dirsFirst = true
		}
	}
	if len(files) == 0 {
		files = []string{"."}
	}
	match := func(pats, name string) bool {
		for _, p := range strings.Split(pats, "|") {
			if fnmatch(p, name, false) {
				return true
			}
		}
		return false
	}
	dirs, regular := 0, 0
	var walk func(p, prefix string, depth int)
	walk = func(p, prefix string, depth int) {
		entries, err := c.View.ReadDir(c.abs(p))
		if err != nil || depth > level || c.broken() {
			return
		}
		var keep []view.DirEntry
		for _, e := range entries {
			if e.Name()[0] == '.' && !all || dirsOnly && !e.IsDir() || ignore != "" && match(ignore, e.Name()) || only != "" && !e.IsDir() && !match(only, e.Name()) {
				continue
			}
			keep = append(keep, e)
		}
		if dirsFirst {
			sort.SliceStable(keep, func(i, j int) bool { return keep[i].IsDir() && !keep[j].IsDir() })
		}
		for i, e := range keep {
			branch, next := "|-- ", "|   "
			if i == len(keep)-1 {
				branch, next = "`-- ", "    "
			}
			sub := strings.TrimRight(p, "/") + "/" + e.Name()
			name := e.Name()
			if full {
				name = sub
			}
			if t, err := c.View.Readlink(c.abs(sub)); err == nil {
				name += " -> " + t
			} else if mark && e.IsDir() {
				name += "/"
			}
			c.print(prefix + branch + name + "\n")
			if e.IsDir() {
				dirs++
				walk(sub, prefix+next, depth+1)
			} else {
				regular++
			}
		}
	}
	for _, f := range files {
		if !c.isDir(f) {
			c.printf("%s  [error opening dir]\n", f)
			c.status = 2
			continue
		}
		c.print(f + "\n")
		if c.isDir(f) {
			dirs++
		}
		walk(f, "", 1)
	}
	if !noReport {
		plural := func(n int, one, many string) string {
			if n == 1 {
				return "1 " + one
			}
			return strconv.Itoa(n) + " " + many
		}
		c.printf("\n%s", plural(dirs, "directory", "directories"))
		if !dirsOnly {
			c.printf(", %s", plural(regular, "file", "files"))
		}
		c.print("\n")
	}
	return c.status
}
