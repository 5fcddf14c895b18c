package shell

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"

	"github.com/galleyfs/galley/sandbox/virtual/internal/tools"
)

// internal runs the commands that the rewrite and the call handler put in.
func (r *run) internal(ctx context.Context, hc interp.HandlerContext, args []string) (status int, ok bool) {
	switch args[0] {
	case markLoop:
		return 0, true
	case cmdStatus:
		if len(args) > 1 {
			status, _ = strconv.Atoi(args[1])
		}
		return status & 255, true
	case markSize:
		for _, name := range args[1:] {
			v := hc.Env.Get(name)
			size := len(v.Str)
			for _, s := range v.List {
				size += len(s)
			}
			for k, s := range v.Map {
				size += len(k) + len(s)
			}
			if size > r.limits.Variable {
				_ = r.stop(limited("the variable %s has more than %d bytes", name, r.limits.Variable))
				return 1, true
			}
		}
		return hc.LastExitStatus, true
	case markRepl:
		return r.replaces(args), true
	case markTime:
		return r.timed(hc, args), true
	case cmdPsub:
		return r.psub(ctx, hc), true
	case cmdSame:
		if len(args) == 3 {
			a, aerr := r.view.Stat(absolute(hc.Dir, args[1]), true)
			b, berr := r.view.Stat(absolute(hc.Dir, args[2]), true)
			if aerr == nil && berr == nil && a.Same(b) {
				fmt.Fprint(hc.Stdout, "1")
			}
		}
		return 0, true
	case cmdWhich:
		if len(args) == 4 {
			return r.sayWhich(hc, args[1], args[2], args[3]), true
		}
		return 1, true
	case cmdTool:
		if len(args) > 1 {
			if t := tools.Find(args[1]); t != nil {
				c := r.toolCall(ctx, hc)
				c.Name, c.Args = args[1], args[2:]
				return tools.Run(t, c), true
			}
		}
		return 127, true
	case cmdTest:
		c := r.toolCall(ctx, hc)
		c.Name, c.Args = args[1], args[2:]
		isSet := func(name string) bool { return hc.Env.Get(name).IsSet() }
		return tools.Test(c, isSet), true
	}
	return 0, false
}

// replaces looks at how long a replacement can become.
func (r *run) replaces(args []string) int {
	if len(args) < 3 {
		return 0
	}
	with, _ := strconv.Atoi(args[1])
	for _, a := range args[3:] {
		with += len(a)
	}
	if size := (len(args[2]) + 1) * with; size > 4*r.limits.Memory {
		_ = r.stop(limited("a replacement that could have %d bytes, and up to %d are possible", size, 4*r.limits.Memory))
		return 1
	}
	return 0
}

// guarded keeps a part of the script and returns its number.
func (r *run) guarded(text string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.guardNo[text]
	if !ok {
		n = len(r.guards)
		r.guards = append(r.guards, text)
		r.guardNo[text] = n
	}
	return strconv.Itoa(n)
}

// guarding runs a part of the script that has a goroutine of its own.
func (r *run) guarding(ctx context.Context, hc interp.HandlerContext, args []string) (err error) {
	n := -1
	if len(args) == 2 {
		n, _ = strconv.Atoi(args[1])
	}
	r.mu.Lock()
	known := n >= 0 && n < len(r.guards)
	text := ""
	if known {
		text = r.guards[n]
	}
	r.mu.Unlock()
	if !known {
		return exit(127)
	}
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(hc.Stderr, "bash: internal error: %v\n", p)
			err = exit(1)
		}
	}()
	return hc.Builtin(ctx, []string{"eval", text})
}

// timed is the beginning or the end of time.
func (r *run) timed(hc interp.HandlerContext, args []string) int {
	if len(args) != 2 || args[1] == "begin" {
		return 0
	}
	real := time.Since(r.start)
	if args[1] == "posix" {
		fmt.Fprintf(hc.Stderr, "real %.2f\nuser 0.00\nsys 0.00\n", real.Seconds())
	} else {
		fmt.Fprintf(hc.Stderr, "\nreal\t%dm%.3fs\nuser\t0m0.000s\nsys\t0m0.000s\n", int(real.Minutes()), real.Seconds()-60*float64(int(real.Minutes())))
	}
	return hc.LastExitStatus
}

