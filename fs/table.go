package fs

import (
	"sync"

	"github.com/galleyfs/galley/overlay"
)

// rootID is FUSE's number for the root of a mount.
const rootID = 1

// tableShards spreads the table's locks; a power of two. Node ids are handed
// out in sequence, so their low bits spread well.
const tableShards = 64

// table is what the kernel knows: the nodes it was told of, by node id, with
// the number of times it was told. Unlike a kernel, a guest may name ids it
// never got and forget more than it learned, so nothing here trusts the
// counts that come in.
type table struct {
	root   *overlay.Node // immutable; never forgotten
	shards [tableShards]shard
	atRoot known // of the root; protected by its shard
}

type shard struct {
	mu    sync.RWMutex
	nodes map[uint64]*known // protected by mu
}

// known is a node with the kernel's and the engine's counts. They differ where
// an answer carries a node that the engine gave no reference with (LINK).
type known struct {
	node    *overlay.Node
	lookups uint64 // answers that named the node, less those forgotten
	refs    uint64 // engine references to give back with the last lookup
	told    told   // of a guest only
}

func newTable(root *overlay.Node) *table {
	t := &table{root: root}
	for i := range t.shards {
		t.shards[i].nodes = make(map[uint64]*known)
	}
	return t
}

func (t *table) shard(id uint64) *shard { return &t.shards[id%tableShards] }

// get is the node with that id, nil if the kernel was never told of it.
func (t *table) get(id uint64) *overlay.Node {
	if id == rootID {
		return t.root
	}
	s := t.shard(id)
	s.mu.RLock()
	k := s.nodes[id]
	s.mu.RUnlock()
	if k == nil {
		return nil
	}
	return k.node
}

// id is the number by which the kernel knows n.
func (t *table) id(n *overlay.Node) uint64 {
	if n == t.root {
		return rootID
	}
	return n.ID()
}

// add counts an answer that names n; refs engine references came with it.
func (t *table) add(n *overlay.Node, refs uint64) uint64 {
	if n == t.root {
		return rootID
	}
	id := n.ID()
	s := t.shard(id)
	s.mu.Lock()
	k := s.nodes[id]
	if k == nil {
		k = &known{node: n}
		s.nodes[id] = k
	}
	k.lookups++
	k.refs += refs
	s.mu.Unlock()
	return id
}

// forget takes back count answers. When none is left it returns the node and
// the references that are to be given back to the engine, else nil.
func (t *table) forget(id, count uint64) (*overlay.Node, uint64) {
	if id == rootID {
		return nil, 0
	}
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.nodes[id]
	if k == nil {
		return nil, 0
	}
	if count < k.lookups {
		k.lookups -= count
		return nil, 0
	}
	delete(s.nodes, id)
	return k.node, k.refs
}

// reset forgets all nodes, and returns them with the references that are to be
// given back to the engine.
func (t *table) reset() map[*overlay.Node]uint64 {
	out := make(map[*overlay.Node]uint64)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, k := range s.nodes {
			out[k.node] += k.refs
		}
		s.nodes = make(map[uint64]*known)
		s.mu.Unlock()
	}
	return out
}

// withTold calls f with what the kernel was told last of a node that it knows.
func (t *table) withTold(id uint64, f func(*told)) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == rootID {
		f(&t.atRoot.told)
		return
	}
	if k := s.nodes[id]; k != nil {
		f(&k.told)
	}
}

// len is how many nodes the kernel knows, without the root.
func (t *table) len() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		n += len(s.nodes)
		s.mu.RUnlock()
	}
	return n
}
