package local

import (
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/guest/spawn"
)

// ownTops are the top-level directories of the host that the sandbox replaces
// by file systems of its own.
var ownTops = map[string]bool{"proc": true, "sys": true, "dev": true, "run": true, "tmp": true}

// A builder makes the sandbox's root. Its steps are in the order in which
// they may be done, because later mounts stand on earlier ones:
//
//	gather   copies what is wanted of the host, which is still in sight
//	stage    covers one host directory with a file system in memory that
//	         holds the new root and what only mounting needs
//	assemble puts the host's directories, /proc, /sys, /dev, /tmp and /run in,
//	         then caches, then what hides (hide.go)
//	views    come last, when they are served
//	enter    makes it the root and lets go of the host's
type builder struct {
	setup *setup
	root  root
	// stage is the memory file system under the new root: "root" in it is
	// where the new root stands, "void" holds what covers hidden places,
	// "cache" what the caches take. It goes out of sight with the host's root.
	stage int
	tops  []top
	sys   int
	tmp   map[string]int // the host's /tmp and /var/tmp, for HostTmp
	nodes map[string]int // device nodes by their path in the sandbox
	socks map[string]int // allowed sockets by their path
	extra []extra        // what of /run stays, by its path
	views []int          // detached mounts in the order of setup.Views
	// bare is the new root's own file system, without what is mounted in it
	// and writable: where a mount gets a top-level directory.
	bare root
}

// A top is one entry of the host's root directory.
type top struct {
	name   string
	target string // of a symbolic link
	mount  int    // of anything else
	dir    bool
}

// An extra is a file or directory of /run that programs cannot do without.
type extra struct {
	path  string
	mount int
	dir   bool
}

// build makes the new root of s, all but the views.
func (b *builder) build() error {
	for _, step := range []func() error{
		b.gather, b.makeStage, b.placeTops, b.placeSystem, b.placeMemory,
		b.placeCaches, b.hidePaths, b.hideSockets,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) gather() error {
	if err := b.gatherTops(); err != nil {
		return err
	}
	var err error
	if b.sys, err = hostTree(unix.AT_FDCWD, "/sys"); err != nil {
		return err
	}
	if err := b.gatherDevices(); err != nil {
		return err
	}
	b.socks = make(map[string]int)
	for _, p := range b.setup.AllowSockets {
		if b.socks[p], err = cloneTree(unix.AT_FDCWD, p, false); err != nil {
			return fmt.Errorf("allowed socket: %w", err)
		}
	}
	b.tmp = make(map[string]int)
	if b.setup.HostTmp {
		for _, p := range []string{"/tmp", "/var/tmp"} {
			fd, err := cloneTree(unix.AT_FDCWD, p, true)
			if err != nil {
				return err
			}
			if err := restrictMount(fd, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
				return err
			}
			b.tmp[p] = fd
		}
	}
	return b.gatherRun()
}

func (b *builder) gatherTops() error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("read the host's root: %w", err)
	}
	for _, e := range entries {
		if ownTops[e.Name()] {
			continue
		}
		t := top{name: e.Name(), mount: -1, dir: e.IsDir()}
		switch e.Type() {
		case os.ModeSymlink:
			if t.target, err = os.Readlink("/" + t.name); err != nil {
				return err
			}
		case os.ModeDir, 0:
			if t.mount, err = hostTree(unix.AT_FDCWD, "/"+t.name); err != nil {
				return err
			}
		default:
			continue // a socket, pipe or device has no place in a root
		}
		b.tops = append(b.tops, t)
	}
	return nil
}

// gatherRun copies what of /run programs need to work at all: where
// /etc/resolv.conf leads, and the running system of NixOS.
func (b *builder) gatherRun() error {
	keep := []string{"/run/current-system", "/run/booted-system", "/run/opengl-driver"}
	if target, err := resolve("/etc/resolv.conf"); err == nil {
		keep = append(keep, target)
	}
	for _, p := range keep {
		st, err := os.Stat(p)
		if err != nil || !strings.HasPrefix(p, "/run/") {
			continue
		}
		if target, err := os.Readlink(p); err == nil {
			p = path.Clean(path.Join(path.Dir(p), target))
			if strings.HasPrefix(target, "/") || !strings.HasPrefix(p, "/run/") {
				continue // leads into what is there anyway
			}
		}
		fd, err := hostTree(unix.AT_FDCWD, p)
		if err != nil {
			return err
		}
		b.extra = append(b.extra, extra{p, fd, st.IsDir()})
	}
	return nil
}

