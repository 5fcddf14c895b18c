package tools

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

func init() {
	register(ls, "ls", "dir")
	register(statTool, "stat")
}

// Who all files belong to, and what runs.
const (
	userName = "user"
	userID   = "1000"
)

func randomName(n int) string {
	const set = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	var b strings.Builder
	for range n {
		b.WriteByte(set[rand.IntN(len(set))])
	}
	return b.String()
}

func owner(id uint32) string {
	switch strconv.Itoa(int(id)) {
	case userID:
		return userName
	case "0":
		return "root"
	}
	return strconv.Itoa(int(id))
}

// modeString is the first column of ls -l.
func modeString(m uint32) string {
	b := []byte("?rwxrwxrwx")
	b[0] = map[uint32]byte{unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFIFO: 'p', unix.S_IFSOCK: 's', unix.S_IFCHR: 'c', unix.S_IFBLK: 'b'}[m&unix.S_IFMT]
	for i := range 9 {
		if m&(0o400>>i) == 0 {
			b[i+1] = '-'
		}
	}
	special := func(at int, bit uint32, with, without byte) {
		if m&bit == 0 {
			return
		}
		if b[at] == 'x' {
			b[at] = with
		} else {
			b[at] = without
		}
	}
	special(3, unix.S_ISUID, 's', 'S')
	special(6, unix.S_ISGID, 's', 'S')
	special(9, unix.S_ISVTX, 't', 'T')
	return string(b)
}

// human is a size as -h shows it: rounded up, one digit below ten.
func human(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	f := float64(n)
	for _, u := range "KMGTP" {
		f /= 1024
		if f < 10 {
			r := float64(int64(f * 10))
			if r < f*10 {
				r++
			}
			if r < 100 {
				return fmt.Sprintf("%.1f%c", r/10, u)
			}
			return fmt.Sprintf("%d%c", 10, u)
		}
		r := int64(f)
		if float64(r) < f {
			r++
		}
		if r < 1024 {
			return fmt.Sprintf("%d%c", r, u)
		}
	}
	return strconv.FormatInt(n, 10)
}

type lister struct {
	c                                                       *Call
	all, almost, long, recursive, reverse, dirs, human, ino bool
	byTime, bySize, byExt, byVersion, unsorted              bool
	classify, slash, noOwner, noGroup, numeric, blocks      bool
	deref, full, quote, groupDirs, commas                   bool
	first                                                   bool
}

type listed struct {
	name string
	info *view.Info
}

func ls(c *Call) int {
	l := lister{c: c, first: true}
	opts, files, st, ok := c.parse(options{short: "1aAbBcCdfFgGhHiIklLmnNopqQrRsStuUvxXZ①::②③::④::", bad: 2, long: map[string]rune{
		"all": 'a', "almost-all": 'A', "directory": 'd', "classify": '④', "human-readable": 'h', "inode": 'i', "dereference": 'L', "numeric-uid-gid": 'n',
		"reverse": 'r', "recursive": 'R', "size": 's', "color": '①', "group-directories-first": '②', "full-time": '③', "no-group": 'G', "sort": '⑤', "time-style": '⑥', "indicator-style": '⑦', "quote-name": 'Q', "literal": 'N',
	}})
	if !ok {
		return st
	}
	for _, o := range opts {
		switch o.name {
		case 'a':
			l.all = true
		case 'A':
			l.almost = true
		case 'd':
			l.dirs = true
		case 'f':
			l.all, l.unsorted = true, true
		case 'F', '④':
			l.classify = true
		case 'g':
			l.long, l.noOwner = true, true
		case 'G':
			l.noGroup = true
		case 'h':
			l.human = true
		case 'i':
			l.ino = true
		case 'l':
			l.long = true
		case 'L':
			l.deref = true
		case 'm':
			l.commas = true
		case 'n':
			l.long, l.numeric = true, true
		case 'o':
			l.long, l.noGroup = true, true
		case 'p':
			l.slash = true
		case 'Q':
			l.quote = true
		case 'r':
			l.reverse = true
		case 'R':
			l.recursive = true
		case 's':
			l.blocks = true
		case 'S':
			l.bySize = true
		case 't':
			l.byTime = true
		case 'U':
			l.unsorted = true
		case 'v':
			l.byVersion = true
		case 'X':
			l.byExt = true
		case '②':
			l.groupDirs = true
		case '③':
			l.long, l.full = true, true
		}
	}
	if len(files) == 0 {
		files = []string{"."}
	}
	var plain, dirs []listed
	for _, f := range files {
		i, err := c.stat(f, true)
		if err != nil || l.long && !l.deref && !strings.HasSuffix(f, "/") {
			if j, lerr := c.stat(f, false); lerr == nil {
				if err != nil || j.Mode()&fs.ModeSymlink != 0 {
					i, err = j, nil
				}
			}
		}
		if err != nil {
			c.warn("cannot access '%s': %s", f, msg(err))
			c.status = 2
			continue
		}
		if i.IsDir() && !l.dirs {
			dirs = append(dirs, listed{f, i})
		} else {
			plain = append(plain, listed{f, i})
		}
	}
	l.sort(plain)
	l.sort(dirs)
	if len(plain) > 0 {
		l.print(plain, "")
		l.first = false
	}
	for _, d := range dirs {
		l.dir(d.name, len(files) > 1)
	}
	return c.status
}

