package review

import (
	"runtime"
	"sync"

	"github.com/galleyfs/galley/overlay"
)

const (
	// aheadFrom is from how many files on digests are computed several at a time,
	// and aheadWorkers by how many at most.
	aheadFrom    = 64
	aheadWorkers = 4
)

// aheadDigest is the digest of one file of the view, or why there is none.
type aheadDigest struct {
	sum [32]byte
	err error
}

// digestAhead computes the digests that the entries need, if they are many, on
// all processors. Of nodes of several names one digest does for all, so they are
// left for later.
func (d *differ) digestAhead() {
	var list []*overlay.Entry
	for _, e := range d.layout.order {
		if !e.Whiteout && e.Attr.IsRegular() && !e.SameData && e.Attr.Nlink <= 1 {
			list = append(list, e)
		}
	}
	workers := min(aheadWorkers, runtime.GOMAXPROCS(0))
	if len(list) < aheadFrom || workers < 2 {
		return
	}
	out := make([]aheadDigest, len(list))
	var wg sync.WaitGroup
	for w := range workers {
		// A part of their own each: names of one directory follow each other.
		from, to := w*len(list)/workers, (w+1)*len(list)/workers
		wg.Go(func() {
			for i := from; i < to && d.ctx.Err() == nil; i++ {
				out[i].sum, out[i].err = d.hashView(list[i].Path)
			}
		})
	}
	wg.Wait()
	d.ahead = make(map[*overlay.Entry]aheadDigest, len(list))
	for i, e := range list {
		d.ahead[e] = out[i]
	}
}

// hashView reads a file of the view.
func (d *differ) hashView(path string) ([32]byte, error) {
	c, err := d.tree.view.Open(path)
	if err != nil {
		return [32]byte{}, err
	}
	defer c.Close()
	return hash(d.ctx, c)
}
