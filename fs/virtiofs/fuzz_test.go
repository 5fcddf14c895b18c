package virtiofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// canary is the content of a file outside of the tree, which no answer may have.
const canary = "CANARY-of-what-lies-outside"

// source is where a hostile guest takes its decisions from.
type source interface{ next() uint32 }

type randomSource struct{ *rand.Rand }

func (r randomSource) next() uint32 { return r.Uint32() }

// bytesSource is an input of a fuzzer; at its end come zeros.
type bytesSource struct{ b []byte }

func (s *bytesSource) next() uint32 {
	var b [4]byte
	// Most decisions are small.
	n := copy(b[:], s.b[:min(len(s.b), 2)])
	s.b = s.b[n:]
	return binary.LittleEndian.Uint32(b[:])
}

// hostile is a guest that makes requests out of templates and breaks them, on a
// ring that it breaks as well, over a live export.
type hostile struct {
	t       testing.TB
	x       *Export
	tree    *overlay.Tree
	outside string
	s       *session
	ring    *ring
	mem     []byte
	sc      *scratch
	next    uint16
	nodes   []uint64 // that the guest was told of
	broken  int
	done    map[uint32]int // by operation, those that succeeded
	unique  uint64
}

const hostileMem = 4 << 20

func newHostile(t testing.TB) *hostile {
	t.Helper()
	dir := t.TempDir()
	base, outside := filepath.Join(dir, "base"), filepath.Join(dir, "outside")
	for _, d := range []string{base, outside, filepath.Join(base, "d0")} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte(canary), 0o644))
	must(t, os.WriteFile(filepath.Join(base, "f0"), bytes.Repeat([]byte("base "), 1000), 0o644))
	must(t, os.Symlink("../outside/secret", filepath.Join(base, "l0")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(base, "l1")))
	must(t, os.Symlink("../../outside", filepath.Join(base, "d0", "l2")))
	b, err := overlay.OpenBase(hostfs.OS, base)
	must(t, err)
	state, err := os.MkdirTemp("/dev/shm", "galley-hostile-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	must(t, overlay.InitState(hostfs.OS, state, 1))
	h := &hostile{t: t, outside: outside, mem: make([]byte, hostileMem), sc: new(scratch), done: map[uint32]int{}}
	h.tree, err = overlay.Open(overlay.Config{Name: "w", StateDir: state, Base: b, NoWatch: true, Quota: overlay.NewQuota(32<<20, 0)}, overlay.Stack{Active: 1})
	must(t, err)
	h.x = NewExport(ExportOptions{Logger: quietLog()})
	must(t, h.x.Add("w", fs.Live(h.tree), TreeOptions{}))
	h.s = &session{x: h.x, log: quietLog()}
	h.newRing()
	return h
}

// close checks that nothing was reached that lies outside.
func (h *hostile) close() {
	h.t.Helper()
	h.x.Close()
	must(h.t, h.tree.Close())
	got, err := os.ReadFile(filepath.Join(h.outside, "secret"))
	es, lerr := os.ReadDir(h.outside)
	if err != nil || lerr != nil || string(got) != canary || len(es) != 1 {
		h.t.Fatalf("outside of the tree: %q, %v, %v", got, err, es)
	}
	base, err := os.ReadDir(filepath.Join(h.outside, "../base"))
	must(h.t, err)
	if len(base) != 4 {
		h.t.Fatalf("the base has %d entries", len(base))
	}
}

// newRing sets the rings up, as after a reset.
func (h *hostile) newRing() {
	clear(h.mem[:1<<16])
	h.next = 0
	mem := &memory{regions: []region{
		{guest: guestBase, user: userBase, mem: h.mem[:hostileMem/2]},
		{guest: guestBase + hostileMem/2, user: userBase + hostileMem/2, mem: h.mem[hostileMem/2:]},
	}}
	var err error
	h.ring, err = newRing(mem, ringSize, userBase, userBase+4096, userBase+8192, 0, h.unique%2 == 0)
	must(h.t, err)
}

