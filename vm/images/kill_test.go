package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// killedAt, in the environment, has this binary import the image that it names
// and kill itself at a step.
const killedAt = "GALLEY_TEST_KILLED_AT"

// importAndDie is the child of TestKilled: it imports the file that its
// environment names, and is killed the moment that it has come as far as it says.
func importAndDie(spec string) int {
	var at int
	home, path, _ := strings.Cut(spec, "\n")
	home, rest, _ := strings.Cut(home, " ")
	if _, err := fmt.Sscan(rest, &at); err != nil {
		return 2
	}
	st, err := snapshots.OpenStore(home, snapshots.StoreOptions{})
	if err != nil {
		return 3
	}
	im, err := Open(st)
	if err != nil {
		return 4
	}
	steps := 0
	_, err = im.Import(context.Background(), path, ImportOptions{Name: "it", Progress: func(Progress) {
		if steps++; steps == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}})
	fmt.Println(steps)
	if err != nil {
		return 5
	}
	return 0
}

// An import that is killed at any step leaves no image, and what it leaves
// otherwise is in nobody's way and goes with the next gc.
func TestKilled(t *testing.T) {
	var entries []file
	for i := range 8 {
		entries = append(entries, dir(fmt.Sprint("d", i)), reg(fmt.Sprint("d", i, "/file"), strings.Repeat("text", 2000)))
	}
	path := writeLayout(t, nil, zipped(t, entries...), zipped(t, reg("last", "x")))
	w := newWorld(t)
	run := func(at int) (string, error) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d\n%s", killedAt, w.sessions.Home(), at, path))
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	killed := 0
	for at := 1; ; at++ {
		out, err := run(at)
		if err == nil {
			if killed < 8 {
				t.Errorf("only %d steps, %s", killed, out)
			}
			break
		}
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: %v, %s", at, err, out)
		}
		killed++
		if _, err := w.images.Find("it"); !errors.Is(err, ErrNotFound) {
			t.Errorf("step %d: %v", at, err)
		}
		if at != 5 { // after which the next finds what that left
			_, err := w.images.GC(t.Context(), GCOptions{})
			must(t, err)
			w.nothing()
			blobs, err := os.ReadDir(filepath.Join(w.sessions.ImagesDir(), dirBlobs))
			must(t, err)
			if len(blobs) > 0 {
				t.Errorf("step %d: %d blobs are left", at, len(blobs))
			}
		}
	}
	img, err := w.images.Find("it")
	must(t, err)
	w.look(w.session(img), func(f *overlay.Face) {
		if text(t, f, "d7/file") != strings.Repeat("text", 2000) || text(t, f, "last") != "x" {
			t.Error("it is not whole")
		}
	})
	_, err = w.images.GC(t.Context(), GCOptions{})
	must(t, err)
	left, err := filepath.Glob(filepath.Join(w.sessions.ImagesDir(), stagePrefix+"*"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// Two processes that want the same image at once both have it.
func TestTwoAtOnce(t *testing.T) {
	w := newWorld(t)
	path := writeLayout(t, nil, zipped(t, reg("x", strings.Repeat("text", 50000))), zipped(t, reg("y", "y")))
	var started []*exec.Cmd
	for range 3 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s 0\n%s", killedAt, w.sessions.Home(), path))
		must(t, cmd.Start())
		started = append(started, cmd)
	}
	for _, cmd := range started {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	img, err := w.images.Find("it")
	must(t, err)
	w.look(w.session(img), func(f *overlay.Face) {
		if text(t, f, "y") != "y" {
			t.Error("it is not whole")
		}
	})
}
