package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/kernel"
	"github.com/galleyfs/galley/vm/krun"
	"github.com/galleyfs/galley/vm/qemu"
)

// noMachines is what follows where a machine's parts are missing.
const noMachines = "galley run --sandbox microvm does not work; everything else does"

// machineFindings are what virtual machines need.
func machineFindings(ctx context.Context, home string) []Finding {
	cache, done := machineCache(home)
	defer done()
	return []Finding{kernelForMachines(), guestAgent(), qemuFinding(ctx, cache), krunFinding(ctx, cache)}
}

// machineCache is where what is made for a probe is kept: with that of the
// machines, if there is a state directory, which is not made for it.
func machineCache(home string) (string, func()) {
	if _, err := os.Stat(home); err == nil {
		return filepath.Join(home, "machines"), func() {}
	}
	dir, err := os.MkdirTemp("", "galley-doctor-")
	if err != nil {
		return "", func() {}
	}
	return dir, func() { _ = os.RemoveAll(dir) }
}

func kernelForMachines() Finding {
	f := Finding{Name: "kernel for machines", Level: OK}
	image, err := kernel.Find(kernel.Options{})
	if err != nil {
		return lacking(f, err)
	}
	f.Found = fmt.Sprintf("%s, with the modules in %s", image.Path, image.Modules)
	return f
}

func guestAgent() Finding {
	f := Finding{Name: "guest agent", Level: OK}
	var err error
	if f.Found, err = kernel.FindGuest(""); err != nil {
		return lacking(f, err)
	}
	return f
}

func qemuFinding(ctx context.Context, cache string) Finding {
	f := Finding{Name: "QEMU", Level: OK}
	p, err := qemu.New(qemu.Options{Cache: cache}).Probe(ctx)
	switch {
	case err != nil:
		return lacking(f, err)
	case !p.OK:
		f.Level, f.Found, f.Means, f.Fix = Note, p.Why, noMachines, p.Fix
	case p.Accel == vm.KVM:
		f.Found = fmt.Sprintf("version %s, and KVM runs guests", p.Version)
	default:
		f.Level, f.Found, f.Fix = Note, fmt.Sprintf("version %s, by emulation: %s", p.Version, p.Why), p.Fix
		f.Means = "programs in a machine run some ten times slower than on hardware"
	}
	return f
}

// krunFinding looks for libkrun, which nothing needs where there is QEMU.
func krunFinding(ctx context.Context, cache string) Finding {
	f := Finding{Name: "libkrun", Level: OK}
	p, err := krun.New(krun.Options{Cache: cache, Log: slog.New(slog.DiscardHandler)}).Probe(ctx)
	switch {
	case err != nil:
		f = lacking(f, err)
	case !p.OK:
		f.Level, f.Found, f.Fix = Note, p.Why, p.Fix
	default:
		f.Found = fmt.Sprintf("version %s, and KVM runs guests", p.Version)
		return f
	}
	f.Means = "--driver krun does not work; QEMU runs machines"
	return f
}

// lacking is a finding of something that machines need and that is not there.
func lacking(f Finding, err error) Finding {
	f.Level, f.Found, f.Means = Note, err.Error(), noMachines
	var m *vm.Missing
	if errors.As(err, &m) {
		f.Found, f.Fix = m.What, m.Fix
	}
	return f
}
