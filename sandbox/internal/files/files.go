// Package files is the half of the contract that is about files: Read, Write,
// Edit, Stat, List, Glob and Grep, written once over a small file system
// ([FS]). A sandbox whose files some process can reach brings that file system
// along; what the calls mean, their limits and their errors are here.
package files

import (
	"context"
	"hash/maphash"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/galleyfs/galley/sandbox"
)

// FS is a view of files. Paths are absolute, have no NUL byte and are not
// cleaned: "a/.." is resolved as a program inside would, through the symbolic
// link that a may be. Every call follows symbolic links in all elements but
// the last; which of them follow the last is said. Errors wrap the errno. All
// methods may be called at the same time.
type FS interface {
	// Open opens a file or a directory for reading and follows. It never
	// waits, not even for the other end of a FIFO.
	Open(path string) (File, error)
	// Stat follows if asked to. Path of the result is left empty.
	Stat(path string, follow bool) (sandbox.FileInfo, error)
	// ReadDir lists a directory in any order, without "." and ".."; it follows.
	ReadDir(path string) ([]DirEntry, error)
	// Real resolves every symbolic link, the last too. The last element of
	// the outcome need not exist; a missing one before it is ENOENT.
	Real(path string) (string, error)
	// Create makes a regular file and opens it for writing; EEXIST where
	// there is anything, a link included. The umask applies to perm.
	Create(path string, perm fs.FileMode) (File, error)
	// Mkdir makes a directory; EEXIST as Create. The umask applies to perm.
	Mkdir(path string, perm fs.FileMode) error
	// Rename moves a file over what there is; noReplace is EEXIST then.
	Rename(from, to string, noReplace bool) error
	// Remove removes a file or an empty directory. It does not follow.
	Remove(path string) error
	// CopyMeta gives the file to the mode, owner and extended attributes of
	// from, as far as the sandbox's user may.
	CopyMeta(from, to string) error
}

// File is an open file.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.Closer
	Stat() (sandbox.FileInfo, error)
}

// DirFS is an [FS] that can hold on to a directory: many files are then opened
// without a walk of the whole path for each.
type DirFS interface {
	FS
	// OpenDir opens a directory; it follows.
	OpenDir(path string) (Dir, error)
}

// Dir is an open directory. Its methods may be called at the same time.
type Dir interface {
	// ReadDir is as [FS.ReadDir]; it is called once.
	ReadDir() ([]DirEntry, error)
	// OpenFile opens a regular file for reading; it does not follow.
	OpenFile(name string) (File, error)
	Close() error
}

// DirEntry is a name in a directory, and the type bits of its mode.
type DirEntry struct {
	Name string
	Type fs.FileMode
}

// Ops are the calls on one view.
type Ops struct {
	fs      FS
	workdir string
	notes   notes
	// writing serialises the changes to one file through these calls, so that
	// of two edits neither is lost. A path's stripe is by its hash.
	writing [64]sync.Mutex
	seed    maphash.Seed
}

// New makes the calls on a view with the given working directory.
func New(fsys FS, workdir string) *Ops {
	return &Ops{fs: fsys, workdir: workdir, seed: maphash.MakeSeed()}
}

// lock keeps other writes through these calls from the file at the resolved
// path real.
func (o *Ops) lock(real string) func() {
	m := &o.writing[maphash.String(o.seed, real)%uint64(len(o.writing))]
	m.Lock()
	return m.Unlock
}

// CheckPath refuses what no path may be.
func CheckPath(op, p string) error {
	if p == "" {
		return sandbox.Errorf(sandbox.Invalid, op, p, "the path is empty")
	}
	if i := strings.IndexByte(p, 0); i >= 0 {
		e := sandbox.Errorf(sandbox.Invalid, op, p, "the path has a NUL byte at offset %d", i)
		e.Offset = i
		return e
	}
	if i := invalidUTF8(p); i >= 0 {
		e := sandbox.Errorf(sandbox.Invalid, op, p, "the path is not UTF-8: byte 0x%02x at offset %d", p[i], i)
		e.Offset = i
		return e
	}
	return nil
}

