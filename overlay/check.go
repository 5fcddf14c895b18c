package overlay

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// What a check of a state directory needs: see snapshots.Store.Check. None of
// it changes anything but [MendRecord] and [Distrust].

// CheckRecord reads the record of layer l in a directory of layers and verifies
// the checksum of every frame, that each decodes, and that the record is the
// layer's. Only of the active layer may it end within a frame, since the next
// open cuts that off.
func CheckRecord(fs hostfs.FS, layers int, l LayerID, active bool) error {
	b, err := readRecord(fs, layers, l)
	if err != nil {
		return err
	}
	n, header, err := scanRecord(b)
	switch {
	case err != nil:
		return err
	case n != len(b) && !active:
		return fmt.Errorf("it ends within a frame, at byte %d of %d: %w", n, len(b), ErrCorrupt)
	case header != l && !(active && n == 0):
		return fmt.Errorf("its header names layer %d: %w", header, ErrCorrupt)
	}
	return nil
}

func readRecord(fs hostfs.FS, layers int, l LayerID) ([]byte, error) {
	fd, err := fs.Open(layers, layerName(l), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer fs.Close(fd)
	return hostfs.ReadFile(fs, fd, "record", maxRecord)
}

// scanRecord decodes a record into a tree of its own, as a load would, and
// returns how much of it was good and which layer its header names.
func scanRecord(b []byte) (n int, header LayerID, err error) {
	ld := newProbe()
	n, err = readFrames(b, ld.frame)
	return n, ld.layer, err
}

// newProbe is a loader of nothing that is used.
func newProbe() *loader {
	t := &Tree{all: map[*Node]struct{}{}, inos: map[uint64][]*Node{}, was: map[string]*wasVer{}, devices: map[uint64]uint32{}}
	t.root = &Node{id: rootID, typ: unix.S_IFDIR, ino: rootID}
	// Content in a layer that the record does not describe is not looked for.
	return &loader{t: t, v: &view{}, met: map[LayerID]bool{}, byIno: map[uint64]*Node{}, born: map[*Node]string{}, lone: true}
}

// CheckIndex reports whether the index in a state directory, if there is one, is
// whole. It is a cache: a damaged one is to be removed.
func CheckIndex(fs hostfs.FS, state int) error {
	b, err := hostfs.ReadFile(fs, state, indexName, maxRecord)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	ld := newProbe()
	n, err := readFrames(b, ld.frame)
	if err == nil && (n != len(b) || !ld.end.seen) {
		err = fmt.Errorf("it ends at byte %d of %d: %w", n, len(b), ErrCorrupt)
	}
	return err
}

// Distrust has the next open of the tree in a state directory compare the active
// layer with its record, as after a crash.
func Distrust(fs hostfs.FS, state int) error {
	fd, err := fs.Open(state, dirtyMark, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("mark as in use: %w", err)
	}
	return fs.Close(fd)
}

// MendRecord writes the record of a sealed layer again from what the index in
// the state directory has of it, and keeps the old one beside it. It fails with
// ErrCorrupt where the index does not have it.
func MendRecord(fs hostfs.FS, state, layers int, l LayerID) error {
	b, err := hostfs.ReadFile(fs, state, indexName, maxRecord)
	if err != nil {
		return fmt.Errorf("the index, of which the record could be made again: %w", err)
	}
	if err := CheckIndex(fs, state); err != nil {
		return fmt.Errorf("the index, of which the record could be made again: %w", err)
	}
	var enc encoder
	var cur LayerID
	found := false
	_, err = readFrames(b, func(k frameKind, d *decoder) error {
		payload := slices.Clone(d.b)
		switch k {
		case frameHeader:
			d.uint()
			d.uint()
			enc.header(l, d.str())
			return nil
		case frameLayer:
			cur = LayerID(d.uint32())
			found = found || cur == l
			return nil
		}
		d.b = nil
		if cur == l && k != frameEnd || k == frameDevice || k == frameInode {
			at := enc.begin(k)
			enc.b = append(enc.b, payload...)
			enc.end(at)
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("the index does not have layer %d: %w", l, ErrCorrupt)
	}
	if err != nil {
		return err
	}
	return replaceRecord(fs, layers, l, enc.b)
}

// replaceRecord puts another record in the place of a damaged one, durably.
func replaceRecord(fs hostfs.FS, layers int, l LayerID, text []byte) error {
	dir, err := fs.Open(layers, layerName(l), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer fs.Close(dir)
	const tmp = "record.new"
	fd, err := fs.Open(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = hostfs.WriteFull(fs, fd, text, 0)
	if err == nil {
		err = fs.Fsync(fd)
	}
	if cerr := fs.Close(fd); err == nil {
		err = cerr
	}
	if err == nil {
		// What was there is evidence, and may hold more than the index did.
		if err = fs.Link(dir, "record", dir, "record.damaged"); err == unix.EEXIST || err == unix.ENOENT {
			err = nil
		}
	}
	if err == nil {
		err = fs.Rename(dir, tmp, dir, "record", 0)
	}
	if err == nil {
		err = fs.Fsync(dir)
	}
	return err
}

// CheckLayer compares a layer that is loaded with its tree on the disk, and
// calls bad for each path in the layer of which one has what the other has not.
func (t *Tree) CheckLayer(l LayerID, bad func(path, what string)) error {
	t.admit.RLock()
	defer t.admit.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	type step struct {
		dir  *Node
		path string
	}
	steps := []step{{t.root, ""}}
	for len(steps) > 0 {
		s := steps[len(steps)-1]
		steps = steps[:len(steps)-1]
		x := s.dir.verAt(l)
		if x == nil {
			continue
		}
		names, err := t.namesIn(s.dir, x)
		if err != nil {
			bad(s.path, fmt.Sprintf("the directory cannot be read: %v", err))
			continue
		}
		for name, st := range names {
			path := join(s.path, name)
			e := s.dir.entryAt(l, name)
			if what := e.differs(l, &st); what != "" {
				bad(path, what)
			} else if e.node != nil && e.node.isDir() {
				steps = append(steps, step{e.node, path})
			}
		}
		for name := range s.dir.ents {
			if e := s.dir.entryAt(l, name); e != nil && names[name].Mode == 0 && !e.elsewhere(l) {
				bad(join(s.path, name), "recorded, and not in the layer")
			}
		}
	}
	return nil
}

// namesIn lists what a layer's directory has, and what each is.
func (t *Tree) namesIn(dir *Node, x *nodeVer) (map[string]unix.Statx_t, error) {
	at, err := t.layerDirFD(dir, x)
	if err != nil {
		return nil, err
	}
	defer t.fds.done(at)
	fd, err := t.fs.Open(at.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer t.fs.Close(fd)
	out := map[string]unix.Statx_t{}
	err = hostfs.ReadDir(t.fs, fd, func(d hostfs.Dirent) error {
		var st unix.Statx_t
		if err := t.fs.Stat(fd, d.Name, &st); err != nil {
			return err
		}
		out[d.Name] = st
		return nil
	})
	return out, err
}

// entryAt is the name's version in exactly that layer.
func (n *Node) entryAt(l LayerID, name string) *entry {
	for e := n.ents[name]; e != nil && e.layer >= l; e = e.prev {
		if e.layer == l {
			return e
		}
	}
	return nil
}

// differs says how an object in the layer is not what e has of it.
func (e *entry) differs(l LayerID, st *unix.Statx_t) string {
	white := isWhiteoutDev(uint32(st.Mode), st.Rdev_major, st.Rdev_minor)
	switch {
	case e == nil:
		return "in the layer, and not recorded"
	case white != (e.node == nil):
		return "a whiteout in one of layer and record, and a file in the other"
	case !white && payloadType(e.node.verAt(l), e.node.typ) != uint32(st.Mode)&unix.S_IFMT:
		return fmt.Sprintf("of type %o, recorded as %o", uint32(st.Mode)&unix.S_IFMT, e.node.typ)
	}
	return ""
}

// elsewhere reports whether the layer holds nothing under the name although it
// has an entry there: of a node of which only counts changed.
func (e *entry) elsewhere(l LayerID) bool {
	if e.node == nil {
		return false
	}
	x := e.node.verAt(l)
	return x == nil || x.flags&(verGhost|verOrphan|verGone) != 0
}
