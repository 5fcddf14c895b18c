package local

import (
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// cacheNames are where common tools keep what they can fetch or make again.
var cacheNames = []string{
	".bun", ".bundle", ".cache", ".cargo", ".deno", ".gem", ".gradle", ".ivy2", ".m2", ".node-gyp",
	".npm", ".nuget", ".pnpm-store", ".rustup", ".sbt", ".yarn", ".local/share/pnpm", "go/pkg",
}

// DefaultCaches returns the directories below home that common tools write to
// as a cache, for [Config.Caches].
func DefaultCaches(home string) []string {
	paths := make([]string, len(cacheNames))
	for i, name := range cacheNames {
		paths[i] = path.Join(home, name)
	}
	return paths
}

// placeCaches makes the caches writable: over each stands the kernel's
// overlayfs, with the host's directory below and memory above. A cache that
// the host does not have is an empty file system in memory.
func (b *builder) placeCaches() error {
	var missing []string
	for i, p := range b.caches() {
		fd, err := b.root.lookup(p)
		if errors.Is(err, unix.ENOENT) {
			missing = append(missing, p)
			continue
		}
		if err != nil {
			continue // behind a link, or nowhere the command could get to
		}
		typ, err := fileType(fd)
		if err != nil || typ != unix.S_IFDIR {
			_ = unix.Close(fd)
			continue
		}
		if err := b.placeCache(i, fd, p); err != nil {
			return err
		}
	}
	return b.placeMissingCaches(missing)
}

// caches are the wanted caches that are not writable anyway, parents first and
// none beneath another.
func (b *builder) caches() []string {
	sorted := append([]string(nil), b.setup.Caches...)
	sort.Strings(sorted)
	var out []string
	for _, p := range sorted {
		inside := beneath(p, "/tmp") || beneath(p, "/var/tmp") || beneath(p, "/run")
		for _, q := range out {
			inside = inside || beneath(p, q)
		}
		for _, v := range b.setup.Views {
			inside = inside || beneath(p, v.Path)
		}
		if !inside {
			out = append(out, p)
		}
	}
	return out
}

// placeCache mounts a writable overlay over the directory lower, a descriptor
// which it closes. Where the host's file system cannot lie under an overlay,
// the cache is empty.
func (b *builder) placeCache(i int, lower int, p string) error {
	upper, work := fmt.Sprintf("cache/%d.upper", i), fmt.Sprintf("cache/%d.work", i)
	var st unix.Stat_t
	if err := unix.Fstat(lower, &st); err != nil {
		return fmt.Errorf("cache %s: %w", p, err)
	}
	for _, dir := range []string{upper, work} {
		if err := unix.Mkdirat(b.stage, dir, 0o700); err != nil {
			return fmt.Errorf("cache %s: %w", p, err)
		}
	}
	if err := unix.Fchmodat(b.stage, upper, st.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("cache %s: %w", p, err)
	}
	options := []fsmount.Option{
		{"source", "galley"},
		{"lowerdir", fdPath(lower, "")},
		{"upperdir", fdPath(b.stage, upper)},
		{"workdir", fdPath(b.stage, work)},
	}
	if b.setup.UserNamespace {
		options = append(options, fsmount.Option{"userxattr", ""})
	}
	fd, err := fsmount.New("overlay", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, options...)
	if err != nil {
		if fd, err = cloneTree(b.stage, upper, false); err != nil {
			_ = unix.Close(lower)
			return fmt.Errorf("cache %s: %w", p, err)
		}
	}
	if err := fsmount.Place(fd, lower); err != nil {
		return fmt.Errorf("cache %s: %w", p, err)
	}
	return nil
}

// placeMissingCaches makes caches that the host does not have. Nothing can be
// mounted where there is no directory, and the host's parent is read-only; so
// that parent is shown through a read-only overlay which adds the directories.
func (b *builder) placeMissingCaches(missing []string) error {
	byParent := make(map[string][]string)
	for _, p := range missing {
		parent := path.Dir(p)
		for parent != "/" {
			fd, err := b.root.lookup(parent)
			if err == nil {
				_ = unix.Close(fd)
				break
			}
			parent = path.Dir(parent)
		}
		byParent[parent] = append(byParent[parent], p)
	}
	parents := make([]string, 0, len(byParent))
	for p := range byParent {
		parents = append(parents, p)
	}
	sort.Strings(parents)
	for i, parent := range parents {
		if parent != "/" {
			if err := b.addDirs(i, parent, byParent[parent]); err != nil {
				continue // the cache stays out: a program sees a read-only home
			}
		}
		for n, p := range byParent[parent] {
			if err := b.placeEmptyCache(fmt.Sprintf("cache/new%d.%d", i, n), p); err != nil {
				return fmt.Errorf("cache %s: %w", p, err)
			}
		}
	}
	return nil
}

// placeEmptyCache mounts a new directory, name in the stage, at p.
func (b *builder) placeEmptyCache(name, p string) error {
	if err := unix.Mkdirat(b.stage, name, 0o700); err != nil {
		return err
	}
	fd, err := cloneTree(b.stage, name, false)
	if err != nil {
		return err
	}
	return b.root.mountAt(fd, p)
}

// addDirs mounts a read-only overlay over parent that has the directories dirs
// besides what the host has there, and puts back what was mounted beneath it.
func (b *builder) addDirs(i int, parent string, dirs []string) error {
	target, err := b.root.lookup(parent)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		_ = unix.Close(target)
		return err
	}
	added := fmt.Sprintf("cache/added%d", i)
	made := []string{added}
	for _, d := range dirs {
		rel := strings.Split(strings.TrimPrefix(d, parent+"/"), "/")
		for n := range rel {
			made = append(made, path.Join(append([]string{added}, rel[:n+1]...)...))
		}
	}
	for _, d := range made {
		if err := unix.Mkdirat(b.stage, d, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			_ = unix.Close(target)
			return err
		}
	}
	// The merged directory has the mode and owner of its upper side.
	_ = unix.Fchownat(b.stage, added, int(st.Uid), int(st.Gid), 0)
	if err := unix.Fchmodat(b.stage, added, st.Mode&0o7777, 0); err != nil {
		_ = unix.Close(target)
		return err
	}
	inner, err := b.mountsBeneath(parent)
	if err != nil {
		_ = unix.Close(target)
		return err
	}
	fd, err := fsmount.New("overlay", hostAttrs, fsmount.Option{"source", "galley"},
		fsmount.Option{"lowerdir", fdPath(b.stage, added) + ":" + fdPath(target, "")})
	if errors.Is(err, unix.EINVAL) && len(inner) > 0 {
		// In a user namespace the kernel shows no directory without what the
		// host has mounted in it.
		err = fmt.Errorf("%s holds mounts of the host, such as %s, so that an ordinary user can add no directory there; mount elsewhere: %w",
			parent, inner[0].path, err)
	}
	if err != nil {
		_ = unix.Close(target)
		return err
	}
	if err := fsmount.Place(fd, target); err != nil {
		return err
	}
	for _, m := range inner {
		if err := b.root.mountAt(m.mount, m.path); err != nil {
			return err
		}
	}
	return nil
}

