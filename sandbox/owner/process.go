package owner

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// acting tells the session which processes change something through one mount.
// The kernel gives the thread behind each request by its number in the pid
// namespace that the mount was made in. It is asked about on the way of every
// change, so that the answer is kept until the next seal.
type acting struct {
	live *snapshots.Live
	// within is the process below which those of a private mount's namespace
	// are found; 0 where the numbers are this process's own.
	within int
	// mount says by which /proc they are found directly, once that is known.
	mount *served
	last  atomic.Uint64 // the round and number asked for last

	mu    sync.Mutex
	round uint64
	known map[uint32]bool
}

// maxKnown bounds the threads that are looked up from one seal to the next.
const maxKnown = 64

// acts is called with the thread of a request that changes something.
func (a *acting) acts(pid uint32) {
	round := a.live.Round()
	key := round<<32 | uint64(pid)
	if a.last.Load() == key {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.round != round || a.known == nil {
		a.round, a.known = round, map[uint32]bool{}
	}
	if !a.known[pid] && len(a.known) < maxKnown {
		a.known[pid] = true
		a.live.Acted(a.find(int(pid)))
	}
	a.last.Store(key)
}

// find says what is known of a thread's process. It waits for the answer to its
// request, so that it is there.
func (a *acting) find(pid int) snapshots.Process {
	if f := a.mount.proc.Load(); f != nil {
		return found(int(f.Fd()), pid)
	}
	if a.within == 0 {
		st := readStatus(strconv.Itoa(pid))
		return st.process(pid)
	}
	todo := []int{a.within}
	for n := 0; n < len(todo) && n < 4096; n++ {
		dir := filepath.Join("/proc", strconv.Itoa(todo[n]), "task")
		threads, err := os.ReadDir(dir)
		if err != nil {
			continue // ended
		}
		for _, t := range threads {
			path := filepath.Join(strconv.Itoa(todo[n]), "task", t.Name())
			if st := readStatus(path); n > 0 && len(st.pids) > 1 && st.pids[1] == pid {
				return st.process(pid)
			}
			kids, _ := os.ReadFile(filepath.Join("/proc", path, "children"))
			for _, k := range bytes.Fields(kids) {
				if kid, err := strconv.Atoi(string(k)); err == nil {
					todo = append(todo, kid)
				}
			}
		}
	}
	return snapshots.Process{PID: pid}
}

// found is the process of a thread by the /proc that numbers it so.
func found(proc, pid int) snapshots.Process {
	st := statusAt(proc, pid)
	p := snapshots.Process{PID: pid, Name: st.name}
	if st.group != 0 && st.group != pid {
		p.PID = st.group
		if g := statusAt(proc, st.group); g.name != "" {
			p.Name = g.name
		}
	}
	return p
}

// statusAt is readStatus below the descriptor of a /proc.
func statusAt(proc, pid int) *procStatus {
	fd, err := unix.Openat(proc, strconv.Itoa(pid)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &procStatus{}
	}
	defer unix.Close(fd)
	buf := make([]byte, 8<<10) // which is all of it, but for a very long list of groups
	n, err := unix.Read(fd, buf)
	if err != nil {
		return &procStatus{}
	}
	return parseStatus(buf[:n])
}

// procStatus is what /proc tells of a thread.
type procStatus struct {
	name   string
	group  int   // the thread group: the process
	pids   []int // in each pid namespace, this process's first
	groups []int
}

// process is the process of the thread, numbered as pid is.
func (s *procStatus) process(pid int) snapshots.Process {
	p := snapshots.Process{PID: pid, Name: s.name}
	if len(s.pids) == 0 || s.group == s.pids[0] {
		return p
	}
	for i, n := range s.pids {
		if n == pid && i < len(s.groups) {
			p.PID = s.groups[i]
		}
	}
	if g := readStatus(strconv.Itoa(s.group)); g.name != "" {
		p.Name = g.name
	}
	return p
}

// readStatus reads /proc/PATH/status; all is empty where it cannot.
func readStatus(path string) *procStatus {
	text, err := os.ReadFile(filepath.Join("/proc", path, "status"))
	if err != nil {
		return &procStatus{}
	}
	return parseStatus(text)
}

func parseStatus(text []byte) *procStatus {
	s := &procStatus{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":\t")
		switch key {
		case "Name":
			s.name = value
		case "Tgid":
			s.group, _ = strconv.Atoi(value)
		case "NSpid":
			s.pids = numbers(value)
		case "NStgid":
			s.groups = numbers(value)
		}
	}
	return s
}

func numbers(s string) (out []int) {
	for _, f := range strings.Fields(s) {
		n, _ := strconv.Atoi(f)
		out = append(out, n)
	}
	return out
}
