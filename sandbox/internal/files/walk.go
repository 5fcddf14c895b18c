package files

import (
	"context"
	"io/fs"
	"sort"
	"strings"
	"sync/atomic"
)

// sortEntries sorts by name, bytewise.
func sortEntries(entries []DirEntry) {
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name < entries[j].Name })
}

// A step is a name in a directory, to be shown or to be entered. The two are
// apart because what is in a directory comes after its neighbours in the order
// of whole paths: "a", "a-b", "a/c".
type step struct {
	DirEntry
	enter bool
}

func (s step) key() string {
	if s.enter {
		return s.Name + "/"
	}
	return s.Name
}

// steps puts the entries of a directory into the order of their whole paths.
// enter says which can be entered.
func steps(entries []DirEntry, enter func(DirEntry) bool) []step {
	out := make([]step, 0, len(entries)+8)
	for _, e := range entries {
		out = append(out, step{e, false})
		if enter(e) {
			out = append(out, step{e, true})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].key() < out[j].key() })
	return out
}

// walker visits the regular files beneath a directory in the order of their
// paths, without following symbolic links.
type walker struct {
	ctx    context.Context
	fs     FS
	ignore bool
	// want says of a file, by its path relative to the top, whether it is
	// visited.
	want func(rel string) bool
	// visit gets some files of one directory, the next in order; false ends the
	// walk. It releases the directory when it needs it no more.
	visit func(dir *heldDir, names []string) bool
	// unreadable counts directories that could not be read.
	unreadable int
	ended      bool
}

// maxVisit is how many files are visited at once.
const maxVisit = 64

// heldDir is a directory that the walk and those who search its files hold.
type heldDir struct {
	fs   FS
	path string
	dir  Dir // nil where the file system cannot hold one
	held atomic.Int32
}

// openDir opens a directory and lists it.
func openDir(fsys FS, path string) (*heldDir, []DirEntry, error) {
	d := &heldDir{fs: fsys, path: path}
	d.held.Store(1)
	holds, ok := fsys.(DirFS)
	if !ok {
		entries, err := fsys.ReadDir(path)
		return d, entries, err
	}
	var err error
	if d.dir, err = holds.OpenDir(path); err != nil {
		return nil, nil, err
	}
	entries, err := d.dir.ReadDir()
	if err != nil {
		d.release()
	}
	return d, entries, err
}

func (d *heldDir) hold() { d.held.Add(1) }

func (d *heldDir) release() {
	if d.held.Add(-1) == 0 && d.dir != nil {
		_ = d.dir.Close()
	}
}

// open opens one of its files.
func (d *heldDir) open(name string) (File, error) {
	if d.dir != nil {
		return d.dir.OpenFile(name)
	}
	return d.fs.Open(Join(d.path, name))
}

// walk visits what is beneath dir, whose path relative to the top is rel.
func (w *walker) walk(dir, rel string, rules *ignoreRules) {
	if w.ctx.Err() != nil {
		w.ended = true
		return
	}
	held, entries, err := openDir(w.fs, dir)
	if err != nil {
		w.unreadable++
		return
	}
	defer held.release()
	if w.ignore {
		rules = rules.in(w.fs, dir, rel, entries)
	}
	var names []string
	flush := func() {
		if len(names) == 0 {
			return
		}
		held.hold()
		w.ended = !w.visit(held, names) || w.ended
		names = nil
	}
	for _, s := range steps(entries, func(e DirEntry) bool { return e.Type.IsDir() }) {
		if w.ended {
			return
		}
		sub := s.Name
		if rel != "" {
			sub = rel + "/" + s.Name
		}
		switch {
		case s.enter:
			if flush(); !w.ended && (!w.ignore || s.Name != ".git" && !rules.ignored(sub, true)) {
				w.walk(Join(dir, s.Name), sub, rules)
			}
		case s.Type.IsRegular():
			if w.ignore && rules.ignored(sub, false) || !w.want(sub) {
				continue
			}
			if names = append(names, s.Name); len(names) == maxVisit {
				flush()
			}
		}
	}
	if !w.ended {
		flush()
	}
}

// lines splits text that may end its lines with CR LF.
func lines(text string) []string {
	out := strings.Split(text, "\n")
	for i := range out {
		out[i] = strings.TrimSuffix(out[i], "\r")
	}
	return out
}

// typeBits is the type of a mode alone.
func typeBits(m fs.FileMode) fs.FileMode { return m & fs.ModeType }
