package model

import (
	"fmt"
	"os"
	"testing"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// TestModel runs the random programs. All of them together are a million
// operations and more.
func TestModel(t *testing.T) {
	needRoot(t)
	done := 0
	t.Run("in process", func(t *testing.T) { done += inProcess(t) })
	t.Run("on a mount", func(t *testing.T) { done += onAMount(t) })
	t.Run("kernel overlayfs", func(t *testing.T) { done += onKernel(t) })
	t.Logf("%d operations", done)
	if full := scale(t, fullCount); done < full && !t.Failed() && filtered() == "" && os.Getenv("GALLEY_MODEL_SEEDS") == "" {
		t.Errorf("%d operations, want %d", done, full)
	}
}

// kernelEvery is how many seals lie between two comparisons with the kernel.
const kernelEvery = 3

// inProcess runs programs on a tree in process: two faces, six handles, and
// between the operations seals, rollbacks, views of snapshots, flattening,
// closing and opening, crashes, and edits by the host.
func inProcess(t *testing.T) (done int) {
	for _, seed := range seeds(t, 7) {
		cfg := overlay.Config{UserXattr: seed%4 == 3, MaxFDs: []int{0, 16}[seed%2], KeepAlways: seed == 3 || seed == 4}
		count := scale(t, 80_000)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			dir := fastDir(t)
			ops, err := runSession(dir, cfg, seed, func(s *overlaytest.Session) program {
				return limited(count, overlaytest.NewSessionGenerator(seed, s).Next)
			})
			done += len(ops)
			if err != nil {
				report(t, fmt.Sprint("seed ", seed), ops, err, func(ops []overlaytest.Op) error {
					_, err := runSession(dir, cfg, seed, func(*overlaytest.Session) program { return list(ops) })
					return err
				})
			}
		})
	}
	return done
}

// runSession runs one program on a new session below dir, with a random base,
// and returns what it did.
func runSession(dir string, cfg overlay.Config, seed uint64, programOf func(*overlaytest.Session) program) ([]overlaytest.Op, error) {
	// One on a layer of an image and not on a directory.
	return runOn(dir, cfg, seed == 3, randomBase(seed), programOf)
}

func runOn(dir string, cfg overlay.Config, onImage bool, base func(overlaytest.FS) error, programOf func(*overlaytest.Session) program) (ops []overlaytest.Op, err error) {
	dir, err = os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	open := overlaytest.NewSession
	if onImage {
		open = overlaytest.NewSessionOnImage
	}
	s, err := open(dir, cfg, base)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}()
	seals := 0
	for next := programOf(s); ; {
		o, ok := next()
		if !ok {
			return ops, s.Check()
		}
		ops = append(ops, o)
		if err := s.Step(o); err != nil {
			return ops, err
		}
		if o.Kind != overlaytest.OpSeal {
			continue
		}
		// The kernel does not read what is kept beside a layer, and a merge of an
		// image's with the others is not made here.
		if seals++; !cfg.KeepAlways && !onImage && (seals%kernelEvery == 0 || len(ops) < 1000) {
			if err := sameInKernel(dir, s); err != nil {
				return ops, fmt.Errorf("in the kernel's overlayfs: %w", err)
			}
		}
	}
}

// randomBase is a base that a random program made.
func randomBase(seed uint64) func(overlaytest.FS) error {
	return func(fs overlaytest.FS) error {
		ref := overlaytest.NewRef()
		g := overlaytest.NewGenerator(^seed, ref)
		g.MaxNodes = 80
		for range 600 {
			if err := overlaytest.Step(ref, fs, g.Next()); err != nil {
				return err
			}
		}
		return large(ref, fs)
	}
}

// large adds files of which a change of metadata copies only metadata.
func large(ref *overlaytest.Ref, fs overlaytest.FS) error {
	for i, name := range []string{"l1", "l2", "l3"} {
		for _, o := range []overlaytest.Op{
			{Kind: overlaytest.OpCreate, At: overlaytest.At(name), Mode: 0o644},
			{Kind: overlaytest.OpWrite, At: overlaytest.At(name), Off: int64(i) * 8192, N: 66 << 10, Seed: uint64(i)},
			{Kind: overlaytest.OpRelease},
		} {
			if err := overlaytest.Step(ref, fs, o); err != nil {
				return err
			}
		}
	}
	return nil
}
