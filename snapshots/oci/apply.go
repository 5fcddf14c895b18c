package oci

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// applier makes the changes of layers in the live view of a tree. It reaches
// everything by lookups of one name in a node, so that no link is ever followed.
type applier struct {
	f       *overlay.Face
	devices bool // whether device nodes may be made
	told    func(int64)
	report  *Report
	// compared are the paths of the base that were compared with what they were.
	compared map[string]bool
	// foreign: the layers are what any tool wrote; mine are the paths that the
	// one under way has put there, with those above them.
	foreign bool
	mine    map[string]bool
	// left bounds the directories without an entry of their own, of foreign
	// layers, and spelt is how many bytes their paths have.
	left  *budget
	spelt int

	dirs []*item // of the layer under way: their attributes come last
	buf  []byte
}

// errDevices tells what to do, for an import as root may well want them.
var errDevices = fmt.Errorf("a device node; allow devices to import it: %w", ErrHostile)

func (a *applier) item(it *item, content io.Reader) error {
	if it.path == "" {
		a.dirs = append(a.dirs, it)
		return nil
	}
	parent, err := a.walk(dirOf(it.path))
	if err != nil {
		return fmt.Errorf("the directory that it lies in: %w", err)
	}
	defer a.f.Forget(parent, 1)
	if parent.Type() != unix.S_IFDIR {
		return hostile("it lies in what is no directory")
	}
	name := strings.TrimPrefix(it.path[len(dirOf(it.path)):], "/")
	if it.whiteout {
		if err := a.remove(parent, name); err != nil && overlay.Errno(err) != unix.ENOENT {
			return err
		}
		return nil
	}
	if it.opaque {
		return a.empty(parent, name)
	}
	if it.hdr.Typeflag == 0 {
		return hostile("an entry without a type")
	}
	return a.put(parent, name, it, content)
}

func (a *applier) walk(path string) (*overlay.Node, error) {
	n, _, err := a.f.Walk(path)
	return n, err
}

// remove removes a name with everything below it.
func (a *applier) remove(parent *overlay.Node, name string) error {
	n, _, err := a.f.Lookup(parent, name)
	if err != nil {
		return err
	}
	defer a.f.Forget(n, 1)
	if n.Type() != unix.S_IFDIR {
		return a.f.Unlink(parent, name)
	}
	if err := a.clear(n); err != nil {
		return err
	}
	return a.f.Rmdir(parent, name)
}

// clear removes what is in a directory, without recursion: trees can be deep.
func (a *applier) clear(top *overlay.Node) error {
	type level struct {
		dir    *overlay.Node
		parent *overlay.Node
		name   string
		names  []string
	}
	first, err := a.names(top)
	if err != nil {
		return err
	}
	levels := []level{{dir: top, names: first}}
	defer func() {
		for _, l := range levels[1:] {
			a.f.Forget(l.dir, 1)
		}
	}()
	for {
		l := &levels[len(levels)-1]
		if len(l.names) == 0 {
			if len(levels) == 1 {
				return nil
			}
			err := a.f.Rmdir(l.parent, l.name)
			a.f.Forget(l.dir, 1)
			levels = levels[:len(levels)-1]
			if err != nil {
				return err
			}
			continue
		}
		name := l.names[0]
		l.names = l.names[1:]
		n, _, err := a.f.Lookup(l.dir, name)
		if err != nil {
			return err
		}
		if n.Type() != unix.S_IFDIR {
			err := a.f.Unlink(l.dir, name)
			a.f.Forget(n, 1)
			if err != nil {
				return err
			}
			continue
		}
		names, err := a.names(n)
		if err != nil {
			a.f.Forget(n, 1)
			return err
		}
		levels = append(levels, level{n, l.dir, name, names})
	}
}

func (a *applier) names(dir *overlay.Node) (out []string, err error) {
	err = a.f.ReadDir(dir, 0, func(e overlay.DirEntry) bool {
		if e.Name != "." && e.Name != ".." {
			out = append(out, e.Name)
		}
		return true
	})
	return out, err
}

// empty does what an opaque marker says.
func (a *applier) empty(parent *overlay.Node, name string) error {
	n, _, err := a.f.Lookup(parent, name)
	if err != nil {
		return err
	}
	defer a.f.Forget(n, 1)
	if n.Type() != unix.S_IFDIR {
		return hostile("an opaque marker in what is no directory")
	}
	return a.clear(n)
}

