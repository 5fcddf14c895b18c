package files

import (
	"context"
	"io/fs"
	"sort"
	"strings"
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
	// visit gets the absolute path and the one relative to the top; false ends
	// the walk.
	visit func(abs, rel string) bool
	// unreadable counts directories that could not be read.
	unreadable int
	ended      bool
}

// walk visits what is beneath dir, whose path relative to the top is rel.
func (w *walker) walk(dir, rel string, rules *ignoreRules) {
	if w.ctx.Err() != nil {
		w.ended = true
		return
	}
	entries, err := w.fs.ReadDir(dir)
	if err != nil {
		w.unreadable++
		return
	}
	if w.ignore {
		rules = rules.in(w.fs, dir, rel, entries)
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
			if !w.ignore || s.Name != ".git" && !rules.ignored(sub, true) {
				w.walk(Join(dir, s.Name), sub, rules)
			}
		case s.Type.IsRegular():
			if w.ignore && rules.ignored(sub, false) {
				continue
			}
			if !w.visit(Join(dir, s.Name), sub) {
				w.ended = true
			}
		}
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
