//go:build cgo

package krun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
)

// recorder notes the calls that go through it to the real library.
type recorder struct {
	*Library
	made []string
}

func (r *recorder) note(name string, err error) error {
	r.made = append(r.made, name)
	return err
}

// logging: a process may do that once.
var logging sync.Once

func (r *recorder) initLog(fd int, level uint32) error {
	var err error
	logging.Do(func() { err = r.Library.initLog(fd, level) })
	return r.note("initLog", err)
}

func (r *recorder) createCtx() (uint32, error) {
	ctx, err := r.Library.createCtx()
	return ctx, r.note("createCtx", err)
}
func (r *recorder) setVMConfig(ctx uint32, cpus uint8, mib uint32) error {
	return r.note("setVMConfig", r.Library.setVMConfig(ctx, cpus, mib))
}
func (r *recorder) setRoot(ctx uint32, dir string) error {
	return r.note("setRoot", r.Library.setRoot(ctx, dir))
}
func (r *recorder) addVirtiofs(ctx uint32, tag, path string) error {
	return r.note("addVirtiofs "+tag, r.Library.addVirtiofs(ctx, tag, path))
}
func (r *recorder) addNetUnixstream(ctx uint32, fd int, mac [6]byte) error {
	return r.note(fmt.Sprintf("addNetUnixstream %x", mac), r.Library.addNetUnixstream(ctx, fd, mac))
}
func (r *recorder) disableImplicitVsock(ctx uint32) error {
	return r.note("disableImplicitVsock", r.Library.disableImplicitVsock(ctx))
}
func (r *recorder) addVsock(ctx uint32, tsi uint32) error {
	return r.note(fmt.Sprint("addVsock ", tsi), r.Library.addVsock(ctx, tsi))
}
func (r *recorder) addVsockPort(ctx uint32, port uint32, path string) error {
	return r.note(fmt.Sprint("addVsockPort ", port), r.Library.addVsockPort(ctx, port, path))
}
func (r *recorder) setPortMap(ctx uint32, ports []string) error {
	return r.note(fmt.Sprint("setPortMap ", len(ports)), r.Library.setPortMap(ctx, ports))
}
func (r *recorder) setWorkdir(ctx uint32, dir string) error {
	return r.note("setWorkdir", r.Library.setWorkdir(ctx, dir))
}
func (r *recorder) setExec(ctx uint32, path string, args, env []string) error {
	return r.note(fmt.Sprint("setExec ", path, " ", len(args)), r.Library.setExec(ctx, path, args, env))
}
func (r *recorder) setConsoleOutput(ctx uint32, path string) error {
	return r.note("setConsoleOutput", r.Library.setConsoleOutput(ctx, path))
}
func (r *recorder) setKernel(ctx uint32, path string, format uint32, initrd, cmdline string) error {
	return r.note(fmt.Sprint("setKernel ", format), r.Library.setKernel(ctx, path, format, initrd, cmdline))
}

// loaded is the real library in this process, with a directory and a machine
// that can be configured from it.
func loaded(t *testing.T) (*recorder, Features, machine) {
	t.Helper()
	path := real(t)
	if err := Preload(newest([]string{filepath.Dir(path)}, "libkrunfw.so.5")); err != nil {
		t.Fatal(err)
	}
	lib, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &recorder{Library: lib}, lib.Features(), machine{
		CPUs: 2, MiB: 512, Root: dir, Share: dir, Agent: filepath.Join(dir, "agent"), Console: filepath.Join(dir, "console"),
		Net: -1, Log: 2,
	}
}