func (b *builder) makeStage() error {
	stage, err := newTmpfs("0700")
	if err != nil {
		return err
	}
	b.stage = stage
	cover := "/tmp"
	if _, err := os.Stat(cover); err != nil {
		cover = "/usr"
	}
	if err := unix.MoveMount(stage, "", unix.AT_FDCWD, cover, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("cover %s: %w", cover, err)
	}
	for _, name := range []string{"root", "void", "void/dir", "cache"} {
		if err := unix.Mkdirat(stage, name, 0o700); err != nil {
			return fmt.Errorf("stage: %w", err)
		}
	}
	if err := unix.Fchmodat(stage, "void/dir", 0, 0); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	fd, err := unix.Openat(stage, "void/file", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	_ = unix.Close(fd)

	newRoot, err := newTmpfs("0755")
	if err != nil {
		return err
	}
	if err := unix.MoveMount(newRoot, "", stage, "root", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("place the new root: %w", err)
	}
	b.root = root{newRoot}
	return nil
}

func (b *builder) placeTops() error {
	for _, t := range b.tops {
		if t.target != "" {
			if err := unix.Symlinkat(t.target, b.root.fd, t.name); err != nil {
				return &os.PathError{Op: "symlink", Path: "/" + t.name, Err: err}
			}
			continue
		}
		mount := b.root.mountFileAt
		if t.dir {
			mount = b.root.mountAt
		}
		if err := mount(t.mount, "/"+t.name); err != nil {
			return err
		}
	}
	return nil
}

// placeMemory makes what is private and empty: /tmp, /var/tmp and /run.
func (b *builder) placeMemory() error {
	if err := b.placeTmp(); err != nil {
		return err
	}
	if err := b.root.tmpfsAt("/run", "0755"); err != nil {
		return err
	}
	// /var/run is a link to /run on most hosts, and then done.
	if fd, err := b.root.lookup("/var/run"); err == nil {
		typ, err := fileType(fd)
		_ = unix.Close(fd)
		if err == nil && typ == unix.S_IFDIR {
			if err := b.root.tmpfsAt("/var/run", "0755"); err != nil {
				return err
			}
		}
	}
	for _, e := range b.extra {
		mount := b.root.mountFileAt
		if e.dir {
			mount = b.root.mountAt
		}
		if err := mount(e.mount, e.path); err != nil {
			return err
		}
	}
	return b.makeRuntimeDir()
}

func (b *builder) placeTmp() error {
	for _, p := range []string{"/tmp", "/var/tmp"} {
		if fd, ok := b.tmp[p]; ok {
			if err := b.root.mountAt(fd, p); err != nil {
				return err
			}
			continue
		}
		err := b.root.tmpfsAt(p, "01777")
		// A host may have no /var/tmp, or a link there.
		if p == "/var/tmp" && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOTDIR)) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeRuntimeDir makes an empty XDG_RUNTIME_DIR where the host's is hidden.
func (b *builder) makeRuntimeDir() error {
	dir := spawn.Getenv(b.setup.Env, "XDG_RUNTIME_DIR")
	if !strings.HasPrefix(dir, "/run/") || path.Clean(dir) != dir {
		return nil
	}
	fd, err := b.root.makeDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	parent, err := b.root.lookup(path.Dir(dir))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	return unix.Fchmodat(parent, path.Base(dir), 0o700, 0)
}

// placeViews puts the views in, the outer before the inner. They must be
// served: an inner one's place is looked up through the outer.
func (b *builder) placeViews() error {
	order := make([]int, len(b.views))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool {
		return len(b.setup.Views[order[i]].Path) < len(b.setup.Views[order[j]].Path)
	})
	for _, i := range order {
		p := b.setup.Views[i].Path
		// A tree that was mounted while a sandbox ran may stand where the host
		// has no directory.
		if fd, err := b.root.makeDir(p); err == nil {
			_ = unix.Close(fd)
		} else if errors.Is(err, unix.EROFS) {
			if err := b.addMissing(firstView+i, p); err != nil {
				return fmt.Errorf("view: a place for %s: %w", p, err)
			}
		}
		if err := b.root.mountAt(b.views[i], p); err != nil {
			return fmt.Errorf("view: %w", err)
		}
	}
	return nil
}

// enter makes the new root the root of this process and drops the host's.
func (b *builder) enter() error {
	bare, err := cloneTree(b.root.fd, ".", false)
	if err != nil {
		return err
	}
	b.bare = root{bare}
	for _, d := range []int{b.root.fd} {
		if err := unix.MountSetattr(d, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make the new root read-only: %w", err)
		}
	}
	if err := unix.Fchdir(b.root.fd); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	// The new root is put under the old one at the same place, which needs no
	// directory for the old one; then the old one is taken off the top.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w (a host that runs from an initial RAM disk cannot do this)", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// What is mounted later on in this namespace is to be seen in those of the
	// calls, which are its slaves.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts with the calls: %w", err)
	}
	return nil
}
