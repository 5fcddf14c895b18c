package overlay_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/galleyfs/galley/overlay"
)

// TestSealsAmongWriters seals while programs write, and holds every sealed
// view to one cut: each writer changes its files in an order, so that what a
// view shows of them must be a moment in it, and all that was done when the
// seal began must be there.
func TestSealsAmongWriters(t *testing.T) {
	const writers = 4
	seals, rounds := 60, 40
	if testing.Short() {
		seals = 15
	}
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	for _, d := range []string{base, filepath.Join(dir, "state")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for w := range writers {
		for _, name := range []string{"first", "second"} {
			if err := os.WriteFile(filepath.Join(base, fmt.Sprint(name, w)), make([]byte, 8), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := overlay.InitState(nil, filepath.Join(dir, "state"), 1); err != nil {
		t.Fatal(err)
	}
	b, err := overlay.OpenBase(nil, base)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: b, NoWatch: true}, overlay.Stack{Active: 1})
	if err != nil {
		t.Fatal(err)
	}
	var done [writers]atomic.Uint64
	var stop atomic.Bool
	var all sync.WaitGroup
	for w := range writers {
		all.Add(1)
		go func() {
			defer all.Done()
			f := tree.Attach(nil)
			defer f.Detach()
			for i := uint64(1); !stop.Load(); i++ {
				if err := writeRound(f, w, i, i%uint64(rounds) == 0); err != nil {
					t.Errorf("writer %d, round %d: %v", w, i, err)
					return
				}
				done[w].Store(i)
			}
		}()
	}
	type sealed struct {
		stack overlay.Stack
		least [writers]uint64     // done when the seal began
		shown [2 * writers]uint64 // by the view, right after it
	}
	look := func(c *sealed) (shown [2 * writers]uint64) {
		t.Helper()
		f, err := tree.View(c.stack)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Detach()
		for w := range writers {
			shown[2*w], shown[2*w+1] = counter(t, f, fmt.Sprint("first", w)), counter(t, f, fmt.Sprint("second", w))
		}
		return shown
	}
	var cuts []sealed
	for range seals {
		var c sealed
		for w := range writers {
			c.least[w] = done[w].Load()
		}
		next := tree.Stack().Active + 1
		if err := tree.Prepare(next); err != nil {
			t.Fatal(err)
		}
		q := overlay.Quiesce(tree)
		err := q.Seal(next)
		q.Release()
		if err != nil {
			t.Fatal(err)
		}
		c.stack = overlay.Stack{Sealed: tree.Stack().Sealed}
		c.shown = look(&c)
		cuts = append(cuts, c)
		// Some rounds pass before the next cut.
		for w := 0; w < writers && !t.Failed(); {
			if done[w].Load() > c.least[w] {
				w++
			} else {
				runtime.Gosched()
			}
		}
	}
	stop.Store(true)
	all.Wait()
	last := [writers]uint64{}
	for i, c := range cuts {
		shown := look(&c)
		if shown != c.shown {
			t.Errorf("seal %d: the sealed view shows %d, and showed %d when it was sealed", i, shown, c.shown)
		}
		for w := range writers {
			first, second := shown[2*w], shown[2*w+1]
			if first != second && first != second+1 {
				t.Errorf("seal %d, writer %d: the first file is at %d, the second at %d", i, w, first, second)
			}
			if first < last[w] || second < c.least[w] {
				t.Errorf("seal %d, writer %d: at %d, but %d was done before, and %d was sealed", i, w, second, c.least[w], last[w])
			}
			last[w] = first
		}
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
}

// writeRound sets the first file's counter, then the second's; sometimes each
// by a new file that is renamed over it.
func writeRound(f *overlay.Face, w int, i uint64, byRename bool) error {
	buf := binary.BigEndian.AppendUint64(nil, i)
	for _, name := range []string{fmt.Sprint("first", w), fmt.Sprint("second", w)} {
		if !byRename {
			n, _, err := f.Walk(name)
			if err != nil {
				return err
			}
			_, err = f.Write(n, buf, 0)
			f.Forget(n, 1)
			if err != nil {
				return err
			}
			continue
		}
		tmp := fmt.Sprint("tmp", w)
		self := overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
		n, _, err := f.Create(f.Root(), tmp, 0o644, self)
		if err != nil {
			return err
		}
		_, err = f.Write(n, buf, 0)
		f.Forget(n, 1)
		if err == nil {
			err = f.Rename(f.Root(), tmp, f.Root(), name, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func counter(t *testing.T, f *overlay.Face, name string) uint64 {
	t.Helper()
	n, _, err := f.Walk(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Forget(n, 1)
	buf := make([]byte, 8)
	if c, err := f.Read(n, buf, 0); err != nil || c != 8 {
		t.Fatalf("%s: %d bytes, %v", name, c, err)
	}
	return binary.BigEndian.Uint64(buf)
}
