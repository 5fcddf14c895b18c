package commit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// world is a base, what a session made of it as an ordinary tree beside it, and
// the change set between the two, found by following inodes: the tree of the
// session starts as a copy whose nodes remember where they came from.
type world struct {
	t    testing.TB
	dir  string
	base string
	want string
	// from finds the path in the base that a node of the session's tree is
	// a copy of.
	from map[string]string
}

// newWorld makes a base by a shell script, and its copy.
func newWorld(t testing.TB, dir, script string) *world {
	t.Helper()
	w := &world{t: t, dir: dir, base: filepath.Join(dir, "base"), want: filepath.Join(dir, "want"), from: map[string]string{}}
	w.must(os.MkdirAll(w.base, 0o755))
	t.Cleanup(func() { w.shell(dir, "chmod -R u+rwx .") }) // for who is not root
	w.shell(w.base, script)
	w.shell(dir, "cp -a base want")
	w.must(filepath.WalkDir(w.want, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			w.from[w.id(path)] = w.rel(w.want, path)
		}
		return err
	}))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) shell(dir, script string) {
	w.t.Helper()
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// session runs a script in the session's tree.
func (w *world) session(script string) { w.t.Helper(); w.shell(w.want, script) }

// host runs a script in the base, as a person would meanwhile.
func (w *world) host(script string) { w.t.Helper(); w.shell(w.base, script) }

func (w *world) rel(root, path string) string {
	r, err := filepath.Rel(root, path)
	w.must(err)
	if r == "." {
		return ""
	}
	return r
}

// id names a node: inode numbers are used again, birth times are not.
func (w *world) id(path string) string {
	st := statx(w.t, path)
	return fmt.Sprint(st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

func statx(t testing.TB, path string) *unix.Statx_t {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		t.Fatal(path, err)
	}
	return &st
}

// side describes one node as a change set does.
func (w *world) side(path string) *review.Meta {
	st := statx(w.t, path)
	m := &review.Meta{Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Mtime: timeOf(st.Mtime)}
	switch {
	case m.IsRegular():
		data, err := os.ReadFile(path)
		w.must(err)
		m.Size, m.Digest, m.HasDigest = int64(len(data)), sha256.Sum256(data), true
	case m.IsSymlink():
		target, err := os.Readlink(path)
		w.must(err)
		m.Target, m.Size = target, int64(len(target))
	}
	if m.IsSymlink() {
		return m
	}
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	w.must(err)
	for _, name := range strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }) {
		val := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, val)
		w.must(err)
		m.Xattrs = append(m.Xattrs, review.Xattr{Name: name, Value: val[:n]})
	}
	sort.Slice(m.Xattrs, func(i, j int) bool { return m.Xattrs[i].Name < m.Xattrs[j].Name })
	return m
}

// was is what the session recorded of a base path.
func (w *world) was(path string) overlay.Was {
	full := filepath.Join(w.base, path)
	if _, err := os.Lstat(full); err != nil {
		return overlay.Was{Path: path}
	}
	st, m := statx(w.t, full), w.side(full)
	return overlay.Was{Path: path, Exists: true, ID: overlay.HostID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino},
		Mode: m.Mode, UID: m.UID, GID: m.GID, Nlink: st.Nlink, Size: int64(st.Size), Rdev: m.Rdev, Mtime: m.Mtime,
		Ctime: timeOf(st.Ctime), Btime: timeOf(st.Btime), Target: m.Target, Digest: m.Digest, HasDigest: m.HasDigest}
}

func (w *world) list(root string) []string {
	var out []string
	w.must(filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != root {
			out = append(out, w.rel(root, path))
		}
		return err
	}))
	sort.Slice(out, func(i, j int) bool { return overlay.ComparePaths(out[i], out[j]) < 0 })
	return out
}