// TestOrder: the real library takes each call, in the order that is documented,
// for every shape of a machine.
func TestOrder(t *testing.T) {
	begin := []string{"initLog", "createCtx", "setVMConfig", "setRoot"}
	end := []string{"setWorkdir", "setExec /galley-guest 0"}
	vsock := []string{"disableImplicitVsock", "addVsock 0", "addVsockPort 1024"}
	join := func(lists ...[]string) (out []string) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	for _, k := range []struct {
		name   string
		change func(*testing.T, *machine)
		want   []string
	}{
		{"no network", func(*testing.T, *machine) {},
			join(begin, []string{"addVirtiofs galley"}, vsock, []string{"setPortMap 0", "setConsoleOutput"}, end)},
		{"network", func(t *testing.T, m *machine) {
			a, b, err := sockets(unix.SOCK_STREAM)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = a.Close(), b.Close() })
			m.Net = int(a.Fd())
		}, join(begin, []string{"addVirtiofs galley", "addNetUnixstream 5a94efe40cee"}, vsock, []string{"setConsoleOutput"}, end)},
		{"another kernel, no share", func(t *testing.T, m *machine) {
			m.Share, m.Kernel, m.Format, m.Initrd, m.Cmdline = "", filepath.Join(m.Root, "vmlinux"), 1, filepath.Join(m.Root, "initrd"), "quiet"
			for _, f := range []string{m.Kernel, m.Initrd} {
				if err := os.WriteFile(f, []byte("\x7fELF"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, join(begin, vsock, []string{"setPortMap 0", "setConsoleOutput", "setKernel 1"}, end)},
	} {
		t.Run(k.name, func(t *testing.T) {
			lib, f, m := loaded(t)
			k.change(t, &m)
			ctx, err := configure(lib, f, m)
			if err != nil {
				t.Fatalf("after %v: %v", lib.made, err)
			}
			if !reflect.DeepEqual(lib.made, k.want) {
				t.Errorf("the calls are %q,\nwant %q", lib.made, k.want)
			}
			if err := lib.freeCtx(ctx); err != nil {
				t.Error(err)
			}
			if err := lib.freeCtx(ctx); !errors.Is(err, unix.ENOENT) {
				t.Errorf("free it again: %v", err)
			}
		})
	}
}

// TestWhatTheLibraryRefuses: the wrapper tells the library's errors from
// successes, and the order that configure keeps is one that matters.
func TestWhatTheLibraryRefuses(t *testing.T) {
	lib, f, m := loaded(t)
	if f.Version != "1.17.4" || f.Since != "1.17.3" || !f.NoTSI || !f.Net || !f.Kernel || f.ReadOnlyRoot || len(f.Missing) != 0 {
		t.Errorf("the features of libkrun 1.17.4 are %+v", f)
	}
	ctx, err := lib.createCtx()
	if err != nil {
		t.Fatal(err)
	}
	if err := lib.addVsock(ctx, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a vsock beside the implicit one: %v, want EEXIST", err)
	}
	if err := lib.setConsoleOutput(ctx, m.Console); err != nil {
		t.Error(err)
	}
	if err := lib.setConsoleOutput(ctx, m.Console); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a second console: %v, want EINVAL", err)
	}
	if err := lib.setVMConfig(ctx, 1, 128); err != nil {
		t.Error(err)
	}
	const unknown = 1 << 30
	for name, err := range map[string]error{
		"setVMConfig": lib.setVMConfig(unknown, 1, 128), "setRoot": lib.setRoot(unknown, "/"), "setWorkdir": lib.setWorkdir(unknown, "/"),
		"addVirtiofs": lib.addVirtiofs(unknown, "a", "/"), "setExec": lib.setExec(unknown, "/x", []string{"a"}, []string{"A=b"}),
		"setKernel": lib.setKernel(unknown, m.Root, 0, "", ""), "addVsockPort": lib.addVsockPort(unknown, 1, "/x"),
		"disableImplicitVsock": lib.disableImplicitVsock(unknown), "setPortMap": lib.setPortMap(unknown, nil),
		"startEnter": lib.startEnter(unknown),
	} {
		var call *callError
		if !errors.As(err, &call) || call.Errno == 0 {
			t.Errorf("%s of a context that is not there: %v", name, err)
		}
	}
	// A function that the library has not is named.
	if err := lib.addReadOnlyVirtiofs(ctx, "x", "/"); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("krun_add_virtiofs3 of 1.17: %v", err)
	}
	f.NoTSI = false
	if _, err := configure(lib, f, m); !errors.Is(err, vm.ErrUnavailable) {
		t.Errorf("a library that cannot turn TSI off: %v", err)
	}
	if err := lib.freeCtx(ctx); err != nil {
		t.Error(err)
	}
}
