package agent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for every process that ends: the agent is the first process of
// the guest, to which orphans fall.
type reaper struct {
	// mu is held shared while a process is started and noted, so that the
	// one who reaps it finds it noted.
	mu       sync.RWMutex
	children sync.Map // pid -> *child
}

// child is a process that the agent started.
type child struct {
	pid    int
	ended  chan struct{}
	status syscall.WaitStatus // once ended is closed

	mu   sync.Mutex
	over bool // the pid may be another's
}

// start begins to reap.
func (r *reaper) start() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGCHLD)
	go func() {
		for range c {
			for r.one() {
			}
		}
	}()
}

// one reaps one process; false when none has ended.
func (r *reaper) one() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var info unix.Siginfo
	// It is looked at first and reaped last, so that no signal meant for it
	// reaches another of its number.
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	pid := sigchldPID(&info)
	if err != nil || pid == 0 {
		return err == unix.EINTR
	}
	v, ok := r.children.LoadAndDelete(pid)
	k, _ := v.(*child)
	if ok {
		k.mu.Lock()
		k.over = true
		k.mu.Unlock()
	}
	var ws syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &ws, unix.WALL, nil); err != unix.EINTR {
			break
		}
	}
	if ok {
		k.status = ws
		close(k.ended)
	}
	return true
}

// launch starts a process and notes it.
func (r *reaper) launch(start func() (int, error)) (*child, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	pid, err := start()
	if err != nil {
		return nil, err
	}
	k := &child{pid: pid, ended: make(chan struct{})}
	r.children.Store(pid, k)
	return k, nil
}

// signal sends a signal to the process group of a child that has not ended.
func (k *child) signal(sig syscall.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.over {
		_ = unix.Kill(-k.pid, sig)
	}
}
