package virtiofs

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/galleyfs/galley/overlay"
)

// times are the mtime and ctime that a guest is told of a node.
func (d *driver) times(node uint64) (mtime, ctime time.Time) {
	d.t.Helper()
	st, out := d.do(opGetattr, node, 104, u32s(0, 0), u64s(0))
	if st != fuse.OK {
		d.t.Fatalf("GETATTR: %v", st)
	}
	// struct fuse_attr_out: 16 bytes, then ino, size, blocks, the three times.
	at := func(sec, nsec int) time.Time {
		return time.Unix(int64(binary.LittleEndian.Uint64(out[16+sec:])), int64(binary.LittleEndian.Uint32(out[16+nsec:])))
	}
	return at(32, 52), at(40, 56)
}

// TestRollbackMovesTheMtime: a guest that wrote to a file and has not asked since
// is told of another mtime after a rollback, although the file has the one again
// of which the guest was told: it must drop its pages. Then it is told the true
// one.
func TestRollbackMovesTheMtime(t *testing.T) {
	x, tree, _ := newExport(t)
	d := connect(t, x)
	d.begin(1)
	d.init()
	f := d.create(d.walk("workspace"), "f")
	d.write(f, 0, []byte("one"))
	end := time.Now().Add(deadline)
	var told time.Time
	for { // until the ctime is old
		m, c := d.times(f)
		if told = m; time.Since(c) > 100*time.Millisecond {
			break
		}
	}
	change := func(do func(b *overlay.Barrier) error) {
		b := overlay.Quiesce(tree)
		defer b.Release()
		must(t, do(b))
	}
	must(t, tree.Prepare(2))
	change(func(b *overlay.Barrier) error { return b.Seal(2) })
	d.write(f, 0, []byte("two"))
	must(t, tree.Prepare(3))
	change(func(b *overlay.Barrier) error {
		return b.Switch(0, overlay.Stack{Sealed: []overlay.Range{{From: 1, To: 1}}, Active: 3}, nil)
	})
	if got, st := d.read(f, 0, 10); got != "one" {
		t.Fatalf("after the rollback: %q, %v", got, st)
	}
	for m, _ := d.times(f); m.Equal(told); m, _ = d.times(f) {
		if time.Now().After(end) {
			t.Fatal("the guest is told the old mtime only")
		}
	}
	if m, _ := d.times(f); !m.Equal(told) {
		t.Errorf("mtime %v, want %v", m, told)
	}
}
