package fs

import (
	"sync"

	"github.com/galleyfs/galley/overlay"
)

// writeback keeps times right when the kernel collects writes. The kernel then
// owns a file's mtime: it moves when a program writes, and the kernel sends it
// by SETATTR. The pages come later, and writing them would move the stored
// mtime once more, to a time that shows up only after the kernel has forgotten
// the file; git and make would take that for a change. So a write of cached
// pages puts the mtime back.
//
// A nil *writeback is the mode without the cache, in which the server's times
// are the truth and no lock is needed.
type writeback struct {
	face  *overlay.Face
	locks [tableShards]sync.Mutex // by node id: a write and its times are one step against SETATTR
}

func noop() {}

// lock takes the node's lock and returns what releases it.
func (w *writeback) lock(n *overlay.Node) func() {
	if w == nil {
		return noop
	}
	mu := &w.locks[n.ID()%tableShards]
	mu.Lock()
	return mu.Unlock
}

// write stores cached pages and keeps the node's mtime.
func (w *writeback) write(n *overlay.Node, data []byte, off int64, kill bool) (int, error) {
	defer w.lock(n)()
	before, err := w.face.Getattr(n)
	if err != nil {
		return 0, err
	}
	write := w.face.Write
	if kill {
		write = w.face.WriteKill
	}
	done, err := write(n, data, off)
	if err != nil {
		return done, err
	}
	_, err = w.face.Setattr(n, overlay.SetAttr{Mtime: &before.Mtime})
	return done, err
}
