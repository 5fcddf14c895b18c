package overlay_test

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/overlaytest"
)

func TestMain(m *testing.M) {
	unix.Umask(0) // modes are to arrive as they are given
	os.Exit(m.Run())
}

// fastDir is a directory in memory where there is one: most tests are about
// what is stored, not about the disk.
func fastDir(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "galley-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// operations is how many operations a random test runs: full ones by default,
// a tenth with -short, GALLEY_MODEL_OPS where that is set.
func operations(t testing.TB, full int) int {
	t.Helper()
	if v := os.Getenv("GALLEY_MODEL_OPS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("GALLEY_MODEL_OPS: %v", err)
		}
		return n
	}
	if testing.Short() {
		return full / 10
	}
	return full
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: devices, owners and trusted attributes")
	}
}

// list gives out operations one by one.
func list(ops []overlaytest.Op) func() (overlaytest.Op, bool) {
	return func() (overlaytest.Op, bool) {
		if len(ops) == 0 {
			return overlaytest.Op{}, false
		}
		o := ops[0]
		ops = ops[1:]
		return o, true
	}
}
