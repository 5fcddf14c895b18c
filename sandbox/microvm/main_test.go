package microvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/microvm"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/snapshotstest"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/images"
	"github.com/galleyfs/galley/vm/images/imagestest"
	"github.com/galleyfs/galley/vm/jail"
	"github.com/galleyfs/galley/vm/kernel"
)

// TestMain plays the owner, and what confines the machine, too.
func TestMain(m *testing.M) {
	jail.Init()
	if len(os.Args) > 1 && os.Args[1] == owner.Command {
		os.Exit(owner.Main(os.Args[2:]))
	}
	// Under the race detector every process would sleep a second at its end.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, f := range atEnd {
		f()
	}
	os.Exit(code)
}

// atEnd is done when all tests are over.
var atEnd []func()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for another process.
const patience = 2 * time.Minute

// machine is what the guests of these tests boot, made once.
var machine = sync.OnceValues(func() (kernel.Boot, error) {
	dir, err := os.MkdirTemp("", "galley-microvm-")
	if err != nil {
		return kernel.Boot{}, err
	}
	atEnd = append(atEnd, func() { _ = os.RemoveAll(dir) })
	agent := filepath.Join(dir, "galley-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "github.com/galleyfs/galley/cmd/galley-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return kernel.Boot{}, fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return kernel.Prepare(context.Background(), kernel.Options{Guest: agent, Cache: filepath.Join(dir, "cache")})
})

// world is a store with an image in it, for sessions.
type world struct {
	store *snapshots.Store
	image *images.Image
	root  snapshots.TreeSpec
}

// newWorld makes a store with the image at path.
func newWorld(t *testing.T, path string) *world {
	t.Helper()
	w := &world{}
	var err error
	w.store, err = snapshots.OpenStore(filepath.Join(t.TempDir(), "home"), snapshots.StoreOptions{})
	must(t, err)
	t.Cleanup(func() { _ = w.store.Close() })
	imgs, err := images.Open(w.store)
	must(t, err)
	begin := time.Now()
	w.image, err = imgs.Ensure(t.Context(), path, images.PullOptions{})
	must(t, err)
	w.root, err = imgs.Root(t.Context(), w.image, nil)
	must(t, err)
	t.Logf("the image was unpacked in %v", time.Since(begin).Round(time.Millisecond))
	return w
}

// session makes a session on base with the image as the guest's root.
func (w *world) session(t *testing.T, base string) *snapshots.Session {
	t.Helper()
	sess, err := w.store.Create(t.Context(), snapshots.Spec{Base: base, Extra: []snapshots.TreeSpec{w.root}})
	must(t, err)
	t.Cleanup(func() { snapshotstest.WaitIdle(t, sess.Dir()) })
	return sess
}

// options are those of a small machine.
func (w *world) options(t *testing.T, sess *snapshots.Session) microvm.Options {
	t.Helper()
	b, err := machine()
	must(t, err)
	return microvm.Options{
		Session: sess, Env: w.image.Config.Environ(), User: w.image.Config.User,
		VM: owner.VM{
			Driver: "qemu", Image: w.image.Name,
			Config: vm.Config{CPUs: 1, Memory: 384 << 20, Kernel: b.Kernel, Initrd: b.Initrd, Accel: vm.TCG},
			Setup:  guest.Setup{Hostname: "guest", Workdir: microvm.Workdir, MaxProcesses: 2000, Reserve: 64 << 20},
		},
	}
}

func open(t *testing.T, o microvm.Options) *microvm.Sandbox {
	t.Helper()
	sb, err := microvm.Open(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { _ = sb.Close() })
	t.Logf("the machine: %+v", sb.Machine().Boot)
	return sb
}

// debian is the world with the image of Debian.
func debian(t *testing.T) *world {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	return newWorld(t, imagestest.Debian(t))
}

// gone reports whether no process has that id.
func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }
