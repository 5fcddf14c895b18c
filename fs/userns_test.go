package fs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// testUser is the ordinary user that root's tests turn into.
const testUser = 1000

// asUser makes cmd run as an ordinary user, if it would not anyway.
func asUser(cmd *exec.Cmd) *exec.Cmd {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: testUser, Gid: testUser}}
	}
	return cmd
}

// userDir is a directory of that user's which the user can reach.
func userDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		must(t, os.Chmod(filepath.Dir(dir), 0o755))
		must(t, os.Chown(dir, testUser, testUser))
	}
	return dir
}

// openToAll lets the ordinary user at /dev/fuse, as hosts do by default.
func openToAll(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		must(t, os.Chmod(devFuse, 0o666))
	}
}

// nsMountHelper runs as an ordinary user. Started first, it starts itself in a
// user and mount namespace; there it mounts without any helper, sends the
// device over descriptor 3, waits until it is served, and runs a script.
func nsMountHelper() error {
	if os.Getenv("GALLEY_FS_TEST_NS") == "" {
		cmd := helper("nsmount")
		cmd.Env = append(cmd.Env, "GALLEY_FS_TEST_NS=inside")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.ExtraFiles = []*os.File{os.NewFile(3, "socket")}
		id := func(id int) []syscall.SysProcIDMap {
			return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: id(os.Getuid()), GidMappings: id(os.Getgid()),
			// Kept through exec, as the user is not 0 in there.
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
		}
		return cmd.Run()
	}
	dir := os.Getenv("GALLEY_FS_TEST_DIR")
	dev, err := OpenMount(dir, MountOptions{AllowOther: true})
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(dev.Fd())), nil, 0); err != nil {
		return fmt.Errorf("send the device: %w", err)
	}
	if err := dev.Close(); err != nil {
		return err
	}
	if _, err := os.NewFile(3, "socket").Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the server: %w", err)
	}
	cmd := exec.Command("sh", "-ec", os.Getenv("GALLEY_FS_TEST_SCRIPT"))
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}

func TestMountInAUserNamespace(t *testing.T) {
	if b, err := os.ReadFile("/proc/sys/kernel/unprivileged_userns_clone"); err == nil && strings.TrimSpace(string(b)) == "0" {
		t.Skip("kernel.unprivileged_userns_clone is 0")
	}
	openToAll(t)
	base, dir := userDir(t), userDir(t)
	must(t, os.WriteFile(filepath.Join(base, "f"), []byte("base\n"), 0o644))
	if os.Geteuid() == 0 {
		must(t, os.Chown(filepath.Join(base, "f"), testUser, testUser))
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()

	cmd := asUser(helper("nsmount"))
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(cmd.Env, "GALLEY_FS_TEST_DIR="+dir, "GALLEY_FS_TEST_SCRIPT="+
		`cat f; echo more >>f; mkdir d; echo x >d/new; ln -s f l; mv f g; ls; cat l 2>/dev/null || echo dangling; stat -c %u g; grep -c " $PWD .*fuse.galley" /proc/self/mountinfo`)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	must(t, theirs.Close())
	dev, err := receiveDevice(ours)
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("no device came: %v\n%s", err, out.String())
	}
	s := serveOn(t, dev, serveConfig{Base: base, State: userDir(t)})
	_, err = ours.Write([]byte{1})
	must(t, err)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("inside: %v\n%s", err, out.String())
	}
	uid := os.Geteuid()
	if uid == 0 {
		uid = testUser
	}
	want := fmt.Sprintf("base\nd\ng\nl\ndangling\n%d\n1\n", uid)
	if out.String() != want {
		t.Errorf("inside: got %q, want %q", out.String(), want)
	}
	// The namespace has ended, and with it the mount; nobody else saw it.
	if got := s.do(command{Op: "read", Path: "g"}).Data; string(got) != "base\nmore\n" {
		t.Errorf("g is %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(base, "f")); err != nil || string(b) != "base\n" {
		t.Errorf("the base has changed: %q, %v", b, err)
	}
}

// fusermountHelper is the ordinary user at the command line: it mounts through
// fusermount3, passes the device on, and unmounts when told.
func fusermountHelper() error {
	dir := os.Getenv("GALLEY_FS_TEST_DIR")
	ctx := context.Background()
	dev, err := OpenFusermount(ctx, dir, MountOptions{FsName: "a,b c", ReadOnly: os.Getenv("GALLEY_FS_TEST_RO") != ""})
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(dev.Fd())), nil, 0); err != nil {
		return err
	}
	if err := dev.Close(); err != nil {
		return err
	}
	sock := os.NewFile(3, "socket")
	if _, err := sock.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the server: %w", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "base\n" {
		return fmt.Errorf("f is %q, %w", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "w"), nil, 0o644); err != nil {
		fmt.Println(err)
	}
	if err := Unmount(ctx, dir); err != nil {
		return err
	}
	_, err = io.WriteString(os.Stdout, "unmounted\n")
	return err
}

func TestFusermountAsUser(t *testing.T) {
	if _, err := findFusermount(); err != nil {
		t.Fatal(err)
	}
	openToAll(t)
	for _, ro := range []bool{false, true} {
		base, dir := userDir(t), userDir(t)
		must(t, os.WriteFile(filepath.Join(base, "f"), []byte("base\n"), 0o644))
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		cmd := asUser(helper("fusermount"))
		cmd.ExtraFiles = []*os.File{theirs}
		cmd.Env = append(cmd.Env, "GALLEY_FS_TEST_DIR="+dir)
		want := "unmounted\n"
		if ro {
			cmd.Env = append(cmd.Env, "GALLEY_FS_TEST_RO=1")
			want = "open " + dir + "/w: read-only file system\nunmounted\n"
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, cmd.Start())
		must(t, theirs.Close())
		dev, err := receiveDevice(ours)
		if err != nil {
			_ = cmd.Wait()
			t.Fatalf("no device came: %v\n%s", err, out.String())
		}
		t.Cleanup(func() {
			if _, err := mountAt(dir); err == nil {
				_ = detach(context.Background(), dir)
			}
		})
		serveOn(t, dev, serveConfig{Base: base, State: userDir(t)})
		_, err = ours.Write([]byte{1})
		must(t, err)
		must(t, ours.Close())
		if err := cmd.Wait(); err != nil {
			t.Errorf("user: %v", err)
		}
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
}

// TestFusermountSaysWhatIsWrong: the helper's own words, and what to do.
func TestFusermountSaysWhatIsWrong(t *testing.T) {
	_, err := OpenFusermount(t.Context(), filepath.Join(t.TempDir(), "missing"), MountOptions{})
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v", err)
	}
}

// shell runs a script with arguments.
func shell(script string, args ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...)
}