// invalidUTF8 is the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(s string) int {
	if utf8.ValidString(s) {
		return -1
	}
	for i, r := range s {
		if r != utf8.RuneError {
			continue
		}
		if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
			return i
		}
	}
	return -1
}

// abs checks a path of a request and makes it absolute; it is not cleaned.
func (o *Ops) abs(op, p string) (string, error) {
	if err := CheckPath(op, p); err != nil {
		return "", err
	}
	return Join(o.workdir, p), nil
}

// absOr is abs with the working directory as default.
func (o *Ops) absOr(op, p string) (string, error) {
	if p == "" {
		return o.workdir, nil
	}
	return o.abs(op, p)
}

// Join is p as seen from dir, without resolving anything.
func Join(dir, p string) string {
	switch {
	case strings.HasPrefix(p, "/"):
		return p
	case dir == "/":
		return "/" + p
	}
	return dir + "/" + p
}

// shown is an absolute path for showing: what Real says, or, where that fails,
// the path without its superfluous elements.
func (o *Ops) shown(p string) string {
	dir, name := path.Split(strings.TrimRight(p, "/"))
	if name == "" || name == "." || name == ".." {
		if real, err := o.fs.Real(p); err == nil {
			return real
		}
		return path.Clean(p)
	}
	if dir = strings.TrimRight(dir, "/"); dir == "" {
		return "/" + name
	}
	if real, err := o.fs.Real(dir); err == nil {
		return Join(real, name)
	}
	return path.Clean(p)
}

// Stat is [sandbox.Sandbox.Stat].
func (o *Ops) Stat(ctx context.Context, r sandbox.StatRequest) (sandbox.FileInfo, error) {
	p, err := o.abs("stat", r.Path)
	if err != nil {
		return sandbox.FileInfo{}, err
	}
	if err := ctx.Err(); err != nil {
		return sandbox.FileInfo{}, sandbox.Wrap("stat", r.Path, err)
	}
	info, err := o.fs.Stat(p, !r.NoFollow)
	if err != nil {
		return sandbox.FileInfo{}, sandbox.Wrap("stat", r.Path, err)
	}
	info.Path = o.shown(p)
	return info, nil
}

// List is [sandbox.Sandbox.List].
func (o *Ops) List(ctx context.Context, r sandbox.ListRequest) (sandbox.ListResult, error) {
	var out sandbox.ListResult
	p, err := o.absOr("list", r.Path)
	if err != nil {
		return out, err
	}
	limit, err := limitOf("list", "limit", r.Limit, sandbox.ListLimit, sandbox.MaxList)
	if err != nil {
		return out, err
	}
	entries, err := o.fs.ReadDir(p)
	if err != nil {
		return out, sandbox.Wrap("list", r.Path, err)
	}
	sortEntries(entries)
	dir, err := o.fs.Real(p)
	if err != nil {
		return out, sandbox.Wrap("list", r.Path, err)
	}
	out.Entries = make([]sandbox.FileInfo, 0, min(limit, len(entries)))
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return out, sandbox.Wrap("list", r.Path, err)
		}
		if len(out.Entries) == limit {
			out.Truncated = true
			break
		}
		info, err := o.fs.Stat(Join(dir, e.Name), false)
		if err != nil {
			continue // removed meanwhile
		}
		info.Path = Join(dir, e.Name)
		out.Entries = append(out.Entries, info)
	}
	return out, nil
}

// limitOf checks a limit of a request.
func limitOf(op, name string, n, deflt, most int) (int, error) {
	switch {
	case n == 0:
		return deflt, nil
	case n < 0 || n > most:
		return 0, sandbox.Errorf(sandbox.Invalid, op, "", "%s is %d; expected 1 to %d, or 0 for the default", name, n, most)
	}
	return n, nil
}
