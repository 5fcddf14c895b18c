package model

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// workers is how many processes use the mount, besides the one that compares.
const workers = 2

// onAMount runs programs on a mount: several processes that have files open,
// twice, too, and mapped, while layers are sealed, an older snapshot is made the
// top, and the mount is taken down and made again. Each is first run on a plain
// directory, which must answer the same.
func onAMount(t *testing.T) (done int) {
	for _, seed := range seeds(t, 3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			dir := fastDir(t)
			ops, err := runMount(dir, seed, func(m *mounted) program {
				return limited(scale(t, 20_000), m.generator(seed))
			})
			done += len(ops)
			if err != nil {
				report(t, fmt.Sprint("seed ", seed), ops, err, func(ops []overlaytest.Op) error {
					_, err := runMount(dir, seed, func(*mounted) program { return list(ops) })
					return err
				})
			}
			plain, err := runPlain(t, seed, ops)
			done += plain
			if err != nil {
				t.Fatalf("seed %d: on a plain directory: %v", seed, err)
			}
		})
	}
	return done
}

// mounted is a session on a mount with its reference.
type mounted struct {
	ref    *overlaytest.Ref
	arg    serveArg
	next   overlay.LayerID
	snaps  []snapshot
	server *part
	work   [workers]*part
	look   *overlaytest.DirFS
	cmp    *overlaytest.Comparer
}

type snapshot struct {
	stack overlay.Stack
	ref   *overlaytest.Ref
}

