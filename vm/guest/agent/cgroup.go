package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
	"github.com/galleyfs/galley/vm/guest"
)

// cgroups keeps the calls apart: each has a cgroup of its own, beneath one that
// bounds them all, by which the kernel ends every process of it at once,
// whatever it detached itself from.
type cgroups struct {
	top  int    // a mount of the hierarchy that stands nowhere
	name string // of the one that has all calls
	all  int    // it
	next atomic.Int64
}

// newCgroups makes the cgroup of all calls, with room for that many processes,
// and for what the memory has less reserve; zeros are no bound.
func newCgroups(processes, reserve int64) (*cgroups, error) {
	top, err := fsmount.New("cgroup2", 0, fsmount.Option{"source", "cgroup2"})
	if err != nil {
		return nil, guest.Failuref(guest.Unsupported, "the guest's kernel has no cgroup v2, by which calls are ended: %w", err)
	}
	var id [4]byte
	_, _ = rand.Read(id[:])
	g := &cgroups{top: top, name: "galley-" + hex.EncodeToString(id[:])}
	controllers, _ := readAt(top, "cgroup.controllers")
	have := map[string]bool{}
	for _, c := range strings.Fields(controllers) {
		have[c] = true
	}
	for _, c := range []string{"pids", "memory"} {
		if have[c] {
			// Where processes of others are in the way there is no bound.
			_ = writeAt(top, "cgroup.subtree_control", "+"+c)
		}
	}
	if g.all, err = makeCgroup(top, g.name); err != nil {
		return nil, err
	}
	if _, err := readAt(g.all, "cgroup.events"); err != nil {
		return nil, fmt.Errorf("the guest's cgroups: %w", err)
	}
	if processes > 0 {
		_ = writeAt(g.all, "pids.max", strconv.FormatInt(processes, 10))
	}
	if total := memoryTotal(); reserve > 0 && total > 2*reserve {
		_ = writeAt(g.all, "memory.max", strconv.FormatInt(total-reserve, 10))
	}
	return g, nil
}

func makeCgroup(dir int, name string) (int, error) {
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return -1, fmt.Errorf("make the cgroup %s: %w", name, err)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the cgroup %s: %w", name, err)
	}
	return fd, nil
}

func openAt(dir int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func writeAt(dir int, name, s string) error {
	f, err := openAt(dir, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(s)
	return err
}

func readAt(dir int, name string) (string, error) {
	f, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, err := f.Read(b)
	return string(b[:max(n, 0)]), err
}

// cgroup is the cgroup of one call.
type cgroup struct {
	parent *cgroups
	name   string

	mu sync.Mutex // a kill and the removal
	fd int        // -1 when it is removed
}

func (g *cgroups) add() (*cgroup, error) {
	c := &cgroup{parent: g, name: "c" + strconv.FormatInt(g.next.Add(1), 10)}
	var err error
	c.fd, err = makeCgroup(g.all, c.name)
	return c, err
}

// end ends everything that was started, and removes the cgroups.
func (g *cgroups) end() {
	all := &cgroup{fd: g.all}
	all.kill()
	_ = all.wait(endPatience)
	removeTree(g.top, g.name)
	_, _ = unix.Close(g.all), unix.Close(g.top)
}

// kill ends every process in it.
func (c *cgroup) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		_ = writeAt(c.fd, "cgroup.kill", "1")
	}
}

// errStillRuns: some process of a cgroup was not ended in time.
var errStillRuns = errors.New("processes that were killed are still there")

// wait waits until no process is left in it; a patience of 0 is endless.
func (c *cgroup) wait(patience time.Duration) error {
	f, err := openAt(c.fd, "cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	deadline := time.Now().Add(patience)
	b := make([]byte, 256)
	for {
		n, err := unix.Pread(int(f.Fd()), b, 0)
		if err != nil && err != unix.EINTR {
			return err
		}
		if err == nil && bytes.Contains(b[:n], []byte("populated 0")) {
			return nil
		}
		timeout := -1
		if patience > 0 {
			if timeout = int(time.Until(deadline).Milliseconds()); timeout <= 0 {
				return errStillRuns
			}
		}
		// The kernel tells of a change as of urgent data.
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, timeout)
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}

// remove removes it, with what its processes made in it.
func (c *cgroup) remove() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return
	}
	_ = unix.Close(c.fd)
	c.fd = -1
	removeTree(c.parent.all, c.name)
}

// removeTree removes a cgroup and those beneath it, which have no processes.
func removeTree(dir int, name string) {
	if unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil {
		return
	}
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer f.Close()
	entries, _ := f.ReadDir(-1)
	for _, e := range entries {
		if e.IsDir() {
			removeTree(int(f.Fd()), e.Name())
		}
	}
	_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
