package fs

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring is as much of io_uring as FUSE needs: submission entries of 128 bytes
// for one thread, which also takes the completions. See io_uring(7).
type ring struct {
	fd   int
	mem  [][]byte // what is mapped, to unmap
	sqes []sqe
	cqes []cqe

	sqTail, cqHead, cqTail *uint32 // shared with the kernel
	sqMask, cqMask         uint32
	filled                 uint32 // entries prepared and not submitted
}

// sqe is struct io_uring_sqe with IORING_SETUP_SQE128, as IORING_OP_URING_CMD
// and IORING_OP_POLL_ADD use it.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	cmdOp    uint32
	_        uint32
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	_        [8]byte
	cmd      [80]byte
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32

	_  [3]uint32
	sq struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32

		userAddr uint64
	}
	cq struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32

		userAddr uint64
	}
}

// Numbers of linux/io_uring.h.
const (
	ringOpPollAdd  = 6
	ringOpURingCmd = 46

	ringSetupSQE128       = 1 << 10
	ringSetupSingleIssuer = 1 << 12
	ringSetupDeferTaskrun = 1 << 13
	ringSetupNoSQArray    = 1 << 16

	ringEnterGetEvents = 1

	ringOffSQ   = 0
	ringOffSQEs = 0x10000000
)

// newRing makes a ring with room for n entries, a power of two. Only the
// thread that calls it may use it.
func newRing(n uint32) (*ring, error) {
	p := ringParams{flags: ringSetupSQE128 | ringSetupSingleIssuer | ringSetupDeferTaskrun | ringSetupNoSQArray}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &ring{fd: int(fd)}
	unix.CloseOnExec(r.fd)
	// Kernels with this much have both rings in one mapping.
	size := int(max(p.sq.ringEntries, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{}))))
	shared, err := r.mmap(ringOffSQ, size)
	if err != nil {
		r.close()
		return nil, err
	}
	entries, err := r.mmap(ringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})))
	if err != nil {
		r.close()
		return nil, err
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&shared[off])) }
	r.sqTail, r.cqHead, r.cqTail = at(p.sq.tail), at(p.cq.head), at(p.cq.tail)
	r.sqMask, r.cqMask = *at(p.sq.ringMask), *at(p.cq.ringMask)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(unsafe.SliceData(entries))), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&shared[p.cq.cqes])), p.cqEntries)
	return r, nil
}

func (r *ring) mmap(off int64, size int) ([]byte, error) {
	b, err := unix.Mmap(r.fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	r.mem = append(r.mem, b)
	return b, nil
}

// next is a cleared entry to fill in; it is submitted by the next enter. There
// must be room, which is so where no more entries are under way than the ring
// was made for.
func (r *ring) next() *sqe {
	e := &r.sqes[(*r.sqTail+r.filled)&r.sqMask]
	*e = sqe{}
	r.filled++
	return e
}

// enter submits what was filled in and waits for at least wait completions.
func (r *ring) enter(wait uint32) error {
	n := r.filled
	atomic.StoreUint32(r.sqTail, *r.sqTail+n)
	r.filled = 0
	for {
		done, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), uintptr(wait), ringEnterGetEvents, 0, 0)
		switch {
		case errno == syscall.EINTR:
			continue // nothing was submitted
		case errno != 0:
			return fmt.Errorf("io_uring_enter: %w", errno)
		case uint32(done) < n:
			n -= uint32(done)
			continue
		}
		return nil
	}
}

// completion takes the next completion, if there is one.
func (r *ring) completion() (cqe, bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return cqe{}, false
	}
	c := r.cqes[head&r.cqMask]
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

// close ends all that is under way.
func (r *ring) close() {
	for _, b := range r.mem {
		_ = unix.Munmap(b)
	}
	_ = unix.Close(r.fd)
}