// psub keeps what a process substitution puts out, and prints the path at which
// it can be read: it is run to its end first, in memory, with no FIFO.
func (r *run) psub(ctx context.Context, hc interp.HandlerContext) int {
	in, _ := hc.Stdin.(*os.File)
	if in == nil {
		return 1
	}
	stop := context.AfterFunc(ctx, func() { _ = in.SetReadDeadline(time.Now()) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(in, int64(r.limits.Memory)+1))
	if err != nil {
		return 1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held += len(b); r.held > r.limits.Memory {
		_ = r.stop(limited("process substitutions with more than %d bytes: they are kept in memory", r.limits.Memory))
		return 1
	}
	p := "/dev/fd/" + strconv.Itoa(r.nextFD)
	r.nextFD++
	if r.files != nil {
		r.files[p] = b
	}
	fmt.Fprintln(hc.Stdout, p)
	return 0
}

// readOpts is what read was asked for.
type readOpts struct {
	raw     bool
	array   string
	delim   byte
	count   int // -1: no bound
	exact   bool
	timeout time.Duration
	names   []string
}

func parseRead(args []string) (o readOpts, bad string) {
	o.delim, o.count = '\n', -1
	rest := args[1:]
	for len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' {
		f := rest[0]
		rest = rest[1:]
		if f == "--" {
			break
		}
		for i := 1; i < len(f); i++ {
			switch f[i] {
			case 'r':
				o.raw = true
				continue
			case 's', 'e':
				continue
			}
			val := f[i+1:]
			if val == "" {
				if len(rest) == 0 {
					return o, "-" + f[i:i+1] + ": option requires an argument"
				}
				val, rest = rest[0], rest[1:]
			}
			n, err := strconv.ParseFloat(val, 64)
			switch f[i] {
			case 'a':
				o.array = val
			case 'd':
				o.delim = 0
				if val != "" {
					o.delim = val[0]
				}
			case 'n', 'N':
				if err != nil || n < 0 || n > 1<<20 {
					return o, val + ": invalid number"
				}
				o.count, o.exact = int(n), f[i] == 'N'
			case 't':
				if err != nil || n < 0 || n > 1e6 {
					return o, val + ": invalid timeout specification"
				}
				o.timeout = max(time.Duration(n*float64(time.Second)), time.Millisecond)
			case 'p', 'i':
			case 'u':
				if val != "0" {
					return o, val + ": invalid file descriptor: the virtual sandbox has 0, 1 and 2"
				}
			default:
				return o, "-" + f[i:i+1] + ": invalid option"
			}
			break
		}
	}
	o.names = rest
	for _, n := range append([]string{o.array}, rest...) {
		if n != "" && !syntax.ValidName(n) {
			return o, "'" + n + "': not a valid identifier"
		}
	}
	return o, ""
}

// read is the builtin with all its options: it reads here, and returns the
// assignments for the interpreter to make.
func (r *run) read(ctx context.Context, hc interp.HandlerContext, args []string) ([]string, error) {
	o, bad := parseRead(args)
	if bad != "" {
		fmt.Fprintf(hc.Stderr, "bash: line %d: read: %s\n", hc.Pos.Line(), bad)
		return []string{cmdStatus, "2"}, nil
	}
	in, _ := hc.Stdin.(*os.File)
	line, status := r.readLine(ctx, in, o)
	var b strings.Builder
	switch {
	case o.array != "":
		fields := ifs(hc.Env, line, -1, o.raw)
		b.WriteString(o.array + "=(")
		for _, f := range fields {
			b.WriteString(quote(f) + " ")
		}
		b.WriteString(")\n")
	case len(o.names) == 0:
		if !o.raw {
			line = unescape(line)
		}
		b.WriteString("REPLY=" + quote(line) + "\n")
	case o.exact:
		if !o.raw {
			line = unescape(line)
		}
		b.WriteString(o.names[0] + "=" + quote(line) + "\n")
	default:
		fields := ifs(hc.Env, line, len(o.names), o.raw)
		for i, n := range o.names {
			val := ""
			if i < len(fields) {
				val = fields[i]
			}
			b.WriteString(n + "=" + quote(val) + "\n")
		}
	}
	b.WriteString(cmdStatus + " " + strconv.Itoa(status))
	return []string{"eval", b.String()}, nil
}

// readLine reads bytewise: what comes after the line is the next command's.
func (r *run) readLine(ctx context.Context, in *os.File, o readOpts) (string, int) {
	if in == nil {
		return "", 1
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = in.SetReadDeadline(time.Now())
		close(done)
	})
	defer func() {
		if !stop() {
			<-done
			return
		}
		if o.timeout > 0 {
			_ = in.SetReadDeadline(time.Time{})
		}
	}()
	if o.timeout > 0 {
		_ = in.SetReadDeadline(time.Now().Add(o.timeout))
	}
	var line []byte
	escaped := false
	for o.count < 0 || len(line) < o.count {
		var buf [1]byte
		n, err := in.Read(buf[:])
		if n == 0 {
			if os.IsTimeout(err) && ctx.Err() == nil {
				return string(line), 128 + 14
			}
			return string(line), 1
		}
		b := buf[0]
		switch {
		case escaped && b == '\n' && !o.raw:
			line = line[:len(line)-1]
			escaped = false
			continue
		case b == o.delim && !escaped && !o.exact:
			return string(line), 0
		case b == 0:
			continue // no variable can hold it
		}
		line = append(line, b)
		escaped = !o.raw && b == '\\' && !escaped
		if len(line) > r.limits.Variable {
			_ = r.stop(limited("a line of more than %d bytes for read", r.limits.Variable))
			return "", 1
		}
	}
	return string(line), 0
}

