// Package qemu starts machines under QEMU: with hardware acceleration where
// that really runs guests, and by emulation where it does not.
//
// A machine is a q35 with virtio devices on PCI, which boots in every
// accelerator there is. Its process is confined (vm/jail): it sees QEMU, the
// libraries and firmware that it loads, the kernel and the initial file system;
// has no network, no capabilities and QEMU's own seccomp filter. What it needs
// of the world are connected descriptors that it inherits.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/jail"
)

// program is QEMU's, for the only architecture that there is a machine for.
const program = "qemu-system-x86_64"

// oldest is the first version that takes a network as a connected stream.
var oldest = [2]int{7, 2}

var packages = vm.Package{
	Debian: "qemu-system-x86", Ubuntu: "qemu-system-x86", Fedora: "qemu-system-x86-core", Arch: "qemu-system-x86",
}

// Options say where things are; the zero value finds them.
type Options struct {
	// Exe is QEMU's program; empty looks in $PATH.
	Exe string
	// Kernel boots in the probe of KVM. Empty is the host's.
	Kernel string
	// Cache is the directory that keeps what a probe found and what is made
	// of a kernel for it. Without one each probe is done anew.
	Cache string
	// Log gets what is worth knowing; nil discards it.
	Log *slog.Logger
}

// Driver is QEMU as a [vm.Driver]. It is safe for concurrent use.
type Driver struct {
	opt Options

	// mu is held while QEMU is looked for and while a probe boots, so that
	// there is one of each at a time.
	mu    sync.Mutex
	found *installation
}

// New returns the driver. It looks for nothing yet.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{opt: o}
}

var _ vm.Driver = (*Driver)(nil)

// Name is [vm.Driver.Name].
func (d *Driver) Name() string { return "qemu" }

// Probe is [vm.Driver.Probe].
func (d *Driver) Probe(ctx context.Context) (vm.Probe, error) {
	p := vm.Probe{Driver: d.Name()}
	q, err := d.installation()
	if err != nil {
		var m *vm.Missing
		if errors.As(err, &m) {
			p.Why, p.Fix = m.What, m.Fix
			return p, nil
		}
		return p, err
	}
	p.OK, p.Version, p.Accel = true, q.version, vm.TCG
	v, err := d.verdict(ctx, q, d.opt.Kernel)
	if err != nil {
		return p, err
	}
	if v.KVM {
		p.Accel = vm.KVM
	} else {
		p.Why, p.Fix, p.Fresh = v.Why, v.Fix, v.fresh
	}
	return p, nil
}

// Start is [vm.Driver.Start].
func (d *Driver) Start(ctx context.Context, c vm.Config) (vm.Machine, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := enoughMemory(c.Memory); err != nil {
		return nil, err
	}
	q, err := d.installation()
	if err != nil {
		return nil, err
	}
	accel := c.Accel
	if accel == "" {
		v, err := d.verdict(ctx, q, c.Kernel)
		if err != nil {
			return nil, err
		}
		accel = vm.TCG
		if v.KVM {
			accel = vm.KVM
		}
	}
	return q.start(c, accel)
}

// installation is the QEMU of this host, which is looked for once.
func (d *Driver) installation() (*installation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found != nil {
		return d.found, nil
	}
	exe, err := resolve(d.opt.Exe)
	if err != nil {
		return nil, err
	}
	if d.found = d.remembered(exe); d.found != nil {
		return d.found, nil
	}
	if d.found, err = find(exe); err == nil {
		d.remember(d.found)
	}
	return d.found, err
}

// installation is a QEMU of the host and what it loads.
type installation struct {
	exe       string
	version   string
	libraries []string          // by the paths that the dynamic linker uses
	modules   []string          // of QEMU: files that it loads when it needs them
	firmware  map[string]string // file by name
}

