// Package kernel finds the kernel that a machine boots, and makes the initial
// file system that it boots into: the guest agent as /init, and the modules
// that the kernel needs to reach the machine's devices.
//
// The kernel is the host distribution's own, with its modules, or a file that
// the user names. What is made of them, an uncompressed kernel (which boots
// faster) and the initial file system, is kept in a cache by the digest of what
// went in, and appears there whole or not at all.
package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/galleyfs/galley/vm"
)

// Options say where to look; the zero value but for Cache looks at this host.
type Options struct {
	// Path is the kernel's image. Empty is the newest that the host has with
	// its modules.
	Path string
	// Modules is the directory of its modules, with modules.dep in it. Empty
	// is the host's of the kernel's release; a kernel at Path may have none,
	// and needs none if all is built in.
	Modules string
	// Guest is the agent's program. Empty is galley-guest beside this
	// program, in libexec, or what $GALLEY_GUEST says.
	Guest string
	// Cache is the directory where what is made is kept.
	Cache string
	// Root is the host's root directory, for tests.
	Root string
}

func (o Options) root() string { return cmp.Or(o.Root, "/") }

// Image is a kernel of the host.
type Image struct {
	// Path is the file.
	Path string `json:"path"`
	// Release is the kernel's, such as 6.1.0-13-cloud-amd64.
	Release string `json:"release"`
	// Modules is the directory of its modules, "" if there is none.
	Modules string `json:"modules,omitempty"`
}

// Boot is what a driver boots.
type Boot struct {
	Image
	// Kernel is the file to boot: the image, or what was made of it.
	Kernel string `json:"kernel"`
	// Initrd is the initial file system.
	Initrd string `json:"initrd"`
	// Loads are the modules that it loads, in order.
	Loads []string `json:"loads,omitempty"`
}

// distributed is the package that brings a kernel with its modules.
var distributed = vm.Package{
	Debian: "linux-image-cloud-amd64", Ubuntu: "linux-image-virtual", Fedora: "kernel-core", Arch: "linux",
}

// Prepare finds the kernel and makes what a driver boots.
func Prepare(ctx context.Context, o Options) (Boot, error) {
	image, err := Find(o)
	if err != nil {
		return Boot{}, err
	}
	guest, err := FindGuest(o.Guest)
	if err != nil {
		return Boot{}, err
	}
	loads, err := resolve(image)
	if err != nil {
		return Boot{}, err
	}
	c, err := openCache(o.Cache)
	if err != nil {
		return Boot{}, err
	}
	b := Boot{Image: image}
	if b.Kernel, err = c.uncompressed(ctx, image.Path); err != nil {
		return Boot{}, err
	}
	if b.Initrd, err = c.initrd(ctx, guest, loads); err != nil {
		return Boot{}, err
	}
	for _, f := range loads {
		b.Loads = append(b.Loads, moduleName(f))
	}
	return b, nil
}

// Uncompressed finds the kernel alone, and makes what a driver boots of it.
func Uncompressed(ctx context.Context, o Options) (string, error) {
	image, err := Find(o)
	if err != nil {
		return "", err
	}
	c, err := openCache(o.Cache)
	if err != nil {
		return "", err
	}
	return c.uncompressed(ctx, image.Path)
}

// Find finds the kernel: the one that is named, or the newest of the host that
// this user can read and whose modules are there.
func Find(o Options) (Image, error) {
	if o.Path != "" {
		return named(o)
	}
	var best Image
	var refused []string
	seen := map[string]bool{}
	for _, pattern := range []string{"boot/vmlinuz-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz"} {
		paths, err := filepath.Glob(filepath.Join(o.root(), pattern))
		if err != nil {
			return Image{}, err
		}
		for _, p := range paths {
			image, why := usable(o, p)
			if why != nil {
				refused = append(refused, why.Error())
				continue
			}
			if seen[image.Release] {
				continue
			}
			seen[image.Release] = true
			if best.Path == "" || compareReleases(image.Release, best.Release) > 0 {
				best = image
			}
		}
	}
	if best.Path != "" {
		return best, nil
	}
	m := &vm.Missing{
		What: "no kernel for a machine: neither /boot nor /lib/modules has one with its modules",
		Fix:  distributed.Install() + "; or name one with --kernel FILE",
	}
	if len(refused) > 0 {
		m.What = "no kernel of this host can be booted in a machine: " + strings.Join(refused, "; ")
	}
	return Image{}, m
}

