package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxWorkers bounds the requests of one queue that are worked on beside
	// its own goroutine, and with that the memory that a guest can claim.
	maxWorkers = 16
	// inlineIO is the largest READ that others wait for.
	inlineIO = 64 << 10
	// lazy is how long FORGET may wait for others of its kind: nobody waits
	// for it, and a guest that throws its caches away sends thousands.
	lazy = 2 * time.Millisecond
)

// queue is one virtqueue. All but what mu protects is the control goroutine's.
type queue struct {
	s     *session
	log   *slog.Logger
	index int

	num               uint16
	desc, avail, used uint64
	addressed         bool
	next              uint16
	kick              int
	enabled           bool
	running           *runner

	mu   sync.Mutex
	call int // protected by mu; -1: the guest is called by nobody
}

// runner takes requests from a ring as long as the queue runs.
type runner struct {
	q       *queue
	ring    *ring // its used ring is protected by q.mu
	epoll   *os.File
	wait    syscall.RawConn // of epoll
	stop    int             // eventfd
	stopped atomic.Bool
	quit    chan struct{} // closed after stopped is set
	workers chan struct{} // a token for each that works
	busy    sync.WaitGroup
	done    chan struct{}
}

// start runs the queue if everything that it needs is there.
func (q *queue) start(mem *memory, event bool) error {
	if q.running != nil || !q.enabled || q.kick < 0 || !q.addressed || q.num == 0 || mem == nil {
		return nil
	}
	ring, err := newRing(mem, q.num, q.desc, q.avail, q.used, q.next, event)
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	r := &runner{q: q, ring: ring, stop: -1, quit: make(chan struct{}), workers: make(chan struct{}, maxWorkers), done: make(chan struct{})}
	if err := r.open(); err != nil {
		r.close()
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	q.running = r
	go r.run()
	return nil
}

// open prepares the descriptors that the runner waits on. The kick is never
// read: it is waited for edge by edge, so that no state of the descriptor, which
// the monitor shares, can make this process wait.
func (r *runner) open() (err error) {
	if r.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	// The runtime waits for it with its other descriptors: a thread that
	// waited by itself would keep a processor of the runtime's busy.
	_ = unix.SetNonblock(fd, true)
	r.epoll = os.NewFile(uintptr(fd), "queue")
	if r.wait, err = r.epoll.SyscallConn(); err != nil {
		return err
	}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, r.stop, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(r.stop)}); err != nil {
		return err
	}
	err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, r.q.kick, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: -1})
	if err != nil {
		return fmt.Errorf("the kick is no eventfd: %w", err)
	}
	return nil
}

func (r *runner) close() {
	if r.epoll != nil {
		_ = r.epoll.Close()
	}
	if r.stop >= 0 {
		_ = unix.Close(r.stop)
	}
}

// halt stops the queue: when it returns, nothing touches the guest's memory for
// it any more.
func (q *queue) halt() {
	r := q.running
	if r == nil {
		return
	}
	r.stopped.Store(true)
	close(r.quit)
	one := [8]byte{1}
	_, _ = unix.Write(r.stop, one[:])
	<-r.done
	r.close()
	q.next, q.running = r.ring.next, nil
}

// run is the queue's goroutine.
func (r *runner) run() {
	defer close(r.done)
	defer r.busy.Wait()
	sc := new(scratch)
	for !r.stopped.Load() {
		took, more, err := r.drain(sc)
		if err == nil && took && r.q.index == 0 {
			// The guest goes on without kicks.
			select {
			case <-r.quit:
			case <-time.After(lazy):
			}
			continue
		}
		if err != nil {
			r.q.log.Warn("a guest's queue is not served any more", "queue", r.q.index, "why", err)
			_ = r.wait.Control(func(fd uintptr) { _ = unix.EpollCtl(int(fd), unix.EPOLL_CTL_DEL, r.q.kick, nil) })
		} else if more {
			continue
		}
		if err := r.woken(); err != nil {
			r.q.log.Error("wait for a guest", "queue", r.q.index, "error", err)
			return
		}
	}
}

// woken waits for a kick, or for the end.
func (r *runner) woken() error {
	var ev [2]unix.EpollEvent
	var failed error
	err := r.wait.Read(func(fd uintptr) bool {
		n, err := unix.EpollWait(int(fd), ev[:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			failed = err
		}
		return n > 0 || err != nil
	})
	return errors.Join(err, failed)
}

// drain works on requests until none is left, and reports whether there were any.
// It arms the kick, and reports whether more came meanwhile; after a FORGET it
// does not.
func (r *runner) drain(sc *scratch) (took, more bool, err error) {
	r.q.mu.Lock()
	r.ring.quiet()
	r.q.mu.Unlock()
	c := chains.Get().(*chain)
	defer func() { chains.Put(c) }()
	for !r.stopped.Load() {
		ok, err := r.ring.take(c)
		if err != nil {
			return took, false, err
		}
		if !ok {
			break
		}
		took = true
		if r.inline(c) {
			if err := r.work(c, sc); err != nil {
				return took, false, err
			}
			continue
		}
		r.workers <- struct{}{}
		r.busy.Add(1)
		go r.worker(c)
		c = chains.Get().(*chain)
	}
	if took && r.q.index == 0 {
		return took, false, nil
	}
	r.q.mu.Lock()
	r.ring.listen()
	r.q.mu.Unlock()
	n, err := r.ring.waiting()
	return took, n > 0, err
}

var chains = sync.Pool{New: func() any { return new(chain) }}

// inline reports whether the next request may wait for this one. It is a guess:
// the guest may change what is looked at.
func (r *runner) inline(c *chain) bool {
	var head [headSize + 24]byte
	gather(head[:], c.in, 0)
	op := binary.LittleEndian.Uint32(head[4:])
	if op == opRead && binary.LittleEndian.Uint32(head[56:]) > inlineIO {
		n, err := r.ring.waiting()
		return err != nil || n == 0
	}
	return r.q.s.quick(op, binary.LittleEndian.Uint64(head[16:]))
}

func (r *runner) worker(c *chain) {
	defer r.busy.Done()
	sc := scratches.Get().(*scratch)
	if err := r.work(c, sc); err != nil {
		r.q.log.Warn("a guest's request is dropped", "queue", r.q.index, "why", err)
	}
	scratches.Put(sc)
	c.reset()
	chains.Put(c)
	<-r.workers
}

// work answers one request and gives it back.
func (r *runner) work(c *chain, sc *scratch) error {
	n, err := r.q.s.serve(c.in, c.out, sc)
	if err != nil {
		return err
	}
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	if r.ring.give(c.head, n) {
		r.q.notify()
	}
	return nil
}

// notify calls the guest. The monitor shares the descriptor and can make writes
// to it wait, which nothing here may do; one that takes nothing just now has a
// call in it that was not taken yet.
//
// Preconditions: q.mu is held.
func (q *queue) notify() {
	if q.call < 0 {
		return
	}
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(q.call), Events: unix.POLLOUT}}, 0); n == 1 {
		one := [8]byte{1}
		_, _ = unix.Write(q.call, one[:])
	}
}

// setCall replaces the descriptor that the guest is called by, which the monitor
// does while the queue runs.
func (q *queue) setCall(fd int) {
	if fd >= 0 {
		_ = unix.SetNonblock(fd, true)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.call >= 0 {
		_ = unix.Close(q.call)
	}
	q.call = fd
}

// setKick replaces the descriptor that the guest's kicks come by. The queue does
// not run.
func (q *queue) setKick(fd int) {
	if q.kick >= 0 {
		_ = unix.Close(q.kick)
	}
	q.kick = fd
}