// changes is the change set of the session.
func (w *world) changes() *review.ChangeSet {
	w.t.Helper()
	old := map[string]bool{}
	for _, p := range w.list(w.base) {
		old[p] = true
	}
	origin, stays, moved := map[string]string{}, map[string]bool{}, map[string]string{}
	paths := w.list(w.want)
	// A node is where it was if the directory that it was in is.
	dirAt := map[string]string{"": ""} // directory of the view -> of the base
	for _, p := range paths {
		from, ok := w.from[w.id(filepath.Join(w.want, p))]
		if !ok || from == "" || !old[from] {
			continue
		}
		origin[p] = from
		isDir := statx(w.t, filepath.Join(w.want, p)).Mode&unix.S_IFMT == unix.S_IFDIR
		dir, name := split(p)
		if under, ok := dirAt[dir]; ok && join(under, name) == from {
			stays[from] = true
		} else if _, claimed := moved[from]; !claimed {
			moved[from] = p
		}
		if isDir {
			dirAt[p] = from
		}
	}
	for from := range moved {
		if stays[from] {
			delete(moved, from)
		}
	}
	d := &differ{w: w, old: old, origin: origin, moved: moved, dirAt: dirAt, used: map[string]bool{}, links: map[string]string{}}
	for _, p := range paths {
		d.visit(p)
	}
	if root := d.meta("", "", false); root != nil {
		d.out = append(d.out, *root)
	}
	for _, p := range w.list(w.base) {
		if !d.used[p] {
			d.add(review.Change{Kind: review.Deleted, Path: p, Origin: p, Old: w.side(filepath.Join(w.base, p))})
		}
	}
	sort.SliceStable(d.out, func(i, j int) bool {
		a, b := &d.out[i], &d.out[j]
		if n := overlay.ComparePaths(a.Path, b.Path); n != 0 {
			return n < 0
		}
		return a.Kind == review.Deleted && b.Kind != review.Deleted
	})
	return &review.ChangeSet{Changes: d.out}
}

type differ struct {
	w      *world
	old    map[string]bool
	origin map[string]string
	moved  map[string]string
	dirAt  map[string]string
	used   map[string]bool
	links  map[string]string
	out    []review.Change
}

func (d *differ) add(c review.Change) {
	c.Tree, c.At = "workspace", c.Path
	if c.Old != nil {
		c.Facts = append(c.Facts, d.w.was(c.Origin))
	} else if under, ok := d.under(c.Path); ok && !d.old[under] {
		c.Facts = append(c.Facts, overlay.Was{Path: under})
	}
	d.out = append(d.out, c)
}

func (d *differ) under(p string) (string, bool) {
	dir, name := split(p)
	under, ok := d.dirAt[dir]
	return join(under, name), ok
}

// visit describes what the session has at p.
func (d *differ) visit(p string) {
	now := d.w.side(filepath.Join(d.w.want, p))
	link := ""
	if st := statx(d.w.t, filepath.Join(d.w.want, p)); st.Nlink > 1 && now.IsRegular() {
		id := d.w.id(filepath.Join(d.w.want, p))
		if link = d.links[id]; link == "" {
			d.links[id] = p
		}
	}
	under, ok := d.under(p)
	from, came := d.origin[p]
	switch {
	case came && ok && from == under:
		d.used[from] = true
		if c := d.meta(p, from, now.IsRegular() && link != ""); c != nil {
			c.Link = link
			d.out = append(d.out, *c)
		}
		return
	case came && d.moved[from] == p && !d.used[from]:
		d.used[from] = true
		c := d.compare(p, from)
		c.Kind, c.From, c.Link = review.Renamed, from, link
		d.add(c)
		return
	}
	if ok && d.old[under] && !d.used[under] && d.moved[under] == "" {
		old := d.w.side(filepath.Join(d.w.base, under))
		if now.IsDir() && old.IsDir() {
			d.dirAt[p] = under // made again: it shows nothing of the base but what is listed
			d.used[under] = true
			if c := d.meta(p, under, false); c != nil {
				d.out = append(d.out, *c)
			}
			return
		}
		d.used[under] = true
		c := d.compare(p, under)
		c.Kind, c.Link = review.Modified, link
		if old.Type() != now.Type() {
			c.Kind = review.TypeChanged
		}
		d.add(c)
		return
	}
	d.add(review.Change{Kind: review.Added, Path: p, New: now, Link: link})
}