var hostileNames = []string{"f0", "f1", "f2", "d0", "d1", "l0", "l1", "l2", "w", "..", ".", "", "a/b", "../outside/secret", ".wh.f0", ".wh..wh..opq",
	hackName, "x\x00y", "\xff\xfe", "user.x", "trusted.overlay.opaque", "user.overlay.whiteout", "system.posix_acl_access", "security.capability"}

func (h *hostile) name(r source) []byte {
	if n := r.next() % 64; n == 11 {
		return bytes.Repeat([]byte{'n'}, int(r.next()%5000))
	}
	known := uint32(len(hostileNames))
	if r.next()%4 != 2 {
		known = 8 // those that may be
	}
	return append([]byte(hostileNames[r.next()%known]), 0)
}

func (h *hostile) node(r source) uint64 {
	switch n := r.next() % 32; {
	case n == 0:
		return uint64(r.next())<<32 | uint64(r.next())
	case n == 1:
		return uint64(r.next() % 8)
	case len(h.nodes) == 0 || n < 6:
		return 1<<fs.GuestIDBits | rootID
	}
	return h.nodes[r.next()%uint32(len(h.nodes))]
}

// number is a size or an offset: mostly small, at times at an edge.
func (h *hostile) number(r source) uint64 {
	switch n := r.next() % 16; n {
	case 0:
		return math.MaxUint64 - uint64(r.next()%8192)
	case 1:
		return 1<<(r.next()%64) - uint64(r.next()%3)
	case 2:
		return uint64(r.next())
	}
	return uint64(r.next() % 9000)
}

