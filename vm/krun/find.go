package krun

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"github.com/galleyfs/galley/vm"
)

// libraryDirs are where distributions and `make install` put libraries.
var libraryDirs = []string{
	"/usr/local/lib64", "/usr/local/lib", "/usr/lib64", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/lib", "/opt/homebrew/lib", "/home/linuxbrew/.linuxbrew/lib",
}

// install says how to get libkrun.
const install = "install libkrun and libkrunfw (Fedora: dnf install libkrun; Arch: pacman -S libkrun; " +
	"elsewhere from github.com/containers/libkrun), or use QEMU"

// files are the two libraries, by their real paths.
type files struct {
	krun, krunfw string
}

// find looks for libkrun at path, or where libraries are, and for libkrunfw
// beside it and there. Without kernel, libkrunfw must be there.
func find(path string, firmware bool) (files, error) {
	var f files
	var err error
	if path != "" {
		if f.krun, err = filepath.EvalSymlinks(path); err != nil {
			return f, &vm.Missing{What: "libkrun " + path + " is not there", Fix: install, Err: err}
		}
	} else if f.krun = newest(libraryDirs, "libkrun.so.1"); f.krun == "" {
		return f, &vm.Missing{What: "libkrun.so.1 is not installed", Fix: install}
	}
	f.krunfw = newest(append([]string{filepath.Dir(f.krun)}, libraryDirs...), "libkrunfw.so.5")
	if f.krunfw == "" && firmware {
		return f, &vm.Missing{What: "libkrunfw.so.5, which has the guest's kernel, is not installed", Fix: install}
	}
	return f, nil
}

// newest is the library name, or name with more of a version, in the first of
// dirs that has one.
func newest(dirs []string, name string) string {
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, name+"*"))
		if err != nil || len(found) == 0 {
			continue
		}
		sort.Strings(found)
		if real, err := filepath.EvalSymlinks(found[len(found)-1]); err == nil {
			return real
		}
	}
	return ""
}

const deviceKVM = "/dev/kvm"

// openKVM says why this user cannot use KVM; nil if the device can be opened,
// which does not mean yet that it runs guests.
func openKVM() error {
	f, err := os.OpenFile(deviceKVM, os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return &vm.Missing{What: "there is no " + deviceKVM, Err: err,
			Fix: "switch virtualization on in the firmware, or allow it for this virtual machine; then, as root: modprobe kvm_intel or kvm_amd"}
	case errors.Is(err, fs.ErrPermission):
		return &vm.Missing{What: "this user may not open " + deviceKVM, Err: err, Fix: "as root: usermod -aG kvm USER, and log in anew"}
	}
	return &vm.Missing{What: deviceKVM + " cannot be used", Err: err}
}
