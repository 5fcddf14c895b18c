package shell

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"

	"github.com/galleyfs/galley/sandbox/virtual/internal/tools"
	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// call sees every command before it runs: it counts, and puts something else
// in the place of the builtins that would reach the host or lack what scripts
// use. What it returns is run instead.
func (r *run) call(ctx context.Context, args []string) ([]string, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.leave()
	if args[0] == markLoop {
		if n := r.loops.Add(1); n > int64(r.limits.Loops) {
			return nil, r.stop(limited("more than %d iterations of loops", r.limits.Loops))
		}
	} else if n := r.commands.Add(counts(args[0])); n > int64(r.limits.Commands) {
		return nil, r.stop(limited("more than %d commands", r.limits.Commands))
	}
	if tooDeep(r.limits.Frames) {
		return nil, r.stop(limited("functions nested too deeply"))
	}
	if runtime.NumGoroutine() > r.limits.Parallel {
		return nil, r.stop(limited("too many pipelines and background jobs at once"))
	}
	hc := interp.HandlerCtx(ctx)
	if err := r.sizes(hc, args); err != nil {
		return nil, err
	}
	return r.instead(ctx, hc, args, true)
}

// sizes looks at what a command is given, and from time to time at all the
// variables together.
func (r *run) sizes(hc interp.HandlerContext, args []string) error {
	size := 0
	for _, a := range args {
		size += len(a) + 16
	}
	if size > r.limits.Memory {
		return r.stop(limited("more than %d bytes of arguments for one command", r.limits.Memory))
	}
	if r.calls.Add(1)%256 != 0 {
		return nil
	}
	size = 0
	for name, v := range hc.Env.Each {
		size += len(name) + len(v.Str)
		for _, s := range v.List {
			size += len(s)
		}
		for k, s := range v.Map {
			size += len(k) + len(s)
		}
	}
	if size > 2*r.limits.Memory {
		return r.stop(limited("more than %d bytes in all variables together", 2*r.limits.Memory))
	}
	return nil
}

// counts is 0 for the commands that are none of the script's own.
func counts(name string) int64 {
	if strings.HasPrefix(name, "__galley_") {
		return 0
	}
	return 1
}

// tooDeep reports whether the stack has more than n frames.
func tooDeep(n int) bool {
	var pc [1]uintptr
	return runtime.Callers(n, pc[:]) > 0
}