func (l *lister) sort(list []listed) {
	if l.unsorted {
		return
	}
	sort.SliceStable(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if l.groupDirs && a.info.IsDir() != b.info.IsDir() {
			return a.info.IsDir()
		}
		if l.reverse {
			a, b = b, a
		}
		switch {
		case l.byTime && !a.info.ModTime().Equal(b.info.ModTime()):
			return a.info.ModTime().After(b.info.ModTime())
		case l.bySize && a.info.Size() != b.info.Size():
			return a.info.Size() > b.info.Size()
		case l.byExt && path.Ext(a.name) != path.Ext(b.name):
			return path.Ext(a.name) < path.Ext(b.name)
		case l.byVersion:
			return compareVersion(a.name, b.name) < 0
		}
		return a.name < b.name
	})
}

func (l *lister) dir(p string, named bool) {
	c := l.c
	if c.broken() {
		return
	}
	entries, err := c.View.ReadDir(c.abs(p))
	if err != nil {
		c.warn("cannot open directory '%s': %s", p, msg(err))
		c.status = max(c.status, 2)
		return
	}
	if !l.first {
		c.print("\n")
	}
	l.first = false
	if named || l.recursive {
		c.printf("%s:\n", p)
	}
	var list []listed
	if l.all {
		for _, n := range []string{".", ".."} {
			if i, err := c.stat(strings.TrimRight(p, "/")+"/"+n, true); err == nil {
				list = append(list, listed{n, i})
			}
		}
	}
	for _, e := range entries {
		if e.Name()[0] == '.' && !l.all && !l.almost {
			continue
		}
		full := strings.TrimRight(p, "/") + "/" + e.Name()
		i, err := c.stat(full, l.deref)
		if err != nil {
			if i, err = c.stat(full, false); err != nil {
				continue
			}
		}
		list = append(list, listed{e.Name(), i})
	}
	l.sort(list)
	if l.long || l.blocks {
		var total int64
		for _, f := range list {
			total += f.info.Stat().Blocks
		}
		if l.human {
			c.printf("total %s\n", human(total*512))
		} else {
			c.printf("total %d\n", total/2)
		}
	}
	l.print(list, p)
	if !l.recursive {
		return
	}
	for _, f := range list {
		if f.info.IsDir() && f.name != "." && f.name != ".." {
			sub := strings.TrimRight(p, "/") + "/" + f.name
			l.dir(sub, true)
		}
	}
}