// resolve is the path of QEMU's program, without links.
func resolve(exe string) (string, error) {
	if exe == "" {
		if exe = lookUp(); exe == "" {
			return "", &vm.Missing{What: program + " is not installed", Fix: packages.Install()}
		}
	}
	real, err := filepath.Abs(exe)
	if err == nil {
		real, err = filepath.EvalSymlinks(real)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", &vm.Missing{What: exe + " is not there", Fix: packages.Install()}
	}
	if err != nil {
		return "", fmt.Errorf("find QEMU: %w", err)
	}
	return real, nil
}

// find looks for what a machine needs of the QEMU at exe.
func find(exe string) (*installation, error) {
	q := &installation{exe: exe}
	var err error
	if q.version, err = versionOf(exe); err != nil {
		return nil, err
	}
	q.modules = modulesOf(exe)
	if q.libraries, err = jail.Libraries(append([]string{exe}, q.modules...)...); err != nil {
		return nil, err
	}
	if q.firmware, err = firmwareOf(exe); err != nil {
		return nil, err
	}
	return q, nil
}

// lookUp finds QEMU in $PATH, or where it usually is, for a process that has
// none.
func lookUp() string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/bin", "/usr/local/bin"} {
		p := filepath.Join(dir, program)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

var versionText = regexp.MustCompile(`version (\d+)\.(\d+)(?:\.\d+)*`)

// versionOf asks QEMU for its version, and refuses one that is too old.
func versionOf(exe string) (string, error) {
	cmd := exec.Command(exe, "--version")
	cmd.Env = []string{}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", exe, err, strings.TrimSpace(stderr.String()))
	}
	m := versionText.FindStringSubmatch(string(out))
	if m == nil {
		return "", fmt.Errorf("%s --version does not say which version it is", exe)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	version := strings.TrimPrefix(m[0], "version ")
	if major < oldest[0] || major == oldest[0] && minor < oldest[1] {
		return "", &vm.Missing{
			What: fmt.Sprintf("%s is version %s; Galley needs %d.%d or newer", exe, version, oldest[0], oldest[1]),
			Fix:  "install a newer one",
		}
	}
	return version, nil
}

// neededModules are those of QEMU's modules that a machine of ours may load,
// where the distribution builds them apart.
var neededModules = []string{"accel-tcg-x86_64.so"}

// modulesOf finds them, in the directories that distributions use.
func modulesOf(exe string) []string {
	prefix := filepath.Dir(filepath.Dir(exe))
	var out []string
	for _, name := range neededModules {
		for _, dir := range []string{"lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu"} {
			p := filepath.Join(prefix, dir, name)
			if _, err := os.Stat(p); err == nil {
				out = append(out, p)
				break
			}
		}
	}
	return out
}

// The files of firmware that a machine loads: that of the q35 itself, and what
// enters a kernel that is given on the command line.
var (
	neededFirmware   = []string{"bios-256k.bin"}
	optionalFirmware = []string{"pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"}
)

func firmwareOf(exe string) (map[string]string, error) {
	share := filepath.Join(filepath.Dir(filepath.Dir(exe)), "share")
	var dirs []string
	for _, s := range []string{share, "/usr/share"} {
		dirs = append(dirs, filepath.Join(s, "qemu"), filepath.Join(s, "seabios"), filepath.Join(s, "qemu-firmware"))
	}
	found := map[string]string{}
	for _, name := range append(neededFirmware, optionalFirmware...) {
		for _, dir := range dirs {
			p := filepath.Join(dir, name)
			if _, err := os.Stat(p); err == nil {
				found[name] = p
				break
			}
		}
	}
	for _, name := range neededFirmware {
		if found[name] == "" {
			return nil, &vm.Missing{
				What: fmt.Sprintf("QEMU's firmware %s is in none of %s", name, strings.Join(dirs, ", ")),
				Fix:  vm.Package{Debian: "seabios", Ubuntu: "seabios", Fedora: "seabios-bin", Arch: "seabios"}.Install(),
			}
		}
	}
	return found, nil
}
