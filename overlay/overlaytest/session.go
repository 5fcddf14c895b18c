package overlaytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
)

// hostDelay is how soon an edit by the host must show (design point 11: a
// second), with some room for a busy machine.
const hostDelay = 3 * time.Second

// Session is a tree of the engine under test beside its reference: the base,
// the state directory, two faces on the live view, the snapshots taken and
// what each of them must show.
type Session struct {
	// Ref is what the live view must show.
	Ref *Ref
	// Tree is open; Faces are attached to it.
	Tree  *overlay.Tree
	Faces [2]*FaceFS
	// BaseDir and StateDir are on the host.
	BaseDir, StateDir string

	cfg   overlay.Config
	fault *hostfstest.Fault
	host  *DirFS // the base as the host edits it
	base  *Ref   // what the base holds
	stack overlay.Stack
	next  overlay.LayerID
	snaps []snapshot
	cmp   *Comparer
	steps int
	met   int // how often links were met
	// image is the directory of the layers that the tree stands on, in the place
	// of the base.
	image string
}

type snapshot struct {
	stack overlay.Stack
	ref   *Ref
}

// NewSession makes a base in dir by running the operations of make there, and
// opens a new tree on it.
func NewSession(dir string, cfg overlay.Config, make func(FS) error) (*Session, error) {
	s := &Session{
		BaseDir: filepath.Join(dir, "base"), StateDir: filepath.Join(dir, "state"),
		cmp: NewComparer(), cfg: cfg, next: 2,
		fault: hostfstest.New(hostfs.OS),
	}
	for _, d := range []string{s.BaseDir, s.StateDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	host, err := OpenDir(s.BaseDir)
	if err != nil {
		return nil, err
	}
	s.host = host
	if err := make(host); err != nil {
		return nil, err
	}
	for slot := range host.slots {
		host.Release(slot)
	}
	if s.base, err = Import(host); err != nil {
		return nil, fmt.Errorf("read the base: %w", err)
	}
	s.Ref = s.base.Snapshot()
	if err := overlay.InitState(s.fault, s.StateDir, 1); err != nil {
		return nil, err
	}
	s.stack = overlay.Stack{Active: 1}
	return s, s.open()
}

// NewSessionOnImage is NewSession for a tree that stands on a layer of an image,
// in which make is run, and not on a directory. The host edits nothing then.
func NewSessionOnImage(dir string, cfg overlay.Config, make func(FS) error) (*Session, error) {
	s, err := NewSession(dir, cfg, func(FS) error { return nil })
	if err != nil {
		return nil, err
	}
	if err := s.close(); err != nil {
		return nil, err
	}
	for _, d := range []string{"image", "state"} {
		if err := os.RemoveAll(filepath.Join(dir, d)); err != nil {
			return nil, err
		}
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := s.makeImage(filepath.Join(dir, "image"), make); err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	if err := overlay.InitState(s.fault, s.StateDir, 1); err != nil {
		return nil, err
	}
	s.stack = overlay.Stack{Sealed: s.bottom(), Active: 1}
	return s, s.open()
}

// makeImage makes the layer that the tree stands on.
func (s *Session) makeImage(state string, make func(FS) error) error {
	if err := overlay.InitState(s.fault, state, overlay.Image); err != nil {
		return err
	}
	cfg := s.cfg
	cfg.Name, cfg.StateDir, cfg.FS = "image", state, s.fault
	tree, err := overlay.Open(cfg, overlay.Stack{Active: overlay.Image})
	if err != nil {
		return err
	}
	f := NewFaceFS(tree.Attach(nil))
	err = make(f)
	f.ReleaseAll()
	if err == nil {
		s.base, err = Import(f)
	}
	f.Face.Detach()
	if err = errors.Join(err, tree.Close()); err != nil {
		return err
	}
	s.Ref, s.image = s.base.Snapshot(), filepath.Join(state, "layers")
	return nil
}

// bottom are the layers of the image, if there is one.
func (s *Session) bottom() []overlay.Range {
	if s.image == "" {
		return nil
	}
	return []overlay.Range{{From: overlay.Image, To: overlay.Image}}
}

func (s *Session) open() error {
	cfg := s.cfg
	cfg.Name, cfg.StateDir, cfg.FS = "workspace", s.StateDir, s.fault
	var err error
	if s.image == "" {
		cfg.Base, err = overlay.OpenBase(s.fault, s.BaseDir)
	} else {
		var fd int
		fd, err = hostfs.OpenRoot(s.image)
		cfg.LayerDirs = []overlay.LayerDir{{Only: overlay.Image, FD: fd}}
	}
	if err != nil {
		return err
	}
	if s.Tree, err = overlay.Open(cfg, s.stack); err != nil {
		return err
	}
	for i := range s.Faces {
		s.Faces[i] = NewFaceFS(s.Tree.Attach(nil))
	}
	s.met = 0
	return s.meetLinks()
}

// meetSlot is the first of the slots that hold files of several names, two
// sets of them by turns.
const meetSlot = 2 << 20

// meetLinks looks up and holds every name of files that have several: the
// engine keeps those of the base together that were met, and searches for no
// others.
func (s *Session) meetLinks() error {
	f := s.Faces[1]
	s.met++
	slot := meetSlot + s.met%2<<16
	var err error
	s.Ref.root.paths("", func(path string, n *node) {
		if n.isDir() || n.nlink < 2 || err != nil {
			return
		}
		slot++
		err = f.Open(slot, At(path))
	})
	for old := range f.slots {
		if old >= meetSlot && (old-meetSlot)>>16 != s.met%2 {
			f.Release(old)
		}
	}
	return err
}

// Close ends the session.
func (s *Session) Close() error { return errors.Join(s.close(), s.host.Close()) }

func (s *Session) close() error {
	if s.Tree == nil {
		return nil
	}
	for _, f := range s.Faces {
		f.ReleaseAll()
		f.Face.Detach()
	}
	clear(s.Ref.slots)
	err := s.Tree.Close()
	s.Tree = nil
	return err
}

// UserXattr tells whether the layers are marked in "user.overlay.".
func (s *Session) UserXattr() bool { return s.cfg.UserXattr }

// Stack is what the live view is made of.
func (s *Session) Stack() overlay.Stack { return s.stack }

// Step runs one operation on the reference and the tree and tells how they
// differ.
func (s *Session) Step(o Op) error {
	s.steps++
	if o.Kind <= lastFSOp {
		return Step(s.Ref, s.faceFor(o), o)
	}
	var err error
	switch o.Kind {
	case OpSeal:
		err = s.seal()
	case OpReopen:
		if err = s.close(); err == nil {
			err = s.open()
		}
	case OpCrash:
		s.kill()
		err = s.open()
	case OpRollback:
		err = s.rollback(int(o.N))
	case OpView:
		err = s.view(int(o.N))
	case OpFlatten:
		err = s.flatten()
	case OpHostWrite, OpHostCreate, OpHostRemove:
		if s.image == "" {
			err = s.hostEdit(o)
		}
	case OpCheck:
		err = s.Check()
	}
	if err != nil {
		return fmt.Errorf("%v: %w", o, err)
	}
	return nil
}

// faceFor spreads the operations without slots over both faces.
func (s *Session) faceFor(o Op) FS {
	held := o.At.Slot != Root || o.To.Slot != Root && (o.Kind == OpLink || o.Kind == OpRename || o.Kind == OpCopyRange)
	switch o.Kind {
	case OpOpen, OpRelease, OpCreate, OpTmpfile, OpReadDir:
		held = true
	}
	if !held && o.Seed%2 == 1 {
		return s.Faces[1]
	}
	return s.Faces[0]
}

// Check compares the live view, through both faces by turns, and what is held.
func (s *Session) Check() error {
	s.fault.Clear() // its log would grow without end
	ids := map[uint64]bool{}
	s.Ref.IDs(ids)
	for _, sn := range s.snaps {
		sn.ref.IDs(ids)
	}
	s.cmp.Forget(ids)
	if err := s.cmp.Compare(s.Ref, s.Faces[s.steps%2]); err != nil {
		return err
	}
	return s.cmp.CompareSlots(s.Ref, s.Faces[0])
}

// kill ends the tree as kill -9 ends its process: nothing reaches the host any
// more, whatever the tree still held is lost.
func (s *Session) kill() {
	s.fault.CrashAt(1)
	_, _ = s.fault.Run(func() error { return s.fault.Fsync(s.host.root) })
	_ = s.close()
	s.fault.Clear()
}

func (s *Session) layer() (overlay.LayerID, error) {
	l := s.next
	s.next++
	return l, s.Tree.Prepare(l)
}

func (s *Session) seal() error {
	next, err := s.layer()
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	b := overlay.Quiesce(s.Tree)
	err = b.Seal(next)
	b.Release()
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	s.stack = s.Tree.Stack()
	s.remember(overlay.Stack{Sealed: s.stack.Sealed})
	return nil
}

// maxSnaps bounds what every comparison and host edit has to look at.
const maxSnaps = 8

func (s *Session) remember(stack overlay.Stack) {
	s.snaps = append(s.snaps, snapshot{stack, s.Ref.Snapshot()})
	if len(s.snaps) > maxSnaps {
		s.snaps = s.snaps[1:]
	}
}

// switchTo shows a stack of sealed layers under a new active one.
func (s *Session) switchTo(stack overlay.Stack) error {
	next, err := s.layer()
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	stack.Active = next
	if err := s.Tree.Load(stack); err != nil {
		return fmt.Errorf("load %v: %w", stack, err)
	}
	plan := s.Tree.PlanSwitch(stack)
	b := overlay.Quiesce(s.Tree)
	err = b.Switch(0, stack, plan)
	b.Release()
	if err != nil {
		return fmt.Errorf("switch to %v: %w", stack, err)
	}
	s.stack = s.Tree.Stack()
	return nil
}

func (s *Session) rollback(i int) error {
	if err := s.seal(); err != nil {
		return err
	}
	sn := s.snaps[i%len(s.snaps)]
	if err := s.switchTo(sn.stack); err != nil {
		return err
	}
	for _, slot := range s.Ref.Replace(sn.ref) {
		s.Faces[0].Release(slot)
	}
	return errors.Join(s.meetLinks(), s.Check())
}

func (s *Session) view(i int) error {
	if len(s.snaps) == 0 {
		return nil
	}
	sn := s.snaps[i%len(s.snaps)]
	f, err := s.Tree.View(sn.stack)
	if err != nil {
		return fmt.Errorf("view %v: %w", sn.stack, err)
	}
	defer f.Detach()
	if err := s.cmp.Compare(sn.ref, NewFaceFS(f)); err != nil {
		return fmt.Errorf("view %v: %w", sn.stack, err)
	}
	return nil
}

// flatten replaces all sealed layers by one.
func (s *Session) flatten() error {
	if err := s.seal(); err != nil {
		return err
	}
	to := s.next
	s.next++
	if err := s.Tree.Flatten(overlay.Stack{Sealed: s.stack.Sealed}, to, overlay.Keep{}); err != nil {
		return fmt.Errorf("flatten: %w", err)
	}
	merged := overlay.Stack{Sealed: append(s.bottom(), overlay.Range{From: to, To: to})}
	if err := s.switchTo(merged); err != nil {
		return err
	}
	s.remember(merged)
	return errors.Join(s.meetLinks(), s.Check())
}

// hostEdit changes the base behind the session's back, where it is settled
// what every view must show then, and waits until the live view does.
func (s *Session) hostEdit(o Op) error {
	refs := []*Ref{s.Ref}
	for _, sn := range s.snaps {
		refs = append(refs, sn.ref)
	}
	all := func(ok func(*Ref, string) bool) bool {
		for _, r := range refs {
			if !ok(r, o.At.Path) {
				return false
			}
		}
		return true
	}
	n, err := s.base.find(o.At)
	switch {
	case o.Kind == OpHostCreate:
		dir, _ := splitPath(o.At.Path)
		if d, derr := s.base.find(At(dir)); err != unix.ENOENT || derr != nil || !d.isDir() || !all((*Ref).mayCreate) {
			return nil
		}
		return s.hostCreate(o, refs)
	case err != nil || !n.isReg() || n.nlink != 1 || !all((*Ref).tracksHost):
		return nil
	}
	s.dropSlots(o.At.Path)
	if o.Kind == OpHostRemove {
		Exec(s.host, Op{Kind: OpUnlink, At: o.At})
		Exec(s.base, Op{Kind: OpUnlink, At: o.At})
		for _, r := range refs {
			r.hostRemoved(o.At.Path)
		}
		return s.settle()
	}
	return s.hostWrite(o, n, refs)
}

// dropSlots releases what is held of a base file: an untouched one that the
// host removes has nothing to be held by.
func (s *Session) dropSlots(path string) {
	for slot, n := range s.Ref.slots {
		if n.hasOrigin && n.origin == path && !n.ownData {
			s.Ref.Release(slot)
			s.Faces[0].Release(slot)
		}
	}
}

func (s *Session) hostWrite(o Op, n *node, refs []*Ref) error {
	if _, err := s.host.Write(o.At, content(o.Seed, o.N), o.Off); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	if err := n.load(s.host, o.At); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	for _, r := range refs {
		r.hostWrote(n)
	}
	return s.settle()
}

func (s *Session) hostCreate(o Op, refs []*Ref) error {
	if err := s.host.Create(0, o.At, 0o644); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	s.host.Release(0)
	if _, err := s.host.Write(o.At, content(o.Seed, o.N), o.Off); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	if err := s.base.Create(0, o.At, 0o644); err != nil {
		return fmt.Errorf("in the reference of the base: %w", err)
	}
	n := s.base.slots[0]
	s.base.Release(0)
	if err := n.load(s.host, o.At); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	n.origin, n.hasOrigin = o.At.Path, true
	for _, r := range refs {
		r.hostCreated(o.At.Path, n)
	}
	return s.settle()
}

// settle waits until the live view shows what it must.
func (s *Session) settle() error {
	deadline := time.Now().Add(hostDelay)
	for {
		err := s.Check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		waitABit()
	}
}

func waitABit() { time.Sleep(2 * time.Millisecond) }

// SessionGenerator makes operations for a Session: those of [FS], and now and
// then one of the session.
type SessionGenerator struct {
	*Generator
	s *Session
	n int
	// Every is how many operations lie between two of the session, on
	// average; CheckEvery, between two comparisons.
	Every, CheckEvery int
	// Kinds are the operations of the session to choose from.
	Kinds []Kind
}

// NewSessionGenerator makes a generator of programs for s.
func NewSessionGenerator(seed uint64, s *Session) *SessionGenerator {
	return &SessionGenerator{
		Generator: NewGenerator(seed, s.Ref), s: s, Every: 100, CheckEvery: 200,
		Kinds: []Kind{
			OpSeal, OpSeal, OpSeal, OpReopen, OpReopen, OpCrash, OpRollback, OpView, OpView,
			OpHostWrite, OpHostWrite, OpHostCreate, OpHostRemove, OpFlatten,
		},
	}
}

// Next makes an operation.
func (g *SessionGenerator) Next() Op {
	g.n++
	if g.n%g.CheckEvery == 0 {
		return Op{Kind: OpCheck}
	}
	if g.rng.IntN(g.Every) != 0 {
		return g.Generator.Next()
	}
	o := Op{Kind: pick(g.Generator, g.Kinds), N: g.rng.Int64N(1 << 16), Seed: g.rng.Uint64N(1 << 20)}
	switch o.Kind {
	case OpHostWrite, OpHostRemove:
		if files := g.s.base.baseFiles(); len(files) > 0 {
			o.At = At(pick(g.Generator, files))
		} else {
			return Op{Kind: OpSeal}
		}
		o.N, o.Off = 1+g.size(), g.off()
	case OpHostCreate:
		o.At = At(join(pick(g.Generator, g.s.base.baseDirs()), pick(g.Generator, []string{"h1", "h2", "h3", "a", "b"})))
		o.N = g.size()
	}
	return o
}
