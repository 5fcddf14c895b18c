// Package tools holds the commands of the virtual sandbox: what agents use of
// coreutils, findutils, grep, sed, diffutils, tar, gzip and jq, written on a
// view of files, with the messages and exit statuses of the originals. None of
// them reaches the host: they know the view, their three streams and nothing
// else.
package tools

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// Call is one run of a command.
type Call struct {
	Ctx    context.Context
	Name   string
	Args   []string // without the name
	Env    []string // NAME=value, what is exported
	Dir    string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	View   *view.View
	Umask  uint32
	// MaxInput is how many bytes a command keeps in memory at most.
	MaxInput int
	// Exec runs another command with the streams of the call that it gets and
	// returns its status.
	Exec func(c *Call, args []string) int
	// Which finds a command by its name: the path that stands for it.
	Which func(name string) (string, bool)
	// Special opens what has a path without being in the view, such as
	// /dev/stdin and the pipes of process substitutions.
	Special func(path string) (io.ReadCloser, bool)

	out *bufio.Writer
	// status is what fail leaves; a tool returns it.
	status int
}

// Tool is a command. It returns its exit status.
type Tool func(c *Call) int

// registry has every command by its name.
var registry = map[string]Tool{}

func register(t Tool, names ...string) {
	for _, n := range names {
		registry[n] = t
	}
}

// Find is the command of that name, or nil.
func Find(name string) Tool { return registry[name] }

// Names lists all commands, sorted.
func Names() []string {
	var out []string
	for n := range registry {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

// Statuses that mean the same everywhere.
const (
	// statusPipe is that of a command whose reader has gone.
	statusPipe = 128 + int(syscall.SIGPIPE)
	// statusKilled is that of a command that was cancelled.
	statusKilled = 128 + int(syscall.SIGKILL)
)

// Run runs a command. A panic of one, which its hostile input could provoke,
// ends the command and not the sandbox.
func Run(t Tool, c *Call) (status int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(c.Stderr, "%s: internal error: %v\n", c.Name, p)
			status = 70
		}
	}()
	c.out = bufio.NewWriterSize(c.Stdout, 32<<10)
	status = t(c)
	if err := c.out.Flush(); err != nil {
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed) {
			return statusPipe
		}
		if c.Ctx.Err() == nil {
			fmt.Fprintf(c.Stderr, "%s: write error: %s\n", c.Name, view.Message(err))
		}
		if status == 0 {
			status = 1
		}
	}
	if c.Ctx.Err() != nil && status == 0 {
		return statusKilled
	}
	return status
}

// sub is a call with the same surroundings for another command.
func (c *Call) sub() *Call {
	d := *c
	d.status = 0
	return &d
}

// exec runs another command after what was put out so far.
func (c *Call) exec(d *Call, args []string) int {
	_ = c.out.Flush()
	return c.Exec(d, args)
}

func (c *Call) print(s string)                    { _, _ = c.out.WriteString(s) }
func (c *Call) printf(f string, args ...any)      { fmt.Fprintf(c.out, f, args...) }
func (c *Call) write(b []byte)                    { _, _ = c.out.Write(b) }
func (c *Call) warn(format string, args ...any)   { c.err(fmt.Sprintf(format, args...)) }
func (c *Call) fail(format string, args ...any)   { c.warn(format, args...); c.status = max(c.status, 1) }
func (c *Call) die(n int, f string, a ...any) int { c.warn(f, a...); return n }
func (c *Call) usage(n int, f string, a ...any) int {
	c.warn(f, a...)
	fmt.Fprintf(c.Stderr, "Try '%s --help' for more information.\n", c.Name)
	return n
}

func (c *Call) err(msg string) {
	_ = c.out.Flush()
	fmt.Fprintf(c.Stderr, "%s: %s\n", c.Name, msg)
}

// broken reports whether going on makes no sense: nobody reads the output, or
// the call was cancelled.
func (c *Call) broken() bool {
	if c.Ctx.Err() != nil {
		return true
	}
	_, err := c.out.Write(nil)
	return err != nil
}

