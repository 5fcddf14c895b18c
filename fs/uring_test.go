package fs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const uringParameter = "/sys/module/fuse/parameters/enable_uring"

// overURing makes mount let the kernel offer FUSE over io_uring.
var overURing bool

// allowURing lets the kernel offer FUSE over io_uring until the function that
// it returns is called. That is for the machine as a whole: other tests run
// meanwhile, so it is kept short, a mount at a time.
func allowURing(t testing.TB) func() {
	t.Helper()
	before, err := os.ReadFile(uringParameter)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel has no FUSE over io_uring")
	}
	must(t, err)
	if before[0] == 'Y' {
		return func() {}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to allow FUSE over io_uring")
	}
	must(t, os.WriteFile(uringParameter, []byte("Y"), 0))
	return func() { must(t, os.WriteFile(uringParameter, before, 0)) }
}

// TestOverIOURing: over io_uring, requests are the same and answered the same,
// whatever the mode, and the ways in which a mount ends are those of others.
func TestOverIOURing(t *testing.T) {
	overURing = true
	t.Cleanup(func() { overURing = false })
	if !mount(t, serveConfig{}).do(command{Op: "stats"}).Rings {
		t.Skip("the kernel has no io_uring for this process")
	}
	t.Run("Posix", TestPosix)
	t.Run("Requests", TestRequests)
	t.Run("KilledServer", TestKilledServerLeavesAMountThatIsCleared)
	t.Run("Close", TestCloseEndsTheConnection)
	t.Run("ManyAtOnce", testManyAtOnce)
	t.Run("LargeContent", testLargeContent)
	t.Run("SlowOnes", testSlowOnes)
}

// testManyAtOnce: more requests at once than the queues have entries.
func testManyAtOnce(t *testing.T) {
	s := mount(t, serveConfig{})
	const workers, files = 8 * uringDepth, 10
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			errs[w] = func() error {
				dir := s.path(fmt.Sprintf("w%d", w))
				if err := os.Mkdir(dir, 0o755); err != nil {
					return err
				}
				for i := range files {
					name, text := filepath.Join(dir, fmt.Sprint(i)), fmt.Appendf(nil, "%d of %d", i, w)
					if err := os.WriteFile(name, text, 0o644); err != nil {
						return err
					}
					if err := os.Rename(name, name+".r"); err != nil {
						return err
					}
					got, err := os.ReadFile(name + ".r")
					if err != nil || !bytes.Equal(got, text) {
						return fmt.Errorf("%s: read %q, %v", name, got, err)
					}
				}
				return os.RemoveAll(dir)
			}()
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
}

// testLargeContent: reads and writes of the largest size, names of the longest
// and xattrs, all of which lie in the payload that the answer also takes.
func testLargeContent(t *testing.T) {
	s := mount(t, serveConfig{State: roomyDir(t)})
	name := s.path(string(bytes.Repeat([]byte("n"), maxName)))
	data := make([]byte, 5*maxIO+123)
	rand.New(rand.NewSource(1)).Read(data)
	must(t, os.WriteFile(name, data, 0o644))
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	got := make([]byte, 0, len(data)+2*maxIO)
	for len(got) < len(data) {
		n, err := unix.Pread(fd, got[len(got) : len(got)+2*maxIO : cap(got)][:min(2*maxIO, cap(got)-len(got))], int64(len(got)))
		must(t, err)
		if n == 0 {
			break
		}
		got = got[:len(got)+n]
	}
	if !bytes.Equal(got, data) {
		t.Errorf("read %d bytes back that differ from the %d written", len(got), len(data))
	}
	value := data[:60<<10]
	must(t, unix.Setxattr(name, "user.large", value, 0))
	back := make([]byte, len(value))
	n, err := unix.Getxattr(name, "user.large", back)
	must(t, err)
	if !bytes.Equal(back[:n], value) {
		t.Error("the xattr differs")
	}
	target := string(bytes.Repeat([]byte("t/"), 2000))
	must(t, os.Symlink(target, s.path("link")))
	if got, err := os.Readlink(s.path("link")); err != nil || got != target {
		t.Errorf("readlink: %d bytes, %v", len(got), err)
	}
}

// testSlowOnes: requests that are answered apart (copy-ups, syncs, copies)
// come back too, also when they take every entry of a queue.
func testSlowOnes(t *testing.T) {
	base := newBase(t)
	const files = 3 * uringDepth
	for i := range files {
		must(t, os.WriteFile(filepath.Join(base, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 1<<20), 0o644))
	}
	s := mount(t, serveConfig{Base: base})
	errs := make([]error, files)
	var wg sync.WaitGroup
	for i := range files {
		wg.Go(func() {
			f, err := os.OpenFile(s.path(fmt.Sprint(i)), os.O_RDWR, 0)
			if err != nil {
				errs[i] = err
				return
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("changed"), 1000)
			errs[i] = errors.Join(err, f.Sync(), unix.Fallocate(int(f.Fd()), 0, 0, 2<<20))
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	for i := range files {
		want := bytes.Repeat([]byte{byte(i)}, 2<<20)
		copy(want[1000:], "changed")
		clear(want[1<<20:])
		got, err := os.ReadFile(s.path(fmt.Sprint(i)))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("file %d differs", i)
		}
	}
}