// usable looks at one kernel of the host.
func usable(o Options, p string) (Image, error) {
	release, err := releaseOf(p)
	if errors.Is(err, fs.ErrPermission) {
		return Image{}, fmt.Errorf("%s cannot be read by this user (as root: chmod a+r %s)", p, p)
	}
	if err != nil {
		return Image{}, err
	}
	image := Image{Path: p, Release: release}
	if image.Modules = modulesOf(o, release); image.Modules == "" {
		return image, fmt.Errorf("%s: /lib/modules/%s is not there", p, release)
	}
	if _, err := resolve(image); err != nil {
		return image, err
	}
	return image, tooOld(image)
}

// named is the kernel that the user named.
func named(o Options) (Image, error) {
	release, err := releaseOf(o.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, &vm.Missing{What: fmt.Sprintf("kernel %s: no such file", o.Path), Fix: "leave --kernel out to use the host's own", Err: fs.ErrNotExist}
	}
	if err != nil {
		return Image{}, err
	}
	image := Image{Path: o.Path, Release: release, Modules: o.Modules}
	if image.Modules == "" {
		image.Modules = modulesOf(o, release)
	} else if _, err := os.Stat(filepath.Join(image.Modules, "modules.dep")); err != nil {
		return image, fmt.Errorf("modules of kernel %s: %w; run depmod first", o.Path, err)
	}
	return image, tooOld(image)
}

// oldest is the first release whose virtio-fs tells the file systems of an
// export apart.
const oldest = "5.10"

func tooOld(image Image) error {
	if image.Release != "" && compareReleases(image.Release, oldest) < 0 {
		return fmt.Errorf("kernel %s is Linux %s; the guest needs %s or newer", image.Path, image.Release, oldest)
	}
	return nil
}

// modulesOf is the directory of the modules of release, or "".
func modulesOf(o Options, release string) string {
	if release == "" {
		return ""
	}
	for _, dir := range []string{"lib/modules", "usr/lib/modules"} {
		p := filepath.Join(o.root(), dir, release)
		if _, err := os.Stat(filepath.Join(p, "modules.dep")); err == nil {
			return p
		}
	}
	return ""
}

// compareReleases orders kernel releases by their numbers, and two with the
// same by how fit they are for a machine.
func compareReleases(a, b string) int {
	na, nb := numbers(a), numbers(b)
	if c := slices.Compare(na, nb); c != 0 {
		return c
	}
	return cmp.Compare(fitness(a), fitness(b))
}

// numbers are the numbers of a release up to its flavour: 6.1.0-13-cloud is
// 6, 1, 0, 13.
func numbers(release string) []int {
	var out []int
	for _, part := range strings.FieldsFunc(release, func(r rune) bool { return r == '.' || r == '-' || r == '+' || r == '_' }) {
		n, digits := 0, 0
		for _, r := range part {
			if r < '0' || r > '9' || digits > 8 {
				break
			}
			n, digits = n*10+int(r-'0'), digits+1
		}
		if digits == 0 {
			break
		}
		out = append(out, n)
	}
	return out
}

// fitness prefers the flavours that are made for virtual machines.
func fitness(release string) int {
	for _, flavour := range []string{"cloud", "virtual", "kvm"} {
		if strings.Contains(release, flavour) {
			return 1
		}
	}
	return 0
}
