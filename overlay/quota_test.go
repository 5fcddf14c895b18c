package overlay_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// onDisk adds up the content of a tree's layers, and of the files without a name
// in scratch, as du(1) would.
func onDisk(t *testing.T, state string) (sum int64) {
	t.Helper()
	met := map[uint64]bool{}
	for _, dir := range []string{"layers", "scratch"} {
		err := filepath.WalkDir(filepath.Join(state, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || filepath.Base(path) == "record" && filepath.Dir(filepath.Dir(path)) == filepath.Join(state, "layers") {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if !met[st.Ino] {
				met[st.Ino] = true
				sum += min(st.Blocks*512, (st.Size+4095)&^4095)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return sum
}

// steadyDir is on a file system on which a file has the blocks that it has: others
// add some of their own when they write out, at a time of their own.
func steadyDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a file system of its own")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1G"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestQuotaCounts runs random programs and compares what the quota counted, one
// operation at a time, with what is on the disk.
func TestQuotaCounts(t *testing.T) {
	ops := 4000
	if testing.Short() {
		ops = 800
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			dir := steadyDir(t)
			q := overlay.NewQuota(1<<40, 0)
			s, err := overlaytest.NewSession(dir, overlay.Config{Quota: q, NoWatch: true}, func(base overlaytest.FS) error {
				ref := overlaytest.NewRef()
				g := overlaytest.NewGenerator(^seed, ref)
				for range 300 {
					if err := overlaytest.Step(ref, base, g.Next()); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			g := overlaytest.NewGenerator(seed, s.Ref)
			for i := range ops {
				o := g.Next()
				if i%500 == 250 {
					o = overlaytest.Op{Kind: overlaytest.OpSeal}
				}
				if o.Kind == overlaytest.OpFallocate && o.Mode&unix.FALLOC_FL_PUNCH_HOLE == 0 {
					o.Mode = 0 // refused beyond the end of the file
				}
				if err := s.Step(o); err != nil {
					t.Fatalf("operation %d: %v", i, err)
				}
				if i%20 != 0 {
					continue
				}
				if got, want := q.Used(), onDisk(t, s.StateDir); got != want {
					t.Fatalf("after operation %d, %v: counted %d bytes, there are %d", i, o, got, want)
				}
			}
		})
	}
}

// TestQuotaHolds fills a tree up: what does not fit is refused, what is there
// can be read, cut and removed, and then there is room again.
func TestQuotaHolds(t *testing.T) {
	dir := t.TempDir()
	base, state := filepath.Join(dir, "base"), filepath.Join(dir, "state")
	for _, d := range []string{base, state} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	big := filepath.Join(base, "big")
	if err := os.WriteFile(big, make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	// Zeros would become a hole.
	if err := os.WriteFile(big, fill(3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := overlay.InitState(nil, state, 1); err != nil {
		t.Fatal(err)
	}
	const limit = 2 << 20
	q := overlay.NewQuota(limit, 0)
	b, err := overlay.OpenBase(nil, base)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: state, Base: b, NoWatch: true, Quota: q}, overlay.Stack{Active: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := tree.Attach(nil)
	defer tree.Close()
	defer f.Detach()
	me := overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	n, _, err := f.Create(f.Root(), "a", 0o644, me)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Forget(n, 1)
	written := int64(0)
	for {
		c, err := f.Write(n, fill(100_000), written)
		written += int64(c)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if q.Used() > limit || written < limit-3*4096 {
		t.Errorf("%d bytes written, %d counted, of %d", written, q.Used(), int64(limit))
	}
	if st, err := f.Statfs(); err != nil || int64(st.Bfree)*st.Bsize > 3*4096 || int64(st.Blocks)*st.Bsize != limit {
		t.Errorf("statfs: %+v, %v", st, err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", what, err)
		}
	}
	_, err = f.Append(n, fill(9000))
	refused("append", err)
	refused("fallocate", f.Fallocate(n, 0, written, 1<<20))
	if err := f.Fallocate(n, unix.FALLOC_FL_KEEP_SIZE, written, 1<<20); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("fallocate beyond the end: %v", err)
	}
	other, _, err := f.Walk("big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Forget(other, 1)
	_, err = f.Write(other, []byte("x"), 0)
	refused("copy up", err)
	_, err = f.CopyRange(other, 0, n, written, 1<<20)
	refused("copy a range", err)
	// In place there is nothing to allocate.
	if _, err := f.Write(n, fill(4096), 0); err != nil {
		t.Errorf("write in place: %v", err)
	}
	mode := uint32(0o600)
	if _, err := f.Setattr(other, overlay.SetAttr{Mode: &mode}); err != nil {
		t.Errorf("metadata alone: %v", err)
	}
	_, err = f.Write(other, []byte("x"), 0)
	refused("fill in", err)
	// Removed while it is open, the content is still there.
	if err := f.Unlink(f.Root(), "a"); err != nil {
		t.Fatal(err)
	}
	if q.Used() < written {
		t.Errorf("%d bytes counted of a file that is still open", q.Used())
	}
	size := int64(4096)
	if _, err := f.Setattr(n, overlay.SetAttr{Size: &size}); err != nil {
		t.Fatal(err)
	}
	if q.Used() > 3*4096 {
		t.Errorf("%d bytes counted after the cut", q.Used())
	}
	if _, err := f.Write(n, fill(100_000), 0); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// fill is n bytes that no file system leaves out.
func fill(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251) + 1
	}
	return b
}

// TestQuotaAmongWriters has many write, cut, append to, copy and remove the same
// few files at once, and compares what was counted with what is on the disk.
func TestQuotaAmongWriters(t *testing.T) {
	dir := steadyDir(t)
	base, state := filepath.Join(dir, "base"), filepath.Join(dir, "state")
	for _, d := range []string{base, state} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"a", "b", "c"}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(base, name), fill(100_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := overlay.InitState(nil, state, 1); err != nil {
		t.Fatal(err)
	}
	q := overlay.NewQuota(1<<40, 0)
	b, err := overlay.OpenBase(nil, base)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: state, Base: b, NoWatch: true, Quota: q}, overlay.Stack{Active: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			f := tree.Attach(nil)
			defer f.Detach()
			me := overlay.Caller{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for range 300 {
				name := names[rng.IntN(len(names))]
				n, _, err := f.Lookup(f.Root(), name)
				if err != nil {
					if n, _, err = f.Create(f.Root(), name, 0o644, me); err != nil {
						continue // somebody else made it
					}
				}
				// Any of these may find the file gone.
				switch size := rng.Int64N(200_000); rng.IntN(6) {
				case 0:
					_ = f.Unlink(f.Root(), name)
				case 1:
					_, _ = f.Setattr(n, overlay.SetAttr{Size: &size})
				case 2:
					_, _ = f.Append(n, fill(int(size/10)))
				case 3:
					_ = f.Rename(f.Root(), name, f.Root(), names[rng.IntN(len(names))], 0)
				default:
					_, _ = f.Write(n, fill(int(size/10)), size)
				}
				f.Forget(n, 1)
			}
		})
	}
	all.Wait()
	if got, want := q.Used(), onDisk(t, state); got != want {
		t.Errorf("counted %d bytes, there are %d", got, want)
	}
}
