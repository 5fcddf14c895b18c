package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// A split virtqueue (virtio 1.2, 2.7). The three parts lie in the guest's
// memory. What is read of them is read once; the guest may change it at any
// time, and what it changes then is its own loss.

const (
	// maxRing is the largest queue, in descriptors.
	maxRing = 1024
	// maxChain bounds the descriptors of one request: pages of the largest
	// one, and what stands before and after.
	maxChain = maxIO/4096 + 64

	descSize = 16

	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	usedNoNotify     = 1 // in the used ring: no kick is needed
	availNoInterrupt = 1 // in the available ring: no call is needed
)

// errRing: the guest has made a ring that cannot be.
var errRing = errors.New("broken ring")

// ring is one queue's view of its rings. One goroutine takes from it; the used
// ring (give, quiet, listen) is the queue's to serialise.
type ring struct {
	mem   *memory
	num   uint16 // a power of two
	event bool   // VIRTIO_RING_F_EVENT_IDX

	desc, avail, used []byte

	next  uint16 // of the available ring, to take
	gave  uint16 // the used ring's index
	ever  bool   // something was given back
	flags uint32 // of the used ring

	table []byte // copy of an indirect table
}

// newRing finds the rings. Each part is taken with two bytes more, so that the
// last word of it can be read as four: the guest's pages have them.
func newRing(mem *memory, num uint16, desc, avail, used uint64, next uint16, event bool) (*ring, error) {
	if num < 2 || num > maxRing || num&(num-1) != 0 {
		return nil, fmt.Errorf("ring of %d descriptors; a power of two up to %d is possible", num, maxRing)
	}
	r := &ring{mem: mem, num: num, event: event, next: next}
	for _, p := range []struct {
		b     *[]byte
		at, n uint64
		align uint64
	}{
		{&r.desc, desc, descSize * uint64(num), 16},
		{&r.avail, avail, 4 + 2*uint64(num) + 4, 4},
		{&r.used, used, 4 + 8*uint64(num) + 4, 4},
	} {
		b, err := mem.ofUser(p.at, p.n)
		if err != nil {
			return nil, err
		}
		if uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(p.align) != 0 {
			return nil, fmt.Errorf("ring at %#x: not aligned to %d", p.at, p.align)
		}
		*p.b = b
	}
	r.gave = uint16(atomic.LoadUint32(word(r.used, 0)) >> 16)
	return r, nil
}

// word is the four bytes at off.
func word(b []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&b[off : off+4][0])) }

// chain is one request in a ring.
type chain struct {
	head    uint16
	in, out [][]byte
}

func (c *chain) reset() {
	clear(c.in)
	clear(c.out)
	c.in, c.out = c.in[:0], c.out[:0]
}

// waiting is how many requests there are to take.
func (r *ring) waiting() (uint16, error) {
	n := uint16(atomic.LoadUint32(word(r.avail, 0))>>16) - r.next
	if n > r.num {
		return 0, fmt.Errorf("%w: %d requests in a ring of %d", errRing, n, r.num)
	}
	return n, nil
}

// take takes the next request into c, if there is one.
func (r *ring) take(c *chain) (bool, error) {
	n, err := r.waiting()
	if err != nil || n == 0 {
		return false, err
	}
	c.reset()
	c.head = binary.LittleEndian.Uint16(r.avail[4+2*(int(r.next)&int(r.num-1)):])
	r.next++
	if c.head >= r.num {
		return false, fmt.Errorf("%w: descriptor %d of %d", errRing, c.head, r.num)
	}
	return true, r.walk(c)
}

// descriptor is one descriptor, copied.
type descriptor struct {
	addr  uint64
	size  uint32
	flags uint16
	next  uint16
}

func descriptorAt(table []byte, i uint16) descriptor {
	var b [descSize]byte
	copy(b[:], table[int(i)*descSize:])
	return descriptor{
		addr: binary.LittleEndian.Uint64(b[0:]), size: binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]), next: binary.LittleEndian.Uint16(b[14:]),
	}
}