func (d *differ) compare(p, from string) review.Change {
	c := review.Change{Path: p, Origin: from, Old: d.w.side(filepath.Join(d.w.base, from)), New: d.w.side(filepath.Join(d.w.want, p))}
	if c.Old.Digest != c.New.Digest {
		c.Parts |= review.PartContent
	}
	if c.Old.Target != c.New.Target {
		c.Parts |= review.PartTarget
	}
	if c.Old.Mode != c.New.Mode && !c.New.IsSymlink() {
		c.Parts |= review.PartMode
	}
	if c.Old.UID != c.New.UID || c.Old.GID != c.New.GID {
		c.Parts |= review.PartOwner
	}
	if fmt.Sprint(c.Old.Xattrs) != fmt.Sprint(c.New.Xattrs) {
		c.Parts |= review.PartXattrs
	}
	return c
}

// meta is the change of a node that stayed where it was, nil if there is none.
func (d *differ) meta(p, from string, linked bool) *review.Change {
	c := d.compare(p, from)
	c.Kind = review.MetaOnly
	if c.Parts&(review.PartContent|review.PartTarget) != 0 {
		c.Kind = review.Modified
	}
	if c.Parts == 0 && !linked {
		return nil
	}
	if c.Parts == 0 {
		c.Kind = review.Modified
	}
	c.Tree, c.At, c.Facts = "workspace", p, []overlay.Was{d.w.was(from)}
	return &c
}

// Open implements Source: the session's tree is the sealed face.
func (w *world) Open(c *review.Change) (int, func(), error) {
	fd, err := unix.Open(filepath.Join(w.want, c.Path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return fd, func() { _ = unix.Close(fd) }, err
}

func (w *world) config(host hostfs.FS) Config {
	return Config{FS: host, Trees: []Tree{{Name: "workspace", BasePath: w.base}}, Source: w, workers: 1,
		CommitDir: filepath.Join(w.dir, "commits", "1"), LockDir: filepath.Join(w.dir, "locks")}
}

var keepAll = Options{KeepSetID: true, KeepSpecial: true, KeepSecurityXattrs: true}

// commit commits the session's change set.
func (w *world) commit(host hostfs.FS, o Options) (*Result, error) {
	w.t.Helper()
	return w.apply(w.config(host), o)
}

func (w *world) apply(cfg Config, o Options) (*Result, error) {
	w.t.Helper()
	plan, err := NewPlan(w.changes(), o)
	w.must(err)
	w.must(os.MkdirAll(filepath.Dir(cfg.CommitDir), 0o700))
	return Apply(context.Background(), cfg, plan)
}

// image describes every node of a tree: type, mode, owner, size, content, time
// of what is no directory, attributes and which names are one node.
func (w *world) image(root string) string {
	w.t.Helper()
	var b strings.Builder
	first := map[string]string{}
	for _, p := range append([]string{""}, w.list(root)...) {
		full := filepath.Join(root, p)
		m := w.side(full)
		name := p
		if st := statx(w.t, full); st.Nlink > 1 && !m.IsDir() {
			id := w.id(full)
			if first[id] == "" {
				first[id] = p
			}
			name += " = " + first[id]
		}
		mtime := m.Mtime
		if m.IsDir() {
			mtime = overlay.Time{}
		}
		fmt.Fprintf(&b, "%q %o %d:%d %d %x %q %d %v %v\n", name, m.Mode, m.UID, m.GID, m.Size, m.Digest[:4], m.Target, m.Rdev, mtime, m.Xattrs)
	}
	return b.String()
}

// stray lists what a commit left beside or in the base.
func (w *world) stray() []string {
	var out []string
	for _, dir := range []string{w.dir, w.base} {
		found, err := filepath.Glob(filepath.Join(dir, stagePrefix+"*"))
		w.must(err)
		out = append(out, found...)
	}
	return out
}
