package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/testvm"
)

// bench measures one kind of work in the directory r.Path: Args[0] says which, N
// how often, Size how many bytes.
func bench(r testvm.Request) (out testvm.Reply, err error) {
	f, ok := benches[r.Args[0]]
	if !ok {
		return out, fmt.Errorf("bench %q: %w", r.Args[0], unix.ENOSYS)
	}
	if r.Args[0] != "warm read" {
		// What was read before is not to be found in memory.
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
			return out, err
		}
	}
	begin := time.Now()
	if err := f(r.Path, r.N, r.Size); err != nil {
		return out, err
	}
	out.Nanos = int64(time.Since(begin))
	return out, nil
}

func benchName(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("d%d", i%10), fmt.Sprintf("f%d", i))
}

var benches = map[string]func(dir string, n, size int) error{
	"create": func(dir string, n, size int) error {
		for i := range 10 {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d", i)), 0o755); err != nil {
				return err
			}
		}
		data := make([]byte, size)
		for i := range n {
			if err := writeFile(benchName(dir, i), data); err != nil {
				return err
			}
		}
		return nil
	},
	"stat": func(dir string, n, _ int) error {
		var st unix.Stat_t
		for i := range n {
			if err := unix.Lstat(benchName(dir, i), &st); err != nil {
				return err
			}
		}
		return nil
	},
	"failed stat": func(dir string, n, _ int) error {
		var st unix.Stat_t
		for i := range n {
			if err := unix.Lstat(benchName(dir, i)+".none", &st); err != unix.ENOENT {
				return fmt.Errorf("stat of nothing: %w", err)
			}
		}
		return nil
	},
	"walk": func(dir string, n, _ int) error {
		seen := 0
		err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if !d.IsDir() {
				seen++
				_, err = d.Info()
			}
			return err
		})
		if err == nil && seen < n {
			return fmt.Errorf("%d files, want %d", seen, n)
		}
		return err
	},
	"read": func(dir string, n, _ int) error {
		for i := range n {
			if _, err := os.ReadFile(benchName(dir, i)); err != nil {
				return err
			}
		}
		return nil
	},
	"rename": func(dir string, n, _ int) error {
		for i := range n {
			if err := os.Rename(benchName(dir, i), benchName(dir, i)+".r"); err != nil {
				return err
			}
		}
		return nil
	},
	"unlink": func(dir string, n, _ int) error {
		for i := range n {
			if err := os.Remove(benchName(dir, i) + ".r"); err != nil {
				return err
			}
		}
		return nil
	},
	"stream write": func(dir string, n, size int) error {
		f, err := os.Create(filepath.Join(dir, "stream"))
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 1<<20)
		for done := 0; done < size; done += len(b) {
			if _, err := f.Write(b); err != nil {
				return err
			}
		}
		return f.Sync()
	},
	"stream read": readStream,
	"warm read":   readStream,
	"small writes": func(dir string, n, size int) error {
		f, err := os.Create(filepath.Join(dir, "small"))
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, size)
		for i := range n {
			if _, err := f.WriteAt(b, int64(i)*int64(size)); err != nil {
				return err
			}
		}
		return nil
	},
}

func readStream(dir string, _, size int) error {
	f, err := os.Open(filepath.Join(dir, "stream"))
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, f, make([]byte, 1<<20))
	if err == nil && got != int64(size) {
		return fmt.Errorf("%d bytes, want %d", got, size)
	}
	return err
}
