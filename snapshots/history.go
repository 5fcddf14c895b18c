package snapshots

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

const (
	historyFile  = "history"
	historyLimit = 256 << 20
	// historyTail is how much of the end is read to find the last line. It
	// is more than any line is long.
	historyTail = 1 << 20
	maxCause    = 4096
)

// historyLine is one line of a session's history: a snapshot, or a name given
// to one later.
type historyLine struct {
	Version int `json:"v"`
	Snapshot
	// Renamed: the line only gives the snapshot of that number a name.
	Renamed bool `json:"renamed,omitempty"`
	// Counted: the line only says what the snapshot of that number changed.
	Counted bool `json:"counted,omitempty"`
}

// checkHistoryLine decodes one line strictly.
func decodeHistoryLine(b []byte) (historyLine, error) {
	var l historyLine
	var v struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return l, fmt.Errorf("%w: %v", overlay.ErrCorrupt, err)
	}
	if v.Version > manifestVersion {
		return l, fmt.Errorf("%w: version %d, this program knows up to %d", overlay.ErrFormat, v.Version, manifestVersion)
	}
	if err := decodeStrict(b, &l); err != nil {
		return l, fmt.Errorf("%w: %v", overlay.ErrCorrupt, err)
	}
	if l.Number <= 0 {
		return l, fmt.Errorf("%w: no number", overlay.ErrCorrupt)
	}
	for name, s := range l.Stacks {
		s.Active = l.Number + 1
		if err := checkStack(s); err != nil {
			return l, fmt.Errorf("%w: tree %q: %w", overlay.ErrCorrupt, name, err)
		}
	}
	return l, nil
}

// appendHistory adds a line for s.
//
// Preconditions: the session is held.
func appendHistory(fs hostfs.FS, dir int, line historyLine, durable bool) error {
	line.Version = manifestVersion
	b, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	fd, err := fs.Open(dir, historyFile, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	defer fs.Close(fd)
	end, err := fs.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	if err := hostfs.WriteFull(fs, fd, append(b, '\n'), end); err != nil {
		// Half a line would be taken for the end of the history.
		_ = fs.Truncate(fd, end)
		return fmt.Errorf("history: %w", err)
	}
	if durable {
		if err := fs.Fdatasync(fd); err != nil {
			return fmt.Errorf("history: %w", err)
		}
	}
	return nil
}

// mendHistory cuts off what a crash may have left at the end, a torn line or
// that of a snapshot which never came to be, and appends the last snapshot where
// the crash came between manifest and history.
//
// Preconditions: the session is held.
func mendHistory(fs hostfs.FS, dir int, m *manifest) error {
	flags := unix.O_RDWR | unix.O_NOFOLLOW
	if m.Last != nil {
		flags |= unix.O_CREAT
	}
	fd, err := fs.Open(dir, historyFile, flags, 0o600)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	defer fs.Close(fd)
	size, err := fs.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	tail := make([]byte, min(size, historyTail))
	n, err := fs.Pread(fd, tail, size-int64(len(tail)))
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	tail = tail[:n]
	last := m.last().Number
	whole := bytes.LastIndexByte(tail, '\n') + 1
	for whole > 0 && lastNumber(tail[:whole]) > last {
		whole = bytes.LastIndexByte(tail[:whole-1], '\n') + 1
	}
	if whole < len(tail) {
		if err := fs.Truncate(fd, size-int64(len(tail)-whole)); err != nil {
			return fmt.Errorf("history: cut off a torn line: %w", err)
		}
	}
	if m.Last == nil || lastNumber(tail[:whole]) >= last {
		return nil
	}
	return appendHistory(fs, dir, historyLine{Snapshot: m.last()}, false)
}

// lastNumber is the number in the last of the whole lines, or 0.
func lastNumber(lines []byte) overlay.LayerID {
	lines = bytes.TrimSuffix(lines, []byte("\n"))
	l, err := decodeHistoryLine(lines[bytes.LastIndexByte(lines, '\n')+1:])
	if err != nil {
		return 0
	}
	return l.Number
}

// History is all snapshots whose layers are still there, the oldest first.
func (s *Session) History() ([]Snapshot, error) {
	dir, err := s.openDir()
	if err != nil {
		return nil, err
	}
	defer s.store.fs.Close(dir)
	all, err := s.lines(dir)
	if err != nil {
		return nil, err
	}
	m := s.man.Load()
	last := m.last()
	there := &present{store: s.store, man: m, dir: dir, have: map[string][]overlay.LayerID{}}
	out := make([]Snapshot, 0, len(all)+1)
	for _, snap := range all {
		// A later one is about to become true, or never did.
		if snap.Number > last.Number {
			continue
		}
		if snap = m.withReplaced(snap); there.all(snap) {
			out = append(out, snap)
		}
	}
	if last.Number != 0 && (len(out) == 0 || out[len(out)-1].Number < last.Number) {
		out = append(out, last) // its line is about to be written
	}
	return out, nil
}

// historyCache are the lines of a history as a file of that size and age had
// them.
type historyCache struct {
	ino, size uint64
	mtime     unix.StatxTimestamp
	list      []Snapshot
}

// lines reads the history, if it is not what was read last. The list is shared
// and must not be changed.
func (s *Session) lines(dir int) ([]Snapshot, error) {
	var st unix.Statx_t
	err := s.store.fs.Stat(dir, historyFile, &st)
	if err == unix.ENOENT {
		return nil, nil
	}
	var list []Snapshot
	if err == nil {
		if c := s.hist.Load(); c != nil && c.ino == st.Ino && c.size == st.Size && c.mtime == st.Mtime {
			return c.list, nil
		}
		list, err = readHistory(s.store.fs, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(s.Dir(), historyFile), err)
	}
	s.hist.Store(&historyCache{ino: st.Ino, size: st.Size, mtime: st.Mtime, list: list})
	return list, nil
}

// line finds the snapshot of that number in the history.
func (s *Session) line(n overlay.LayerID) (Snapshot, bool, error) {
	dir, err := s.openDir()
	if err != nil {
		return Snapshot{}, false, err
	}
	defer s.store.fs.Close(dir)
	all, err := s.lines(dir)
	if err != nil {
		return Snapshot{}, false, err
	}
	i, ok := slices.BinarySearchFunc(all, n, func(s Snapshot, n overlay.LayerID) int { return int(s.Number) - int(n) })
	m := s.man.Load()
	if !ok || n > m.last().Number {
		return Snapshot{}, false, nil
	}
	snap := m.withReplaced(all[i])
	there := &present{store: s.store, man: m, dir: dir, have: map[string][]overlay.LayerID{}}
	return snap, there.all(snap), nil
}

// readHistory reads the lines in dir. A torn last line is no line.
func readHistory(fs hostfs.FS, dir int) ([]Snapshot, error) {
	b, err := hostfs.ReadFile(fs, dir, historyFile, historyLimit)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Snapshot
	at := map[overlay.LayerID]int{}
	for n := 1; ; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return out, nil
		}
		b = rest
		l, err := decodeHistoryLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if i, ok := at[l.Number]; ok {
			if l.Name != "" {
				out[i].Name = l.Name
			}
			if l.Counted {
				out[i].Changed, out[i].Changes = l.Changed, l.Changes
			}
			continue
		}
		if l.Renamed || l.Counted {
			continue
		}
		at[l.Number] = len(out)
		out = append(out, l.Snapshot)
	}
}

