package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"

	"github.com/galleyfs/galley/sandbox/virtual/internal/tools"
	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// pathError is an error as the shell prints it: "bash: path: what".
func pathError(p string, err error) error {
	return &fs.PathError{Op: "bash:", Path: p, Err: errors.New(view.Message(err))}
}

// open is the handler for redirections and sourced files.
func (r *run) open(ctx context.Context, p string, flag int, _ os.FileMode) (io.ReadWriteCloser, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.leave()
	hc := interp.HandlerCtx(ctx)
	if text, ok := r.sourcedText(p); ok {
		return &readOnly{&bytesReader{[]byte(text)}}, nil
	}
	if p == "" {
		return nil, pathError(p, unix.ENOENT)
	}
	full := absolute(hc.Dir, p)
	write := flag&(os.O_WRONLY|os.O_RDWR) != 0
	if write {
		switch path.Clean(full) {
		case "/dev/stdout", "/dev/fd/1":
			return &writeOnly{hc.Stdout}, nil
		case "/dev/stderr", "/dev/fd/2":
			return &writeOnly{hc.Stderr}, nil
		}
		f, err := r.view.OpenFile(full, flag, 0o666&^r.umask.Load())
		if err != nil {
			return nil, pathError(p, err)
		}
		return f, nil
	}
	var src io.Reader
	if b, ok := r.special(full); ok {
		src = &bytesReader{b}
	} else if clean := path.Clean(full); clean == "/dev/stdin" || clean == "/dev/fd/0" {
		src = hc.Stdin
	} else {
		f, err := r.view.OpenFile(full, flag, 0)
		if err != nil {
			return nil, pathError(p, err)
		}
		i, err := f.Stat()
		switch {
		case err != nil:
			_ = f.Close()
			return nil, pathError(p, err)
		case i.IsDir():
			_ = f.Close()
			return nil, pathError(p, unix.EISDIR)
		case i.Mode().IsRegular() && i.Size() <= pipeRoom:
			b, err := io.ReadAll(io.LimitReader(f, pipeRoom))
			_ = f.Close()
			if err != nil {
				return nil, pathError(p, err)
			}
			src = &bytesReader{b}
		default:
			src = f
		}
	}
	if src == nil {
		src = &bytesReader{}
	}
	pr, err := r.reader(ctx, src)
	if err != nil {
		return nil, err
	}
	return pr, nil
}

// writeOnly and readOnly are the other half of a file for the interpreter.
type writeOnly struct{ io.Writer }

func (writeOnly) Read([]byte) (int, error) { return 0, unix.EBADF }
func (writeOnly) Close() error             { return nil }

type readOnly struct{ io.Reader }

func (readOnly) Write([]byte) (int, error) { return 0, unix.EBADF }
func (readOnly) Close() error              { return nil }

// special is what stands at a path that the view does not have.
func (r *run) special(p string) ([]byte, bool) {
	if !strings.HasPrefix(p, "/dev/fd/") {
		return nil, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.files[path.Clean(p)]
	return b, ok
}

func (r *run) sourcedText(p string) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.sourced[p]
	delete(r.sourced, p)
	return t, ok
}

func (r *run) stat(ctx context.Context, p string, follow bool) (fs.FileInfo, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.leave()
	if _, ok := r.special(p); ok {
		return view.Made(path.Base(p), unix.S_IFIFO|0o600, 0), nil
	}
	i, err := r.view.Stat(p, follow)
	if err != nil {
		return nil, err // not a typed nil
	}
	return i, nil
}

func (r *run) access(ctx context.Context, p string, mode interp.AccessMode) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.leave()
	return r.view.Access(p, uint32(mode))
}

func (r *run) readDir(ctx context.Context, p string) ([]fs.DirEntry, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.leave()
	entries, err := r.view.ReadDir(p)
	if err != nil {
		return nil, err
	}
	out := make([]fs.DirEntry, len(entries))
	for i, e := range entries {
		out[i] = e
	}
	return out, nil
}

// exec is the handler that runs commands.
func (r *run) exec(ctx context.Context, args []string) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.leave()
	hc := interp.HandlerCtx(ctx)
	if args[0] == cmdGuard {
		return r.guarding(ctx, hc, args)
	}
	if status, ok := r.internal(ctx, hc, args); ok {
		return exit(status)
	}
	if args[0] == cmdExec {
		args = args[1:]
	}
	c := r.toolCall(ctx, hc)
	var stdin *os.File
	if f, ok := hc.Stdin.(*os.File); ok && f != nil {
		stdin = f
	}
	c.Stdin = stdinOf(stdin)
	if stdin != nil {
		done := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = stdin.SetReadDeadline(time.Now())
			close(done)
		})
		defer func() {
			if !stop() {
				<-done
			}
		}()
	}
	status := r.dispatch(c, args, int(hc.Pos.Line()))
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return exit(status)
}

