package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// opMain is a piece of work that no common program does alone: `bench op NAME
// COUNT PATH`, run as a child so that its CPU time can be told apart.
func opMain(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: bench op NAME COUNT PATH")
		return 2
	}
	n, err := strconv.Atoi(args[1])
	if err == nil {
		op := ops[args[0]]
		if op == nil {
			err = fmt.Errorf("no operation %q", args[0])
		} else {
			err = op(n, args[2])
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "op %s: %v\n", args[0], err)
		return 1
	}
	return 0
}

var ops = map[string]func(n int, path string) error{
	"stat":         statFile,
	"stat-missing": statMissing,
	"open-read":    openReadClose,
	"readdir":      readDir,
	"create":       createFiles,
	"unlink":       unlinkFiles,
	"rename-dir":   renameDir,
	"append-byte":  appendByte,
	"seq-write":    seqWrite,
	"seq-read":     seqRead,
	"rand-read":    randRead,
	"rand-write":   randWrite,
	"mmap":         mmapWrite,
	"parallel":     parallel,
}

func statFile(n int, path string) error {
	var st unix.Stat_t
	for range n {
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
	}
	return nil
}

func statMissing(n int, path string) error {
	var st unix.Stat_t
	for range n {
		if err := unix.Lstat(path+"-missing", &st); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("lstat of what is not there: %v", err)
		}
	}
	return nil
}

func openReadClose(n int, path string) error {
	buf := make([]byte, 4096)
	for range n {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if _, err := unix.Read(fd, buf); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

func readDir(n int, path string) error {
	buf := make([]byte, 1<<16)
	for range n {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		for {
			k, err := unix.Getdents(fd, buf)
			if err != nil {
				return err
			}
			if k == 0 {
				break
			}
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

func createFiles(n int, path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	body := make([]byte, 100)
	for i := range n {
		if err := os.WriteFile(filepath.Join(path, "f"+strconv.Itoa(i)), body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func unlinkFiles(n int, path string) error {
	for i := range n {
		if err := unix.Unlink(filepath.Join(path, "f"+strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

// printElapsed is how a work that times itself says so.
func printElapsed(start time.Time) {
	fmt.Printf("ns %d\n", time.Since(start).Nanoseconds())
}

// renameDir renames the directory path; where the file system cannot, it does
// what mv then does, and says so.
func renameDir(_ int, path string) error {
	start := time.Now()
	err := os.Rename(path, path+"-renamed")
	if errors.Is(err, unix.EXDEV) {
		err = exec.Command("mv", path, path+"-renamed").Run()
		fmt.Println("note EXDEV, mv copies")
	}
	printElapsed(start)
	return err
}

func appendByte(_ int, path string) error {
	start := time.Now()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write([]byte("x")); err != nil {
		return err
	}
	err = f.Close()
	printElapsed(start)
	return err
}

// seqWrite writes n mebibytes to a new file.
func seqWrite(n int, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(buf)
	for range n {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Close()
}

func seqRead(n int, path string) error {
	buf := make([]byte, 1<<17)
	for range n {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		for {
			if _, err := f.Read(buf); err == io.EOF {
				break
			} else if err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// atRandom calls fn with n page-aligned offsets in the file.
func atRandom(f *os.File, n int, fn func(off int64) error) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewSource(1))
	for range n {
		if err := fn(rnd.Int63n(st.Size()>>12) << 12); err != nil {
			return err
		}
	}
	return nil
}

func randRead(n int, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	return atRandom(f, n, func(off int64) error {
		_, err := f.ReadAt(buf, off)
		return err
	})
}

func randWrite(n int, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	err = atRandom(f, n, func(off int64) error {
		_, err := f.WriteAt(buf, off)
		return err
	})
	return errors.Join(err, f.Close())
}

func mmapWrite(n int, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	err = atRandom(f, n, func(off int64) error {
		data[off]++
		return nil
	})
	return errors.Join(err, unix.Msync(data, unix.MS_SYNC), unix.Munmap(data))
}

// parallel has eight workers make, read, rename and remove files, n each.
func parallel(n int, path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() { errs[w] = worker(n, filepath.Join(path, strconv.Itoa(w))) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func worker(n int, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range n {
		name := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
			return err
		}
		for range 10 {
			if _, err := os.ReadFile(name); err != nil {
				return err
			}
		}
		if err := os.Rename(name, name+".r"); err != nil {
			return err
		}
		if i%2 == 0 {
			if err := os.Remove(name + ".r"); err != nil {
				return err
			}
		}
	}
	_, err := os.ReadDir(dir)
	return err
}
