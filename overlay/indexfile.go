package overlay

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// writeIndex writes the whole index into one file, so that the next open reads
// that instead of every record. It is a cache: nothing depends on it.
func (t *Tree) writeIndex() error {
	var enc encoder
	enc.header(0, t.prefix)
	enc.inode(t.nextIno - 1)
	for dev, n := range t.devices {
		enc.device(dev, n)
	}
	t.newDevs = nil
	byLayer := t.groupByLayer()
	layers := make([]LayerID, 0, len(byLayer))
	for l := range byLayer {
		layers = append(layers, l)
	}
	slices.Sort(layers)
	tmp := "new-index"
	fd, err := t.fs.Open(t.stateFD, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	defer t.fs.Close(fd)
	off := int64(0)
	flush := func() error {
		err := hostfs.WriteFull(t.fs, fd, enc.b, off)
		off += int64(len(enc.b))
		enc.b = enc.b[:0]
		return err
	}
	for _, l := range layers {
		if !t.loaded[l] {
			continue // of what the last index had of it, not all may be true
		}
		enc.layer(l)
		if err := byLayer[l].encode(t, &enc, l, flush); err != nil {
			return fmt.Errorf("write index: %w", err)
		}
	}
	size := int64(0)
	if t.rec != nil {
		size = t.rec.size
	}
	enc.endMark(t.view.active, size)
	if err := flush(); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := t.fs.Rename(t.stateFD, tmp, t.stateFD, indexName, 0); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

type layerFacts struct {
	nodes []*Node
	vers  []*nodeVer // of nodes, in the same order
	ents  []dent
	kids  []*Node // of ents, in the same order; nil for a whiteout
	was   []*Was
}

func (t *Tree) groupByLayer() map[LayerID]*layerFacts {
	out := map[LayerID]*layerFacts{}
	at := func(l LayerID) *layerFacts {
		f := out[l]
		if f == nil {
			f = &layerFacts{}
			out[l] = f
		}
		return f
	}
	for n := range t.all {
		for x := n.ver; x != nil; x = x.prev {
			f := at(x.layer)
			f.nodes, f.vers = append(f.nodes, n), append(f.vers, x)
		}
		for name, e := range n.ents {
			for ; e != nil; e = e.prev {
				f := at(e.layer)
				f.ents, f.kids = append(f.ents, dent{n, name}), append(f.kids, e.node)
			}
		}
	}
	for _, w := range t.was {
		for ; w != nil; w = w.prev {
			f := at(w.layer)
			f.was = append(f.was, w.was)
		}
	}
	return out
}

func (f *layerFacts) encode(t *Tree, enc *encoder, l LayerID, flush func() error) error {
	const chunk = 1 << 20
	full := func() error {
		if len(enc.b) < chunk {
			return nil
		}
		return flush()
	}
	for i, n := range f.nodes {
		t.encodeVersion(enc, n, f.vers[i])
		if err := full(); err != nil {
			return err
		}
	}
	for i, d := range f.ents {
		enc.entry(d.dir.ino, d.name, inoOf(f.kids[i]))
		if err := full(); err != nil {
			return err
		}
	}
	for _, w := range f.was {
		enc.was(w)
		if err := full(); err != nil {
			return err
		}
	}
	return flush()
}

func inoOf(n *Node) uint64 {
	if n == nil {
		return 0
	}
	return n.ino
}

// encodeVersion writes the frames that describe version x of n.
func (t *Tree) encodeVersion(enc *encoder, n *Node, x *nodeVer) {
	if x.flags&verGone != 0 {
		f := &nodeFrame{ino: n.ino, typ: n.typ, flags: verGhost}
		enc.node(f)
		enc.gone(n.ino, true)
		return
	}
	f := &nodeFrame{
		ino: n.ino, typ: n.typ, flags: x.flags &^ verUnsynced, nlink: x.nlink, name: x.name,
		lower: x.lower, ctime: x.ctime, born: n.hasBase && n != t.root, id: n.bid, btime: n.btime, bornIn: n.bornAs(x.layer),
	}
	if x.parent != nil {
		f.parent = x.parent.ino
	}
	if f.born {
		f.base = n.basePath()
	}
	if x.data != nil {
		f.hasData, f.data = true, x.data.layer
	}
	enc.node(f)
	if x.kept != nil {
		enc.kept(n.ino, x.kept)
	}
}

// logNode notes version x of n in the record of the active layer. The caller
// flushes.
//
// Preconditions: mu is held.
func (t *Tree) logNode(n *Node, x *nodeVer) {
	t.remember(n)
	t.encodeVersion(&t.rec.enc, n, x)
}
