package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// benchTree is a base of dirs directories with files small files each.
func benchTree(b *testing.B, dirs, files int) (*Tree, *Face) {
	b.Helper()
	dir := b.TempDir()
	for d := range dirs {
		sub := filepath.Join(dir, "base", fmt.Sprintf("d%d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range files {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d", f)), []byte("content\n"), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		b.Fatal(err)
	}
	if err := InitState(nil, state, 1); err != nil {
		b.Fatal(err)
	}
	base, err := OpenBase(nil, filepath.Join(dir, "base"))
	if err != nil {
		b.Fatal(err)
	}
	t, err := Open(Config{Name: "bench", StateDir: state, Base: base}, Stack{Active: 1})
	if err != nil {
		b.Fatal(err)
	}
	f := t.Attach(nil)
	b.Cleanup(func() {
		f.Detach()
		if err := t.Close(); err != nil {
			b.Error(err)
		}
	})
	return t, f
}

func BenchmarkLookup(b *testing.B) {
	_, f := benchTree(b, 1, 1000)
	d, _, err := f.Lookup(f.Root(), "d0")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("hit", func(b *testing.B) {
		i := 0
		for b.Loop() {
			n, _, err := f.Lookup(d, fmt.Sprintf("f%d", i%1000))
			if err != nil {
				b.Fatal(err)
			}
			f.Forget(n, 1)
			i++
		}
	})
	b.Run("miss", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := f.Lookup(d, "nothing"); err == nil {
				b.Fatal("found")
			}
		}
	})
}

func BenchmarkCreateUnlink(b *testing.B) {
	_, f := benchTree(b, 1, 10)
	d, _, err := f.Lookup(f.Root(), "d0")
	if err != nil {
		b.Fatal(err)
	}
	i := 0
	for b.Loop() {
		name := fmt.Sprintf("n%d", i)
		n, _, err := f.Create(d, name, 0o644, self())
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Unlink(d, name); err != nil {
			b.Fatal(err)
		}
		f.Forget(n, 1)
		i++
	}
}

func BenchmarkUnlinkBase(b *testing.B) {
	const files = 2000
	for b.Loop() {
		b.StopTimer()
		_, f := benchTree(b, 1, files)
		d, _, err := f.Lookup(f.Root(), "d0")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for i := range files {
			if err := f.Unlink(d, fmt.Sprintf("f%d", i)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*files), "us/unlink")
}

func BenchmarkCopyUpSmall(b *testing.B) {
	const files = 1000
	for b.Loop() {
		b.StopTimer()
		_, f := benchTree(b, 1, files)
		b.StartTimer()
		for i := range files {
			n, _, err := f.Walk(fmt.Sprintf("d0/f%d", i))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := f.Write(n, []byte("x"), 0); err != nil {
				b.Fatal(err)
			}
			f.Forget(n, 1)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*files), "us/copyup")
}

func BenchmarkSeal(b *testing.B) {
	for _, changed := range []int{0, 1000, 20000} {
		b.Run(fmt.Sprint(changed), func(b *testing.B) {
			t, f := benchTree(b, 1, 1)
			for i := range changed {
				n, _, err := f.Create(f.Root(), fmt.Sprintf("n%d", i), 0o644, self())
				if err != nil {
					b.Fatal(err)
				}
				f.Forget(n, 1)
			}
			next := LayerID(2)
			for b.Loop() {
				b.StopTimer()
				if err := t.Prepare(next); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				q := Quiesce(t)
				if err := q.Seal(next); err != nil {
					b.Fatal(err)
				}
				q.Release()
				next++
			}
		})
	}
}
