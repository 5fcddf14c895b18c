package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
	"github.com/galleyfs/galley/vm/guest"
)

// common are the devices that every program expects.
var common = []string{"null", "zero", "full", "random", "urandom", "tty"}

// links are what else it expects in /dev.
var links = map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}

// newDev makes the mount that stands at /dev: the kernel's, or a file system of
// its own with the common devices.
func newDev(own bool) (int, error) {
	fstype, options := "devtmpfs", []fsmount.Option{{"source", "dev"}}
	if own {
		fstype, options = "tmpfs", append(options, fsmount.Option{"mode", "0755"})
	}
	fd, err := fsmount.New(fstype, unix.MOUNT_ATTR_NOSUID, options...)
	if err != nil {
		return -1, err
	}
	if own {
		err = errors.Join(ownDevices(fd), unix.Symlinkat("pts/ptmx", fd, "ptmx"))
	}
	for name, target := range links {
		if lerr := unix.Symlinkat(target, fd, name); lerr != nil && !errors.Is(lerr, unix.EEXIST) {
			err = errors.Join(err, lerr)
		}
	}
	for _, dir := range []string{"pts", "shm"} {
		if derr := unix.Mkdirat(fd, dir, 0o755); derr != nil && !errors.Is(derr, unix.EEXIST) {
			err = errors.Join(err, derr)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("fill /dev: %w", err)
	}
	return fd, nil
}

func ownDevices(fd int) error {
	for _, name := range common {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil {
			return err
		}
		if err := unix.Mknodat(fd, name, unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	return nil
}

// identityDir has the files that are bound over those of /etc.
const identityDir = "/run/galley"

// identity gives the guest its name and its way to look up others, without a
// change to its root.
func identity(s guest.Setup) error {
	name := s.Hostname
	if name == "" {
		name = "localhost"
	}
	files := map[string]string{
		"hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + name + "\n",
	}
	if s.Hostname != "" {
		files["hostname"] = name + "\n"
	}
	var resolv strings.Builder
	if s.Network != nil {
		for _, d := range s.Network.DNS {
			if _, err := netip.ParseAddr(d); err != nil {
				return fmt.Errorf("DNS server %q: %w", d, err)
			}
			resolv.WriteString("nameserver " + d + "\n")
		}
	}
	files["resolv.conf"] = resolv.String()
	if err := os.Mkdir(identityDir, 0o755); err != nil {
		return err
	}
	for file, content := range files {
		own := identityDir + "/" + file
		if err := os.WriteFile(own, []byte(content), 0o644); err != nil {
			return err
		}
		// A file that is made for it is a change of the guest's root.
		needed := file == "hosts" || file == "resolv.conf" && s.Network != nil
		if err := bindFile(own, "/etc/"+file, needed); err != nil {
			return fmt.Errorf("/etc/%s: %w", file, err)
		}
	}
	return nil
}

// bindFile shows the file own at p. A guest whose /etc has no such file, or a
// link that leads nowhere, gets one if it is needed.
func bindFile(own, p string, needed bool) error {
	flags := os.O_RDONLY | unix.O_NONBLOCK
	if needed {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(p, flags, 0o644)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	return unix.Mount(own, p, "", unix.MS_BIND, "")
}
