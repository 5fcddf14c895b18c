package local

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
	"github.com/galleyfs/galley/vm/guest/spawn"
)

// mask covers p in the new root by an empty directory or file that nobody may
// enter or read. What is not there is passed over.
func (b *builder) mask(p string) error {
	target, err := b.root.lookup(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
		return nil // not there, or nowhere the command could get to
	}
	if err != nil {
		return fmt.Errorf("hide: %w", err)
	}
	return b.cover(target, p)
}

// cover covers what the descriptor target stands for, and closes it.
func (b *builder) cover(target int, p string) error {
	typ, err := fileType(target)
	if err != nil {
		_ = unix.Close(target)
		return fmt.Errorf("hide %s: %w", p, err)
	}
	name := "void/file"
	if typ == unix.S_IFDIR {
		name = "void/dir"
	}
	void, err := cloneTree(b.stage, name, false)
	if err != nil {
		_ = unix.Close(target)
		return err
	}
	if err := restrictMount(void, hostAttrs|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	if err := fsmount.Place(void, target); err != nil {
		return fmt.Errorf("hide %s: %w", p, err)
	}
	return nil
}

func (b *builder) hidePaths() error {
	for _, p := range b.setup.Hide {
		if err := b.mask(p); err != nil {
			return err
		}
	}
	return b.hideSocketDirs()
}

// hideSockets covers the host's sockets in what of the host is in sight, and
// puts the allowed ones in place. A read-only mount does not stop connect(2),
// so each is covered by a file that is no socket.
//
// The kernel lists the bound sockets of this network namespace in
// /proc/net/unix. What this cannot see: sockets that the host makes later at
// a path outside /run, /tmp and /var/tmp (socketDirs covers the usual places
// as a whole), and sockets bound in another network namespace.
func (b *builder) hideSockets() error {
	paths, err := boundSockets("/proc/self/net/unix")
	if err != nil {
		return err
	}
	for _, p := range paths {
		if _, ok := b.socks[p]; ok {
			continue
		}
		target, err := b.root.lookupFollowing(p)
		if err != nil {
			continue // out of sight
		}
		typ, err := fileType(target)
		if err != nil || typ != unix.S_IFSOCK {
			_ = unix.Close(target)
			continue
		}
		if err := b.cover(target, p); err != nil {
			return err
		}
	}
	for p, fd := range b.socks {
		if err := b.root.mountFileAt(fd, p); err != nil {
			return fmt.Errorf("allowed socket: %w", err)
		}
	}
	return nil
}

// boundSockets returns the absolute paths in a file of the form of
// /proc/net/unix: seven columns, then the path, which may hold blanks.
func boundSockets(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("list the host's sockets: %w", err)
	}
	defer f.Close()
	var paths []string
	seen := make(map[string]bool)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		rest := lines.Text()
		for range 7 {
			rest = strings.TrimLeft(rest, " ")
			_, rest, _ = strings.Cut(rest, " ")
		}
		if strings.HasPrefix(rest, "/") && !seen[rest] {
			seen[rest] = true
			paths = append(paths, rest)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list the host's sockets: %w", err)
	}
	return paths, nil
}

// socketDirs are directories below a home that programs make their sockets in,
// now or later, and that hold nothing else a tool would want.
var socketDirs = []string{
	".ssh/agent", ".1password", ".docker/run", ".docker/desktop", ".colima", ".lima",
	".orbstack/run", ".local/share/containers/podman/machine",
}

// hideSocketDirs covers socketDirs, but for one that holds an allowed socket.
func (b *builder) hideSocketDirs() error {
	home := spawn.Getenv(b.setup.Env, "HOME")
	if !path.IsAbs(home) {
		return nil
	}
	for _, name := range socketDirs {
		dir := path.Join(home, name)
		if b.allowsBeneath(dir) {
			continue
		}
		if err := b.mask(dir); err != nil && !errors.Is(err, unix.ELOOP) {
			return err
		}
	}
	return nil
}

func (b *builder) allowsBeneath(dir string) bool {
	for p := range b.socks {
		if beneath(p, dir) {
			return true
		}
	}
	return false
}
