package overlay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/overlaytest"
)

// differsInKernel is the written list of what the kernel's overlayfs does
// differently from Linux's other file systems, and so from the engine, in the
// configuration that Galley's layers are made for (redirect_dir and metacopy
// on, no index).
func differsInKernel(o overlaytest.Op) bool {
	switch o.Kind {
	case overlaytest.OpLink:
		// Copy-up breaks hard links of the lower layers, and so their number.
		return true
	}
	return false
}

// TestKernelSameOperations runs the programs of the model test on a mount of
// the kernel's overlayfs: it answers as the reference does, and so as the
// engine does, but for what differsInKernel lists.
func TestKernelSameOperations(t *testing.T) {
	needRoot(t)
	for seed := range uint64(2) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			count := operations(t, 20000)
			ops, err := runKernel(t, seed, func(ref *overlaytest.Ref) func() (overlaytest.Op, bool) {
				g := overlaytest.NewGenerator(seed, ref)
				return func() (overlaytest.Op, bool) { count--; return g.Next(), count >= 0 }
			})
			if err == nil {
				return
			}
			small := overlaytest.Shrink(ops, 20*time.Second, func(ops []overlaytest.Op) bool {
				done, err := runKernel(t, seed, func(*overlaytest.Ref) func() (overlaytest.Op, bool) { return list(ops) })
				return err != nil && len(done) == len(ops)
			})
			t.Fatalf("seed %d: %v\n%s", seed, err, overlaytest.Format(small))
		})
	}
}

func runKernel(t *testing.T, seed uint64, next func(*overlaytest.Ref) func() (overlaytest.Op, bool)) (done []overlaytest.Op, err error) {
	dir, err := os.MkdirTemp(fastDir(t), "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"base", "upper", "work", "view"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	host, err := overlaytest.OpenDir(filepath.Join(dir, "base"))
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if err := plainBase(seed)(host); err != nil {
		return nil, err
	}
	view := filepath.Join(dir, "view")
	if err := overlaytest.MountKernel(view, []string{filepath.Join(dir, "base")}, filepath.Join(dir, "upper"), filepath.Join(dir, "work")); err != nil {
		return nil, err
	}
	defer unix.Unmount(view, unix.MNT_DETACH)
	fs, err := overlaytest.OpenDir(view)
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	ref, err := overlaytest.Import(fs)
	if err != nil {
		return nil, fmt.Errorf("read the view: %w", err)
	}
	cmp := overlaytest.NewComparer()
	cmp.LooseInos = true
	for more := next(ref); ; {
		o, ok := more()
		if !ok {
			return done, cmp.Compare(ref, fs)
		}
		if differsInKernel(o) {
			continue
		}
		done = append(done, o)
		if err := overlaytest.Step(ref, fs, o); err != nil {
			return done, err
		}
		if len(done)%200 == 0 {
			if err := cmp.Compare(ref, fs); err != nil {
				return done, err
			}
		}
	}
}

// plainBase is a random base without hard links, which overlayfs breaks.
func plainBase(seed uint64) func(overlaytest.FS) error {
	return func(fs overlaytest.FS) error {
		ref := overlaytest.NewRef()
		g := overlaytest.NewGenerator(seed, ref)
		g.MaxNodes = 80
		for range 600 {
			o := g.Next()
			if o.Kind == overlaytest.OpLink {
				continue
			}
			if err := overlaytest.Step(ref, fs, o); err != nil {
				return err
			}
		}
		return nil
	}
}