func runMount(dir string, seed uint64, programOf func(*mounted) program) (ops []overlaytest.Op, err error) {
	dir, err = os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	m := &mounted{
		arg:  serveArg{Base: filepath.Join(dir, "base"), State: filepath.Join(dir, "state"), Dir: filepath.Join(dir, "view"), Stack: overlay.Stack{Active: 1}},
		next: 2, cmp: overlaytest.NewComparer(),
	}
	for _, d := range []string{m.arg.Base, m.arg.State, m.arg.Dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	host, err := overlaytest.OpenDir(m.arg.Base)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if err := baseWithoutLinks(seed)(host); err != nil {
		return nil, err
	}
	if m.ref, err = overlaytest.Import(host); err != nil {
		return nil, err
	}
	if err := overlay.InitState(nil, m.arg.State, 1); err != nil {
		return nil, err
	}
	if err := m.up(); err != nil {
		return nil, errors.Join(err, m.down())
	}
	defer func() { err = errors.Join(err, m.down()) }()
	for next := programOf(m); ; {
		o, ok := next()
		if !ok {
			return ops, m.check()
		}
		ops = append(ops, o)
		if err := m.step(o); err != nil {
			return ops, fmt.Errorf("%v: %w", o, err)
		}
	}
}

func (m *mounted) up() (err error) {
	if m.server, err = start("serve", m.arg); err != nil {
		return err
	}
	if _, err := m.cut(request{}); err != nil {
		return err
	}
	for i := range m.work {
		if m.work[i], err = start("work", m.arg.Dir); err != nil {
			return err
		}
	}
	m.look, err = overlaytest.OpenDir(m.arg.Dir)
	return err
}

func (m *mounted) cut(r request) (a answer, err error) {
	if err := m.server.enc.Encode(r); err != nil {
		return a, fmt.Errorf("server: %w", err)
	}
	if err := m.server.dec.Decode(&a); err != nil {
		return a, fmt.Errorf("server: %w", err)
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

func (m *mounted) down() (err error) {
	for i := range m.work {
		err = errors.Join(err, m.work[i].stop())
	}
	if m.look != nil {
		err = errors.Join(err, m.look.Close())
		m.look = nil
	}
	m.ref.ReleaseAll()
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	err = errors.Join(err, fs.Unmount(ctx, m.arg.Dir))
	return errors.Join(err, m.server.stop())
}

// step does one operation: those with slots in the process that has them.
func (m *mounted) step(o overlaytest.Op) (err error) {
	switch o.Kind {
	case overlaytest.OpCheck:
		return m.check()
	case overlaytest.OpSeal:
		return m.seal()
	case overlaytest.OpRollback:
		return m.rollback(int(o.N))
	case overlaytest.OpReopen:
		if err := m.down(); err != nil {
			return err
		}
		return m.up()
	}
	w, ok := worker(o)
	if !ok {
		return nil
	}
	broken := error(nil)
	err = overlaytest.StepBy(m.ref, o, func(o overlaytest.Op) (r overlaytest.Result) {
		r, broken = m.work[w].do(o)
		return r
	})
	return errors.Join(broken, err)
}

// worker is the process for an operation; there is none for one with slots of
// two processes.
func worker(o overlaytest.Op) (int, bool) {
	var at []int
	switch o.Kind {
	case overlaytest.OpOpen, overlaytest.OpRelease, overlaytest.OpCreate, overlaytest.OpTmpfile:
		at = append(at, o.Slot)
	}
	ats := []overlaytest.Loc{o.At}
	switch o.Kind {
	case overlaytest.OpRelease:
		ats = nil
	case overlaytest.OpLink, overlaytest.OpRename, overlaytest.OpCopyRange:
		ats = append(ats, o.To)
	}
	for _, l := range ats {
		if l.Slot != overlaytest.Root {
			at = append(at, l.Slot)
		}
	}
	if len(at) == 0 {
		return int(o.Seed) % workers, true
	}
	for _, s := range at {
		if s%workers != at[0]%workers {
			return 0, false
		}
	}
	return at[0] % workers, true
}

func (m *mounted) check() error {
	return m.cmp.Compare(m.ref, m.look)
}

func (m *mounted) seal() error {
	a, err := m.cut(request{Next: m.next})
	if err != nil {
		return err
	}
	m.next++
	m.arg.Stack = a.Stack
	m.snaps = append(m.snaps, snapshot{overlay.Stack{Sealed: a.Stack.Sealed}, m.ref.Snapshot()})
	if len(m.snaps) > 8 {
		m.snaps = m.snaps[1:]
	}
	return nil
}

func (m *mounted) rollback(i int) error {
	if err := m.seal(); err != nil {
		return err
	}
	sn := m.snaps[i%len(m.snaps)]
	a, err := m.cut(request{Stack: &sn.stack, Next: m.next})
	if err != nil {
		return err
	}
	m.next++
	m.arg.Stack = a.Stack
	// A kernel lets no removed directory live again for those who hold it.
	lost := m.ref.GoneDirs()
	for _, slot := range lost {
		m.ref.Release(slot)
	}
	for _, slot := range append(lost, m.ref.Replace(sn.ref)...) {
		if _, err := m.work[slot%workers].do(overlaytest.Op{Kind: overlaytest.OpRelease, Slot: slot}); err != nil {
			return err
		}
	}
	return m.check()
}

// generator makes the operations of a program on the mount.
func (m *mounted) generator(seed uint64) func() overlaytest.Op {
	g := overlaytest.NewGenerator(seed, m.ref)
	rng := rand.New(rand.NewPCG(seed, 7))
	n := 0
	return func() overlaytest.Op {
		n++
		if n%500 == 0 {
			return overlaytest.Op{Kind: overlaytest.OpCheck}
		}
		o := g.Next()
		if o.Kind == overlaytest.OpChown && o.UID < 0 && o.GID < 0 {
			// It clears set-id bits, which the kernel does not tell a server
			// that clears them itself.
			o.UID = 0
		}
		switch rng.IntN(400) {
		case 0, 1:
			o = overlaytest.Op{Kind: overlaytest.OpSeal}
		case 2:
			o = overlaytest.Op{Kind: overlaytest.OpRollback, N: int64(rng.IntN(1 << 16))}
		case 3:
			if rng.IntN(4) == 0 {
				o = overlaytest.Op{Kind: overlaytest.OpReopen}
			}
		}
		return o
	}
}

// baseWithoutLinks is a random base; its files have one name each, since the
// kernel does not hold the others for us, and none is very long.
func baseWithoutLinks(seed uint64) func(overlaytest.FS) error {
	return func(f overlaytest.FS) error {
		ref := overlaytest.NewRef()
		g := overlaytest.NewGenerator(^seed, ref)
		g.MaxNodes = 80
		for range 600 {
			o := g.Next()
			if o.Kind == overlaytest.OpLink || longName(o) {
				continue
			}
			if err := overlaytest.Step(ref, f, o); err != nil {
				return err
			}
		}
		if err := large(ref, f); err != nil {
			return err
		}
		for slot := range 8 {
			f.Release(slot)
		}
		return nil
	}
}

// runPlain runs what a program did on a mount in a plain directory.
func runPlain(t *testing.T, seed uint64, ops []overlaytest.Op) (done int, err error) {
	dir := t.TempDir()
	if err := unix.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	d, err := overlaytest.OpenDir(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := baseWithoutLinks(seed)(d); err != nil {
		return 0, err
	}
	ref, err := overlaytest.Import(d)
	if err != nil {
		return 0, err
	}
	cmp := overlaytest.NewComparer()
	cmp.LooseInos = true // the host uses inode numbers again
	for _, o := range ops {
		if o.Kind == overlaytest.OpCheck {
			err = cmp.Compare(ref, d)
		} else if o.Kind < overlaytest.OpSeal {
			err = overlaytest.Step(ref, d, o)
			done++
		}
		if err != nil {
			return done, fmt.Errorf("operation %d, %v: %w", done, o, err)
		}
	}
	return done, cmp.Compare(ref, d)
}