func unescape(s string) string {
	var b strings.Builder
	esc := false
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && !esc {
			esc = true
			continue
		}
		b.WriteByte(s[i])
		esc = false
	}
	return b.String()
}

// mapfile reads here, too: the interpreter's own does not end with the script,
// and takes no lines of more than 64 KiB.
func (r *run) mapfile(ctx context.Context, hc interp.HandlerContext, args []string) ([]string, error) {
	bad := func(format string, a ...any) ([]string, error) {
		fmt.Fprintf(hc.Stderr, "bash: line %d: %s: %s\n", hc.Pos.Line(), args[0], fmt.Sprintf(format, a...))
		return []string{cmdStatus, "1"}, nil
	}
	delim, trim, most, skip := byte('\n'), false, -1, 0
	rest := args[1:]
	for len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' {
		f := rest[0]
		rest = rest[1:]
		if f == "--" {
			break
		}
		for i := 1; i < len(f); i++ {
			if f[i] == 't' {
				trim = true
				continue
			}
			if strings.IndexByte("dns", f[i]) < 0 {
				return bad("-%c: not supported in the virtual sandbox", f[i])
			}
			val := f[i+1:]
			if val == "" {
				if len(rest) == 0 {
					return bad("-%c: option requires an argument", f[i])
				}
				val, rest = rest[0], rest[1:]
			}
			n, err := strconv.Atoi(val)
			switch {
			case f[i] == 'd':
				delim = 0
				if val != "" {
					delim = val[0]
				}
			case err != nil || n < 0:
				return bad("%s: invalid line count", val)
			case f[i] == 's':
				skip = n
			case n > 0:
				most = n
			}
			break
		}
	}
	name := "MAPFILE"
	if len(rest) > 0 {
		name = rest[0]
	}
	if !syntax.ValidName(name) {
		return bad("%q: not a valid identifier", name)
	}
	in, _ := hc.Stdin.(*os.File)
	var b strings.Builder
	b.WriteString(name + "=(")
	for n := 0; most < 0 || n < most+skip; n++ {
		line, status := r.readLine(ctx, in, readOpts{raw: true, delim: delim, count: -1})
		if status != 0 && line == "" {
			break
		}
		if n < skip {
			continue
		}
		if !trim && status == 0 {
			line += string(delim)
		}
		b.WriteString(quote(line) + " ")
		if b.Len() > 2*r.limits.Variable {
			return nil, r.stop(limited("more than %d bytes for the variable %s", r.limits.Variable, name))
		}
		if status != 0 {
			break
		}
	}
	b.WriteString(")")
	return []string{"eval", b.String()}, nil
}