// mountsBeneath copies the mounts that stand below dir in the new root, the
// outermost of each with all that it carries.
func (b *builder) mountsBeneath(dir string) ([]extra, error) {
	points, err := mountPoints()
	if err != nil {
		return nil, err
	}
	var out []extra
	for _, p := range points {
		p, ok := strings.CutPrefix(p, b.rootPath())
		if !ok || p == dir || !beneath(p, dir) {
			continue
		}
		if n := len(out); n > 0 && beneath(p, out[n-1].path) {
			continue
		}
		fd, err := cloneTree(b.root.fd, relative(p), true)
		if err != nil {
			return nil, err
		}
		out = append(out, extra{path: p, mount: fd})
	}
	return out, nil
}

// rootPath is the path of the new root while the host's root is in place.
func (b *builder) rootPath() string {
	name, err := os.Readlink(fdPath(b.root.fd, ""))
	if err != nil {
		return "/nowhere"
	}
	return strings.TrimSuffix(name, "/")
}

// mountPoints lists this process's mount points, sorted.
func mountPoints() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 {
			out = append(out, unescapeMount.Replace(f[4]))
		}
	}
	sort.Strings(out)
	return out, nil
}

// unescapeMount undoes the escapes that the kernel writes in mountinfo.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// fdPath is a path to name below the descriptor fd, free of characters that
// mount options treat specially. It needs the host's /proc in sight.
func fdPath(fd int, name string) string {
	return path.Join(fmt.Sprintf("/proc/self/fd/%d", fd), name)
}

// beneath reports whether p is dir or lies in it; both are clean.
func beneath(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
