package model

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// differsInKernel is the written list of what the kernel's overlayfs does
// differently from Linux's other file systems, and so from the engine, in the
// configuration that Galley's layers are made for (redirect_dir and metacopy
// on, no index).
func differsInKernel(o overlaytest.Op) bool {
	if longName(o) {
		// The kernel redirects to no path above 256 bytes (redirect_max).
		return true
	}
	switch o.Kind {
	case overlaytest.OpLink:
		// Copy-up breaks hard links of the lower layers, and so their number.
		return true
	case overlaytest.OpMapRead, overlaytest.OpMapWrite:
		// A mapping made before a copy-up shows the lower file.
		return true
	}
	return false
}

// longName reports whether a name in o fills most of what a redirect may hold.
func longName(o overlaytest.Op) bool {
	for _, p := range []string{o.At.Path, o.To.Path} {
		for name := range strings.SplitSeq(p, "/") {
			if len(name) > 100 {
				return true
			}
		}
	}
	return slices.ContainsFunc(o.Between, longName)
}

// onKernel runs the programs of the other tests on a mount of the kernel's
// overlayfs: it answers as the reference does, and so as the engine does, but
// for what differsInKernel lists.
func onKernel(t *testing.T) (done int) {
	for _, seed := range seeds(t, 3) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			dir := fastDir(t)
			count := scale(t, 60_000)
			ops, err := runKernel(dir, seed, func(ref *overlaytest.Ref) program {
				return limited(count, overlaytest.NewGenerator(seed, ref).Next)
			})
			done += len(ops)
			if err == nil {
				return
			}
			report(t, fmt.Sprint("seed ", seed), ops, err, func(ops []overlaytest.Op) error {
				_, err := runKernel(dir, seed, func(*overlaytest.Ref) program { return list(ops) })
				return err
			})
		})
	}
	return done
}

func runKernel(dir string, seed uint64, programOf func(*overlaytest.Ref) program) (done []overlaytest.Op, err error) {
	dir, err = os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"base", "upper", "work", "view"} {
		if err := os.Mkdir(path(name), 0o755); err != nil {
			return nil, err
		}
	}
	host, err := overlaytest.OpenDir(path("base"))
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if err := baseWithoutLinks(seed)(host); err != nil {
		return nil, err
	}
	if err := overlaytest.MountKernel(path("view"), []string{path("base")}, path("upper"), path("work")); err != nil {
		return nil, err
	}
	defer unix.Unmount(path("view"), unix.MNT_DETACH)
	view, err := overlaytest.OpenDir(path("view"))
	if err != nil {
		return nil, err
	}
	defer view.Close()
	ref, err := overlaytest.Import(view)
	if err != nil {
		return nil, fmt.Errorf("read the view: %w", err)
	}
	cmp := overlaytest.NewComparer()
	cmp.LooseInos = true
	for next := programOf(ref); ; {
		o, ok := next()
		if !ok {
			return done, cmp.Compare(ref, view)
		}
		if differsInKernel(o) {
			continue
		}
		done = append(done, o)
		if err := overlaytest.Step(ref, view, o); err != nil {
			return done, err
		}
		if len(done)%500 == 0 {
			if err := cmp.Compare(ref, view); err != nil {
				return done, err
			}
		}
	}
}

// maxKernelLayers is how many fit into the options of mount(2), a page.
const maxKernelLayers = 40

func layers(s overlay.Stack) (n int) {
	for _, r := range s.Sealed {
		n += int(r.To-r.From) + 1
	}
	return n
}

// translated copies layers, with their marks moved to "trusted.overlay.".
func translated(dir string, trees []string) (out []string, err error) {
	for _, tree := range trees {
		to, err := os.MkdirTemp(dir, "l")
		if err != nil {
			return nil, err
		}
		if msg, err := exec.Command("cp", "-a", tree+"/.", to).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("cp -a: %w: %s", err, msg)
		}
		if err := filepath.WalkDir(to, translate); err != nil {
			return nil, err
		}
		out = append(out, to)
	}
	return out, nil
}

func translate(path string, _ os.DirEntry, err error) error {
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		mark, ours := strings.CutPrefix(name, "user.overlay.")
		if !ours {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, val)
		if err != nil {
			return err
		}
		if err := unix.Lremovexattr(path, name); err != nil {
			return err
		}
		if err := unix.Lsetxattr(path, "trusted.overlay."+mark, val[:n], 0); err != nil {
			return err
		}
	}
	return nil
}

// sameInKernel mounts the layers of a session's snapshot with the kernel's
// overlayfs, and compares every name met, type, mode, owner, time, xattr and
// byte. Layers in "user.overlay." are translated first: the kernel reads those
// without redirects and metadata-only copies.
func sameInKernel(dir string, s *overlaytest.Session) error {
	stack := s.Stack()
	if layers(stack) > maxKernelLayers {
		return nil
	}
	dir, err := os.MkdirTemp(dir, "k")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var lower []string
	for _, r := range slices.Backward(stack.Sealed) {
		for l := r.To; l >= r.From; l-- {
			lower = append(lower, filepath.Join(s.StateDir, "layers", fmt.Sprint(l), "tree"))
		}
	}
	lower = append(lower, s.BaseDir)
	if s.UserXattr() {
		copied, err := translated(dir, lower[:len(lower)-1])
		if err != nil {
			return err
		}
		lower = append(copied, s.BaseDir)
	}
	view := filepath.Join(dir, "view")
	if err := os.Mkdir(view, 0o755); err != nil {
		return err
	}
	if err := overlaytest.MountKernel(view, lower, "", ""); err != nil {
		return err
	}
	defer unix.Unmount(view, unix.MNT_DETACH)
	d, err := overlaytest.OpenDirReadOnly(view)
	if err != nil {
		return err
	}
	defer d.Close()
	cmp := overlaytest.NewComparer()
	cmp.LooseInos = true  // the kernel numbers a merged directory after its layer
	cmp.LooseLinks = true // it counts the names of a layer only
	return cmp.Compare(s.Ref, d)
}