// request is a request that is at least formed like one.
func (h *hostile) request(r source) []byte {
	op := r.next() % (opCount + 4)
	if (op == opInit || op == opDestroy || op == opSyncfs) && r.next()%200 != 3 {
		op = opLookup
	}
	if (op == opForget || op == opBatchForget) && r.next()%10 != 3 {
		op = opCreate
	}
	h.unique += 2
	b := u32s(0, op)
	b = append(b, u64s(h.unique, h.node(r))...)
	b = append(b, u32s(r.next()%3*1000, r.next()%3*1000, 1, 0)...)
	if op < opCount && shapes[op].known {
		for len(b) < int(shapes[op].fixed) {
			v := h.number(r)
			if shapes[op].second == uintptr(len(b)) {
				v = h.node(r)
			}
			if left := int(shapes[op].fixed) - len(b); left < 8 || r.next()%3 == 0 {
				b = append(b, u32s(uint32(v))...)
			} else {
				b = append(b, u64s(v)...)
			}
		}
		b = b[:shapes[op].fixed]
		h.sizes(op, b, r)
		for range shapes[op].names {
			b = append(b, h.name(r)...)
		}
		switch {
		case op == opSetxattr:
			b = append(append(b, h.name(r)...), make([]byte, binary.LittleEndian.Uint32(b[40:])%5000)...)
		case op == opWrite:
			b = append(b, make([]byte, min(binary.LittleEndian.Uint32(b[56:]), 20000))...)
		case op == opBatchForget:
			for range min(binary.LittleEndian.Uint32(b[40:]), 50) {
				b = append(b, u64s(h.node(r), h.number(r))...)
			}
		case op == opInit:
			binary.LittleEndian.PutUint32(b[40:], 7)
			binary.LittleEndian.PutUint32(b[44:], 38)
		}
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	if r.next()%12 == 5 {
		for range 1 + r.next()%4 {
			b[r.next()%uint32(len(b))] = byte(r.next())
		}
	}
	if r.next()%40 == 7 {
		b = b[:r.next()%uint32(len(b)+1)]
	}
	return b
}

// sizes makes the sizes in most requests such that they are done.
func (h *hostile) sizes(op uint32, b []byte, r source) {
	if r.next()%8 == 0 {
		return
	}
	at := map[uint32]int{opRead: 56, opReaddir: 56, opReaddirplus: 56, opWrite: 56, opSetxattr: 40, opGetxattr: 40, opListxattr: 40, opBatchForget: 40}[op]
	if at != 0 {
		binary.LittleEndian.PutUint32(b[at:], r.next()%8192)
	}
	switch op {
	case opRead, opWrite, opReaddir, opReaddirplus:
		binary.LittleEndian.PutUint64(b[48:], uint64(r.next()%100_000))
	case opSetxattr:
		binary.LittleEndian.PutUint32(b[44:], r.next()%4)
	case opMkdir, opMknod:
		binary.LittleEndian.PutUint32(b[40:], []uint32{0o100644, 0o40755, 0o10600, 0o20600, 0o120777, 0o106755}[r.next()%6])
	case opCreate, opTmpfile:
		binary.LittleEndian.PutUint32(b[44:], 0o100644)
	}
}

// step makes one request, puts it into the ring in some way, and has it served.
func (h *hostile) step(r source) {
	req := h.request(r)
	room := int(r.next() % 9000)
	if r.next()%4 != 0 {
		room = 8500
	}
	at, out := 1<<17+int(r.next()%256), hostileMem/2-int(r.next()%4096) // across two regions
	copy(h.mem[at:], req)
	var bufs []buffer
	for from := 0; from < len(req); {
		n := min(len(req)-from, 1+int(r.next()%5000))
		bufs, from = append(bufs, buffer{at: at + from, size: n}), from+n
	}
	for from := 0; from < room; {
		n := min(room-from, 1+int(r.next()%5000))
		bufs, from = append(bufs, buffer{at: out + from, size: n, write: true}), from+n
	}
	if len(bufs) == 0 || len(bufs) > ringSize {
		return
	}
	d := &driver{mem: h.mem}
	head := r.next() % ringSize
	if table := 1 << 15; r.next()%2 == 0 || int(head)+len(bufs) > ringSize {
		d.chain(table, 0, bufs)
		d.desc(0, int(head), guestBase+uint64(table), uint32(len(bufs)*descSize), descIndirect, 0)
	} else {
		d.chain(0, int(head), bufs)
	}
	if r.next()%50 == 9 { // anything in the rings
		h.mem[r.next()%(9*1024)] = byte(r.next())
	}
	binary.LittleEndian.PutUint16(h.mem[4096+4+2*(int(h.next)%ringSize):], uint16(head))
	h.next++
	binary.LittleEndian.PutUint16(h.mem[4096+2:], h.next)
	var c chain
	for {
		ok, err := h.ring.take(&c)
		if err == nil && !ok {
			return
		}
		n := 0
		if err == nil {
			n, err = h.s.serve(c.in, c.out, h.sc)
		}
		if err != nil {
			h.broken++
			h.newRing()
			return
		}
		h.answer(&c, n)
		h.ring.give(c.head, n)
	}
}

// answer looks at an answer as no guest should have to.
func (h *hostile) answer(c *chain, n int) {
	if n == 0 {
		return
	}
	b := make([]byte, n)
	gather(b, c.out, 0)
	if n < replySize || int(binary.LittleEndian.Uint32(b)) != n {
		h.t.Fatalf("an answer of %d bytes says %d", n, binary.LittleEndian.Uint32(b))
	}
	if bytes.Contains(b, []byte(canary)) {
		h.t.Fatal("an answer has what lies outside of the tree")
	}
	op := binary.LittleEndian.Uint32(h.sc.in[4:])
	if binary.LittleEndian.Uint32(b[4:]) != 0 {
		return
	}
	h.done[op]++
	switch op {
	case opInit, opDestroy:
		h.nodes = h.nodes[:0]
	case opLookup, opMknod, opMkdir, opSymlink, opLink, opCreate, opTmpfile:
		if n >= replySize+int(entryOut) && len(h.nodes) < 4096 {
			h.nodes = append(h.nodes, binary.LittleEndian.Uint64(b[replySize:]))
		} else if n >= replySize+int(entryOut) {
			h.nodes[h.unique%4096] = binary.LittleEndian.Uint64(b[replySize:])
		}
	}
}

// init is what a guest says first; nothing else is answered before.
func (h *hostile) init() {
	b := u32s(104, opInit)
	b = append(append(b, u64s(2, 0)...), u32s(0, 0, 1, 0, 7, 38, 1<<20, math.MaxUint32)...)
	b = append(b, make([]byte, 48)...)
	out := make([]byte, 200)
	if _, err := h.s.serve([][]byte{b}, [][]byte{out}, h.sc); err != nil || binary.LittleEndian.Uint32(out[4:]) != 0 {
		h.t.Fatalf("INIT: %v, %x", err, out[:16])
	}
}

// FuzzGuest has a guest do what the input says, on an export that lives as long
// as the process.
func FuzzGuest(f *testing.F) {
	for seed := range uint64(8) {
		r, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, 400)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	h := newHostile(f)
	f.Cleanup(h.close)
	h.init()
	f.Fuzz(func(t *testing.T, b []byte) {
		h.t = t
		r := &bytesSource{b}
		for range 100 {
			if len(r.b) == 0 {
				break
			}
			h.step(r)
		}
		if h.s.root == nil {
			h.init() // it was destroyed
		}
		h.t = f
	})
}

// requestsEnv says how many requests TestHostileGuest makes.
const requestsEnv = "GALLEY_HOSTILE_REQUESTS"

// TestHostileGuest makes a great many broken requests: nothing panics, nothing
// outside of the tree is reached, memory and descriptors stay bounded, and the
// export serves on. Five million were made with GALLEY_HOSTILE_REQUESTS=5000000.
func TestHostileGuest(t *testing.T) {
	n := 200_000
	if testing.Short() {
		n = 20_000
	}
	if v := os.Getenv(requestsEnv); v != "" {
		var err error
		n, err = strconv.Atoi(v)
		must(t, err)
	}
	// Each tree is used for as many requests as it takes to have thousands of
	// files; then the next one is.
	const each = 250_000
	before := heap()
	fds := countFDs(t)
	for round := 0; n > 0; round++ {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			h := newHostile(t)
			h.init()
			r := randomSource{rand.New(rand.NewPCG(uint64(round), 7))}
			for i := range min(n, each) {
				h.step(r)
				if h.s.root == nil {
					h.init()
				}
				if i%10_000 == 0 {
					h.alive()
				}
			}
			h.alive()
			for _, op := range []uint32{opLookup, opGetattr, opSetattr, opMkdir, opCreate, opRead, opWrite, opReaddirplus, opRename, opUnlink, opFsync} {
				if h.done[op] == 0 {
					t.Errorf("operation %d never succeeded: the requests are no test", op)
				}
			}
			if peak := heap(); peak > before+256<<20 {
				t.Errorf("%d MiB are in use after %d requests", peak>>20, min(n, each))
			}
			t.Logf("%d broken rings, done: %v; %d nodes known", h.broken, h.done, h.x.Known("w"))
			h.close()
		})
		n -= each
	}
	if after := heap(); after > before+32<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before>>20, after>>20)
	}
	if now := countFDs(t); now > fds+8 {
		t.Errorf("descriptors grew from %d to %d", fds, now)
	}
}

// alive makes a request that must be answered.
func (h *hostile) alive() {
	h.t.Helper()
	b := u32s(0, opStatfs)
	b = append(append(b, u64s(1, 1<<fs.GuestIDBits|rootID)...), u32s(0, 0, 1, 0)...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	out := make([]byte, 200)
	n, err := h.s.serve([][]byte{b}, [][]byte{out}, h.sc)
	if err != nil || n != replySize+80 || fuse.Status(binary.LittleEndian.Uint32(out[4:])) != fuse.OK {
		h.t.Fatalf("the export does not serve any more: %d bytes, %v, % x", n, err, out[:16])
	}
}

// heap is how much is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

func countFDs(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(es)
}