func stdinOf(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

func exit(status int) error {
	if status == 0 {
		return nil
	}
	return interp.ExitStatus(uint8(status))
}

// toolCall is a call with the surroundings of the shell.
func (r *run) toolCall(ctx context.Context, hc interp.HandlerContext) *tools.Call {
	out := hc.Stdout
	switch out.(type) {
	case *os.File, *sink, *view.File, *writeOnly, *captured:
	default:
		out = &captured{r, out}
	}
	c := &tools.Call{
		Ctx: ctx, Dir: hc.Dir, Env: exported(hc.Env, hc.Dir), Stdout: out, Stderr: hc.Stderr,
		View: r.view, Umask: r.umask.Load(), MaxInput: r.limits.Memory,
	}
	c.Exec = func(c *tools.Call, args []string) int {
		if n := r.commands.Add(1); n > int64(r.limits.Commands) {
			_ = r.stop(limited("more than %d commands", r.limits.Commands))
			return 1
		}
		return r.dispatch(c, args, 0)
	}
	c.Which = func(name string) (string, bool) {
		p, _, ok := r.which(c.Env, c.Dir, name)
		return p, ok
	}
	c.Special = func(p string) (io.ReadCloser, bool) {
		if b, ok := r.special(p); ok {
			return &bytesReader{b}, true
		}
		switch path.Clean(p) {
		case "/dev/stdin", "/dev/fd/0":
			if c.Stdin == nil {
				return &bytesReader{}, true
			}
			return io.NopCloser(c.Stdin), true
		}
		return nil, false
	}
	return c
}

// binDirs are the directories in which the commands are thought to be.
var binDirs = map[string]bool{"/bin": true, "/usr/bin": true}

// shells are the names of the shell itself.
var shells = map[string]bool{"bash": true, "sh": true, "dash": true}

// knownTool reports whether a name is a command that the sandbox has.
func knownTool(name string) bool { return shells[name] || tools.Find(name) != nil }

// which finds a command: its path, and whether that is a file of the view
// rather than a command of the sandbox.
func (r *run) which(env []string, dir, name string) (p string, file, ok bool) {
	if strings.Contains(name, "/") {
		if binDirs[path.Dir(name)] && knownTool(path.Base(name)) {
			return name, false, true
		}
		i, err := r.view.Stat(absolute(dir, name), true)
		return name, true, err == nil && !i.IsDir() && r.view.Access(absolute(dir, name), 1) == nil
	}
	list, set := lookup(env, "PATH"), false
	for _, kv := range env {
		set = set || strings.HasPrefix(kv, "PATH=")
	}
	if !set {
		list = "/usr/bin:/bin" // as the C library does
	}
	for _, d := range strings.Split(list, ":") {
		if d == "" {
			d = "."
		}
		p := path.Join(absolute(dir, d), name)
		if i, err := r.view.Stat(p, true); err == nil && i.Mode().IsRegular() && r.view.Access(p, 1) == nil {
			return p, true, true
		}
		if binDirs[path.Clean(d)] && knownTool(name) {
			return p, false, true
		}
	}
	return "", false, false
}

func lookup(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// dispatch runs one command and returns its status.
func (r *run) dispatch(c *tools.Call, args []string, line int) int {
	name := args[0]
	say := func(status int, what string) int {
		fmt.Fprintf(c.Stderr, "bash: line %d: %s: %s\n", max(line, 1), name, what)
		return status
	}
	if name == "" {
		return say(127, "command not found")
	}
	p, file, ok := r.which(c.Env, c.Dir, name)
	if !ok {
		if !strings.Contains(name, "/") {
			return say(127, "command not found")
		}
		i, err := r.view.Stat(absolute(c.Dir, name), true)
		switch {
		case err != nil && errors.Is(err, unix.ENOTDIR):
			return say(126, view.Message(err))
		case err != nil:
			return say(127, view.Message(err))
		case i.IsDir():
			return say(126, "Is a directory")
		}
		return say(126, "Permission denied")
	}
	base := path.Base(p)
	switch {
	case file:
		return r.script1(c, args, absolute(c.Dir, p), say)
	case shells[base]:
		return r.subshell(c, args)
	}
	c.Name, c.Args = base, args[1:]
	if strings.Contains(name, "/") {
		c.Name = name
	}
	return tools.Run(tools.Find(base), c)
}

// script1 runs a file of the view.
func (r *run) script1(c *tools.Call, args []string, p string, say func(int, string) int) int {
	f, err := r.view.OpenFile(p, os.O_RDONLY, 0)
	if err != nil {
		return say(126, view.Message(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(r.limits.Script)+1))
	if err != nil {
		return say(126, view.Message(err))
	}
	first, _, _ := strings.Cut(string(b), "\n")
	if strings.IndexByte(first, 0) >= 0 {
		return say(126, "cannot execute binary file: Exec format error")
	}
	name := args[0]
	if !strings.HasPrefix(first, "#!") {
		return r.runShell(c, string(b), name, args[1:], nil)
	}
	words := strings.Fields(first[2:])
	if len(words) > 1 && path.Base(words[0]) == "env" {
		words = words[1:]
		if words[0] == "-S" && len(words) > 1 {
			words = words[1:]
		}
	}
	if len(words) == 0 {
		return r.runShell(c, string(b), name, args[1:], nil)
	}
	if !shells[path.Base(words[0])] {
		if base := path.Base(words[0]); tools.Find(base) != nil {
			return r.dispatch(c, append(append(words[:len(words):len(words)], name), args[1:]...), 0)
		}
		return say(126, words[0]+": bad interpreter: only bash scripts and the sandbox's own commands can run in the virtual sandbox")
	}
	return r.runShell(c, string(b), name, args[1:], words[1:])
}

// subshell is bash or sh as a command.
func (r *run) subshell(c *tools.Call, args []string) int {
	name := args[0]
	rest := args[1:]
	var opts []string
	command := false
	for len(rest) > 0 && len(rest[0]) > 1 && (rest[0][0] == '-' || rest[0][0] == '+') {
		a := rest[0]
		rest = rest[1:]
		if a == "--" {
			break
		}
		switch a {
		case "--norc", "--noprofile", "--posix", "--login", "-l", "-i", "-p", "--restricted":
			continue
		case "--version":
			fmt.Fprintln(c.Stdout, "Galley's virtual sandbox: bash scripts, interpreted in process by mvdan.cc/sh")
			return 0
		}
		if strings.HasPrefix(a, "--") {
			fmt.Fprintf(c.Stderr, "%s: %s: invalid option\n", name, a)
			return 2
		}
		if a[0] == '-' && strings.Contains(a, "c") {
			command = true
			a = strings.ReplaceAll(a, "c", "")
		}
		a = strings.Map(func(ch rune) rune {
			if strings.ContainsRune("lsip", ch) {
				return -1
			}
			return ch
		}, a)
		if len(a) > 1 {
			opts = append(opts, a)
			if strings.HasSuffix(a, "o") && len(rest) > 0 {
				opts = append(opts, rest[0])
				rest = rest[1:]
			}
		}
	}
	if command {
		if len(rest) == 0 {
			fmt.Fprintf(c.Stderr, "%s: -c: option requires an argument\n", name)
			return 2
		}
		text := rest[0]
		if len(rest) > 1 {
			name, rest = rest[1], rest[1:]
		}
		return r.runShell(c, text, name, rest[1:], opts)
	}
	var in io.Reader = c.Stdin
	if len(rest) > 0 && rest[0] != "-" {
		name = rest[0]
		full := absolute(c.Dir, name)
		if b, ok := r.special(full); ok {
			return r.runShell(c, string(b), name, rest[1:], opts)
		}
		f, err := r.view.OpenFile(full, os.O_RDONLY, 0)
		if err != nil {
			fmt.Fprintf(c.Stderr, "bash: %s: %s\n", name, view.Message(err))
			if errors.Is(err, unix.ENOENT) {
				return 127
			}
			return 126
		}
		defer f.Close()
		if i, err := f.Stat(); err == nil && i.IsDir() {
			fmt.Fprintf(c.Stderr, "%s: %s: Is a directory\n", name, name)
			return 126
		}
		in, rest = f, rest[1:]
	} else if len(rest) > 0 {
		rest = rest[1:]
	}
	if in == nil {
		return 0
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(r.limits.Script)+1))
	if err != nil {
		fmt.Fprintf(c.Stderr, "bash: %s: %s\n", name, view.Message(err))
		return 126
	}
	return r.runShell(c, string(b), name, rest, opts)
}

// runShell runs a script with the streams of a command.
func (r *run) runShell(c *tools.Call, text, name string, args, opts []string) int {
	if tooDeep(r.limits.Frames) {
		_ = r.stop(limited("shells and functions nested too deeply"))
		return 1
	}
	in, ok := c.Stdin.(*os.File)
	if !ok {
		src := c.Stdin
		if src == nil {
			src = &bytesReader{}
		}
		var err error
		if in, err = r.reader(c.Ctx, src); err != nil {
			fmt.Fprintf(c.Stderr, "bash: %v\n", err)
			return 1
		}
		defer func() {
			r.dropped(in)
			_ = in.Close()
		}()
	}
	var keep []string
	for _, o := range opts {
		keep = append(keep, knownOptions(o)...)
	}
	status, err := r.shell(c.Ctx, shellCall{text: text, name: name, args: args, env: c.Env, dir: c.Dir, in: in, out: c.Stdout, err: c.Stderr, opts: keep})
	if err != nil && status == 0 {
		return 1
	}
	return status
}
