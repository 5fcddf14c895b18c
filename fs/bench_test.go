package fs

import (
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkMount measures the latency of single steps through a mount; run it
// with -benchtime 2000x or so. The same steps on a plain directory are beside
// them.
func BenchmarkMount(b *testing.B) {
	for _, where := range []string{"native", "mount"} {
		dir := newBase(b)
		if where == "mount" {
			dir = mount(b, serveConfig{}).Dir
		}
		for _, step := range []struct {
			name string
			do   func(b *testing.B, dir string)
		}{
			{"stat", benchStat}, {"read", benchRead}, {"create", benchCreate}, {"unlink", benchUnlink},
			{"append", benchAppend}, {"pwrite", benchPwrite},
		} {
			b.Run(where+"/"+step.name, func(b *testing.B) { step.do(b, dir) })
		}
	}
}

func benchStat(b *testing.B, dir string) {
	var st unix.Stat_t
	for b.Loop() {
		must(b, unix.Lstat(dir+"/dir/c.txt", &st))
	}
}

func benchRead(b *testing.B, dir string) {
	for b.Loop() {
		f, err := os.Open(dir + "/dir/c.txt")
		must(b, err)
		_, err = io.ReadAll(f)
		must(b, err)
		must(b, f.Close())
	}
}

func createFile(b *testing.B, name string) {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	must(b, err)
	_, err = unix.Write(fd, []byte("x"))
	must(b, err)
	must(b, unix.Close(fd))
}

func benchCreate(b *testing.B, dir string) {
	made, err := os.MkdirTemp(dir, "create")
	must(b, err)
	i := 0
	for b.Loop() {
		createFile(b, fmt.Sprintf("%s/%d", made, i))
		i++
	}
}

func benchUnlink(b *testing.B, dir string) {
	made, err := os.MkdirTemp(dir, "unlink")
	must(b, err)
	for i := range b.N {
		createFile(b, fmt.Sprintf("%s/%d", made, i))
	}
	b.ResetTimer()
	for i := range b.N {
		must(b, unix.Unlink(fmt.Sprintf("%s/%d", made, i)))
	}
}

func benchAppend(b *testing.B, dir string) {
	for b.Loop() {
		f, err := os.OpenFile(dir+"/b.txt", os.O_WRONLY|os.O_APPEND, 0)
		must(b, err)
		_, err = f.Write([]byte("x"))
		must(b, err)
		must(b, f.Close())
	}
}

func benchPwrite(b *testing.B, dir string) {
	f, err := os.OpenFile(dir+"/a.txt", os.O_RDWR, 0)
	must(b, err)
	defer f.Close()
	page := make([]byte, 4096)
	for b.Loop() {
		_, err := f.WriteAt(page, 4096)
		must(b, err)
	}
}
