package tools

import (
	stdctx "context"
	"errors"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"
)

func init() {
	register(xargs, "xargs")
	register(env, "env")
	register(printenv, "printenv")
	register(timeout, "timeout")
	register(wrapper, "nohup", "nice", "stdbuf", "setsid", "command")
	register(which, "which")
	register(seq, "seq")
	register(sleep, "sleep")
	register(yes, "yes")
	register(echo, "echo")
	register(pwd, "pwd")
	register(func(c *Call) int { c.print(userName + "\n"); return 0 }, "whoami", "logname")
	register(id, "id")
	register(uname, "uname")
	register(func(c *Call) int { c.print("galley\n"); return 0 }, "hostname")
	register(func(c *Call) int { c.print("1\n"); return 0 }, "nproc")
	register(func(c *Call) int { return c.die(1, "not a tty") }, "tty")
	register(func(*Call) int { return 0 }, "clear")
	register(expr, "expr")
}

// maxArgs bounds the arguments of one command line, as ARG_MAX does.
const maxArgs = 128 << 10

func xargs(c *Call) int {
	opts, cmd, st, ok := c.parse(options{short: "0ad:E:I:i::L:l::n:P:prs:tx", ordered: true, long: map[string]rune{
		"null": '0', "arg-file": 'a', "delimiter": 'd', "replace": 'i', "max-lines": 'L', "max-args": 'n', "max-procs": 'P', "no-run-if-empty": 'r', "verbose": 't', "exit": 'x', "max-chars": 's',
	}})
	if !ok {
		return st
	}
	var null, noEmpty, trace bool
	delim, repl := -1, ""
	n, lines := 0, 0
	for _, o := range opts {
		k, err := strconv.Atoi(o.arg)
		switch o.name {
		case '0':
			null = true
		case 'd':
			d := o.arg
			if strings.HasPrefix(d, `\`) {
				_, d, _ = escape(d, false)
			}
			if len(d) != 1 {
				return c.die(1, "Invalid input delimiter specification %s", o.arg)
			}
			delim = int(d[0])
		case 'I', 'i':
			if repl = o.arg; repl == "" {
				repl = "{}"
			}
		case 'n', 'L':
			if err != nil || k < 1 {
				return c.die(1, "value %s for -%c option should be >= 1", o.arg, o.name)
			}
			if o.name == 'n' {
				n = k
			} else {
				lines = k
			}
		case 'r':
			noEmpty = true
		case 't':
			trace = true
		}
	}
	if len(cmd) == 0 {
		cmd = []string{"echo"}
	}
	if null {
		delim = 0
	}
	in, err := c.readAll(c.in())
	if err != nil {
		return c.die(1, "%s", msg(err))
	}
	items, err := xargsItems(in, delim, repl != "", lines > 0)
	if err != nil {
		return c.die(1, "%s", err)
	}
	status := 0
	run := func(args []string) bool {
		if c.broken() {
			return false
		}
		if trace {
			_, _ = io.WriteString(c.Stderr, strings.Join(args, " ")+"\n")
		}
		d := c.sub()
		d.Stdin = nil
		switch s := c.exec(d, args); {
		case s == 255:
			c.warn("%s: exited with status 255; aborting", args[0])
			status = 124
			return false
		case s == 126 || s == 127:
			status = s
			return false
		case s != 0:
			status = 123
		}
		return true
	}
	with := func(extra []string) []string { return append(append([]string{}, cmd...), extra...) }
	if repl != "" {
		for _, it := range items {
			args := make([]string, len(cmd))
			for i, a := range cmd {
				args[i] = strings.ReplaceAll(a, repl, it)
			}
			if !run(args) {
				break
			}
		}
		return status
	}
	if lines > 0 {
		n = lines // each item is a line, which is split below
	}
	if len(items) == 0 {
		if !noEmpty {
			run(cmd)
		}
		return status
	}
	for len(items) > 0 {
		k, size := 0, 0
		for k < len(items) && (n == 0 || k < n) && (k == 0 || size+len(items[k])+1 < maxArgs) {
			size += len(items[k]) + 1
			k++
		}
		batch := items[:k]
		if lines > 0 {
			var words []string
			for _, l := range batch {
				words = append(words, strings.Fields(l)...)
			}
			batch = words
		}
		items = items[k:]
		if !run(with(batch)) {
			break
		}
	}
	return status
}

func xargsItems(in []byte, delim int, whole, byLine bool) ([]string, error) {
	if delim >= 0 {
		return split(in, byte(delim)), nil
	}
	var items []string
	var cur strings.Builder
	has := false
	flush := func() {
		if has {
			items = append(items, cur.String())
		}
		cur.Reset()
		has = false
	}
	s := string(in)
	for i := 0; i < len(s); i++ {
		switch b := s[i]; {
		case b == '\n':
			flush()
		case (b == ' ' || b == '\t') && (whole || byLine):
			if has {
				cur.WriteByte(b)
			}
		case b == ' ' || b == '\t':
			flush()
		case b == '\'' || b == '"':
			j := strings.IndexByte(s[i+1:], b)
			if k := strings.IndexByte(s[i+1:], '\n'); j < 0 || k >= 0 && k < j {
				name := "single"
				if b == '"' {
					name = "double"
				}
				return nil, errors.New("unmatched " + name + " quote; by default quotes are special to xargs unless you use the -0 option")
			}
			cur.WriteString(s[i+1 : i+1+j])
			has = true
			i += j + 1
		case b == '\\' && i+1 < len(s):
			i++
			cur.WriteByte(s[i])
			has = true
		default:
			cur.WriteByte(b)
			has = true
		}
	}
	flush()
	return items, nil
}

func env(c *Call) int {
	opts, rest, st, ok := c.parse(options{short: "iu:0C:S:v", ordered: true, bad: 125, long: map[string]rune{"ignore-environment": 'i', "unset": 'u', "null": '0', "chdir": 'C', "split-string": 'S'}})
	if !ok {
		return st
	}
	d := c.sub()
	d.Env = append([]string{}, c.Env...)
	end := "\n"
	for _, o := range opts {
		switch o.name {
		case 'i':
			d.Env = nil
		case 'u':
			d.Env = without(d.Env, o.arg)
		case '0':
			end = "\x00"
		case 'C':
			if !c.isDir(o.arg) {
				return c.die(125, "cannot change directory to '%s'%s", o.arg, c.whyNoDir(o.arg))
			}
			dir, err := c.real(o.arg, false)
			if err != nil {
				return c.die(125, "cannot change directory to '%s': %s", o.arg, msg(err))
			}
			d.Dir = dir
		case 'S':
			rest = append(strings.Fields(o.arg), rest...)
		}
	}
	if len(rest) > 0 && rest[0] == "-" {
		d.Env, rest = nil, rest[1:]
	}
	for len(rest) > 0 {
		name, _, has := strings.Cut(rest[0], "=")
		if !has {
			break
		}
		d.Env = append(without(d.Env, name), rest[0])
		rest = rest[1:]
	}
	if len(rest) > 0 {
		return c.exec(d, rest)
	}
	for _, kv := range d.Env {
		c.print(kv + end)
	}
	return 0
}

func without(env []string, name string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, name+"=") {
			out = append(out, kv)
		}
	}
	return out
}

func printenv(c *Call) int {
	if len(c.Args) == 0 {
		for _, kv := range c.Env {
			c.print(kv + "\n")
		}
		return 0
	}
	for _, n := range c.Args {
		found := false
		for _, kv := range c.Env {
			if v, ok := strings.CutPrefix(kv, n+"="); ok {
				c.print(v + "\n")
				found = true
			}
		}
		if !found {
			c.status = 1
		}
	}
	return c.status
}

// duration is a number with s, m, h or d.
func duration(s string) (time.Duration, bool) {
	unit := time.Second
	if s != "" {
		if u, ok := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}[s[len(s)-1]]; ok {
			unit, s = u, s[:len(s)-1]
		}
	}
	if s == "infinity" || s == "inf" {
		return 1 << 62, true
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f != f {
		return 0, false
	}
	return time.Duration(min(f*float64(unit), 1<<62)), true
}

func timeout(c *Call) int {
	opts, rest, st, ok := c.parse(options{short: "k:s:v①②", ordered: true, bad: 125, long: map[string]rune{"kill-after": 'k', "signal": 's', "verbose": 'v', "foreground": '①', "preserve-status": '②'}})
	if !ok {
		return st
	}
	_ = opts
	if len(rest) < 2 {
		return c.usage(125, "missing operand")
	}
	t, ok := duration(rest[0])
	if !ok {
		return c.usage(125, "invalid time interval '%s'", rest[0])
	}
	ctx, cancel := c.Ctx, func() {}
	if t > 0 {
		ctx, cancel = stdctx.WithTimeout(c.Ctx, t)
	}
	defer cancel()
	d := c.sub()
	d.Ctx = ctx
	// A read that waits ends with the time, and the input is usable after it.
	if f, ok := c.Stdin.(*os.File); ok {
		done := make(chan struct{})
		stop := stdctx.AfterFunc(ctx, func() {
			_ = f.SetReadDeadline(time.Now())
			close(done)
		})
		defer func() {
			if !stop() {
				<-done
				if c.Ctx.Err() == nil {
					_ = f.SetReadDeadline(time.Time{})
				}
			}
		}()
	}
	status := c.exec(d, rest[1:])
	if ctx.Err() != nil && c.Ctx.Err() == nil {
		return 124
	}
	return status
}

// wrapper runs its operands as a command: what else it does has no meaning here.
func wrapper(c *Call) int {
	o := options{short: "n:o:e:i:wcfp", ordered: true, bad: 125, digits: true, long: map[string]rune{"adjustment": 'n', "output": 'o', "error": 'e', "input": 'i', "wait": 'w'}}
	_, rest, st, ok := c.parse(o)
	if !ok {
		return st
	}
	if len(rest) == 0 {
		return c.usage(125, "missing operand")
	}
	return c.exec(c.sub(), rest)
}

func which(c *Call) int {
	_, names, st, ok := c.parse(options{short: "as"})
	if !ok {
		return st
	}
	for _, n := range names {
		p, ok := c.Which(n)
		if !ok {
			c.status = 1
			continue
		}
		c.print(p + "\n")
	}
	return c.status
}

func seq(c *Call) int {
	args := c.Args
	sep, format := "\n", ""
	equal := false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && !isDigit(args[0][1]) && args[0][1] != '.' {
		a := args[0]
		args = args[1:]
		take := func(n int) string {
			if len(a) > n {
				return a[n:]
			}
			if len(args) == 0 {
				return ""
			}
			v := args[0]
			args = args[1:]
			return v
		}
		switch {
		case a == "--":
		case strings.HasPrefix(a, "-s"):
			sep = take(2)
		case strings.HasPrefix(a, "--separator="):
			sep = a[len("--separator="):]
		case strings.HasPrefix(a, "-f"):
			format = take(2)
		case a == "-w" || a == "--equal-width":
			equal = true
		default:
			return c.usage(1, "invalid option -- '%s'", strings.TrimLeft(a, "-"))
		}
	}
	if len(args) == 0 {
		return c.usage(1, "missing operand")
	}
	if len(args) > 3 {
		return c.usage(1, "extra operand '%s'", args[3])
	}
	prec := 0
	nums := []float64{1, 1, 1}
	var texts []string
	for i, a := range args {
		f, err := strconv.ParseFloat(a, 64)
		if err != nil {
			return c.usage(1, "invalid floating point argument: '%s'", a)
		}
		if j := strings.IndexByte(a, '.'); j >= 0 && !(len(args) == i+1 && len(args) > 1) {
			prec = max(prec, len(a)-j-1)
		}
		texts = append(texts, a)
		switch {
		case len(args) == 1, i == len(args)-1:
			nums[2] = f
		case i == 0:
			nums[0] = f
		default:
			nums[1] = f
		}
	}
	first, step, last := nums[0], nums[1], nums[2]
	if step == 0 {
		return c.usage(1, "invalid Zero increment value: '%s'", texts[1])
	}
	show := func(f float64) string { return strconv.FormatFloat(f, 'f', prec, 64) }
	width := 0
	if equal {
		width = max(len(show(first)), len(show(last)))
	}
	any := false
	for i := 0; ; i++ {
		f := first + float64(i)*step
		if step > 0 && f > last+step*1e-9 || step < 0 && f < last+step*1e-9 {
			break
		}
		if any {
			c.print(sep)
		}
		any = true
		s := show(f)
		if format != "" {
			s, _ = Format(format, []string{strconv.FormatFloat(f, 'f', -1, 64)}, func(m string) { c.warn("%s", m) }, 1<<16)
		}
		if n := width - len(s); n > 0 {
			if s[0] == '-' {
				s = "-" + strings.Repeat("0", n) + s[1:]
			} else {
				s = strings.Repeat("0", n) + s
			}
		}
		c.print(s)
		if i%1024 == 0 && c.broken() {
			return c.status
		}
	}
	if any {
		c.print("\n")
	}
	return c.status
}

func sleep(c *Call) int {
	if len(c.Args) == 0 {
		return c.usage(1, "missing operand")
	}
	var total time.Duration
	for _, a := range c.Args {
		d, ok := duration(a)
		if !ok {
			return c.usage(1, "invalid time interval '%s'", a)
		}
		total = min(total+d, 1<<62)
	}
	t := time.NewTimer(total)
	defer t.Stop()
	select {
	case <-t.C:
		return 0
	case <-c.Ctx.Done():
		return statusKilled
	}
}

func yes(c *Call) int {
	line := "y\n"
	if len(c.Args) > 0 {
		line = strings.Join(c.Args, " ") + "\n"
	}
	for !c.broken() {
		c.print(line)
	}
	return c.status
}

func echo(c *Call) int {
	args := c.Args
	newline, esc := true, false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.Trim(args[0][1:], "neE") == "" {
		for _, f := range args[0][1:] {
			switch f {
			case 'n':
				newline = false
			case 'e':
				esc = true
			case 'E':
				esc = false
			}
		}
		args = args[1:]
	}
	s := strings.Join(args, " ")
	if esc {
		s = unescapeAll(s)
	}
	c.print(s)
	if newline {
		c.print("\n")
	}
	return 0
}

func pwd(c *Call) int {
	c.print(c.Dir + "\n")
	return 0
}

func id(c *Call) int {
	opts, _, st, ok := c.parse(options{short: "ugGnr"})
	if !ok {
		return st
	}
	var which rune
	name := false
	for _, o := range opts {
		if o.name == 'n' {
			name = true
		} else if o.name != 'r' {
			which = o.name
		}
	}
	switch {
	case which == 0:
		c.printf("uid=%s(%s) gid=%s(%s) groups=%s(%s)\n", userID, userName, userID, userName, userID, userName)
	case name:
		c.print(userName + "\n")
	default:
		c.print(userID + "\n")
	}
	return 0
}

func uname(c *Call) int {
	opts, _, st, ok := c.parse(options{short: "asnrvmpio", long: map[string]rune{"all": 'a', "kernel-name": 's', "machine": 'm'}})
	if !ok {
		return st
	}
	parts := map[rune]string{'s': "Linux", 'n': "galley", 'r': "6.1.0-galley", 'v': "#1 virtual", 'm': "x86_64", 'o': "GNU/Linux", 'p': "unknown", 'i': "unknown"}
	want := map[rune]bool{}
	for _, o := range opts {
		if o.name == 'a' {
			for _, r := range "snrvmo" {
				want[r] = true
			}
		}
		want[o.name] = true
	}
	if len(opts) == 0 {
		want['s'] = true
	}
	var out []string
	for _, r := range "snrvmpio" {
		if want[r] {
			out = append(out, parts[r])
		}
	}
	c.print(strings.Join(out, " ") + "\n")
	return 0
}

// sorted is a copy in order.
func sorted(s []string) []string {
	out := append([]string{}, s...)
	sort.Strings(out)
	return out
}
