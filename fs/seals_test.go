package fs

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// counterLen is what a counter takes in its file.
const counterLen = 20

// writers write to a mount as long as a test seals: one counts in the files p
// and then q, the other in a mapping of m, which it syncs. The default mode
// serves no file by passthrough, so there are no other ways of writing.
type writers struct {
	plain, mapped atomic.Int64 // acknowledged
	stop          atomic.Bool
	ended         sync.WaitGroup
	err           atomic.Pointer[error]
}

func (w *writers) start(t *testing.T, dir string) {
	t.Helper()
	var files [3]*os.File
	for i, name := range []string{"p", "q", "m"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		_, err = f.WriteAt(fmt.Appendf(nil, "%0*d", counterLen, 0), 0)
		must(t, err)
		files[i] = f
	}
	must(t, files[2].Truncate(4096))
	m, err := unix.Mmap(int(files[2].Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	binary.LittleEndian.PutUint64(m, 0)
	must(t, unix.Msync(m, unix.MS_SYNC))
	run := func(step func(k int64) error) {
		w.ended.Go(func() {
			for k := int64(1); !w.stop.Load(); k++ {
				if err := step(k); err != nil {
					w.err.Store(&err)
					return
				}
			}
		})
	}
	run(func(k int64) error {
		text := fmt.Appendf(nil, "%0*d", counterLen, k)
		for _, f := range files[:2] {
			if _, err := f.WriteAt(text, 0); err != nil {
				return err
			}
		}
		w.plain.Store(k)
		return nil
	})
	run(func(k int64) error {
		binary.LittleEndian.PutUint64(m, uint64(k))
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return err
		}
		w.mapped.Store(k)
		return nil
	})
	t.Cleanup(func() {
		w.end()
		must(t, unix.Munmap(m))
	})
}

func (w *writers) end() {
	w.stop.Store(true)
	w.ended.Wait()
}

// TestSealsUnderWriters seals a mount again and again while programs write to
// it, and checks each sealed view against what had been acknowledged before its
// seal began and after it had ended.
func TestSealsUnderWriters(t *testing.T) {
	seals := 10_000
	if testing.Short() {
		seals = 300
	}
	t.Run("here", func(t *testing.T) { sealUnderWriters(t, t.TempDir(), seals) })
	t.Run("cloning", func(t *testing.T) { sealUnderWriters(t, xfsDir(t), seals/10) })
}

// xfsDir is a directory on a file system that clones.
func xfsDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a loop mount")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "xfs")
	must(t, os.Mkdir(at, 0o755))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 1<<30))
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs (package xfsprogs): %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		t.Skipf("the kernel has no XFS, or no loop device: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	state := filepath.Join(at, "state")
	must(t, os.Mkdir(state, 0o700))
	return state
}

type bounds struct{ plainLow, plainHigh, mappedLow, mappedHigh int64 }

func sealUnderWriters(t *testing.T, state string, seals int) {
	s := mount(t, serveConfig{State: state, NoWatch: true})
	t.Cleanup(s.stop) // before the file system below it goes
	w := &writers{}
	w.start(t, s.Dir)
	eventually(t, time.Minute, "writers at work", func() bool { return w.plain.Load() > 0 && w.mapped.Load() > 0 })
	at := make([]bounds, seals+1)
	for i := 1; i <= seals; i++ {
		b := &at[i]
		b.plainLow, b.mappedLow = w.plain.Load(), w.mapped.Load()
		s.do(command{Op: "seal", Layer: overlay.LayerID(i + 1)})
		b.plainHigh, b.mappedHigh = w.plain.Load()+1, w.mapped.Load()+1
	}
	w.end()
	if err := w.err.Load(); err != nil {
		t.Fatal(*err)
	}
	for i := 1; i <= seals; i++ {
		r := s.do(command{Op: "view", Stack: overlay.Stack{Sealed: []overlay.Range{{From: 1, To: overlay.LayerID(i)}}}})
		if len(r.Data) < 2*counterLen+8 {
			t.Fatalf("seal %d: %d bytes", i, len(r.Data))
		}
		p, q := number(t, r.Data[:counterLen]), number(t, r.Data[counterLen:2*counterLen])
		m := int64(binary.LittleEndian.Uint64(r.Data[2*counterLen:]))
		b := at[i]
		if p != q && p != q+1 {
			t.Fatalf("seal %d has p at %d and q at %d: it cut within a write", i, p, q)
		}
		if q < b.plainLow || p > b.plainHigh {
			t.Fatalf("seal %d has %d and %d; %d were acknowledged before it and %d begun after", i, p, q, b.plainLow, b.plainHigh)
		}
		if m < b.mappedLow || m > b.mappedHigh {
			t.Fatalf("seal %d has %d in the mapped file; %d were synced before it and %d begun after", i, m, b.mappedLow, b.mappedHigh)
		}
	}
	t.Logf("%d plain and %d mapped writes beside %d seals", w.plain.Load(), w.mapped.Load(), seals)
}

func number(t *testing.T, text []byte) int64 {
	t.Helper()
	n, err := strconv.ParseInt(string(text), 10, 64)
	must(t, err)
	return n
}

// viewed is what a view of sealed layers has in the writers' files.
func viewed(tree *overlay.Tree, s overlay.Stack) ([]byte, error) {
	f, err := tree.View(s)
	if err != nil {
		return nil, err
	}
	defer f.Detach()
	var out []byte
	for _, file := range []struct {
		name string
		size int
	}{{"p", counterLen}, {"q", counterLen}, {"m", 8}} {
		n, _, err := f.Lookup(f.Root(), file.name)
		if err != nil {
			return nil, err
		}
		buf := make([]byte, file.size)
		_, err = f.Read(n, buf, 0)
		f.Forget(n, 1)
		if err != nil {
			return nil, err
		}
		out = append(out, buf...)
	}
	return out, nil
}
