package guestfs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/galleyfs/galley/integration/testvm"
)

// TestCases runs go-fuse's POSIX cases and Galley's own in the guest.
func TestCases(t *testing.T) {
	s := guest(t).newShare(t, "cases", nil)
	owners := "one"
	if os.Geteuid() == 0 {
		owners = "all"
	}
	got := s.do(testvm.Request{Op: "run", To: ".", Args: []string{"/init", "-test.v"}, Env: []string{"GUEST_OWNERS=" + owners}})
	out := string(got.Data)
	if got.N != 0 || !strings.Contains(out, "\nPASS\n") {
		for _, f := range regexp.MustCompile(`(?m)^\s*--- FAIL: .*$`).FindAllString(out, -1) {
			t.Error(strings.TrimSpace(f))
		}
		t.Errorf("status %d:\n%s", got.N, out)
	}
	if n := strings.Count(out, "--- PASS"); n < 40 {
		t.Errorf("%d cases passed, want 40 and more:\n%s", n, out)
	}
	if skips := strings.Count(out, "--- SKIP"); skips > 0 {
		t.Errorf("%d cases were skipped:\n%s", skips, out)
	}
}

// TestTreesAreDevices: each tree is a file system of its own to the guest, and
// may come and go.
func TestTreesAreDevices(t *testing.T) {
	m := guest(t)
	fill := func(base string) { must(t, os.WriteFile(filepath.Join(base, "f"), []byte("x"), 0o644)) }
	a, b := m.newShare(t, "first", fill), m.newShare(t, "second", fill)
	x, y := a.do(testvm.Request{Op: "stat", Path: "f"}).Stat, b.do(testvm.Request{Op: "stat", Path: "f"}).Stat
	root, err := m.call(t, testvm.Request{Op: "stat", Path: "/export"})
	must(t, err)
	if x.Dev == y.Dev || x.Dev == root.Stat.Dev {
		t.Errorf("devices %d, %d, root %d", x.Dev, y.Dev, root.Stat.Dev)
	}
	if dir := a.do(testvm.Request{Op: "stat"}).Stat; dir.Dev != x.Dev {
		t.Errorf("the tree's root is on device %d, what is in it on %d", dir.Dev, x.Dev)
	}
	f := b.do(testvm.Request{Op: "open", Path: "f", N: os.O_RDONLY}).N
	must(t, m.export.Remove("second"))
	within(t, "a tree that was removed", func() bool {
		_, err := b.call(testvm.Request{Op: "stat", Path: "f"})
		return err != nil
	})
	if _, err := m.call(t, testvm.Request{Op: "pread", N: f, Off: 1 << 20, Size: 1}); err == nil {
		t.Log("what was in the guest's memory is read on")
	}
	if _, err := m.call(t, testvm.Request{Op: "write", Path: "/export/x"}); err == nil {
		t.Error("the export's root takes a file")
	}
}

// TestEachSeesTheOther: what one side writes, the other sees within a second.
func TestEachSeesTheOther(t *testing.T) {
	s := guest(t).newShare(t, "both", func(base string) {
		must(t, os.WriteFile(filepath.Join(base, "base.txt"), []byte("old"), 0o644))
		must(t, os.Mkdir(filepath.Join(base, "dir"), 0o755))
	})
	read := func(name string) string {
		got, err := s.call(testvm.Request{Op: "read", Path: name})
		if err != nil {
			return err.Error()
		}
		return string(got.Data)
	}
	names := func(name string) string {
		return strings.Join(s.do(testvm.Request{Op: "list", Path: name}).Names, " ")
	}
	t.Run("guest to host", func(t *testing.T) {
		s.do(testvm.Request{Op: "write", Path: "dir/g", Data: []byte("from the guest")})
		if got, err := s.hostRead("dir/g"); got != "from the guest" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("face to guest", func(t *testing.T) {
		if got := read("base.txt"); got != "old" {
			t.Fatalf("before: %q", got)
		}
		// Of the same length, many times: nothing but the times tells.
		for _, want := range []string{"new", "now", "net", "nut"} {
			s.hostWrite("base.txt", want)
			within(t, want, func() bool { return read("base.txt") == want })
		}
	})
	t.Run("host to guest", func(t *testing.T) {
		names("dir")
		read("dir/missing")
		must(t, os.WriteFile(filepath.Join(s.base, "dir", "missing"), []byte("there"), 0o644))
		within(t, "a new file of the host", func() bool { return read("dir/missing") == "there" })
		within(t, "its name", func() bool { return names("dir") == "g missing" })
		must(t, os.Remove(filepath.Join(s.base, "dir", "missing")))
		within(t, "a file that the host removed", func() bool { return names("dir") == "g" })
	})
	t.Run("mapped in the guest", func(t *testing.T) {
		page := strings.Repeat("a", 4096)
		s.hostWrite("mapped", page)
		n := s.do(testvm.Request{Op: "open", Path: "mapped", N: os.O_RDWR}).N
		s.do(testvm.Request{Op: "map", N: n, Size: 4096})
		peek := func() string { return string(s.do(testvm.Request{Op: "peek", N: n, Size: 4}).Data) }
		if got := peek(); got != "aaaa" {
			t.Fatalf("before: %q", got)
		}
		s.do(testvm.Request{Op: "poke", N: n, Off: 100, Data: []byte("guest")})
		s.do(testvm.Request{Op: "msync", N: n})
		if got, err := s.hostRead("mapped"); err != nil || got[100:105] != "guest" {
			t.Errorf("a synced mapping: %v", err)
		}
		s.hostWrite("mapped", strings.Repeat("b", 4096))
		within(t, "a mapped file that the host wrote, after a look", func() bool {
			s.do(testvm.Request{Op: "look", Path: "mapped"})
			return peek() == "bbbb"
		})
	})
	t.Run("append", func(t *testing.T) {
		s.hostWrite("log", "one\n")
		n := s.do(testvm.Request{Op: "open", Path: "log", N: os.O_WRONLY | os.O_APPEND}).N
		s.do(testvm.Request{Op: "fstat", N: n})
		s.hostWrite("log", "one\ntwo\n")
		s.do(testvm.Request{Op: "append", N: n, Data: []byte("three\n")})
		const want = "one\ntwo\nthree\n"
		if got, err := s.hostRead("log"); got != want {
			t.Errorf("the host reads %q, %v", got, err)
		}
		within(t, "the guest's own view", func() bool { return read("log") == want })
	})
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	told := map[string]bool{}
	for _, c := range s.m.changed {
		if c.tree == s.name {
			for _, p := range c.Paths {
				told[p] = true
			}
		}
	}
	for _, p := range []string{"base.txt", "mapped", "dir", "dir/missing"} {
		if !told[p] {
			t.Errorf("nobody was told that %q changed: %v", p, told)
		}
	}
}