// put makes or changes what an entry describes.
func (a *applier) put(parent *overlay.Node, name string, it *item, content io.Reader) error {
	n, attr, err := a.f.Lookup(parent, name)
	switch overlay.Errno(err) {
	case unix.ENOENT:
		n = nil
	case 0:
		defer a.f.Forget(n, 1)
	default:
		return err
	}
	if it.hdr.Typeflag == '1' {
		return a.link(parent, name, it, n)
	}
	same := it.same || a.foreign && it.typ == unix.S_IFDIR // which others merge
	keep := n != nil && same && n.Type() == it.typ && attr.Mode&unix.S_IFMT == it.typ
	if keep && (it.typ == unix.S_IFLNK || it.typ == unix.S_IFCHR || it.typ == unix.S_IFBLK) {
		keep = a.identical(n, &attr, it)
	}
	if n != nil && !keep {
		if err := a.remove(parent, name); err != nil {
			return err
		}
	}
	if !keep {
		if n, err = a.make(parent, name, it); err != nil {
			return err
		}
		defer a.f.Forget(n, 1)
	}
	const own = 0o700
	if keep && !attr.IsSymlink() && attr.Mode&own != own {
		// Who made the layer could write to it meanwhile.
		mode := attr.Mode&0o7777 | own
		if _, err := a.f.Setattr(n, overlay.SetAttr{Mode: &mode}); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if it.typ == unix.S_IFDIR {
		a.dirs = append(a.dirs, it)
		return nil
	}
	if it.typ == unix.S_IFREG {
		if err := a.write(n, it.hdr.Size, content); err != nil {
			return err
		}
	}
	return a.attributes(n, it)
}

// identical tells whether what cannot be changed in place is what the entry says.
func (a *applier) identical(n *overlay.Node, attr *overlay.Attr, it *item) bool {
	if it.typ == unix.S_IFLNK {
		target, err := a.f.Readlink(n)
		return err == nil && target == it.hdr.Linkname
	}
	return attr.Rdev == unix.Mkdev(uint32(it.hdr.Devmajor), uint32(it.hdr.Devminor))
}

func (a *applier) link(parent *overlay.Node, name string, it *item, old *overlay.Node) error {
	to, err := a.walk(it.link)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", it.link, err)
	}
	defer a.f.Forget(to, 1)
	if to.Type() == unix.S_IFDIR {
		return hostile("a hard link to the directory %q", it.link)
	}
	if old == to {
		return nil
	}
	if old != nil {
		if err := a.remove(parent, name); err != nil {
			return err
		}
	}
	// A link changes no time but the ctime.
	_, err = a.f.Link(to, parent, name)
	return err
}

func (a *applier) make(parent *overlay.Node, name string, it *item) (n *overlay.Node, err error) {
	who := overlay.Caller{UID: uint32(it.hdr.Uid), GID: uint32(it.hdr.Gid)}
	// Until its attributes are set nobody else needs to read it.
	const mode = 0o600
	switch it.typ {
	case unix.S_IFREG:
		n, _, err = a.f.Create(parent, name, unix.S_IFREG|mode, who)
	case unix.S_IFDIR:
		n, _, err = a.f.Mkdir(parent, name, unix.S_IFDIR|0o700, who)
	case unix.S_IFLNK:
		n, _, err = a.f.Symlink(parent, name, it.hdr.Linkname, who)
	case unix.S_IFCHR, unix.S_IFBLK:
		if !a.devices {
			return nil, errDevices
		}
		n, _, err = a.f.Mknod(parent, name, it.typ|mode, unix.Mkdev(uint32(it.hdr.Devmajor), uint32(it.hdr.Devminor)), who)
	default:
		n, _, err = a.f.Mknod(parent, name, it.typ|mode, 0, who)
	}
	return n, err
}

// write gives a file its content. What is zero becomes a hole.
func (a *applier) write(n *overlay.Node, size int64, content io.Reader) error {
	if a.buf == nil {
		a.buf = make([]byte, 256<<10)
	}
	zero := int64(0)
	if _, err := a.f.Setattr(n, overlay.SetAttr{Size: &zero}); err != nil {
		return err
	}
	const block = 4096
	for off := int64(0); off < size; {
		p := a.buf[:min(int64(len(a.buf)), size-off)]
		if _, err := io.ReadFull(content, p); err != nil {
			return damaged(err)
		}
		for at := 0; at < len(p); {
			// A stretch of blocks that are all zero, or all not.
			end, hole := at, false
			for ; end < len(p); end = min(end+block, len(p)) {
				empty := allZero(p[end:min(end+block, len(p))])
				if end == at {
					hole = empty
				}
				if empty != hole {
					break
				}
			}
			if !hole {
				if err := a.writeFull(n, p[at:end], off+int64(at)); err != nil {
					return err
				}
			}
			at = end
		}
		off += int64(len(p))
		if a.told != nil {
			a.told(int64(len(p)))
		}
	}
	_, err := a.f.Setattr(n, overlay.SetAttr{Size: &size})
	return err
}

func allZero(p []byte) bool {
	return len(bytes.Trim(p, "\x00")) == 0
}

