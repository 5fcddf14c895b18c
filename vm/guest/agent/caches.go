package agent

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/guest"
)

// syncAll writes back what the guest's kernel holds.
func syncAll() { unix.Sync() }

// maxLooked bounds how many open files an invalidation looks at.
const maxLooked = 100_000

// Invalidate is [guest.Handler.Invalidate]. The kernel forgets what it holds of
// a file when it is told of other times or another size; so it is made to ask.
func (a *Agent) Invalidate(ctx context.Context, i guest.Invalidate) error {
	w, err := a.inside()
	if err != nil {
		return err
	}
	if len(i.Paths) == 0 {
		return w.lookAgain(ctx)
	}
	return w.do(func() error {
		for _, p := range i.Paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			look(p, false)
			forget(p)
		}
		return nil
	})
}

// look asks the file system itself about p.
func look(p string, follow bool) {
	flags := unix.AT_STATX_FORCE_SYNC | unix.AT_NO_AUTOMOUNT
	if !follow {
		flags |= unix.AT_SYMLINK_NOFOLLOW
	}
	var st unix.Statx_t
	_ = unix.Statx(unix.AT_FDCWD, p, flags, unix.STATX_BASIC_STATS, &st)
}

// forget drops the pages of a regular file that nothing maps.
func forget(p string) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	}
}

// lookAgain drops all that is cached and not in use, and asks about what is:
// open files, mapped files and working directories.
func (w *world) lookAgain(ctx context.Context) error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		return fmt.Errorf("drop caches: %w", err)
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	looked := 0
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := "/proc/" + p.Name() + "/"
		look(dir+"cwd", true)
		for _, kind := range []string{"fd/", "map_files/"} {
			open, _ := os.ReadDir(dir + kind)
			for _, f := range open {
				if looked++; looked > maxLooked {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				look(dir+kind+f.Name(), true)
			}
		}
	}
	return nil
}
