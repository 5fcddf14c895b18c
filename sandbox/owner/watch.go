package owner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// Calls that run at the same time are told apart by the pid namespace of the
// process that made a change: each call of a local sandbox has one of its own
// (package sandbox/local), which nothing that it starts can leave.

// changes are which process trees changed which paths since the last seal. A
// change that is noted while a seal is being made may be counted to either side
// of it.
type changes struct {
	// unknown: something was changed through a mount that nobody watches, or by
	// a process that could not be told.
	unknown atomic.Bool

	mu sync.Mutex
	by map[place][]string
}

// place is a path in a tree.
type place struct{ tree, path string }

// maxPlaces bounds what is noted between two seals.
const maxPlaces = 4096

// note notes a change through a mount.
func (c *changes) note(m *served, pid uint32, path func() string) {
	who := ""
	if f := m.proc.Load(); f != nil && pid != 0 {
		who = processTree(int(f.Fd()), pid)
	}
	if who == "" {
		c.unknown.Store(true)
		return
	}
	p := place{m.Tree, path()}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch have := c.by[p]; {
	case slices.Contains(have, who):
	case have == nil && len(c.by) >= maxPlaces:
		// Whose it was is then said to be unknown.
	default:
		if c.by == nil {
			c.by = map[place][]string{}
		}
		c.by[p] = append(have, who)
	}
}

// take is what was noted, and begins anew.
func (c *changes) take() (by map[place][]string, unknown bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	by, c.by = c.by, nil
	return by, c.unknown.Swap(false)
}

// processTree is what identifies the pid namespace of a process, by the /proc
// that shows it under that number; "" where that cannot be told.
func processTree(proc int, pid uint32) string {
	buf := make([]byte, 64)
	n, err := unix.Readlinkat(proc, strconv.FormatUint(uint64(pid), 10)+"/ns/pid", buf)
	if err != nil || n == len(buf) {
		return ""
	}
	return string(buf[:n])
}

// watch begins to note who changes what through a mount.
func (s *server) watch(r request, fd int) error {
	if fd < 0 {
		return errors.New("watch: no descriptor came with the request")
	}
	f := os.NewFile(uintptr(fd), "/proc")
	b, err := body[watchBody](r)
	if err != nil {
		_ = f.Close()
		return err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		_ = f.Close()
		return fmt.Errorf("watch: the descriptor is no /proc (%w)", err)
	}
	s.mu.Lock()
	m := s.mounts[b.Mount]
	s.mu.Unlock()
	if m == nil || !m.proc.CompareAndSwap(nil, f) {
		_ = f.Close()
		return fmt.Errorf("watch: mount %d: it is gone, or is watched already", b.Mount)
	}
	return nil
}

// seal seals the session and says whose the changes were.
func (s *server) seal(ctx context.Context, opt snapshots.SealOptions) (snapshots.Snapshot, error) {
	var by map[place][]string
	var unknown, taken bool
	opt.By = func(tree, path string) []string {
		if !taken {
			by, unknown = s.changed.take()
			taken = true
		}
		if unknown || len(opt.Calls) == 0 {
			return nil
		}
		var out []string
		for _, who := range by[place{tree, path}] {
			name, ok := opt.Calls[who]
			if !ok {
				return nil
			}
			out = append(out, name)
		}
		slices.Sort(out)
		if len(out) == 1 && out[0] == opt.Self {
			return nil
		}
		return out
	}
	snap, err := s.live.Seal(ctx, opt)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.mounts {
		select {
		case <-m.ready:
			if m.server != nil {
				m.server.Tell()
			}
		default:
		}
	}
	return snap, err
}