// instead is the command that runs in the place of args. functions says whether
// one of the script's may have the name.
func (r *run) instead(ctx context.Context, hc interp.HandlerContext, args []string, functions bool) ([]string, error) {
	status := func(n int) ([]string, error) { return []string{cmdStatus, strconv.Itoa(n)}, nil }
	say := func(n int, format string, a ...any) ([]string, error) {
		fmt.Fprintf(hc.Stderr, "bash: line %d: %s: %s\n", hc.Pos.Line(), args[0], fmt.Sprintf(format, a...))
		return status(n)
	}
	name := args[0]
	switch name {
	case "command", "builtin":
		return r.past(ctx, hc, args)
	case "type":
		return r.typeOf(args[1:])
	case "echo":
		return echoArgs(args), nil
	case "printf":
		return r.printf(hc, args)
	case "test", "[":
		return append([]string{cmdTest}, args...), nil
	case "pwd":
		return r.pwd(hc, args)
	case "cd":
		return r.cd(hc, args)
	case "mapfile", "readarray":
		return r.mapfile(ctx, hc, args)
	case "read":
		return r.read(ctx, hc, args)
	case "eval":
		file, err := r.parse(strings.Join(args[1:], " "), "eval")
		if err != nil {
			return r.refused(hc, "eval", err)
		}
		return []string{"eval", file.text(strings.Join(args[1:], " "))}, nil
	case "source", ".":
		return r.source(hc, args)
	case "trap":
		return r.trap(hc, args)
	case "set":
		var out []string
		for i := 1; i < len(args); i++ {
			if args[i] == "--" || args[i] == "-" || args[i] == "" || args[i][0] != '-' && args[i][0] != '+' {
				out = append(out, args[i:]...)
				break
			}
			if args[i] == "-o" && i+1 < len(args) || args[i] == "+o" && i+1 < len(args) {
				if !ignoredOptions[args[i+1]] {
					out = append(out, args[i], args[i+1])
				}
				i++
				continue
			}
			out = append(out, knownOptions(args[i])...)
		}
		if len(out) == 0 && len(args) > 1 {
			return status(0)
		}
		return append([]string{"set"}, out...), nil
	case "shopt":
		var out []string
		for _, a := range args {
			if !ignoredShopts[a] {
				out = append(out, a)
			}
		}
		if len(out) < len(args) && len(out) == 2 && (out[1] == "-s" || out[1] == "-u") {
			return status(0)
		}
		return out, nil
	case "shift":
		if len(args) == 2 && strings.HasPrefix(args[1], "-") {
			return say(1, "%s: shift count out of range", args[1])
		}
	case "unset":
		for _, a := range args[1:] {
			if a == "" {
				return say(1, "`': not a valid identifier")
			}
		}
	case "umask":
		return r.setUmask(hc, args)
	case "kill":
		return say(1, "signals are not supported in the virtual sandbox")
	case "ulimit":
		if len(args) == 1 || len(args) == 2 && strings.HasPrefix(args[1], "-") {
			fmt.Fprintln(hc.Stdout, "unlimited")
		}
		return status(0)
	case "jobs", "disown", "bg", "fg", "history", "suspend", "times", "enable", "bind", "complete", "compgen", "caller", "logout", "fc", "newgrp", "help":
		if name == "jobs" || name == "disown" || name == "times" {
			return status(0)
		}
		return say(2, "not supported in the virtual sandbox")
	}
	if !functions && !interp.IsBuiltin(name) {
		return append([]string{cmdExec}, args...), nil
	}
	return args, nil
}

// refused is a text that cannot be parsed, or may not be run.
func (r *run) refused(hc interp.HandlerContext, what string, err error) ([]string, error) {
	var limit *LimitError
	if errors.As(err, &limit) {
		return nil, r.stop(err)
	}
	fmt.Fprintf(hc.Stderr, "bash: %s: %v\n", what, err)
	return []string{cmdStatus, "2"}, nil
}

// text is the script as text again: the original, if nothing was changed.
func (p *prepared) text(original string) string {
	if !p.changed {
		return original
	}
	var b strings.Builder
	if err := syntax.NewPrinter().Print(&b, p.File); err != nil {
		return original // it has no mark then, and is bounded by time
	}
	return b.String()
}

// past handles command and builtin, which run what no function may hide.
func (r *run) past(ctx context.Context, hc interp.HandlerContext, args []string) ([]string, error) {
	kind := args[0]
	rest := args[1:]
	for kind == "command" && len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' {
		flag := rest[0]
		rest = rest[1:]
		switch flag {
		case "--":
		case "-p":
			continue
		case "-v", "-V":
			return r.found(flag, rest), nil
		default:
			fmt.Fprintf(hc.Stderr, "bash: command: %s: invalid option\n", flag)
			return []string{cmdStatus, "2"}, nil
		}
		break
	}
	if len(rest) == 0 {
		return []string{cmdStatus, "0"}, nil
	}
	if kind == "builtin" && !interp.IsBuiltin(rest[0]) {
		fmt.Fprintf(hc.Stderr, "bash: builtin: %s: not a shell builtin\n", rest[0])
		return []string{cmdStatus, "1"}, nil
	}
	out, err := r.instead(ctx, hc, rest, false)
	if err != nil || !interp.IsBuiltin(out[0]) {
		return out, err
	}
	// The interpreter's own builtin runs it past functions.
	return append([]string{"builtin"}, out...), nil
}

