package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func lstat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func create(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// cases are Galley's own, besides those of posixtest.
var cases = map[string]func(t *testing.T, dir string){
	"SetIDBits":    setIDBits,
	"Locks":        locks,
	"Tmpfile":      tmpfile,
	"Exchange":     exchange,
	"HardLinks":    hardLinks,
	"Sparse":       sparse,
	"MmapWrites":   mmapWrites,
	"LongNames":    longNames,
	"UnlinkedOpen": unlinkedOpen,
	"CopyRange":    copyRange,
	"BigDirectory": bigDirectory,
	"Times":        times,
	"CommonNodes":  commonNodes,
}

// setIDBits: a change of owner takes them away.
func setIDBits(t *testing.T, dir string) {
	p := filepath.Join(dir, "f")
	create(t, p, "x")
	must(t, unix.Chmod(p, 0o6755))
	if m := lstat(t, p).Mode & 0o7777; m != 0o6755 {
		t.Errorf("mode %o", m)
	}
	// Where the host can store one owner alone, it is root here.
	to := 0
	if os.Getenv("GUEST_OWNERS") == "all" {
		to = 1000
	} else if err := unix.Lchown(p, 1000, -1); !errors.Is(err, unix.EPERM) {
		t.Errorf("another owner: %v", err)
	}
	must(t, unix.Lchown(p, to, to))
	if m := lstat(t, p).Mode & 0o7777; m&0o6000 != 0 {
		t.Errorf("mode %o after a change of owner", m)
	}
	if st := lstat(t, p); st.Uid != uint32(to) || st.Gid != uint32(to) {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
}

// locks: open file descriptions exclude each other.
func locks(t *testing.T, dir string) {
	p := filepath.Join(dir, "f")
	create(t, p, "x")
	a, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer a.Close()
	b, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer b.Close()
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	if err := unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("flock of a locked file: %v", err)
	}
	must(t, unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	if err := unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("open file description lock of a locked file: %v", err)
	}
}

// tmpfile: a file without a name can be written and given one.
func tmpfile(t *testing.T, dir string) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o644)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("content"))
	must(t, err)
	must(t, unix.Linkat(fd, "", unix.AT_FDCWD, filepath.Join(dir, "named"), unix.AT_EMPTY_PATH))
	b, err := os.ReadFile(filepath.Join(dir, "named"))
	if err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
}

// exchange: two names swap, files and directories; and NOREPLACE holds.
func exchange(t *testing.T, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	create(t, a, "a")
	must(t, os.Mkdir(b, 0o755))
	create(t, filepath.Join(b, "in"), "b")
	must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
	if got, err := os.ReadFile(filepath.Join(a, "in")); err != nil || string(got) != "b" {
		t.Errorf("a/in: %q, %v", got, err)
	}
	if got, err := os.ReadFile(b); err != nil || string(got) != "a" {
		t.Errorf("b: %q, %v", got, err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE); !errors.Is(err, unix.EEXIST) {
		t.Errorf("rename without replacing: %v", err)
	}
}

func hardLinks(t *testing.T, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	create(t, a, "one")
	must(t, os.Link(a, b))
	create(t, b, "two, longer")
	x, y := lstat(t, a), lstat(t, b)
	if x.Ino != y.Ino || x.Nlink != 2 || x.Size != int64(len("two, longer")) {
		t.Errorf("%d and %d, %d links, %d bytes", x.Ino, y.Ino, x.Nlink, x.Size)
	}
	must(t, os.Remove(a))
	if st := lstat(t, b); st.Nlink != 1 {
		t.Errorf("%d links are left", st.Nlink)
	}
}

// sparse: holes are found, are holes, and read as zeros.
func sparse(t *testing.T, dir string) {
	p := filepath.Join(dir, "f")
	f, err := os.Create(p)
	must(t, err)
	defer f.Close()
	const end = 64 << 20
	_, err = f.WriteAt([]byte("end"), end)
	must(t, err)
	if st := lstat(t, p); st.Size != end+3 || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
	}
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil || at == 0 || at > end {
		t.Errorf("data from %d on: %v", at, err)
	}
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, 1<<20)
	if err != nil || !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("a hole is not empty: %v", err)
	}
}