func (a *applier) writeFull(n *overlay.Node, p []byte, off int64) error {
	for len(p) > 0 {
		got, err := a.f.Write(n, p, off)
		if err != nil {
			return err
		}
		p, off = p[got:], off+int64(got)
	}
	return nil
}

// attributes sets owner, extended attributes, mode and time, in the order in which
// none undoes another. What is right already is not touched.
func (a *applier) attributes(n *overlay.Node, it *item) error {
	attr, err := a.f.Getattr(n)
	if err != nil {
		return err
	}
	uid, gid := uint32(it.hdr.Uid), uint32(it.hdr.Gid)
	if attr.UID != uid || attr.GID != gid {
		_, err := a.f.Setattr(n, overlay.SetAttr{UID: &uid, GID: &gid})
		if overlay.Errno(err) == unix.EPERM {
			a.report.Owners++
		} else if err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	if err := a.setXattrs(n, it); err != nil {
		return err
	}
	if attr, err = a.f.Getattr(n); err != nil {
		return err
	}
	mode := uint32(it.hdr.Mode)
	if !attr.IsSymlink() && attr.Mode&0o7777 != mode {
		if _, err := a.f.Setattr(n, overlay.SetAttr{Mode: &mode}); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	mtime := overlay.Time{Sec: it.hdr.ModTime.Unix(), Nsec: uint32(it.hdr.ModTime.Nanosecond())}
	if attr.Mtime == mtime {
		return nil
	}
	_, err = a.f.Setattr(n, overlay.SetAttr{Mtime: &mtime})
	return err
}

func (a *applier) setXattrs(n *overlay.Node, it *item) error {
	have, err := a.f.Listxattr(n)
	if err != nil {
		return fmt.Errorf("extended attributes: %w", err)
	}
	for _, name := range have {
		if _, ok := it.xattrs[name]; ok || name == "security.selinux" {
			continue
		}
		if err := a.f.Removexattr(n, name); err != nil && overlay.Errno(err) != unix.ENODATA {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
	}
	names := make([]string, 0, len(it.xattrs))
	for name := range it.xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if val, err := a.f.Getxattr(n, name); err == nil && bytes.Equal(val, it.xattrs[name]) {
			continue
		}
		err := a.f.Setxattr(n, name, it.xattrs[name], 0)
		if no := overlay.Errno(err); no == unix.EPERM || no == unix.EOPNOTSUPP && a.foreign {
			a.report.Xattrs++
		} else if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
	}
	return nil
}

// endLayer sets the attributes of the directories, the deepest first: whatever is
// made in one changes its time.
func (a *applier) endLayer() error {
	done := map[string]bool{}
	for _, it := range slices.Backward(a.dirs) {
		if done[it.path] {
			continue // of several entries the last counts
		}
		done[it.path] = true
		n, err := a.walk(it.path)
		if overlay.Errno(err) == unix.ENOENT {
			continue // an entry after it took it away again
		}
		if err == nil && n.Type() == unix.S_IFDIR {
			err = a.attributes(n, it)
		}
		if n != nil {
			a.f.Forget(n, 1)
		}
		if err != nil {
			return fmt.Errorf("directory %q: %w", it.path, err)
		}
	}
	a.dirs = nil
	return nil
}

// compareBase notes where the base is not what it was when the session first
// changed it.
func (a *applier) compareBase(base *overlay.Face, it *item) error {
	if it.was == nil || a.compared[string(it.was.Path)] {
		return nil
	}
	path := string(it.was.Path)
	a.compared[path] = true
	same, err := isAsItWas(base, path, it.was)
	if err != nil || same {
		return err
	}
	a.report.Differs++
	if len(a.report.DiffersAt) < maxDiffers {
		a.report.DiffersAt = append(a.report.DiffersAt, path)
	}
	return nil
}

func isAsItWas(base *overlay.Face, path string, w *wasRecord) (bool, error) {
	n, attr, err := base.Walk(path)
	switch overlay.Errno(err) {
	case unix.ENOENT, unix.ENOTDIR:
		return !w.Exists, nil
	case 0:
	default:
		return false, err
	}
	defer base.Forget(n, 1)
	if !w.Exists || attr.Mode&unix.S_IFMT != w.Mode&unix.S_IFMT {
		return false, nil
	}
	switch {
	case attr.IsSymlink():
		target, err := base.Readlink(n)
		return target == string(w.Target), err
	case !attr.IsRegular():
		return true, nil
	case attr.Size != w.Size:
		return false, nil
	case attr.Mtime == overlay.Time{Sec: w.Sec, Nsec: w.Nsec}:
		return true, nil
	case w.Digest == "":
		return false, nil // touched since, and nothing to compare with
	}
	sum, err := digestOf(base, n)
	return hex.EncodeToString(sum) == w.Digest, err
}