// found makes a script that answers command -v and type: whether something is
// a function is known to the interpreter alone, and told by declare -f.
func (r *run) found(mode string, names []string) []string {
	var b strings.Builder
	for _, n := range names {
		q := quote(n)
		if syntax.ValidName(n) {
			fmt.Fprintf(&b, "if declare -f %s >/dev/null; then %s %s function %s; else %s %s other %s; fi\n", q, cmdWhich, mode, q, cmdWhich, mode, q)
		} else {
			fmt.Fprintf(&b, "%s %s other %s\n", cmdWhich, mode, q)
		}
	}
	if b.Len() == 0 {
		return []string{cmdStatus, "0"}
	}
	return []string{"eval", b.String()}
}

func (r *run) typeOf(args []string) ([]string, error) {
	mode := "-type"
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		if args[0] != "--" {
			mode = "-type" + strings.Trim(args[0], "-")
		}
		args = args[1:]
	}
	return r.found(mode, args), nil
}

// sayWhich is what command -v or type says of a name.
func (r *run) sayWhich(hc interp.HandlerContext, mode, kind, name string) int {
	out := func(format string, a ...any) int {
		fmt.Fprintf(hc.Stdout, format+"\n", a...)
		return 0
	}
	p, _, isFile := r.which(exported(hc.Env, hc.Dir), hc.Dir, name)
	isBuiltin := interp.IsBuiltin(name)
	switch {
	case syntax.IsKeyword(name):
		kind = "keyword"
	case kind == "function":
	case isBuiltin:
		kind = "builtin"
	case isFile:
		kind = "file"
	default:
		kind = ""
	}
	path := strings.HasPrefix(mode, "-type") && strings.ContainsAny(mode[5:], "pP")
	switch {
	case path && strings.Contains(mode[5:], "P") && isFile, path && kind == "file":
		return out("%s", p)
	case path && kind == "":
		return 1
	case path:
		return 0
	case kind == "" && (mode == "-V" || mode == "-type"):
		fmt.Fprintf(hc.Stderr, "bash: line %d: %s: not found\n", hc.Pos.Line(), name)
		return 1
	case kind == "":
		return 1
	case mode == "-v" && kind == "file":
		return out("%s", p)
	case mode == "-v":
		return out("%s", name)
	case strings.HasPrefix(mode, "-typet"):
		return out("%s", kind)
	case kind == "file":
		return out("%s is %s", name, p)
	case kind == "function":
		return out("%s is a function", name)
	}
	return out("%s is a shell %s", name, kind)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// echoArgs takes the flags of echo apart, which the interpreter does not.
func echoArgs(args []string) []string {
	out := []string{"echo"}
	i := 1
	for ; i < len(args); i++ {
		a := args[i]
		if len(a) < 2 || a[0] != '-' || strings.Trim(a[1:], "neE") != "" {
			break
		}
		for _, f := range a[1:] {
			out = append(out, "-"+string(f))
		}
	}
	if i < len(args) && (args[i] == "-n" || args[i] == "-e" || args[i] == "-E") {
		return args
	}
	return append(out, args[i:]...)
}

// printf formats here: the interpreter's knows less.
func (r *run) printf(hc interp.HandlerContext, args []string) ([]string, error) {
	if len(args) > 2 && args[1] == "-v" {
		if !syntax.ValidName(args[2]) {
			fmt.Fprintf(hc.Stderr, "bash: printf: '%s': not a valid identifier\n", args[2])
			return []string{cmdStatus, "2"}, nil
		}
		if len(args) == 3 {
			fmt.Fprintln(hc.Stderr, "bash: printf: usage: printf [-v var] format [arguments]")
			return []string{cmdStatus, "2"}, nil
		}
		s, status := tools.Format(args[3], args[4:], func(m string) { fmt.Fprintf(hc.Stderr, "bash: printf: %s\n", m) }, r.limits.Variable)
		return []string{"eval", args[2] + "=" + quote(s) + "\n" + cmdStatus + " " + strconv.Itoa(status)}, nil
	}
	return append([]string{cmdTool}, args...), nil
}

func (r *run) pwd(hc interp.HandlerContext, args []string) ([]string, error) {
	p := hc.Dir
	for _, a := range args[1:] {
		switch a {
		case "-P":
			real, err := r.view.Real(p)
			if err != nil {
				fmt.Fprintf(hc.Stderr, "bash: pwd: %s\n", view.Message(err))
				return []string{cmdStatus, "1"}, nil
			}
			p = real
		case "-L", "--":
		default:
			fmt.Fprintf(hc.Stderr, "bash: pwd: %s: invalid option\n", a)
			return []string{cmdStatus, "2"}, nil
		}
	}
	fmt.Fprintln(hc.Stdout, p)
	return []string{cmdStatus, "0"}, nil
}

func (r *run) cd(hc interp.HandlerContext, args []string) ([]string, error) {
	physical := false
	rest := args[1:]
	for len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' {
		f := rest[0]
		rest = rest[1:]
		if f == "--" {
			break
		}
		if strings.Trim(f[1:], "LPe") != "" {
			fmt.Fprintf(hc.Stderr, "bash: line %d: cd: %s: invalid option\n", hc.Pos.Line(), f)
			return []string{cmdStatus, "2"}, nil
		}
		physical = strings.Contains(f, "P")
	}
	if len(rest) > 1 {
		fmt.Fprintf(hc.Stderr, "bash: line %d: cd: too many arguments\n", hc.Pos.Line())
		return []string{cmdStatus, "1"}, nil
	}
	if len(rest) == 0 {
		return []string{"cd"}, nil
	}
	p := rest[0]
	if p == "-" {
		if hc.Env.Get("OLDPWD").String() == "" {
			fmt.Fprintf(hc.Stderr, "bash: line %d: cd: OLDPWD not set\n", hc.Pos.Line())
			return []string{cmdStatus, "1"}, nil
		}
		return []string{"cd", "-"}, nil
	}
	if p == "" {
		return []string{cmdStatus, "0"}, nil
	}
	full := path.Clean(absolute(hc.Dir, p))
	if physical {
		full = absolute(hc.Dir, p)
	}
	i, err := r.view.Stat(full, true)
	if err != nil || !i.IsDir() {
		what := "Not a directory"
		if err != nil {
			what = view.Message(err)
		}
		fmt.Fprintf(hc.Stderr, "bash: line %d: cd: %s: %s\n", hc.Pos.Line(), p, what)
		return []string{cmdStatus, "1"}, nil
	}
	if physical {
		if full, err = r.view.Real(full); err != nil {
			return []string{cmdStatus, "1"}, nil
		}
	}
	return []string{"cd", full}, nil
}

