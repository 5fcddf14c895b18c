// Package hostfstest makes host calls fail, for tests of what happens then.
package hostfstest

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// Call is one entry of a [Fault]'s log: a call that changes something or makes
// it durable.
type Call struct {
	// N numbers the counted calls from 1; 0 is a call that the filter left
	// out of the count.
	N int
	// Op is the method's name. Open is logged only with O_CREAT or O_TRUNC.
	Op string
	// Name is the component that the call acted on, "" for a descriptor
	// itself. Of Rename and Link it is the new name.
	Name string
	// Err is what the call answered, injected or not.
	Err error
}

// String is the call as a line of a log.
func (c Call) String() string {
	return fmt.Sprintf("%d %s(%q) = %v", c.N, c.Op, c.Name, c.Err)
}

// Crash is what a [Fault] panics with at the point set by CrashAt.
type Crash struct{ Call Call }

// Error makes a Crash that nobody recovered readable.
func (c Crash) Error() string { return "injected crash before " + c.Call.String() }

// ExitStatus is the status with which a process ends at the point set by
// ExitAt: a value that no other failure of a test gives.
const ExitStatus = 86

type mode int

const (
	modeNone mode = iota
	modeFailOnce
	modeFailFrom
	modeShort
	modeCrash
	modeTorn
	modeExit
	modeKill
)

// Fault is a [hostfs.FS] that counts the calls which change something or make
// it durable (creating opens, writes, renames, fsync, …) and injects one kind
// of fault at the Nth of them. It is safe for concurrent use, but which call is
// the Nth is then a matter of scheduling.
type Fault struct {
	under hostfs.FS

	mu     sync.Mutex
	filter func(op, name string) bool
	n      int
	at     int
	mode   mode
	errno  syscall.Errno
	dead   bool
	calls  []Call
}

// New wraps a host; nothing fails until one of the setters is called.
func New(under hostfs.FS) *Fault { return &Fault{under: under} }

// FailAt makes the nth counted call from now, and only that one, fail with
// errno and without effect.
func (f *Fault) FailAt(n int, errno syscall.Errno) { f.set(modeFailOnce, n, errno) }

// FailFrom makes the nth counted call from now and all after it fail.
func (f *Fault) FailFrom(n int, errno syscall.Errno) { f.set(modeFailFrom, n, errno) }

// ShortAt makes the nth counted call from now, if it is a Pwrite or CopyRange
// of more than one byte, do the first half only and report that, as the kernel
// may. Other calls are not affected.
func (f *Fault) ShortAt(n int) { f.set(modeShort, n, 0) }

// CrashAt makes the nth counted call from now panic with [Crash] before it has
// any effect. The Fault is dead from then on: every call but Close fails with
// EIO and without effect, so that deferred clean-up changes nothing, as in a
// process that is gone. The panic is in the goroutine that made the call; code
// that makes host calls from goroutines of its own is tested with ExitAt.
func (f *Fault) CrashAt(n int) { f.set(modeCrash, n, 0) }

// TornAt is CrashAt, except that a Pwrite at that point writes its first half
// before the crash.
func (f *Fault) TornAt(n int) { f.set(modeTorn, n, 0) }

// ExitAt ends the process with [ExitStatus] at the nth counted call from now,
// before it has any effect, like a kill: nothing deferred runs.
func (f *Fault) ExitAt(n int) { f.set(modeExit, n, 0) }

// KillAt kills the process with SIGKILL at the nth counted call from now, before
// it has any effect: what a test process of its own does to itself, nothing can
// tell from what anybody else did to it.
func (f *Fault) KillAt(n int) { f.set(modeKill, n, 0) }

// Clear injects nothing from now on, also after a crash, and starts the count
// and the log again.
func (f *Fault) Clear() { f.set(modeNone, 0, 0) }

// Only counts the calls for which fn is true; nil counts all.
func (f *Fault) Only(fn func(op, name string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.filter = fn
}

// Count is how many calls were counted since the last setter.
func (f *Fault) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// Calls is the log since the last setter.
func (f *Fault) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Call(nil), f.calls...)
}

// Run calls fn and tells whether it ended in the crash set by CrashAt or
// TornAt. Other panics go on.
func (f *Fault) Run(fn func() error) (crashed bool, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case Crash:
			crashed, err = true, r
		default:
			panic(r)
		}
	}()
	return false, fn()
}

func (f *Fault) set(m mode, n int, errno syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mode, f.at, f.errno, f.n, f.dead, f.calls = m, n, errno, 0, false, nil
}

// verdict is what is to become of one call.
type verdict struct {
	err   error // not nil: answer this, do nothing
	short bool  // do the first half only
	torn  bool  // do the first half, then crash
	call  int   // index in the log
}

// before counts a call and decides on it. It panics or exits where the call is
// the one to crash at.
func (f *Fault) before(op, name string) verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return verdict{err: syscall.EIO, call: -1}
	}
	c := Call{Op: op, Name: name}
	if f.filter == nil || f.filter(op, name) {
		f.n++
		c.N = f.n
	}
	f.calls = append(f.calls, c)
	v := verdict{call: len(f.calls) - 1}
	hit := c.N > 0 && c.N == f.at
	switch f.mode {
	case modeFailOnce:
		if hit {
			v.err = f.errno
		}
	case modeFailFrom:
		if c.N > 0 && c.N >= f.at {
			v.err = f.errno
		}
	case modeShort:
		v.short = hit
	case modeTorn:
		if hit && op == "Pwrite" {
			v.torn = true
			return v
		}
		fallthrough
	case modeCrash:
		if hit {
			f.dead = true
			panic(Crash{c})
		}
	case modeExit:
		if hit {
			os.Exit(ExitStatus)
		}
	case modeKill:
		if hit {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it does not come back from there
		}
	}
	if v.err != nil {
		f.calls[v.call].Err = v.err
	}
	return v
}

// alive is asked before a call that changes nothing.
func (f *Fault) alive() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return syscall.EIO
	}
	return nil
}

func (f *Fault) after(v verdict, err error) error {
	if err == nil && !v.torn {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if v.call < len(f.calls) {
		f.calls[v.call].Err = err
	}
	if v.torn {
		f.dead = true
		panic(Crash{f.calls[v.call]})
	}
	return err
}

// do runs one call that changes something.
func (f *Fault) do(op, name string, call func() error) error {
	v := f.before(op, name)
	if v.err != nil {
		return v.err
	}
	return f.after(v, call())
}

// look runs one call that changes nothing.
func (f *Fault) look(call func() error) error {
	if err := f.alive(); err != nil {
		return err
	}
	return call()
}
