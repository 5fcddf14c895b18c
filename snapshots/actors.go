package snapshots

import (
	"slices"
	"sync"
	"sync/atomic"
)

// MaxProcesses is how many processes a snapshot lists: the first that changed
// something since the one before it.
const MaxProcesses = 8

// Process is one that changed something through a mount of the session, as the
// kernel told its server.
type Process struct {
	// PID is its number where the mount is: inside a sandbox, the sandbox's.
	PID int `json:"pid"`
	// Name is what the kernel calls its program (proc_pid_comm(5)), empty
	// where nobody could tell.
	Name string `json:"name,omitempty"`
}

// actors are the processes that changed something since the last seal.
type actors struct {
	round atomic.Uint64

	mu   sync.Mutex // a leaf
	list []Process
}

// Round changes with every seal: what was reported with [Live.Acted] in another
// one is to be reported again.
func (l *Live) Round() uint64 { return l.acts.round.Load() }

// Acted notes that a process is about to change something. A request that waits
// while a seal is made may be noted with the snapshot before its change.
func (l *Live) Acted(p Process) {
	a := &l.acts
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) < MaxProcesses && !slices.Contains(a.list, p) {
		a.list = append(a.list, p)
	}
}

// take empties the list for a snapshot.
func (a *actors) take() []Process {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.list
	a.list = nil
	a.round.Add(1)
	return out
}