func (l *lister) print(list []listed, dir string) {
	c := l.c
	type row struct{ ino, blocks, mode, nlink, owner, group, size, time, name string }
	var rows []row
	var w row
	wide := func(a *string, b string) {
		if len(b) > len(*a) {
			*a = b
		}
	}
	for _, f := range list {
		st := f.info.Stat()
		r := row{name: f.name}
		if l.quote {
			r.name = strconv.Quote(f.name)
		}
		if l.classify || l.slash {
			r.name += l.mark(f.info)
		}
		if l.ino {
			r.ino = strconv.FormatUint(st.Ino, 10)
		}
		if l.blocks {
			r.blocks = strconv.FormatInt(st.Blocks/2, 10)
		}
		if l.long {
			r.mode, r.nlink = modeString(st.Mode), strconv.FormatUint(uint64(st.Nlink), 10)
			r.owner, r.group = owner(st.Uid), owner(st.Gid)
			if l.numeric {
				r.owner, r.group = strconv.Itoa(int(st.Uid)), strconv.Itoa(int(st.Gid))
			}
			r.size = strconv.FormatInt(st.Size, 10)
			if l.human {
				r.size = human(st.Size)
			}
			r.time = l.time(f.info.ModTime().UTC())
			if f.info.Mode()&fs.ModeSymlink != 0 {
				p := f.name
				if dir != "" {
					p = strings.TrimRight(dir, "/") + "/" + f.name
				}
				if t, err := c.View.Readlink(c.abs(p)); err == nil {
					r.name += " -> " + t
				}
			}
		}
		for _, p := range []struct{ a, b *string }{{&w.ino, &r.ino}, {&w.blocks, &r.blocks}, {&w.nlink, &r.nlink}, {&w.owner, &r.owner}, {&w.group, &r.group}, {&w.size, &r.size}} {
			wide(p.a, *p.b)
		}
		rows = append(rows, r)
	}
	for i, r := range rows {
		if l.ino {
			c.print(pad(r.ino, len(w.ino)) + " ")
		}
		if l.blocks {
			c.print(pad(r.blocks, len(w.blocks)) + " ")
		}
		if l.long {
			c.printf("%s %*s ", r.mode, len(w.nlink), r.nlink)
			if !l.noOwner {
				c.printf("%-*s ", len(w.owner), r.owner)
			}
			if !l.noGroup {
				c.printf("%-*s ", len(w.group), r.group)
			}
			c.printf("%*s %s ", len(w.size), r.size, r.time)
		}
		c.print(r.name)
		if l.commas && i < len(rows)-1 {
			c.print(", ")
			continue
		}
		c.print("\n")
	}
}

func (l *lister) time(t time.Time) string {
	switch {
	case l.full:
		return t.Format("2006-01-02 15:04:05.000000000 -0700")
	case time.Since(t) > 182*24*time.Hour || time.Until(t) > time.Hour:
		return t.Format("Jan _2  2006")
	}
	return t.Format("Jan _2 15:04")
}

func (l *lister) mark(i *view.Info) string {
	m := i.Mode()
	switch {
	case m.IsDir():
		return "/"
	case !l.classify:
		return ""
	case m&fs.ModeSymlink != 0 && !l.long:
		return "@"
	case m&fs.ModeNamedPipe != 0:
		return "|"
	case m&fs.ModeSocket != 0:
		return "="
	case m.IsRegular() && m&0o111 != 0:
		return "*"
	}
	return ""
}

func statTool(c *Call) int {
	opts, files, st, ok := c.parse(options{short: "c:Lft①:", long: map[string]rune{"format": 'c', "dereference": 'L', "terse": 't', "printf": '①', "file-system": 'f'}})
	if !ok {
		return st
	}
	format, follow, end := "", false, "\n"
	for _, o := range opts {
		switch o.name {
		case 'c':
			format = o.arg
		case '①':
			format, end = o.arg, ""
		case 'L':
			follow = true
		case 'f':
			return c.die(1, "-f is not supported in the virtual sandbox")
		}
	}
	if len(files) == 0 {
		return c.usage(1, "missing operand")
	}
	for _, f := range files {
		i, err := c.stat(f, follow)
		if err != nil {
			c.fail("cannot statx '%s': %s", f, msg(err))
			continue
		}
		if format == "" {
			c.print(c.statLong(f, i))
			continue
		}
		text := c.statFormat(format, f, i)
		if end == "" {
			text = unescapeAll(text)
		}
		c.print(text + end)
	}
	return c.status
}