// Getenv is the value of an exported variable.
func (c *Call) Getenv(name string) string {
	for _, kv := range c.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// abs is a path as the view wants it.
func (c *Call) abs(p string) string {
	switch {
	case strings.HasPrefix(p, "/"):
		return p
	case p == "":
		return "\x00" // no file has this name: the view answers that
	case c.Dir == "/":
		return "/" + p
	}
	return c.Dir + "/" + p
}

// msg is the C library's message for an error.
func msg(err error) string {
	if errors.Is(err, errTooBig) {
		return err.Error()
	}
	return view.Message(err)
}

// stat tells of a file. The empty path is not there.
func (c *Call) stat(p string, follow bool) (*view.Info, error) {
	if p == "" {
		return nil, unix.ENOENT
	}
	if c.Special != nil {
		if r, ok := c.Special(c.abs(p)); ok {
			_ = r.Close()
			return view.Made(p, unix.S_IFIFO|0o600, 0), nil
		}
	}
	return c.View.Stat(c.abs(p), follow)
}

// isDir reports whether p leads to a directory.
func (c *Call) isDir(p string) bool {
	i, err := c.stat(p, true)
	return err == nil && i.IsDir()
}

// open opens a file for reading; directories are EISDIR.
func (c *Call) open(p string) (io.ReadCloser, error) {
	if p == "" {
		return nil, unix.ENOENT
	}
	if c.Special != nil {
		if r, ok := c.Special(c.abs(p)); ok {
			return r, nil
		}
	}
	f, err := c.View.OpenFile(c.abs(p), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	if i, err := f.Stat(); err == nil && i.IsDir() {
		_ = f.Close()
		return nil, unix.EISDIR
	}
	return &ctxFile{f, c.Ctx}, nil
}

// openArg is open, with "-" for the standard input.
func (c *Call) openArg(p string) (io.ReadCloser, error) {
	if p == "-" {
		return io.NopCloser(c.in()), nil
	}
	return c.open(p)
}

// in is the standard input, empty if there is none.
func (c *Call) in() io.Reader {
	if c.Stdin == nil {
		return strings.NewReader("")
	}
	return c.Stdin
}

// ctxFile ends reading when the call is cancelled.
type ctxFile struct {
	*view.File
	ctx context.Context
}

func (f *ctxFile) Read(p []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

// create opens a file for writing.
func (c *Call) create(p string, flag int, perm uint32) (*view.File, error) {
	if p == "" {
		return nil, unix.ENOENT
	}
	return c.View.OpenFile(c.abs(p), os.O_WRONLY|os.O_CREATE|flag, perm&^c.Umask)
}

// each calls fn for every operand, or for the standard input where there are
// none, and reports what cannot be opened.
func (c *Call) each(files []string, fn func(name string, r io.Reader) error) {
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, name := range files {
		if c.Ctx.Err() != nil {
			return
		}
		r, err := c.openArg(name)
		if err != nil {
			c.fail("%s: %s", name, msg(err))
			continue
		}
		err = fn(name, r)
		_ = r.Close()
		if err != nil && c.Ctx.Err() == nil {
			if errors.Is(err, errStop) {
				return
			}
			c.fail("%s: %s", name, msg(err))
		}
	}
}

var (
	errStop   = errors.New("stop")
	errTooBig = errors.New("larger than a command may keep in memory in the virtual sandbox")
)

// readAll reads everything, up to the limit of memory.
func (c *Call) readAll(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(c.MaxInput)+1))
	if err == nil && len(b) > c.MaxInput {
		return nil, errTooBig
	}
	return b, err
}

// readArg is the whole content of an operand.
func (c *Call) readArg(p string) ([]byte, error) {
	r, err := c.openArg(p)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return c.readAll(r)
}

// lines calls fn for each line without its end; eol is false for a last line
// that has none. fn's error ends it.
func (c *Call) lines(r io.Reader, sep byte, fn func(line []byte, eol bool) error) error {
	br := bufio.NewReaderSize(r, 32<<10)
	var long []byte
	for {
		if err := c.Ctx.Err(); err != nil {
			return err
		}
		part, err := br.ReadSlice(sep)
		if errors.Is(err, bufio.ErrBufferFull) {
			if long = append(long, part...); len(long) > c.MaxInput {
				return errTooBig
			}
			continue
		}
		if err != nil && err != io.EOF {
			return err
		}
		line := part
		if len(long) > 0 {
			long = append(long, part...)
			line = long
		}
		if err == io.EOF && len(line) == 0 {
			return nil
		}
		eol := err == nil
		if eol {
			line = line[:len(line)-1]
		}
		if ferr := fn(line, eol); ferr != nil {
			return ferr
		}
		if err == io.EOF {
			return nil
		}
		long = long[:0]
	}
}

// split cuts content into lines without their ends.
func split(b []byte, sep byte) []string {
	if len(b) == 0 {
		return nil
	}
	s := string(b)
	s = strings.TrimSuffix(s, string(sep))
	return strings.Split(s, string(sep))
}

// isNotExist reports whether an error means that nothing is there.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// gnuError is a message in the words of the GNU tools.
type gnuError string

func (e gnuError) Error() string { return string(e) }
