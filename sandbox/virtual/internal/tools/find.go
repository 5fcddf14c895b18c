package tools

import (
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

func init() { register(find, "find") }

// seen is a file that find looks at.
type seen struct {
	path  string
	info  *view.Info
	depth int
	start string
	prune *bool
}

// test is a part of find's expression.
type test func(s *seen) bool

type finder struct {
	c                  *Call
	args               []string
	i                  int
	err                string
	acts               bool // the expression has an action
	follow             bool
	minDepth, maxDepth int
	depthFirst, quit   bool
	now                time.Time
	flush              []func()
	extended           bool // -regextype
}

func find(c *Call) int {
	f := finder{c: c, maxDepth: 1 << 30, now: time.Now()}
	args := c.Args
	for len(args) > 0 && (args[0] == "-L" || args[0] == "-H" || args[0] == "-P") {
		f.follow = args[0] == "-L"
		args = args[1:]
	}
	var starts []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "(" && args[0] != "!" && args[0] != ")" && args[0] != "," {
		starts = append(starts, args[0])
		args = args[1:]
	}
	if len(starts) == 0 {
		starts = []string{"."}
	}
	f.args = args
	expr := f.list()
	if f.err == "" && f.i < len(f.args) {
		f.err = "unexpected argument '" + f.args[f.i] + "'"
	}
	if f.err != "" {
		return c.die(1, "%s", f.err)
	}
	if !f.acts {
		inner := expr
		expr = func(s *seen) bool {
			if inner == nil || inner(s) {
				c.print(s.path + "\n")
			}
			return true
		}
	}
	for _, s := range starts {
		i, err := c.stat(s, f.follow)
		if err != nil && f.follow {
			i, err = c.stat(s, false)
		}
		if err != nil {
			c.fail("'%s': %s", s, msg(err))
			continue
		}
		f.walk(expr, s, s, i, 0)
	}
	for _, fn := range f.flush {
		fn()
	}
	return c.status
}

func (f *finder) walk(expr test, p, start string, i *view.Info, depth int) {
	if f.quit || f.c.broken() {
		return
	}
	prune := false
	s := &seen{p, i, depth, start, &prune}
	if !f.depthFirst && depth >= f.minDepth {
		expr(s)
	}
	if i.IsDir() && depth < f.maxDepth && !prune && !f.quit {
		entries, err := f.c.View.ReadDir(f.c.abs(p))
		if err != nil {
			f.c.fail("'%s': %s", p, msg(err))
		}
		for _, e := range entries {
			sub := p + "/" + e.Name()
			if strings.HasSuffix(p, "/") {
				sub = p + e.Name()
			}
			j, err := f.c.stat(sub, f.follow)
			if err != nil {
				if j, err = f.c.stat(sub, false); err != nil {
					continue
				}
			}
			if j.IsDir() && f.follow && depth > 64 {
				f.c.fail("File system loop detected; '%s' lies more than 64 deep", sub)
				continue
			}
			f.walk(expr, sub, start, j, depth+1)
		}
	}
	if f.depthFirst && depth >= f.minDepth && !f.quit {
		expr(s)
	}
}

func (f *finder) peek() string {
	if f.i < len(f.args) {
		return f.args[f.i]
	}
	return ""
}

func (f *finder) list() test {
	a := f.or()
	for f.err == "" && f.peek() == "," {
		f.i++
		b, l := f.or(), a
		a = func(s *seen) bool { l(s); return b(s) }
	}
	return a
}

func (f *finder) or() test {
	a := f.and()
	for f.err == "" && (f.peek() == "-o" || f.peek() == "-or") {
		f.i++
		b, l := f.and(), a
		if b == nil {
			f.err = "invalid expression; you have used a binary operator '-o' with nothing after it."
			return nil
		}
		a = func(s *seen) bool { return l == nil || l(s) || b(s) }
	}
	return a
}

func (f *finder) and() test {
	var a test
	for f.err == "" && f.i < len(f.args) {
		switch f.peek() {
		case "-o", "-or", ")", ",":
			return a
		case "-a", "-and":
			f.i++
			continue
		}
		b, l := f.not(), a
		switch {
		case f.err != "":
			return nil
		case l == nil:
			a = b
		default:
			a = func(s *seen) bool { return l(s) && b(s) }
		}
	}
	return a
}

func (f *finder) not() test {
	switch f.peek() {
	case "!", "-not":
		f.i++
		if f.i >= len(f.args) {
			f.err = "expected an expression after '!'"
			return nil
		}
		t := f.not()
		return func(s *seen) bool { return !t(s) }
	case "(":
		f.i++
		t := f.list()
		if f.err == "" && f.peek() != ")" {
			f.err = "invalid expression; expected to find a ')' but didn't see one."
		}
		f.i++
		if t == nil && f.err == "" {
			f.err = "invalid expression; empty parentheses are not allowed."
		}
		return t
	}
	return f.primary()
}

// number3 makes a test of n, +n or -n.
func number3(arg string) (cmp func(int64) bool, rest string, ok bool) {
	sign := byte(0)
	if arg != "" && (arg[0] == '+' || arg[0] == '-') {
		sign, arg = arg[0], arg[1:]
	}
	j := 0
	for j < len(arg) && isDigit(arg[j]) {
		j++
	}
	n, err := strconv.ParseInt(arg[:j], 10, 62)
	return func(v int64) bool {
		switch sign {
		case '+':
			return v > n
		case '-':
			return v < n
		}
		return v == n
	}, arg[j:], err == nil
}

func (f *finder) primary() test {
	name := f.args[f.i]
	f.i++
	switch name {
	case "-true":
		return func(*seen) bool { return true }
	case "-false":
		return func(*seen) bool { return false }
	case "-print":
		f.acts = true
		return func(s *seen) bool { f.c.print(s.path + "\n"); return true }
	case "-print0":
		f.acts = true
		return func(s *seen) bool { f.c.print(s.path + "\x00"); return true }
	case "-ls":
		f.acts = true
		return func(s *seen) bool {
			l := lister{c: f.c, long: true}
			l.print([]listed{{s.path, s.info}}, "")
			return true
		}
	case "-prune":
		return func(s *seen) bool { *s.prune = true; return true }
	case "-quit":
		f.acts = true
		return func(*seen) bool { f.quit = true; return true }
	case "-delete":
		f.acts, f.depthFirst = true, true
		return func(s *seen) bool {
			if s.path == "." {
				return true
			}
			if err := f.c.View.Remove(f.c.abs(s.path), s.info.IsDir()); err != nil {
				f.c.fail("cannot delete '%s': %s", s.path, msg(err))
				return false
			}
			return true
		}
	case "-depth", "-d":
		f.depthFirst = true
		return func(*seen) bool { return true }
	case "-mount", "-xdev", "-noleaf", "-daystart", "-nowarn", "-warn", "-ignore_readdir_race":
		return func(*seen) bool { return true }
	case "-follow":
		f.follow = true
		return func(*seen) bool { return true }
	case "-empty":
		return func(s *seen) bool {
			if s.info.IsDir() {
				e, err := f.c.View.ReadDir(f.c.abs(s.path))
				return err == nil && len(e) == 0
			}
			return s.info.Mode().IsRegular() && s.info.Size() == 0
		}
	case "-readable", "-writable", "-executable":
		want := map[string]uint32{"-readable": 4, "-writable": 2, "-executable": 1}[name]
		return func(s *seen) bool { return f.c.View.Access(f.c.abs(s.path), want) == nil }
	case "-nouser", "-nogroup":
		return func(*seen) bool { return false }
	case "-exec", "-execdir", "-ok", "-okdir":
		return f.execute(name)
	}
	if !strings.HasPrefix(name, "-") {
		f.err = "paths must precede expression: `" + name + "'"
		return nil
	}
	if !argTests[name] {
		f.err = "unknown predicate `" + name + "'"
		return nil
	}
	if f.i >= len(f.args) {
		f.err = "missing argument to `" + name + "'"
		return nil
	}
	arg := f.args[f.i]
	f.i++
	return f.withArg(name, arg)
}

var argTests = map[string]bool{
	"-name": true, "-iname": true, "-path": true, "-ipath": true, "-wholename": true, "-iwholename": true, "-regex": true, "-iregex": true, "-regextype": true, "-type": true, "-xtype": true, "-lname": true, "-ilname": true,
	"-size": true, "-mtime": true, "-atime": true, "-ctime": true, "-mmin": true, "-amin": true, "-cmin": true, "-newer": true, "-anewer": true, "-cnewer": true, "-newermt": true, "-perm": true, "-user": true, "-group": true, "-uid": true, "-gid": true,
	"-links": true, "-inum": true, "-samefile": true, "-maxdepth": true, "-mindepth": true, "-printf": true, "-fstype": true,
}

func (f *finder) bad(name, arg string) test {
	f.err = "invalid argument `" + arg + "' to `" + name + "'"
	return nil
}

func (f *finder) withArg(name, arg string) test {
	switch name {
	case "-name", "-iname":
		fold := name == "-iname"
		return func(s *seen) bool {
			base := path.Base(s.path)
			return fnmatch(arg, base, fold)
		}
	case "-path", "-wholename", "-ipath", "-iwholename":
		fold := name[1] == 'i'
		return func(s *seen) bool { return fnmatch(arg, s.path, fold) }
	case "-lname", "-ilname":
		return func(s *seen) bool {
			t, err := f.c.View.Readlink(f.c.abs(s.path))
			return err == nil && fnmatch(arg, t, name == "-ilname")
		}
	case "-regextype":
		f.extended = strings.Contains(arg, "extended") || strings.Contains(arg, "egrep") || strings.Contains(arg, "awk")
		return func(*seen) bool { return true }
	case "-regex", "-iregex":
		re, err := Regex(arg, f.extended, name == "-iregex")
		if err == nil {
			re, err = regexp.Compile(`\A(?:` + re.String() + `)\z`)
		}
		if err != nil {
			f.err = err.Error()
			return nil
		}
		return func(s *seen) bool { return re.MatchString(s.path) }
	case "-type", "-xtype":
		kinds := map[string]fs.FileMode{"f": 0, "d": fs.ModeDir, "l": fs.ModeSymlink, "p": fs.ModeNamedPipe, "s": fs.ModeSocket, "c": fs.ModeDevice | fs.ModeCharDevice, "b": fs.ModeDevice}
		want := strings.Split(arg, ",")
		for _, w := range want {
			if _, ok := kinds[w]; !ok {
				f.err = "Unknown argument to -type: " + w
				return nil
			}
		}
		return func(s *seen) bool {
			i := s.info
			if name == "-xtype" {
				if j, err := f.c.stat(s.path, true); err == nil {
					i = j
				}
			}
			for _, w := range want {
				if i.Mode().Type() == kinds[w] {
					return true
				}
			}
			return false
		}
	case "-size":
		cmp, unit, ok := number3(arg)
		size, known := map[string]int64{"": 512, "b": 512, "c": 1, "w": 2, "k": 1024, "M": 1 << 20, "G": 1 << 30}[unit]
		if !ok || !known {
			return f.bad(name, arg)
		}
		return func(s *seen) bool { return cmp((s.info.Size() + size - 1) / size) }
	case "-mtime", "-atime", "-ctime", "-mmin", "-amin", "-cmin":
		cmp, rest, ok := number3(arg)
		if !ok || rest != "" {
			return f.bad(name, arg)
		}
		unit := 24 * time.Hour
		if strings.HasSuffix(name, "min") {
			unit = time.Minute
		}
		return func(s *seen) bool {
			t := s.info.ModTime()
			switch name[1] {
			case 'a':
				t = time.Unix(s.info.Stat().Atim.Unix())
			case 'c':
				t = time.Unix(s.info.Stat().Ctim.Unix())
			}
			return cmp(int64(f.now.Sub(t) / unit))
		}
	case "-newer", "-anewer", "-cnewer":
		i, err := f.c.stat(arg, true)
		if err != nil {
			f.err = "'" + arg + "': " + msg(err)
			return nil
		}
		return func(s *seen) bool { return s.info.ModTime().After(i.ModTime()) }
	case "-newermt":
		t, ok := parseDate(arg, f.now.UTC())
		if !ok {
			f.err = "I cannot figure out how to interpret '" + arg + "' as a date or time"
			return nil
		}
		return func(s *seen) bool { return s.info.ModTime().After(t) }
	case "-perm":
		mode, how := arg, byte(0)
		if arg != "" && (arg[0] == '-' || arg[0] == '/') {
			how, mode = arg[0], arg[1:]
		}
		m, ok := parseMode(mode)
		if !ok {
			f.err = "invalid mode '" + arg + "'"
			return nil
		}
		want := m(0, false, 0)
		return func(s *seen) bool {
			have := s.info.Stat().Mode & 0o7777
			switch how {
			case '-':
				return have&want == want
			case '/':
				return want == 0 || have&want != 0
			}
			return have == want
		}
	case "-user", "-group", "-uid", "-gid":
		return func(s *seen) bool {
			id := s.info.Stat().Uid
			if name[1] == 'g' {
				id = s.info.Stat().Gid
			}
			return owner(id) == arg || strconv.Itoa(int(id)) == arg
		}
	case "-links", "-inum":
		cmp, rest, ok := number3(arg)
		if !ok || rest != "" {
			return f.bad(name, arg)
		}
		return func(s *seen) bool {
			if name == "-inum" {
				return cmp(int64(s.info.Stat().Ino))
			}
			return cmp(int64(s.info.Stat().Nlink))
		}
	case "-samefile":
		i, err := f.c.stat(arg, false)
		if err != nil {
			f.err = "'" + arg + "': " + msg(err)
			return nil
		}
		return func(s *seen) bool { return s.info.Same(i) }
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(arg)
		if err != nil || n < 0 {
			f.err = "Expected a positive decimal integer argument to " + name + ", but got '" + arg + "'"
			return nil
		}
		if name == "-maxdepth" {
			f.maxDepth = n
		} else {
			f.minDepth = n
		}
		return func(*seen) bool { return true }
	case "-printf":
		f.acts = true
		return func(s *seen) bool { f.c.print(f.format(arg, s)); return true }
	}
	return func(*seen) bool { return true } // -fstype: there is but one kind
}

// format is -printf.
func (f *finder) format(format string, s *seen) string {
	var b strings.Builder
	st := s.info.Stat()
	for i := 0; i < len(format); i++ {
		switch {
		case format[i] == '\\':
			n, t, _ := escape(format[i:], false)
			b.WriteString(t)
			i += n - 1
		case format[i] == '%' && i+1 < len(format):
			i++
			j := i
			for j < len(format)-1 && strings.IndexByte("-0123456789", format[j]) >= 0 {
				j++
			}
			width, _ := strconv.Atoi(format[i:j])
			width = max(min(width, 1000), -1000)
			i = j
			v := ""
			switch format[i] {
			case 'p':
				v = s.path
			case 'f':
				v = path.Base(s.path)
			case 'h':
				v = "."
				if k := strings.LastIndexByte(s.path, '/'); k >= 0 {
					v = s.path[:k]
				}
			case 'P':
				v = strings.TrimPrefix(strings.TrimPrefix(s.path, s.start), "/")
			case 'H':
				v = s.start
			case 's':
				v = strconv.FormatInt(st.Size, 10)
			case 'd':
				v = strconv.Itoa(s.depth)
			case 'm':
				v = strconv.FormatUint(uint64(st.Mode&0o7777), 8)
			case 'M':
				v = modeString(st.Mode)
			case 'y':
				v = strings.Replace(modeString(st.Mode)[:1], "-", "f", 1)
			case 'l':
				v, _ = f.c.View.Readlink(f.c.abs(s.path))
			case 'n':
				v = strconv.FormatUint(uint64(st.Nlink), 10)
			case 'i':
				v = strconv.FormatUint(st.Ino, 10)
			case 'u':
				v = owner(st.Uid)
			case 'g':
				v = owner(st.Gid)
			case 'U':
				v = strconv.Itoa(int(st.Uid))
			case 'G':
				v = strconv.Itoa(int(st.Gid))
			case 'k':
				v = strconv.FormatInt((st.Blocks+1)/2, 10)
			case 'b':
				v = strconv.FormatInt(st.Blocks, 10)
			case 't':
				v = s.info.ModTime().UTC().Format("Mon Jan _2 15:04:05.0000000000 2006")
			case 'T', 'A', 'C':
				if i+1 < len(format) {
					i++
					t := s.info.ModTime().UTC()
					if format[i] == '@' {
						v = strconv.FormatInt(t.Unix(), 10) + "." + (strconv.Itoa(1_000_000_000 + t.Nanosecond())[1:] + "0")
					} else {
						v = Strftime("%"+format[i:i+1], t)
					}
				}
			case '%':
				v = "%"
			}
			if width < 0 {
				v += strings.Repeat(" ", max(-width-len(v), 0))
			}
			b.WriteString(pad(v, width))
		default:
			b.WriteByte(format[i])
		}
	}
	return b.String()
}

func (f *finder) execute(name string) test {
	f.acts = true
	var cmd []string
	for f.i < len(f.args) {
		a := f.args[f.i]
		f.i++
		if a == ";" {
			if len(cmd) == 0 {
				break
			}
			return func(s *seen) bool {
				p := s.path
				d := f.c.sub()
				if name == "-execdir" || name == "-okdir" {
					d.Dir = path.Dir(f.c.abs(s.path))
					p = "./" + path.Base(s.path)
				}
				args := make([]string, len(cmd))
				for i, a := range cmd {
					args[i] = strings.ReplaceAll(a, "{}", p)
				}
				return f.c.exec(d, args) == 0
			}
		}
		if a == "+" && len(cmd) > 1 && cmd[len(cmd)-1] == "{}" {
			cmd = cmd[:len(cmd)-1]
			var batch []string
			run := func() {
				if len(batch) > 0 && f.c.Ctx.Err() == nil {
					if f.c.exec(f.c.sub(), append(append([]string{}, cmd...), batch...)) != 0 {
						f.c.status = 1
					}
				}
				batch = nil
			}
			f.flush = append(f.flush, run)
			return func(s *seen) bool {
				if batch = append(batch, s.path); len(batch) >= 5000 {
					run()
				}
				return true
			}
		}
		cmd = append(cmd, a)
	}
	f.err = "missing argument to `" + name + "'"
	return nil
}
