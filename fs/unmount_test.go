package fs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// holdHelper keeps a mount busy in the way its arguments say until its input
// ends.
func holdHelper() error {
	dir := os.Getenv("GALLEY_FS_TEST_DIR")
	switch how := os.Getenv("GALLEY_FS_TEST_HOW"); how {
	case "cwd":
		if err := os.Chdir(filepath.Join(dir, "dir")); err != nil {
			return err
		}
	case "open":
		f, err := os.Open(filepath.Join(dir, "a.txt"))
		if err != nil {
			return err
		}
		defer f.Close()
	case "map":
		f, err := os.Open(filepath.Join(dir, "dir/c.txt"))
		if err != nil {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer unix.Munmap(m)
		if err := f.Close(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("how: %q", how)
	}
	fmt.Println("holding")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func hold(t *testing.T, dir, how string) (*exec.Cmd, func()) {
	t.Helper()
	cmd := helper("hold")
	cmd.Env = append(cmd.Env, "GALLEY_FS_TEST_DIR="+dir, "GALLEY_FS_TEST_HOW="+how)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	released := false
	release := func() {
		if released {
			return
		}
		released = true
		_ = in.Close()
		must(t, cmd.Wait())
	}
	t.Cleanup(release)
	return cmd, release
}

// once is a context for one try.
func once(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestUnmountSaysWhoIsBusy(t *testing.T) {
	for how, want := range map[string]string{
		"cwd":  `(working directory "dir")`,
		"open": `(open file "a.txt")`,
		"map":  `(mapped file "dir/c.txt")`,
	} {
		t.Run(how, func(t *testing.T) {
			s := mount(t, serveConfig{})
			cmd, release := hold(t, s.Dir, how)
			err := Unmount(once(t), s.Dir)
			var busy *BusyError
			if !errors.As(err, &busy) || !errors.Is(err, unix.EBUSY) {
				t.Fatalf("got %v, want a BusyError", err)
			}
			if !strings.Contains(err.Error(), fmt.Sprintf("process %d ", cmd.Process.Pid)) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, want process %d %s", err, cmd.Process.Pid, want)
			}
			release()
			must(t, Unmount(t.Context(), s.Dir))
		})
	}
}

func TestUnmountWaitsForTheLastUser(t *testing.T) {
	s := mount(t, serveConfig{})
	_, release := hold(t, s.Dir, "open")
	done := make(chan error, 1)
	go func() { done <- Unmount(t.Context(), s.Dir) }()
	release()
	must(t, <-done)
	s.stop()
}

func TestUnmountLazyLeavesUsersTheirFiles(t *testing.T) {
	s := mount(t, serveConfig{})
	f, err := os.Open(s.path("a.txt"))
	must(t, err)
	defer f.Close()
	must(t, UnmountLazy(t.Context(), s.Dir))
	if _, err := os.Stat(s.path("a.txt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "alpha\n" {
		t.Errorf("open file: %q, %v", b, err)
	}
}

func TestUnmountRefusesWhatIsNotGalleys(t *testing.T) {
	if err := Unmount(once(t), "/proc"); err == nil || !strings.Contains(err.Error(), "type proc") {
		t.Errorf("/proc: %v", err)
	}
	dir := t.TempDir()
	if err := Unmount(once(t), dir); err == nil || !strings.Contains(err.Error(), "not a mount point") {
		t.Errorf("%s: %v", dir, err)
	}
}

func TestUnmountThroughALink(t *testing.T) {
	s := mount(t, serveConfig{})
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(s.Dir, link))
	must(t, Unmount(t.Context(), link))
}
