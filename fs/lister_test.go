package fs

import (
	"encoding/binary"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What is listed is told by name alone, until a program is seen to look at it.
func TestLister(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := &lister{now: func() time.Time { return now }}
	want := func(id, off uint64, n int) {
		t.Helper()
		if got := l.plainly(id, off); got != n {
			t.Errorf("directory %d from %d: %d entries by name alone, want %d", id, off, got, n)
		}
	}
	want(2, 0, plainMost)
	l.listed(2, 1000)
	want(2, 7, plainMost-1000)
	l.listed(2, plainMost-1000)
	want(2, 8, 0)
	want(2, 0, plainMost)
	l.looked(3) // was not listed
	want(3, 0, plainMost)
	l.looked(2)
	want(3, 1, 0)
	want(4, 0, 0)
	now = now.Add(fullFor)
	want(3, 1, 0) // it began otherwise
	want(4, 0, plainMost)
	for id := uint64(5); id < 5+plainDirs; id++ {
		want(id, 0, plainMost)
	}
	l.looked(4) // too long ago
	want(4, 0, plainMost)
}

// A program that lists and only wants names asks the base for nothing but
// directories, and is told the numbers that stat tells.
func TestListingByName(t *testing.T) {
	s := mount(t, serveConfig{})
	base := func() uint64 { return s.do(command{Op: "stats"}).Base }
	before := base()
	list, err := os.ReadDir(s.Dir)
	must(t, err)
	if n := base() - before; n != 1 {
		t.Errorf("the listing asked the base %d times, want once, for dir", n)
	}
	numbers := direntNumbers(t, s.Dir)
	for _, e := range list {
		info, err := e.Info()
		must(t, err)
		if got := info.Sys().(*syscall.Stat_t).Ino; got != numbers[e.Name()] {
			t.Errorf("%s: number %d, listed as %d", e.Name(), got, numbers[e.Name()])
		}
	}
}

// direntNumbers are the inode numbers that getdents(2) tells.
func direntNumbers(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	buf := make([]byte, 64<<10)
	out := map[string]uint64{}
	for {
		n, err := syscall.Getdents(int(f.Fd()), buf)
		must(t, err)
		if n == 0 {
			return out
		}
		for b := buf[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] {
			name, _, _ := strings.Cut(string(b[19:binary.NativeEndian.Uint16(b[16:])]), "\x00")
			out[name] = binary.NativeEndian.Uint64(b)
		}
	}
}
