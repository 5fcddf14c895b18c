package overlay

import (
	"container/list"
	"sync"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// fdKey says what a cached descriptor is open on: a version's payload or a
// node's place in the base.
type fdKey struct {
	ver  *nodeVer
	node *Node
	kind fdKind
}

type fdKind uint8

const (
	fdDir   fdKind = iota // O_PATH, for calls relative to it
	fdRead                // O_RDONLY
	fdWrite               // O_RDWR
)

// fdCache is a bounded set of open descriptors, least recently used first out.
// A descriptor in use is never closed: the bound may be exceeded by as many as
// are in use at once.
type fdCache struct {
	fs  hostfs.FS
	max int

	mu   sync.Mutex
	ents map[fdKey]*fdEnt
	lru  list.List // of *fdEnt, most recent in front
}

type fdEnt struct {
	key  fdKey
	fd   int
	uses int
	dead bool // removed from the cache; closed by the last user
	elem *list.Element
}

func newFDCache(fs hostfs.FS, max int) *fdCache {
	return &fdCache{fs: fs, max: max, ents: make(map[fdKey]*fdEnt)}
}

// get returns a cached descriptor in use, or nil.
func (c *fdCache) get(k fdKey) *fdEnt {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.ents[k]
	if e == nil {
		return nil
	}
	e.uses++
	c.lru.MoveToFront(e.elem)
	return e
}

// put hands fd over to the cache and returns it in use. Where another call was
// faster, fd is closed and the cached one returned.
func (c *fdCache) put(k fdKey, fd int) *fdEnt {
	c.mu.Lock()
	if e := c.ents[k]; e != nil {
		e.uses++
		c.lru.MoveToFront(e.elem)
		c.mu.Unlock()
		_ = c.fs.Close(fd)
		return e
	}
	e := &fdEnt{key: k, fd: fd, uses: 1}
	e.elem = c.lru.PushFront(e)
	c.ents[k] = e
	victims := c.evictLocked()
	c.mu.Unlock()
	for _, v := range victims {
		_ = c.fs.Close(v)
	}
	return e
}

func (c *fdCache) evictLocked() (fds []int) {
	for el := c.lru.Back(); el != nil && len(c.ents) > c.max; {
		e, prev := el.Value.(*fdEnt), el.Prev()
		if e.uses == 0 {
			delete(c.ents, e.key)
			c.lru.Remove(el)
			fds = append(fds, e.fd)
		}
		el = prev
	}
	return fds
}

// done ends a use.
func (c *fdCache) done(e *fdEnt) {
	c.mu.Lock()
	e.uses--
	last := e.dead && e.uses == 0
	c.mu.Unlock()
	if last {
		_ = c.fs.Close(e.fd)
	}
}

// drop forgets the descriptors of a version or a base node.
func (c *fdCache) drop(ver *nodeVer, node *Node) {
	var fds []int
	c.mu.Lock()
	for _, kind := range [...]fdKind{fdDir, fdRead, fdWrite} {
		e := c.ents[fdKey{ver, node, kind}]
		if e == nil {
			continue
		}
		delete(c.ents, e.key)
		c.lru.Remove(e.elem)
		e.dead = true
		if e.uses == 0 {
			fds = append(fds, e.fd)
		}
	}
	c.mu.Unlock()
	for _, fd := range fds {
		_ = c.fs.Close(fd)
	}
}

// writable calls fn for every descriptor open for writing, in use during the
// call.
func (c *fdCache) writable(fn func(fd int) error) error {
	c.mu.Lock()
	var use []*fdEnt
	for k, e := range c.ents {
		if k.kind == fdWrite {
			e.uses++
			use = append(use, e)
		}
	}
	c.mu.Unlock()
	var first error
	for _, e := range use {
		if err := fn(e.fd); err != nil && first == nil {
			first = err
		}
		c.done(e)
	}
	return first
}

func (c *fdCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ents)
}

func (c *fdCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.ents {
		delete(c.ents, k)
		e.dead = true
		if e.uses == 0 {
			_ = c.fs.Close(e.fd)
		}
	}
	c.lru.Init()
}
