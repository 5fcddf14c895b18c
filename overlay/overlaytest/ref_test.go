package overlaytest

import (
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	unix.Umask(0)
	os.Exit(m.Run())
}

// runDir runs a program on the reference and a fresh directory of the host.
func runDir(t *testing.T, next func(*Ref) (Op, bool)) (done []Op, err error) {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fs, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	ref := NewRef()
	c := NewComparer()
	for {
		o, ok := next(ref)
		if !ok {
			break
		}
		done = append(done, o)
		if err := Step(ref, fs, o); err != nil {
			return done, err
		}
		if len(done)%200 == 0 {
			c.LooseInos = true // the host uses inode numbers again
			if err := c.Compare(ref, fs); err != nil {
				return done, err
			}
			if err := c.CompareSlots(ref, fs); err != nil {
				return done, err
			}
		}
	}
	return done, c.Compare(ref, fs)
}

func program(ops []Op) func(*Ref) (Op, bool) {
	return func(*Ref) (Op, bool) {
		if len(ops) == 0 {
			return Op{}, false
		}
		o := ops[0]
		ops = ops[1:]
		return o, true
	}
}

func random(seed uint64, count int) func(*Ref) (Op, bool) {
	var g *Generator
	return func(ref *Ref) (Op, bool) {
		if g == nil {
			g = NewGenerator(seed, ref)
		}
		count--
		return g.Next(), count >= 0
	}
}

// scale is how many operations a test is to run.
func scale(t *testing.T, count int) int {
	t.Helper()
	if v := os.Getenv("GALLEY_MODEL_OPS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("GALLEY_MODEL_OPS: %v", err)
		}
		return n
	}
	if testing.Short() {
		return count / 10
	}
	return count
}

// TestRefAgainstDirectory holds the reference to the host's own file system:
// the same answers and the same tree after every program.
func TestRefAgainstDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: devices, owners and trusted attributes")
	}
	for seed := range uint64(4) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			ops, err := runDir(t, random(seed, scale(t, 40000)))
			if err == nil {
				return
			}
			small := Shrink(ops, 10*time.Second, func(ops []Op) bool {
				_, err := runDir(t, program(ops))
				return err != nil
			})
			_, err = runDir(t, program(small))
			t.Fatalf("seed %d: %v\n%s", seed, err, Format(small))
		})
	}
}