// walk collects the buffers of a request.
func (r *ring) walk(c *chain) error {
	table, count := r.desc, uint32(r.num)
	d := descriptorAt(table, c.head)
	if d.flags&descIndirect != 0 {
		if d.flags&(descNext|descWrite) != 0 || d.size == 0 || d.size%descSize != 0 || d.size > maxChain*descSize {
			return fmt.Errorf("%w: indirect table of %d bytes, flags %#x", errRing, d.size, d.flags)
		}
		var err error
		if table, err = r.indirect(d); err != nil {
			return err
		}
		count = d.size / descSize
		d = descriptorAt(table, 0)
	}
	var total uint64
	for steps := 0; ; steps++ {
		if steps == maxChain || d.flags&descIndirect != 0 {
			return fmt.Errorf("%w: a request of more than %d descriptors, or an indirect one inside", errRing, maxChain)
		}
		if total += uint64(d.size); total > 2*(maxIO+maxRequest) {
			return fmt.Errorf("%w: a request of %d bytes and more", errRing, total)
		}
		var err error
		if d.flags&descWrite != 0 {
			c.out, err = r.mem.slices(c.out, d.addr, uint64(d.size))
		} else if len(c.out) > 0 {
			return fmt.Errorf("%w: the device is to read after it is to write", errRing)
		} else {
			c.in, err = r.mem.slices(c.in, d.addr, uint64(d.size))
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errRing, err)
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if uint32(d.next) >= count {
			return fmt.Errorf("%w: descriptor %d of %d", errRing, d.next, count)
		}
		d = descriptorAt(table, d.next)
	}
}

// indirect copies an indirect table.
func (r *ring) indirect(d descriptor) ([]byte, error) {
	parts, err := r.mem.slices(nil, d.addr, uint64(d.size))
	if err != nil {
		return nil, fmt.Errorf("%w: indirect table: %w", errRing, err)
	}
	r.table = room(r.table, int(d.size))
	gather(r.table, parts, 0)
	return r.table, nil
}

// give gives a request back, whose answer is n bytes long, and reports whether
// the guest wants to be called.
func (r *ring) give(head uint16, n int) bool {
	at := r.used[4+8*(int(r.gave)&int(r.num-1)):]
	binary.LittleEndian.PutUint32(at, uint32(head))
	binary.LittleEndian.PutUint32(at[4:], uint32(n))
	old := r.gave
	r.gave++
	// The store is a barrier as well: what the guest wants is read after it.
	atomic.StoreUint32(word(r.used, 0), r.flags|uint32(r.gave)<<16)
	if !r.event {
		return atomic.LoadUint32(word(r.avail, 0))&availNoInterrupt == 0
	}
	want := uint16(atomic.LoadUint32(word(r.avail, 4+2*int(r.num))))
	call := !r.ever || want == old
	r.ever = true
	return call
}

// quiet asks the guest for no kicks, as far as it can be asked. The next listen
// ends that.
func (r *ring) quiet() {
	if !r.event && r.flags&usedNoNotify == 0 {
		r.flags |= usedNoNotify
		atomic.StoreUint32(word(r.used, 0), r.flags|uint32(r.gave)<<16)
	}
}

// listen asks the guest for a kick with the next request. Requests may have come
// just before.
func (r *ring) listen() {
	if !r.event {
		r.flags &^= usedNoNotify
		atomic.StoreUint32(word(r.used, 0), r.flags|uint32(r.gave)<<16)
		return
	}
	// The index is half of a word, and what follows it is the guest's.
	at := word(r.used, 4+8*int(r.num))
	for range 100 {
		old := atomic.LoadUint32(at)
		if atomic.CompareAndSwapUint32(at, old, old&^0xffff|uint32(r.next)) {
			return
		}
	}
}
