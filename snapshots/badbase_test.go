package snapshots

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// refused tries to create a session and wants an error that says all of says,
// and no session.
func (f *fixture) refused(spec Spec, want error, says ...string) {
	f.t.Helper()
	_, err := f.store.Create(context.Background(), spec)
	if err == nil {
		f.t.Errorf("a session on %q was made", spec.Base)
		return
	}
	if !errors.Is(err, want) {
		f.t.Errorf("base %q: %v; want %v", spec.Base, err, want)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			f.t.Errorf("base %q: the message %q does not say %q", spec.Base, err, part)
		}
	}
	if list, err := f.store.List(); err != nil || len(list) != 0 {
		f.t.Errorf("base %q: sessions %v, %v", spec.Base, list, err)
	}
}

func TestBasesThatCannotBe(t *testing.T) {
	f := newFixture(t, nil)
	dir := filepath.Dir(f.base)
	file := filepath.Join(f.base, "kept")
	f.refused(Spec{Base: file}, ErrBadBase, file, "directory is needed")
	none := filepath.Join(dir, "none")
	f.refused(Spec{Base: none}, ErrBadBase, none, "no such file")
	f.refused(Spec{Base: f.home}, ErrBadBase, f.home, "own state")
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	f.refused(Spec{Base: loop}, ErrBadBase, loop)
	f.refused(Spec{Base: f.base, Extra: []TreeSpec{{Name: "more", Base: file}}}, ErrBadBase, file)
}

func TestBasesThatThisUserMayNotRead(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: root may read everything")
	}
	for mode, says := range map[os.FileMode]string{0o300: "may not list it", 0o600: "may not enter it"} {
		f := newFixture(t, nil)
		if err := os.Chmod(f.base, mode); err != nil {
			t.Fatal(err)
		}
		f.refused(Spec{Base: f.base}, ErrBadBase, f.base, says)
		if err := os.Chmod(f.base, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

const mountEnv = "GALLEY_TEST_MOUNT"

// TestMountHelper is no test but the process that serves a mount of another.
func TestMountHelper(t *testing.T) {
	dir := os.Getenv(mountEnv)
	if dir == "" {
		return
	}
	root := &gofs.Inode{}
	srv, err := gofs.Mount(dir, root, &gofs.Options{
		MountOptions: fuse.MountOptions{FsName: "galley", Name: "galley", DirectMount: os.Getuid() == 0},
		OnAdd: func(ctx context.Context) {
			root.AddChild("sub", root.NewPersistentInode(ctx, &gofs.Inode{}, gofs.StableAttr{Mode: unix.S_IFDIR}), false)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("mounted\n")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	if err := srv.Unmount(); err != nil {
		t.Error(err)
	}
}

// TestBaseInsideAMount: what Galley shows is no base for another session.
func TestBaseInsideAMount(t *testing.T) {
	f := newFixture(t, nil)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestMountHelper$")
	cmd.Env = append(os.Environ(), mountEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the process that serves the mount: %v", err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("the mount: %q, %v", line, err)
	}
	for _, base := range []string{dir, filepath.Join(dir, "sub")} {
		f.refused(Spec{Base: base}, ErrBadBase, base, "shown by Galley")
	}
}

const insideEnv = "GALLEY_TEST_INSIDE"

// TestStoresThatCannotBe: a state directory on a file system that keeps no
// xattrs, or on a full one, is refused by its name, and no session is half made.
func TestStoresThatCannotBe(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to mount such file systems")
	}
	if os.Getenv(insideEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestStoresThatCannotBe$", "-test.v")
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("in a mount namespace of its own: %v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fstype, options, says string
		want                  error
	}{
		{"ramfs", "", "extended attributes", unix.EOPNOTSUPP},
		{"tmpfs", "size=64k", "KiB free", unix.ENOSPC},
		{"tmpfs", "nr_inodes=40", "inodes free", unix.ENOSPC},
	} {
		dir := t.TempDir()
		f := &fixture{t: t, home: filepath.Join(dir, "home"), base: filepath.Join(dir, "project")}
		write(t, filepath.Join(f.base, "kept"), "base")
		if err := os.Mkdir(f.home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", f.home, c.fstype, 0, c.options); err != nil {
			t.Fatal(err)
		}
		f.store = f.open(nil)
		f.refused(Spec{Base: f.base}, c.want, f.home, c.says, "GALLEY_HOME")
		if err := unix.Unmount(f.home, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}
