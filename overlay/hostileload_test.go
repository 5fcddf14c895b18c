package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// twoNames is a record in which each of two directories lies in the other by
// its entries, though their places lead to the root.
func twoNames() []byte {
	const a, b = firstOwnIno, firstOwnIno + 1
	var e encoder
	e.header(1, "user.overlay.")
	e.node(&nodeFrame{ino: rootID, typ: unix.S_IFDIR})
	e.node(&nodeFrame{ino: a, typ: unix.S_IFDIR, parent: rootID, name: "a"})
	e.node(&nodeFrame{ino: b, typ: unix.S_IFDIR, parent: a, name: "b"})
	e.entry(rootID, "a", a)
	e.entry(a, "b", b)
	e.entry(b, "again", a)
	return e.b
}

// circle is a record by which directories of the base lie in each other: one
// as the base has it, the other as a layer does.
func circle() []byte {
	const a, b = firstOwnIno, firstOwnIno + 1
	var e encoder
	e.header(1, "user.overlay.")
	e.node(&nodeFrame{ino: rootID, typ: unix.S_IFDIR})
	e.node(&nodeFrame{ino: a, typ: unix.S_IFDIR, parent: rootID, name: "a", born: true, base: "d/e"})
	e.node(&nodeFrame{ino: b, typ: unix.S_IFDIR, parent: a, name: "b", born: true, base: "d"})
	e.entry(rootID, "a", a)
	e.entry(a, "b", b)
	e.layer(2)
	e.node(&nodeFrame{ino: a, typ: unix.S_IFDIR, flags: verGhost, born: true, base: "d/e"})
	return e.b
}

// FuzzLoad builds the index from any frames, without the disk: what it accepts
// has a path for every node and comes to an end.
func FuzzLoad(f *testing.F) {
	dir := f.TempDir()
	for _, d := range []string{"d/e", "x"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	var e encoder
	e.header(1, "trusted.overlay.")
	e.node(&nodeFrame{ino: 77, typ: unix.S_IFREG, nlink: 2, parent: rootID, name: "a", born: true, base: "d/e/c", id: HostID{1, 77}})
	e.entry(rootID, "a", 77)
	e.node(&nodeFrame{ino: firstOwnIno, typ: unix.S_IFDIR, parent: rootID, name: "n"})
	e.entry(rootID, "n", firstOwnIno)
	e.entry(firstOwnIno, "gone", 0)
	e.was(&Was{Path: "d/e/c", Exists: true, Mode: unix.S_IFREG, HasDigest: true})
	e.layer(2)
	e.node(&nodeFrame{ino: 77, typ: unix.S_IFREG, flags: verMeta | verCtime, nlink: 1, parent: rootID, name: "a", hasData: true, data: 1, lower: "a"})
	e.dropped(firstOwnIno, "gone")
	e.gone(77, true)
	e.device(9, 1)
	e.endMark(2, 100)
	f.Add(e.b, false)
	f.Add(twoNames(), false)
	f.Add(circle(), false)
	f.Add([]byte("H\x01\x01\x00\nE\x01\x01a\x02\nN\x02\x80\x80\x01\x00\x01\x01\x01a\x00\x00"), true)
	base, err := OpenBase(nil, dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = base.Close() })
	f.Fuzz(func(t *testing.T, record []byte, frames bool) {
		if len(record) > 1<<16 {
			t.Skip("needs no larger records")
		}
		if frames {
			record = framed(record)
		}
		tr := &Tree{
			fs: hostfs.OS, base: base, fds: newFDCache(hostfs.OS, 8),
			was: map[string]*wasVer{}, devices: map[uint64]uint32{}, all: map[*Node]struct{}{}, inos: map[uint64][]*Node{}, byBase: map[HostID]*Node{},
			hide: map[HostID]bool{}, nextIno: firstOwnIno, loaded: map[LayerID]bool{}, names: map[dent]bool{},
		}
		tr.setView(newView(Stack{Sealed: []Range{{1, 2}}, Active: 3}))
		must(t, tr.makeRoot())
		ld := &loader{t: tr, v: tr.view, met: tr.loaded, byIno: map[uint64]*Node{tr.root.ino: tr.root, rootID: tr.root}, born: map[*Node]string{}}
		if _, err := readFrames(record, ld.frame); err != nil {
			return
		}
		if err := ld.finish(); err != nil {
			return
		}
		for n := range tr.all {
			for _, v := range []*view{tr.view, tr.lower} {
				_ = tr.pathIn(v, n)
				_ = n.basePath()
				_ = contentVer(n, v)
			}
			tr.encodeVersions(n)
		}
		face := &Face{t: tr}
		entries := 0
		_ = face.Delta(func(Entry) error {
			if entries++; entries > 1<<14 {
				t.Fatal("the delta does not end")
			}
			return nil
		})
		tr.fds.close()
	})
}

// encodeVersions writes what is known of a node as an index would have it.
func (t *Tree) encodeVersions(n *Node) {
	var e encoder
	for x := n.ver; x != nil; x = x.prev {
		t.encodeVersion(&e, n, x)
	}
}

// TestRecordsWithoutAnEnd: directories that records put into each other are
// damage that the delta names, not a walk without an end.
func TestRecordsWithoutAnEnd(t *testing.T) {
	dir := hostileDir(t)
	state := filepath.Join(dir, "state")
	must(t, InitState(nil, state, 1))
	for _, d := range []string{"a", "a/b", "a/b/again"} {
		must(t, os.Mkdir(filepath.Join(state, "layers/1/tree", d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(state, "layers/1/record"), rootedAs(t, dir, twoNames()), 0o600))
	base, err := OpenBase(nil, filepath.Join(dir, "base"))
	must(t, err)
	tr, err := Open(Config{Name: "workspace", StateDir: state, Base: base, ReadOnly: true}, Stack{Sealed: []Range{{1, 1}}})
	must(t, err)
	f := tr.Attach(nil)
	defer closeTree(t, tr, f)
	err = f.Delta(func(Entry) error { return nil })
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "second name") {
		t.Errorf("delta: %v, want %v", err, ErrCorrupt)
	}
}

// rootedAs makes frames that name the root by rootID name it by the number that
// it has in dir's base.
func rootedAs(t *testing.T, dir string, record []byte) []byte {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "base"), &st))
	var e encoder
	_, err := readFrames(record, func(k frameKind, d *decoder) error {
		switch k {
		case frameHeader:
			d.b = nil
			e.header(1, "user.overlay.")
		case frameNode:
			n := d.node()
			if n.ino == rootID {
				n.ino = st.Ino
			}
			if n.parent == rootID {
				n.parent = st.Ino
			}
			e.node(n)
		case frameEntry:
			in, name, child := d.uint(), d.str(), d.uint()
			if in == rootID {
				in = st.Ino
			}
			e.entry(in, name, child)
		}
		return nil
	})
	must(t, err)
	return e.b
}
