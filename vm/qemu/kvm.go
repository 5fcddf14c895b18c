package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/kernel"
)

const deviceKVM = "/dev/kvm"

const (
	// probeTime is how long a kernel may take to boot under KVM, which on
	// hardware is a fraction of a second.
	probeTime = 5 * time.Second
	// probeMemory is the memory of the machine that boots in the probe.
	probeMemory = 256 << 20
	// probeEnd is what a kernel writes when it has booted and finds no root,
	// as it must in the probe.
	probeEnd = "Kernel panic - not syncing: VFS"
	// verdictFile keeps what the probe found.
	verdictFile = "kvm.json"
)

// verdict is whether KVM runs guests.
type verdict struct {
	KVM bool   `json:"kvm"`
	Why string `json:"why,omitempty"`
	Fix string `json:"fix,omitempty"`

	// Of is what it was found for: this boot of the host, QEMU, the kernel,
	// the user.
	Of string `json:"of,omitempty"`

	fresh bool // it was found out just now
}

// verdict finds out whether KVM runs guests: a device that opens may belong to
// a host that emulates it and cannot. The first time after the host's boot a
// kernel is booted under it; what comes of that is kept.
func (d *Driver) verdict(ctx context.Context, q *installation, image string) (verdict, error) {
	if v, decided := deviceVerdict(); decided {
		return v, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if image == "" {
		var err error
		if image, err = kernel.Uncompressed(ctx, kernel.Options{Cache: d.opt.Cache}); err != nil {
			return verdict{Why: "KVM was not tried: " + err.Error()}, nil
		}
	}
	of := identity(q.exe, image)
	if v, ok := d.kept(of); ok {
		return v, nil
	}
	v, err := q.boots(ctx, image)
	if err != nil {
		return v, err
	}
	v.Of, v.fresh = of, true
	if !v.KVM {
		// Once for each boot of the host, because the verdict is kept.
		d.opt.Log.Warn("machines run without hardware acceleration", "why", v.Why)
	}
	d.keep(v)
	return v, nil
}

// deviceVerdict decides what the device's absence decides.
func deviceVerdict() (verdict, bool) {
	fd, err := unix.Open(deviceKVM, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return verdict{Why: "there is no /dev/kvm", Fix: "switch virtualization on in the firmware, or allow it for this virtual machine; then, as root: modprobe kvm_intel or kvm_amd"}, true
	case errors.Is(err, unix.EACCES):
		return verdict{Why: "this user may not open /dev/kvm", Fix: "as root: usermod -aG kvm USER, and log in anew"}, true
	case err != nil:
		return verdict{Why: "/dev/kvm cannot be opened: " + err.Error()}, true
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && os.Geteuid() == 0 && st.Mode&0o066 == 0 {
		// A machine of root's runs as an id of its own.
		return verdict{Why: "/dev/kvm is for its owner alone", Fix: "chmod 0666 /dev/kvm, as udev does"}, true
	}
	return verdict{}, false
}

// kvmGroups are the groups by which a machine of root's may open the device.
func kvmGroups() []int {
	var st unix.Stat_t
	if err := unix.Stat(deviceKVM, &st); err != nil || st.Mode&0o060 != 0o060 || st.Mode&0o006 == 0o006 {
		return nil
	}
	return []int{int(st.Gid)}
}

// identity names what a verdict holds for; "" is for nothing.
func identity(exe, image string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	st, err := os.Stat(exe)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %s %d %d %s", strings.TrimSpace(string(boot)), os.Geteuid(),
		exe, st.Size(), st.ModTime().UnixNano(), image)
}

// kept is the verdict that an earlier probe kept.
func (d *Driver) kept(of string) (verdict, bool) {
	var v verdict
	if d.opt.Cache == "" || of == "" {
		return v, false
	}
	b, err := os.ReadFile(filepath.Join(d.opt.Cache, verdictFile))
	if err != nil || json.Unmarshal(b, &v) != nil {
		return verdict{}, false
	}
	return v, v.Of == of
}

// keep keeps v for others. A verdict that cannot be kept is found anew.
func (d *Driver) keep(v verdict) {
	if d.opt.Cache == "" || v.Of == "" {
		return
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = replaceFile(filepath.Join(d.opt.Cache, verdictFile), b)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.opt.Log.Warn("keep what was found out about KVM", "error", err)
	}
}

// replaceFile writes a file that is there whole or not at all.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// boots boots a kernel under KVM, with nothing to go on to. It has booted when
// it says so.
func (q *installation) boots(ctx context.Context, image string) (verdict, error) {
	console, write, err := os.Pipe()
	if err != nil {
		return verdict{}, err
	}
	defer console.Close()
	m, err := q.start(vm.Config{CPUs: 1, Memory: probeMemory, Kernel: image, Console: write}, vm.KVM)
	_ = write.Close()
	if err != nil {
		return verdict{}, err
	}
	timer := time.AfterFunc(probeTime, func() { m.kill(fmt.Sprintf("no kernel booted within %v", probeTime)) })
	stop := context.AfterFunc(ctx, func() { m.kill("given up") })
	booted := saysBooted(console)
	timer.Stop()
	stop()
	if booted {
		return verdict{KVM: true}, m.Kill()
	}
	exit, err := m.Wait()
	if ctx.Err() != nil {
		return verdict{}, context.Cause(ctx)
	}
	return verdict{Why: "KVM does not run guests on this host: " + exit.String()}, err
}

// saysBooted reads a console until the kernel says that it has booted.
func saysBooted(console io.Reader) bool {
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		if bytes.Contains(lines.Bytes(), []byte(probeEnd)) {
			return true
		}
	}
	return false
}
