package hostfstest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/overlay/hostfs/hostfstest"
)

// replace is the sequence under test: a file replaced the durable way.
func replace(fs hostfs.FS, dir int, text string) error {
	fd, err := fs.Open(dir, "new", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer fs.Close(fd)
	if err := hostfs.WriteFull(fs, fd, []byte(text), 0); err != nil {
		_ = fs.Unlink(dir, "new", 0)
		return err
	}
	if err := fs.Fsync(fd); err != nil {
		return err
	}
	if err := fs.Rename(dir, "new", dir, "file", 0); err != nil {
		return err
	}
	return fs.Fsync(dir)
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func content(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCrashAtEveryCall(t *testing.T) {
	dir := t.TempDir()
	fd := openDir(t, dir)
	f := hostfstest.New(hostfs.OS)
	if err := replace(f, fd, "old"); err != nil {
		t.Fatal(err)
	}
	steps := f.Count()
	if steps != 5 {
		t.Fatalf("counted %d calls, want 5: %v", steps, f.Calls())
	}
	for n := 1; n <= steps; n++ {
		f.CrashAt(n)
		crashed, _ := f.Run(func() error { return replace(f, fd, "next") })
		if !crashed {
			t.Fatalf("no crash at call %d", n)
		}
		if _, err := f.Open(fd, "file", unix.O_RDONLY, 0); err != unix.EIO {
			t.Fatalf("a call after the crash answered %v, want EIO", err)
		}
		want := "old"
		if n == steps {
			want = "next"
		}
		if got := content(t, dir); got != want {
			t.Fatalf("after a crash at call %d the file holds %q, want %q", n, got, want)
		}
	}
	f.CrashAt(steps + 1)
	if crashed, err := f.Run(func() error { return replace(f, fd, "last") }); crashed || err != nil {
		t.Fatalf("crashed %v, error %v past the last call", crashed, err)
	}
}

func TestFailOnceAndFrom(t *testing.T) {
	dir := t.TempDir()
	fd := openDir(t, dir)
	f := hostfstest.New(hostfs.OS)
	f.FailAt(2, unix.ENOSPC)
	if err := replace(f, fd, "x"); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); !os.IsNotExist(err) {
		t.Fatalf("the clean-up after a single failure did not work: %v", err)
	}
	f.FailFrom(2, unix.ENOSPC)
	if err := replace(f, fd, "x"); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); err != nil {
		t.Fatalf("the clean-up worked although every call was to fail: %v", err)
	}
	log := f.Calls()
	if len(log) != 3 || log[2].Op != "Unlink" || log[2].Err != unix.ENOSPC {
		t.Fatalf("log %v", log)
	}
}

func TestShortWriteIsContinued(t *testing.T) {
	dir := t.TempDir()
	fd := openDir(t, dir)
	f := hostfstest.New(hostfs.OS)
	f.ShortAt(2)
	if err := replace(f, fd, "halves"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir); got != "halves" {
		t.Fatalf("file holds %q", got)
	}
	if f.Count() != 6 {
		t.Fatalf("counted %d calls, want one more write than 5", f.Count())
	}
}

func TestTornWrite(t *testing.T) {
	dir := t.TempDir()
	fd := openDir(t, dir)
	f := hostfstest.New(hostfs.OS)
	f.Only(func(op, _ string) bool { return op == "Pwrite" })
	f.TornAt(1)
	if crashed, _ := f.Run(func() error { return replace(f, fd, "halves") }); !crashed {
		t.Fatal("no crash")
	}
	b, err := os.ReadFile(filepath.Join(dir, "new"))
	if err != nil || string(b) != "hal" {
		t.Fatalf("torn file holds %q, %v", b, err)
	}
}

func TestExitLeavesAtOnce(t *testing.T) {
	if dir := os.Getenv("GALLEY_TEST_EXIT_DIR"); dir != "" {
		f := hostfstest.New(hostfs.OS)
		f.ExitAt(4)
		defer os.WriteFile(filepath.Join(dir, "deferred"), nil, 0o600)
		_ = replace(f, openDir(t, dir), "x")
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestExitLeavesAtOnce$")
	cmd.Env = append(os.Environ(), "GALLEY_TEST_EXIT_DIR="+dir)
	err := cmd.Run()
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != hostfstest.ExitStatus {
		t.Fatalf("child ended with %v, want status %d", err, hostfstest.ExitStatus)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || names[0].Name() != "new" {
		t.Fatalf("left behind %v, %v; want the file that was not yet renamed", names, err)
	}
}