// source looks the file up in the view and gives the builtin a name that the
// host is never asked about; see [nowhere].
func (r *run) source(hc interp.HandlerContext, args []string) ([]string, error) {
	if len(args) > 1 && args[1] == "--" {
		args = append(args[:1:1], args[2:]...)
	}
	if len(args) < 2 {
		fmt.Fprintf(hc.Stderr, "bash: line %d: %s: filename argument required\n", hc.Pos.Line(), args[0])
		return []string{cmdStatus, "2"}, nil
	}
	name := args[1]
	full := absolute(hc.Dir, name)
	if !strings.Contains(name, "/") {
		for _, d := range strings.Split(lookup(exported(hc.Env, hc.Dir), "PATH"), ":") {
			p := path.Join(absolute(hc.Dir, d), name)
			if i, err := r.view.Stat(p, true); err == nil && i.Mode().IsRegular() {
				full = p
				break
			}
		}
	}
	text, special := r.special(full)
	if !special {
		var err error
		if text, err = r.readFile(full); err != nil {
			fmt.Fprintf(hc.Stderr, "bash: line %d: %s: %s\n", hc.Pos.Line(), name, view.Message(err))
			return []string{cmdStatus, "1"}, nil
		}
	}
	file, err := r.parse(string(text), name)
	if err != nil {
		return r.refused(hc, name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := nowhere + strconv.FormatInt(r.commands.Load(), 10) + "-" + strconv.Itoa(len(r.sourced))
	r.sourced[key] = file.text(string(text))
	return append([]string{"source", key}, args[2:]...), nil
}

func (r *run) readFile(p string) ([]byte, error) {
	f, err := r.view.OpenFile(p, 0, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := min(i.Size(), int64(r.limits.Script)+1)
	b := make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if int64(n) == size {
		err = nil
	}
	return b[:n], err
}

// deafTo are the signals that nobody sends here.
var deafTo = map[string]bool{"INT": true, "TERM": true, "HUP": true, "QUIT": true, "PIPE": true, "USR1": true, "USR2": true, "1": true, "2": true, "3": true, "13": true, "15": true, "WINCH": true, "CHLD": true, "TSTP": true}

func (r *run) trap(hc interp.HandlerContext, args []string) ([]string, error) {
	rest := args[1:]
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if len(rest) == 0 || strings.HasPrefix(rest[0], "-") && rest[0] != "-" {
		return args, nil
	}
	action := "-"
	if len(rest) > 1 {
		action, rest = rest[0], rest[1:]
	}
	var signals []string
	for _, s := range rest {
		s = strings.TrimPrefix(strings.ToUpper(s), "SIG")
		switch {
		case s == "0":
			s = "EXIT"
		case deafTo[s]:
			continue
		case s == "DEBUG" || s == "RETURN":
			fmt.Fprintf(hc.Stderr, "bash: trap: %s: not supported in the virtual sandbox\n", s)
			return []string{cmdStatus, "1"}, nil
		}
		signals = append(signals, s)
	}
	if len(signals) == 0 {
		return []string{cmdStatus, "0"}, nil
	}
	if action != "-" && action != "" {
		file, err := r.parse(action, "trap")
		if err != nil {
			return r.refused(hc, "trap", err)
		}
		action = file.text(action)
	}
	return append([]string{"trap", "--", action}, signals...), nil
}

// ignoredOptions and ignoredShopts change nothing that a script here notices.
var (
	ignoredOptions = map[string]bool{"errtrace": true, "functrace": true, "posix": true, "physical": true, "monitor": true, "hashall": true, "braceexpand": true, "interactive-comments": true, "history": true, "histexpand": true, "nolog": true, "notify": true}
	ignoredShopts  = map[string]bool{"inherit_errexit": true, "lastpipe": true, "checkwinsize": true, "histappend": true, "cmdhist": true, "extquote": true, "sourcepath": true, "interactive_comments": true, "globasciiranges": true, "progcomp": true, "promptvars": true, "huponexit": true, "checkhash": true}
)

// knownOptions are the flags of one word that the interpreter knows.
func knownOptions(word string) []string {
	out := strings.Map(func(c rune) rune {
		if strings.ContainsRune("ETBHPbhmpkt", c) {
			return -1
		}
		return c
	}, word)
	if len(out) < 2 {
		return nil
	}
	return []string{out}
}

func (r *run) setUmask(hc interp.HandlerContext, args []string) ([]string, error) {
	symbolic := false
	rest := args[1:]
	for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
		symbolic = symbolic || rest[0] == "-S"
		rest = rest[1:]
	}
	if len(rest) > 0 {
		n, err := strconv.ParseUint(rest[0], 8, 32)
		if err != nil || n > 0o777 {
			fmt.Fprintf(hc.Stderr, "bash: line %d: umask: %s: octal number out of range\n", hc.Pos.Line(), rest[0])
			return []string{cmdStatus, "1"}, nil
		}
		r.umask.Store(uint32(n))
		return []string{cmdStatus, "0"}, nil
	}
	m := r.umask.Load()
	if !symbolic {
		fmt.Fprintf(hc.Stdout, "%04o\n", m)
		return []string{cmdStatus, "0"}, nil
	}
	form := func(bits uint32) string {
		s := ""
		for i, c := range "rwx" {
			if bits&(4>>i) == 0 {
				s += string(c)
			}
		}
		return s
	}
	fmt.Fprintf(hc.Stdout, "u=%s,g=%s,o=%s\n", form(m>>6), form(m>>3), form(m))
	return []string{cmdStatus, "0"}, nil
}

// ifs splits as read does.
func ifs(env expand.Environ, s string, n int, raw bool) []string {
	return expand.ReadFields(&expand.Config{Env: env}, s, n, raw)
}
