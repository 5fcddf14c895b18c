package virtiofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// maxRegions is how many regions of memory a monitor may hand over at once.
const maxRegions = 8

// region is a part of the guest's memory.
type region struct {
	guest uint64 // its address to the guest
	user  uint64 // its address in the monitor, which rings are named by
	mem   []byte // mapped
}

// memory is the guest's memory. It is never changed: a new table is a new
// memory.
type memory struct{ regions []region }

// errMemory: an address lies outside of the guest's memory.
var errMemory = errors.New("outside of the guest's memory")

// mapMemory maps the table in b (VHOST_USER_SET_MEM_TABLE), whose regions lie in
// fds.
func mapMemory(b []byte, fds []int) (*memory, error) {
	const head, each = 8, 32
	if len(b) < head {
		return nil, errors.New("memory table cut short")
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > maxRegions || len(b) != head+int(n)*each || len(fds) != int(n) {
		return nil, fmt.Errorf("memory table of %d regions in %d bytes with %d descriptors; up to %d regions are possible, each with one", n, len(b), len(fds), maxRegions)
	}
	m := &memory{}
	for i := range int(n) {
		r := b[head+i*each:]
		u := func(at int) uint64 { return binary.LittleEndian.Uint64(r[at:]) }
		if err := m.add(u(0), u(8), u(16), u(24), fds[i]); err != nil {
			m.unmap()
			return nil, fmt.Errorf("memory region %d: %w", i, err)
		}
	}
	return m, nil
}

func (m *memory) add(guest, size, user, offset uint64, fd int) error {
	const page = 4096
	if size == 0 || size > math.MaxInt64-offset || offset > math.MaxInt64 || guest > math.MaxUint64-size || user > math.MaxUint64-size || offset%page != 0 {
		return fmt.Errorf("%d bytes at %#x, %#x from %#x on: not a region", size, guest, user, offset)
	}
	for _, r := range m.regions {
		if guest < r.guest+uint64(len(r.mem)) && r.guest < guest+size {
			return fmt.Errorf("%d bytes at %#x: overlaps another", size, guest)
		}
	}
	// A file that shrinks would take this process with it.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return errors.New("the guest's memory must be a memfd that is sealed against shrinking, as QEMU's -object memory-backend-memfd,share=on is")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if uint64(st.Size) < offset+size {
		return fmt.Errorf("%d bytes from %d on, in a memfd of %d", size, offset, st.Size)
	}
	mem, err := unix.Mmap(fd, int64(offset), int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w", size, err)
	}
	_ = unix.Madvise(mem, unix.MADV_DONTDUMP)
	m.regions = append(m.regions, region{guest: guest, user: user, mem: mem})
	return nil
}

// unmap ends the use of the memory.
func (m *memory) unmap() {
	if m == nil {
		return
	}
	for _, r := range m.regions {
		_ = unix.Munmap(r.mem)
	}
	m.regions = nil
}

// at is the memory from the guest's address addr on, n bytes or fewer where a
// region ends.
func (m *memory) at(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.guest; addr >= r.guest && off < uint64(len(r.mem)) {
			return r.mem[off : off+min(n, uint64(len(r.mem))-off)], nil
		}
	}
	return nil, fmt.Errorf("%#x: %w", addr, errMemory)
}

// slices appends the n bytes from addr on.
func (m *memory) slices(to [][]byte, addr, n uint64) ([][]byte, error) {
	for n > 0 {
		b, err := m.at(addr, n)
		if err != nil {
			return to, err
		}
		to = append(to, b)
		addr, n = addr+uint64(len(b)), n-uint64(len(b))
	}
	return to, nil
}

// ofUser is the n bytes at the monitor's address addr, which lie in one region.
func (m *memory) ofUser(addr, n uint64) ([]byte, error) {
	if m == nil {
		return nil, fmt.Errorf("ring at %#x before any memory: %w", addr, errMemory)
	}
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.user; addr >= r.user && off < uint64(len(r.mem)) && n <= uint64(len(r.mem))-off {
			return r.mem[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("ring at %#x: %w", addr, errMemory)
}
