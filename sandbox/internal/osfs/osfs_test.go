package osfs

import (
	"os"
	"path/filepath"
	"testing"
)

// Where a path leads does not depend on whether somebody replaces the file just
// then: the kernel calls what was replaced by another name.
func TestRealOfAFileThatIsReplaced(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p, link, next := filepath.Join(dir, "f"), filepath.Join(dir, "link"), filepath.Join(dir, "next")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			err := os.WriteFile(next, nil, 0o600)
			if err == nil {
				err = os.Rename(next, p)
			}
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 5000 {
		for _, name := range []string{p, link} {
			if real, err := (FS{}).Real(name); err != nil || real != p {
				t.Errorf("%s leads to %q, %v; want %q", name, real, err, p)
			}
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A file may be called so.
func TestRealOfANameOfTheKernels(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, "f (deleted)")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if real, err := (FS{}).Real(p); err != nil || real != p {
		t.Errorf("%q, %v; want %q", real, err, p)
	}
}
