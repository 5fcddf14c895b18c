package fs

import (
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FUSE over io_uring: the kernel keeps a queue for each CPU, and a request is
// answered by a thread on the CPU of its caller, with one system call that
// hands over the answer and waits for the next request. INIT, FORGET and
// INTERRUPT still come through /dev/fuse, and notifications leave there.
//
// The kernel offers it where root has allowed it (the parameter enable_uring of
// the module fuse, Linux 6.14). Whatever is missing, the mount is served by
// /dev/fuse alone.

// Layout of struct fuse_uring_req_header and numbers of linux/fuse.h.
const (
	uringOpIn   = 128 // the request's own header
	uringEntry  = 256 // struct fuse_uring_ent_in_out
	uringHeader = 288

	uringRegister       = 1
	uringCommitAndFetch = 2

	uringCommitID  = uringEntry + 8
	uringPayloadSz = uringEntry + 16
)

const (
	// uringDepth is how many requests one CPU's callers may have under way
	// in the server. A power of two.
	uringDepth = 8
	// uringMaxCPUs bounds the memory for the queues.
	uringMaxCPUs = 64
	// uringPage holds the header of an entry, before its payload.
	uringPage = 4096

	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// uring is the queues of one mount.
type uring struct {
	dev    *device
	server *fuse.ProtocolServer
	raw    *rawFS
	queues []*uqueue
	fail   func()        // ends the whole server
	start  chan struct{} // closed when the threads are to register
	drop   atomic.Bool   // set before start: the kernel does not want it
	up     sync.WaitGroup
	ended  sync.WaitGroup
}

// uqueue is the queue of one CPU with the thread that serves it.
type uqueue struct {
	u       *uring
	cpu     int
	ring    *ring
	event   int // eventfd that wakes the thread
	mem     []byte
	entries [uringDepth]uentry
	err     error // of setting it up

	mu       sync.Mutex
	answered []*uentry // protected by mu: answered elsewhere, to commit
	stop     bool      // protected by mu
}

// uentry holds one request at a time.
type uentry struct {
	index   int
	head    []byte // uringHeader
	payload []byte
	iov     [2]unix.Iovec
	in      []byte // copy of the request, which the answer overwrites
	commit  uint64
}

// newURing sets the queues up, before the kernel is told that there are any.
func newURing(raw *rawFS, dev *device, fail func()) (*uring, error) {
	n, err := possibleCPUs()
	if err != nil {
		return nil, err
	}
	if n > uringMaxCPUs {
		return nil, fmt.Errorf("%d CPUs are more than the %d that queues are made for", n, uringMaxCPUs)
	}
	u := &uring{dev: dev, raw: raw, fail: fail, start: make(chan struct{})}
	for cpu := range n {
		q := &uqueue{u: u, cpu: cpu, event: -1}
		u.queues = append(u.queues, q)
		u.up.Add(1)
		u.ended.Add(1)
		go q.run()
	}
	u.up.Wait()
	for _, q := range u.queues {
		if q.err != nil {
			u.giveUp()
			return nil, q.err
		}
	}
	return u, nil
}

// possibleCPUs is how many queues the kernel will want.
func possibleCPUs() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	// Such as "0-3"; the last number counts.
	s := strings.TrimSpace(string(text))
	s = s[strings.LastIndexAny(s, "-,")+1:]
	n, err := strconv.Atoi(s)
	return n + 1, err
}

// giveUp ends the threads of queues that were never registered.
func (u *uring) giveUp() {
	u.drop.Store(true)
	close(u.start)
	u.ended.Wait()
}

// begin registers the queues, once the kernel has agreed to them.
func (u *uring) begin(server *fuse.ProtocolServer) {
	u.server = server
	close(u.start)
}

// prepareRings makes the queues for FUSE over io_uring where the kernel offers
// it, and adds it to what this server asks the kernel for.
func (s *Server) prepareRings(mo *fuse.MountOptions) {
	if !uringOffered() {
		return
	}
	u, err := newURing(s.raw, s.raw.dev, func() { _ = s.Close() })
	if err != nil {
		s.raw.log.Info("without FUSE over io_uring", "why", err)
		return
	}
	s.rings = u
	mo.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
}

// uringOffered reports whether root has allowed FUSE over io_uring. The
// kernel's INIT tells as well, but only when it is too late to prepare.
func uringOffered() bool {
	b, err := os.ReadFile("/sys/module/fuse/parameters/enable_uring")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

// beginRings registers the queues if the kernel has agreed to them. It then
// sends nothing but to them, and waits until they are there.
func (s *Server) beginRings(mo *fuse.MountOptions) error {
	if s.rings == nil {
		return nil
	}
	settings := s.fuse.KernelSettings()
	if settings.Flags64()&fuse.CAP_OVER_IO_URING == 0 {
		s.rings.giveUp()
		s.rings = nil
		return nil
	}
	// The requests of the queues go through a server of their own, which
	// learns from the same INIT what has been agreed on.
	ps := fuse.NewProtocolServer(s.serves, mo)
	in := unsafe.Slice((*byte)(unsafe.Pointer(settings)), unsafe.Sizeof(*settings))
	out := make([]byte, outHeaderSize+int(unsafe.Sizeof(fuse.InitOut{})))
	if _, st := ps.HandleRequest([][]byte{in}, [][]byte{out}); st != fuse.OK {
		s.rings.giveUp()
		return fmt.Errorf("FUSE over io_uring: INIT: %w", unix.Errno(st))
	}
	s.rings.begin(ps)
	return nil
}

// end makes the threads end, and waits for them.
func (u *uring) end() {
	for _, q := range u.queues {
		q.mu.Lock()
		q.stop = true
		q.mu.Unlock()
		q.wake()
	}
	u.ended.Wait()
}

func (q *uqueue) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.event >= 0 {
		one := [8]byte{1}
		_, _ = unix.Write(q.event, one[:])
	}
}

// run is the thread of the queue.
func (q *uqueue) run() {
	defer q.u.ended.Done()
	// Never unlocked: the thread ends with the queue, with its affinity.
	runtime.LockOSThread()
	q.err = q.setUp()
	q.u.up.Done()
	defer q.tearDown()
	<-q.u.start
	if q.u.drop.Load() || q.err != nil {
		return
	}
	if err := q.serve(); err != nil {
		q.u.raw.log.Error("FUSE over io_uring: the mount is given up", "cpu", q.cpu, "error", err)
		// The kernel goes on to send to this queue: without an end, what a
		// program calls on this CPU would never return.
		go q.u.fail()
	}
}

func (q *uqueue) setUp() error {
	var set unix.CPUSet
	set.Set(q.cpu)
	// A CPU that is offline, or not ours: its queue is served from anywhere.
	_ = unix.SchedSetaffinity(0, &set)
	var err error
	if q.ring, err = newRing(uint32(1) << bits.Len(uringDepth)); err != nil {
		return err
	}
	if q.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	const each = uringPage + maxIO
	if q.mem, err = unix.Mmap(-1, 0, uringDepth*each, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
		return err
	}
	for i := range q.entries {
		e := &q.entries[i]
		b := q.mem[i*each : (i+1)*each]
		e.index, e.head, e.payload = i, b[:uringHeader:uringHeader], b[uringPage:]
		e.iov[0].Base, e.iov[1].Base = &e.head[0], &e.payload[0]
		e.iov[0].SetLen(len(e.head))
		e.iov[1].SetLen(len(e.payload))
	}
	return nil
}

func (q *uqueue) tearDown() {
	if q.ring != nil {
		q.ring.close()
	}
	q.mu.Lock()
	if q.event >= 0 {
		_ = unix.Close(q.event)
	}
	q.event = -1
	q.mu.Unlock()
	if q.mem != nil {
		_ = unix.Munmap(q.mem)
	}
}

const eventData = 1 << 32 // the completion is of the event, not of an entry

// serve registers the entries and answers requests until the mount is gone, or
// end is called.
func (q *uqueue) serve() error {
	q.watch()
	for i := range q.entries {
		q.command(&q.entries[i], uringRegister)
	}
	left := len(q.entries)
	for {
		if err := q.ring.enter(1); err != nil {
			return err
		}
		for {
			c, ok := q.ring.completion()
			if !ok {
				break
			}
			switch {
			case c.userData == eventData:
				if q.woken() {
					return nil
				}
			case c.res < 0:
				// The mount is gone, or the kernel does not take the entry.
				if left--; left == 0 {
					return gone(unix.Errno(-c.res))
				}
			default:
				// Whoever was answered must not wait for this answer.
				if q.ring.filled > 0 {
					if err := q.ring.enter(0); err != nil {
						return err
					}
				}
				q.answer(&q.entries[c.userData])
			}
		}
	}
}

// gone is nil for the errors with which entries end when a mount does, and for
// the one that says that the kernel, asked again, does not offer this: it then
// sends everything through /dev/fuse.
func gone(err unix.Errno) error {
	switch err {
	case unix.ENOTCONN, unix.ECANCELED, unix.ECONNABORTED, unix.ENODEV, unix.EOPNOTSUPP:
		return nil
	}
	return err
}

func (q *uqueue) watch() {
	s := q.ring.next()
	s.opcode, s.fd, s.opFlags, s.userData = ringOpPollAdd, int32(q.event), unix.POLLIN, eventData
}

// woken commits what was answered elsewhere, and reports whether to stop.
func (q *uqueue) woken() bool {
	var b [8]byte
	_, _ = unix.Read(q.event, b[:])
	q.mu.Lock()
	list, stop := q.answered, q.stop
	q.answered = nil
	q.mu.Unlock()
	for _, e := range list {
		q.command(e, uringCommitAndFetch)
	}
	if !stop {
		q.watch()
	}
	return stop
}

// command prepares a FUSE_IO_URING_CMD for the entry.
func (q *uqueue) command(e *uentry, op uint32) {
	s := q.ring.next()
	s.opcode, s.fd, s.cmdOp, s.userData = ringOpURingCmd, int32(q.u.dev.fd), op, uint64(e.index)
	if op == uringRegister {
		s.addr, s.len = uint64(uintptr(unsafe.Pointer(&e.iov))), uint32(len(e.iov))
	}
	// struct fuse_uring_cmd_req: flags, commit id, queue.
	*(*uint64)(unsafe.Pointer(&s.cmd[8])) = e.commit
	*(*uint16)(unsafe.Pointer(&s.cmd[16])) = uint16(q.cpu)
}

func (e *uentry) uint32(off int) *uint32 { return (*uint32)(unsafe.Pointer(&e.head[off])) }

// answer answers the entry's request, here or, where that may take long, in a
// goroutine, so that others on this CPU do not wait for it.
func (q *uqueue) answer(e *uentry) {
	e.commit = *(*uint64)(unsafe.Pointer(&e.head[uringCommitID]))
	h := (*fuse.InHeader)(unsafe.Pointer(&e.head[0]))
	if q.u.raw.quick(h) {
		q.handle(e)
		q.command(e, uringCommitAndFetch)
		return
	}
	go func() {
		q.handle(e)
		q.mu.Lock()
		q.answered = append(q.answered, e)
		q.mu.Unlock()
		q.wake()
	}()
}

// Operations, by their numbers in linux/fuse.h.
const (
	wireLookup      = 1
	wireGetattr     = 3
	wireSetattr     = 4
	wireReadlink    = 5
	wireSymlink     = 6
	wireMknod       = 8
	wireMkdir       = 9
	wireUnlink      = 10
	wireRmdir       = 11
	wireOpen        = 14
	wireRead        = 15
	wireWrite       = 16
	wireStatfs      = 17
	wireRelease     = 18
	wireGetxattr    = 22
	wireListxattr   = 23
	wireFlush       = 25
	wireOpendir     = 27
	wireReaddir     = 28
	wireReleasedir  = 29
	wireAccess      = 34
	wireCreate      = 35
	wireReaddirplus = 44
	wireLseek       = 46
	wireTmpfile     = 51
)

// quick reports whether a request is answered at once: nothing is copied up
// and nothing synced.
func (r *rawFS) quick(h *fuse.InHeader) bool {
	if h.NodeId == pastList {
		return false // the history is read
	}
	switch h.Opcode {
	case wireLookup, wireGetattr, wireReadlink, wireSymlink, wireMknod, wireMkdir, wireUnlink, wireRmdir, wireOpen,
		wireStatfs, wireRelease, wireGetxattr, wireListxattr, wireFlush, wireOpendir, wireReaddir, wireReleasedir,
		wireAccess, wireCreate, wireReaddirplus, wireLseek, wireTmpfile, wireRead:
		return true
	case wireWrite, wireSetattr:
		n := r.nodes.get(h.NodeId)
		return n == nil || r.face.Raised(n)
	}
	return false
}

// handle turns the request in the entry into its answer.
func (q *uqueue) handle(e *uentry) {
	h := *(*fuse.InHeader)(unsafe.Pointer(&e.head[0]))
	size := int(*e.uint32(uringPayloadSz))
	own := int(h.Length) - inHeaderSize - size
	if size > len(e.payload) || own < 0 || own > uringEntry-uringOpIn {
		q.reply(e, &h, -int32(unix.EIO), 0)
		return
	}
	// The answer is written where the request stands.
	e.in = append(e.in[:0], e.head[:inHeaderSize]...)
	e.in = append(e.in, e.head[uringOpIn:uringOpIn+own]...)
	in := [][]byte{e.in, e.payload[:size]}
	if h.Opcode != wireWrite {
		e.in = append(e.in, e.payload[:size]...)
		in = [][]byte{e.in}
	}
	n, st := q.u.server.HandleRequest(in, [][]byte{e.head[:outHeaderSize], e.payload})
	if st != fuse.OK || n < outHeaderSize {
		q.reply(e, &h, -int32(unix.EIO), 0)
		return
	}
	*e.uint32(uringPayloadSz) = uint32(n - outHeaderSize)
}

func (q *uqueue) reply(e *uentry, h *fuse.InHeader, status int32, size uint32) {
	*(*fuse.OutHeader)(unsafe.Pointer(&e.head[0])) = fuse.OutHeader{Length: uint32(outHeaderSize), Status: status, Unique: h.Unique}
	*e.uint32(uringPayloadSz) = size
}