func unescapeAll(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] == '\\' {
			n, t, _ := escape(s[i:], false)
			b.WriteString(t)
			i += n
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

func kindOf(i *view.Info) string {
	switch m := i.Mode(); {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeCharDevice != 0:
		return "character special file"
	case m&fs.ModeDevice != 0:
		return "block special file"
	case i.Size() == 0:
		return "regular empty file"
	}
	return "regular file"
}

const stampFormat = "2006-01-02 15:04:05.000000000 -0700"

func (c *Call) statLong(f string, i *view.Info) string {
	st := i.Stat()
	name := f
	if t, err := c.View.Readlink(c.abs(f)); err == nil {
		name += " -> " + t
	}
	at, ct := time.Unix(st.Atim.Unix()).UTC(), time.Unix(st.Ctim.Unix()).UTC()
	return fmt.Sprintf("  File: %s\n  Size: %-10d\tBlocks: %-10d IO Block: %-6d %s\nDevice: %d,%d\tInode: %-11d Links: %d\nAccess: (%04o/%s)  Uid: (%5d/%8s)   Gid: (%5d/%8s)\nAccess: %s\nModify: %s\nChange: %s\n Birth: -\n",
		name, st.Size, st.Blocks, st.Blksize, kindOf(i), unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino, st.Nlink, st.Mode&0o7777, modeString(st.Mode),
		st.Uid, owner(st.Uid), st.Gid, owner(st.Gid), at.Format(stampFormat), i.ModTime().UTC().Format(stampFormat), ct.Format(stampFormat))
}

func (c *Call) statFormat(format, f string, i *view.Info) string {
	st := i.Stat()
	at, ct := time.Unix(st.Atim.Unix()).UTC(), time.Unix(st.Ctim.Unix()).UTC()
	var b strings.Builder
	for k := 0; k < len(format); k++ {
		if format[k] != '%' || k+1 >= len(format) {
			b.WriteByte(format[k])
			continue
		}
		j := k + 1
		for j < len(format)-1 && strings.IndexByte("-0123456789.#+ '", format[j]) >= 0 {
			j++
		}
		flags := format[k+1 : j]
		k = j
		var v any
		switch format[k] {
		case 'a':
			v = strconv.FormatUint(uint64(st.Mode&0o7777), 8)
		case 'A':
			v = modeString(st.Mode)
		case 'b':
			v = st.Blocks
		case 'B':
			v = 512
		case 'd':
			v = uint64(st.Dev)
		case 'f':
			v = strconv.FormatUint(uint64(st.Mode), 16)
		case 'F':
			v = kindOf(i)
		case 'g':
			v = st.Gid
		case 'G':
			v = owner(st.Gid)
		case 'h':
			v = uint64(st.Nlink)
		case 'i':
			v = st.Ino
		case 'n':
			v = f
		case 'N':
			s := "'" + f + "'"
			if t, err := c.View.Readlink(c.abs(f)); err == nil {
				s += " -> '" + t + "'"
			}
			v = s
		case 'o':
			v = int64(st.Blksize)
		case 's':
			v = st.Size
		case 'u':
			v = st.Uid
		case 'U':
			v = owner(st.Uid)
		case 'x':
			v = at.Format(stampFormat)
		case 'X':
			v = at.Unix()
		case 'y':
			v = i.ModTime().UTC().Format(stampFormat)
		case 'Y':
			v = i.ModTime().Unix()
		case 'z':
			v = ct.Format(stampFormat)
		case 'Z':
			v = ct.Unix()
		case 'w':
			v = "-"
		case 'W':
			v = 0
		case '%':
			v = "%"
		default:
			v = "?"
		}
		text := fmt.Sprint(v)
		w, _ := strconv.Atoi(strings.Trim(flags, "-0#+ '."))
		w = min(w, 1000)
		if strings.HasPrefix(flags, "-") {
			text += strings.Repeat(" ", max(w-len(text), 0))
		} else if strings.HasPrefix(flags, "0") {
			text = strings.Repeat("0", max(w-len(text), 0)) + text
		} else {
			text = pad(text, w)
		}
		b.WriteString(text)
	}
	return b.String()
}
