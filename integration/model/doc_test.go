// Package model holds the engine to Linux by random programs: every operation
// that the engine has, on a tree in process, on a mount that several processes
// use, and on the kernel's own overlayfs, each against the reference of
// overlay/overlaytest, with seals, remounts, crashes and switches in between.
package model

import (
	"crypto/rand"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/overlaytest"
)

func TestMain(m *testing.M) {
	unix.Umask(0) // modes are to arrive as they are given
	if part := os.Getenv(partEnv); part != "" {
		if err := parts[part](); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", part, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fullCount is what all programs of TestModel make together, without -short.
const fullCount = 1_000_000

// scale is how many times as long a test is to be: GALLEY_MODEL_SCALE, or a
// twentieth with -short.
func scale(t testing.TB, count int) int {
	t.Helper()
	if v := os.Getenv("GALLEY_MODEL_SCALE"); v != "" {
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || f <= 0 {
			t.Fatalf("GALLEY_MODEL_SCALE=%s: want a number above 0", v)
		}
		return int(float64(count) * f)
	}
	if testing.Short() {
		return count / 20
	}
	return count
}

// filtered is the -run pattern, with which a part of the programs is left out.
func filtered() string { return flag.Lookup("test.run").Value.String() }

// seeds are n fixed ones and one that nobody has seen yet. GALLEY_MODEL_SEEDS
// has others instead: "new" makes all such, and a list of numbers is itself.
func seeds(t testing.TB, n int) []uint64 {
	t.Helper()
	env := os.Getenv("GALLEY_MODEL_SEEDS")
	if env != "" && env != "new" {
		var out []uint64
		for s := range strings.SplitSeq(env, ",") {
			seed, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatalf("GALLEY_MODEL_SEEDS=%s: want \"new\" or numbers with commas between", env)
			}
			out = append(out, seed)
		}
		return out
	}
	var out []uint64
	for i := range n + 1 {
		seed := uint64(i)
		if env == "new" || i == n {
			var b [4]byte
			_, _ = rand.Read(b[:])
			seed = uint64(binary.NativeEndian.Uint32(b[:]))
		}
		out = append(out, seed)
	}
	return out
}

// program gives out operations one by one.
type program func() (overlaytest.Op, bool)

func list(ops []overlaytest.Op) program {
	return func() (overlaytest.Op, bool) {
		if len(ops) == 0 {
			return overlaytest.Op{}, false
		}
		o := ops[0]
		ops = ops[1:]
		return o, true
	}
}

func limited(count int, next func() overlaytest.Op) program {
	return func() (overlaytest.Op, bool) {
		if count--; count < 0 {
			return overlaytest.Op{}, false
		}
		return next(), true
	}
}

// report fails the test with the shortest program that shows the failure.
func report(t *testing.T, what string, ops []overlaytest.Op, err error, again func([]overlaytest.Op) error) {
	t.Helper()
	small := overlaytest.Shrink(ops, shrinkTime(), func(ops []overlaytest.Op) bool { return again(ops) != nil })
	if e := again(small); e != nil {
		err = e
	}
	t.Fatalf("%s: %v\nafter (%d of %d operations):\n%s", what, err, len(small), len(ops), overlaytest.Format(small))
}

// shrinkTime is how long the shortest program that fails is looked for.
func shrinkTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("GALLEY_MODEL_SHRINK")); err == nil {
		return d
	}
	return 30 * time.Second
}

// fastDir is a directory in memory where there is one: the programs are about
// what is stored, not about the disk.
func fastDir(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "galley-model-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: devices, owners and trusted attributes")
	}
}