// mmapWrites: a store through a shared mapping is read after msync, and writes
// show in the mapping.
func mmapWrites(t *testing.T, dir string) {
	p := filepath.Join(dir, "f")
	create(t, p, strings.Repeat(".", 8192))
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	copy(m[4096:], "stored")
	must(t, unix.Msync(m, unix.MS_SYNC))
	b := make([]byte, 6)
	_, err = f.ReadAt(b, 4096)
	if err != nil || string(b) != "stored" {
		t.Errorf("read: %q, %v", b, err)
	}
	_, err = f.WriteAt([]byte("written"), 10)
	must(t, err)
	if got := string(m[10:17]); got != "written" {
		t.Errorf("mapped: %q", got)
	}
}

func longNames(t *testing.T, dir string) {
	p := filepath.Join(dir, strings.Repeat("n", 255))
	create(t, p, "x")
	if err := os.WriteFile(p+"n", nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
	must(t, os.Symlink(strings.Repeat("t", 4095), filepath.Join(dir, "link")))
	got, err := os.Readlink(filepath.Join(dir, "link"))
	if err != nil || len(got) != 4095 {
		t.Errorf("target of %d bytes, %v", len(got), err)
	}
}

// unlinkedOpen: a file without names goes on for those who have it open.
func unlinkedOpen(t *testing.T, dir string) {
	p := filepath.Join(dir, "f")
	create(t, p, "before")
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, os.Remove(p))
	create(t, p, "another")
	_, err = f.WriteAt([]byte("after!"), 0)
	must(t, err)
	b := make([]byte, 6)
	_, err = f.ReadAt(b, 0)
	if err != nil || string(b) != "after!" {
		t.Errorf("%q, %v", b, err)
	}
	if got, err := os.ReadFile(p); err != nil || string(got) != "another" {
		t.Errorf("the new one: %q, %v", got, err)
	}
}

func copyRange(t *testing.T, dir string) {
	want := bytes.Repeat([]byte("0123456789"), 50000)
	must(t, os.WriteFile(filepath.Join(dir, "from"), want, 0o644))
	from, err := os.Open(filepath.Join(dir, "from"))
	must(t, err)
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, "to"))
	must(t, err)
	defer to.Close()
	for done := 0; done < len(want); {
		n, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, len(want), 0)
		must(t, err)
		if n == 0 {
			break
		}
		done += n
	}
	got, err := os.ReadFile(filepath.Join(dir, "to"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d: %v", len(got), len(want), err)
	}
}

// bigDirectory: a listing that takes several answers has every name once.
func bigDirectory(t *testing.T, dir string) {
	const n = 700
	for i := range n {
		fd, err := unix.Open(filepath.Join(dir, strings.Repeat("x", 60)+string(rune('a'+i%26))+itoa(i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		must(t, unix.Close(fd))
	}
	es, err := os.ReadDir(dir)
	must(t, err)
	if len(es) != n {
		t.Errorf("%d names, want %d", len(es), n)
	}
	must(t, os.RemoveAll(dir))
}

func itoa(i int) string {
	if i < 10 {
		return string(rune('0' + i))
	}
	return itoa(i/10) + string(rune('0'+i%10))
}

// times: what is set is what is seen, to the nanosecond.
func times(t *testing.T, dir string) {
	p := filepath.Join(dir, "f")
	create(t, p, "x")
	want := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 123456789}, {Sec: 1_100_000_000, Nsec: 987654321}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, want, 0))
	if st := lstat(t, p); st.Atim != want[0] || st.Mtim != want[1] {
		t.Errorf("%v, %v", st.Atim, st.Mtim)
	}
	before := lstat(t, dir).Mtim
	create(t, filepath.Join(dir, "g"), "x")
	if after := lstat(t, dir).Mtim; after == before {
		t.Error("a directory's mtime stays when a name comes")
	}
}

// commonNodes: FIFOs and sockets are made and found.
func commonNodes(t *testing.T, dir string) {
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if m := lstat(t, filepath.Join(dir, "fifo")).Mode; m != unix.S_IFIFO|0o600 {
		t.Errorf("mode of a FIFO: %o", m)
	}
	must(t, unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o600, 0))
	if m := lstat(t, filepath.Join(dir, "socket")).Mode; m != unix.S_IFSOCK|0o600 {
		t.Errorf("mode of a socket: %o", m)
	}
}
