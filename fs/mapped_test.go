package fs

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// mapping is a file that a program has mapped, shared and for writing.
type mapping struct {
	t   *testing.T
	mem []byte
}

func mapFile(t *testing.T, path string) *mapping {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(mem)) })
	return &mapping{t, mem}
}

// read is the beginning of the mapping; an error where there is no page.
func (m *mapping) read(n int) (s string, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("fault: %v", v)
		}
	}()
	return string(bytes.Clone(m.mem[:n])), nil
}

// write stores, and writes out what it stored.
func (m *mapping) write(s string) error {
	copy(m.mem, s)
	return unix.Msync(m.mem, unix.MS_SYNC)
}

// readIn reads a file of a sealed view.
func readIn(tree *overlay.Tree, s overlay.Stack, path string) ([]byte, error) {
	f, err := tree.View(s)
	if err != nil {
		return nil, err
	}
	defer f.Detach()
	n, a, err := f.Walk(path)
	if err != nil {
		return nil, err
	}
	defer f.Forget(n, 1)
	buf := make([]byte, a.Size)
	got, err := f.Read(n, buf, 0)
	return buf[:got], err
}

// TestMappedOverARollback: a program that has files mapped sees what a rollback
// brought through its mappings, what it stores in them then is a change of the
// new layer, and the sealed layers have what they had. Of a file that the older
// point lacks it goes on with what it had, which reaches no layer.
func TestMappedOverARollback(t *testing.T) {
	s := mount(t, serveConfig{Base: newBase(t)})
	page := func(word string) []byte { return fmt.Appendf(nil, "%-*s", os.Getpagesize(), word) }
	must(t, os.WriteFile(s.path("both"), page("one"), 0o644))
	must(t, os.WriteFile(s.path("a.txt"), page("one"), 0o644))
	s.do(command{Op: "seal", Layer: 2})
	must(t, os.WriteFile(s.path("only"), page("two"), 0o644))
	maps := map[string]*mapping{}
	for _, name := range []string{"both", "a.txt", "only"} {
		maps[name] = mapFile(t, s.path(name))
		must(t, maps[name].write("two"))
	}
	s.do(command{Op: "seal", Layer: 3})
	two := s.do(command{Op: "stack"}).Stack

	one := overlay.Stack{Sealed: []overlay.Range{{From: 1, To: 1}}, Active: 4}
	s.do(command{Op: "switch", Stack: one})
	for _, name := range []string{"both", "a.txt"} {
		eventually(t, patience, name+" through its mapping", func() bool {
			got, err := maps[name].read(3)
			return err == nil && got == "one"
		})
	}
	if got, err := maps["only"].read(3); err == nil && got != "two" {
		t.Errorf("a file that is not there any more reads as %q through its mapping", got)
	}
	must(t, maps["both"].write("six"))
	_ = maps["only"].write("six") // an error is right, too
	s.do(command{Op: "seal", Layer: 5})
	for _, view := range []struct {
		sealed []overlay.Range
		want   string
	}{
		{[]overlay.Range{{From: 1, To: 1}}, "one"},
		{two.Sealed, "two"},
		{[]overlay.Range{{From: 1, To: 1}, {From: 4, To: 4}}, "six"},
	} {
		r := s.do(command{Op: "viewOf", Path: "both", Stack: overlay.Stack{Sealed: view.sealed}})
		if got := string(r.Data[:3]); got != view.want {
			t.Errorf("layers %v have %q, want %q", view.sealed, got, view.want)
		}
	}
	if r := s.do(command{Op: "viewOf", Path: "only", Stack: overlay.Stack{Sealed: two.Sealed}}); string(r.Data[:3]) != "two" {
		t.Errorf("the sealed layer has %q of the file that was set aside", r.Data[:3])
	}

	// And back: what was set aside is in the mappings again.
	s.do(command{Op: "switch", Stack: overlay.Stack{Sealed: two.Sealed, Active: 6}})
	eventually(t, patience, "what was set aside, through the mapping", func() bool {
		got, err := maps["both"].read(3)
		return err == nil && got == "two"
	})
	if b, err := os.ReadFile(s.path("only")); err != nil || string(b[:3]) != "two" {
		t.Errorf("the file that came back: %.3q, %v", b, err)
	}
}