// present knows which layers of a session are there.
type present struct {
	store *Store
	man   *manifest
	dir   int
	have  map[string][]overlay.LayerID // by directory, sorted
}

// all tells whether all layers of a snapshot are there.
func (p *present) all(snap Snapshot) bool {
	for tree, stack := range snap.Stacks {
		if !p.in(filepath.Join(dirTrees, tree, dirLayers), p.man.own(stack.Sealed), func(path string) (int, error) {
			return openDir(p.store.fs, p.dir, path)
		}) {
			return false
		}
		for i, o := range p.man.Origins {
			shared := p.man.shared(i, stack.Sealed)
			if !p.in(o.Session+"/"+tree, shared, func(string) (int, error) { return p.store.openLayers(o.Session, tree) }) {
				return false
			}
		}
	}
	return true
}

// in tells whether a directory has all the layers of ranges.
func (p *present) in(key string, ranges []overlay.Range, open func(string) (int, error)) bool {
	if len(ranges) == 0 {
		return true
	}
	have, known := p.have[key]
	if !known {
		if fd, err := open(key); err == nil {
			have = layersIn(p.store.fs, fd)
			_ = p.store.fs.Close(fd)
		}
		p.have[key] = have
	}
	for _, r := range ranges {
		from, _ := slices.BinarySearch(have, r.From)
		to, _ := slices.BinarySearch(have, r.To)
		if to >= len(have) || have[to] != r.To || int64(to-from) != int64(r.To)-int64(r.From) {
			return false
		}
	}
	return true
}

// layersIn lists the numbers of the layers in a directory.
func layersIn(fs hostfs.FS, fd int) (out []overlay.LayerID) {
	list, err := names(fs, fd, ".")
	if err != nil {
		return nil
	}
	for _, name := range list {
		if n, ok := layerNumber(name); ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// Snapshot finds a snapshot by number or name; of several with one name the
// latest. Number 0 is the session before any change.
func (s *Session) Snapshot(ref string) (Snapshot, error) {
	if n, err := strconv.ParseUint(ref, 10, 31); err == nil {
		return s.snapshot(overlay.LayerID(n))
	}
	all, err := s.History()
	if err != nil {
		return Snapshot{}, err
	}
	var known []string
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Name == ref {
			return all[i], nil
		}
		if all[i].Name != "" {
			known = append(known, all[i].Name)
		}
	}
	err = fmt.Errorf("snapshot %q of session %s: %w", ref, s.Name(), ErrNotFound)
	if near := nearest(ref, known); near != "" {
		err = fmt.Errorf("%w; did you mean %q?", err, near)
	}
	return Snapshot{}, err
}

func (s *Session) snapshot(n overlay.LayerID) (Snapshot, error) {
	if last := s.Last(); last.Number == n && n != 0 {
		return last, nil
	}
	if n == 0 {
		snap := Snapshot{Time: s.Created(), Stacks: map[string]overlay.Stack{}}
		for _, t := range s.Trees() {
			snap.Stacks[t.Name] = overlay.Stack{}
		}
		return s.man.Load().withReplaced(snap), nil
	}
	snap, ok, err := s.line(n)
	if ok || err != nil {
		return snap, err
	}
	all, err := s.History()
	if err != nil {
		return Snapshot{}, err
	}
	near := overlay.LayerID(0)
	for _, snap := range all {
		if max(snap.Number, n)-min(snap.Number, n) < max(near, n)-min(near, n) {
			near = snap.Number
		}
	}
	if near != 0 && near != s.Last().Number {
		return Snapshot{}, fmt.Errorf("snapshot %d of session %s: %w; the nearest is %d, the latest %d", n, s.Name(), ErrNotFound, near, s.Last().Number)
	}
	return Snapshot{}, fmt.Errorf("snapshot %d of session %s: %w; the latest is %d", n, s.Name(), ErrNotFound, s.Last().Number)
}
