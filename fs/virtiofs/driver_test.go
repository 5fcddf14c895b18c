package virtiofs

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// deadline is for what happens at once unless something is broken.
const deadline = 60 * time.Second

// quietLog takes what tests provoke.
func quietLog() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// newTree is a tree over a base with a few files.
func newTree(t testing.TB) (*overlay.Tree, string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"a.txt": "the base's a\n", "dir/b.txt": "b\n", "dir/sub/c.txt": "c\n"} {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	base, err := overlay.OpenBase(hostfs.OS, dir)
	must(t, err)
	state := t.TempDir()
	must(t, overlay.InitState(hostfs.OS, state, 1))
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: state, Base: base}, overlay.Stack{Active: 1})
	must(t, err)
	t.Cleanup(func() { must(t, tree.Close()) })
	return tree, dir
}

// newExport is an export with one tree, "workspace".
func newExport(t testing.TB) (*Export, *overlay.Tree, string) {
	t.Helper()
	tree, base := newTree(t)
	x := NewExport(ExportOptions{Logger: quietLog()})
	must(t, x.Add("workspace", fs.Live(tree), TreeOptions{}))
	t.Cleanup(x.Close)
	return x, tree, base
}

// driver is a monitor with its guest: the other end of a vhost-user connection,
// with rings and buffers as the Linux driver makes them.
type driver struct {
	t      testing.TB
	conn   *net.UnixConn
	mem    []byte
	fd     int
	server *Server
	event  bool
	queues [2]*driverQueue
	unique uint64
}

type driverQueue struct {
	index      int
	base       int // of its rings, in the memory
	kick, call int
	next       uint16 // of the available ring
	seen       uint16 // of the used ring
}

const (
	driverMem  = 8 << 20
	guestBase  = 0x1000_0000 // the memory's address to the guest
	userBase   = 0x7f00_0000_0000
	ringSpace  = 64 << 10
	ringSize   = 64
	bufferBase = 1 << 20
)

func socketpair(t testing.TB) (ours *net.UnixConn, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(fds[0]), "monitor")
	c, err := net.FileConn(f)
	must(t, err)
	must(t, f.Close())
	return c.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "device")
}

func sealedMemory(t testing.TB, size int, seals int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(t, err)
	must(t, unix.Ftruncate(fd, int64(size)))
	if seals != 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		must(t, err)
	}
	return fd
}

// connect serves x to a new driver that has not said anything yet.
func connect(t testing.TB, x *Export) *driver {
	t.Helper()
	ours, theirs := socketpair(t)
	s, err := Serve(theirs, x, Options{Logger: quietLog()})
	must(t, err)
	d := &driver{t: t, conn: ours, server: s, event: true, fd: sealedMemory(t, driverMem, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)}
	d.mem, err = unix.Mmap(d.fd, 0, driverMem, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	for i := range d.queues {
		q := &driverQueue{index: i, base: i * ringSpace}
		q.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		must(t, err)
		q.call, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		must(t, err)
		d.queues[i] = q
	}
	t.Cleanup(func() {
		_ = d.conn.Close()
		d.wait()
		must(t, d.server.Err())
		must(t, unix.Munmap(d.mem))
		_ = unix.Close(d.fd)
		for _, q := range d.queues {
			_ = unix.Close(q.kick)
			_ = unix.Close(q.call)
		}
	})
	return d
}

// wait waits for the server's end.
func (d *driver) wait() {
	d.t.Helper()
	select {
	case <-d.server.Done():
	case <-time.After(deadline):
		d.t.Fatal("the device does not end")
	}
}

func (d *driver) send(request uint32, flags uint32, body []byte, fds ...int) {
	d.t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, request)
	b = binary.LittleEndian.AppendUint32(b, 1|flags)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(body))), body...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := d.conn.WriteMsgUnix(b, oob, nil)
	must(d.t, err)
}

// ask sends a message and returns the answer's body.
func (d *driver) ask(request uint32, body []byte, fds ...int) []byte {
	d.t.Helper()
	d.send(request, flagNeedReply, body, fds...)
	must(d.t, d.conn.SetReadDeadline(time.Now().Add(deadline)))
	var head [messageHead]byte
	_, err := io.ReadFull(d.conn, head[:])
	must(d.t, err)
	if got := binary.LittleEndian.Uint32(head[:]); got != request {
		d.t.Fatalf("answer to message %d, want %d", got, request)
	}
	b := make([]byte, binary.LittleEndian.Uint32(head[8:]))
	_, err = io.ReadFull(d.conn, b)
	must(d.t, err)
	return b
}

// tell sends a message that must succeed.
func (d *driver) tell(request uint32, body []byte, fds ...int) {
	d.t.Helper()
	if b := d.ask(request, body, fds...); binary.LittleEndian.Uint64(b) != 0 {
		d.t.Fatalf("message %d was refused", request)
	}
}

func u64s(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func u32s(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

// table is a memory table with the whole memory cut into n regions.
func (d *driver) table(n int) ([]byte, []int) {
	b, fds := u32s(uint32(n), 0), []int(nil)
	each := uint64(driverMem / n)
	for i := range uint64(n) {
		b = append(b, u64s(guestBase+i*each, each, userBase+i*each, i*each)...)
		fds = append(fds, d.fd)
	}
	return b, fds
}

// begin brings the device up as QEMU does.
func (d *driver) begin(regions int) {
	d.t.Helper()
	want := uint64(features)
	if !d.event {
		want &^= featureEventIdx
	}
	if got := binary.LittleEndian.Uint64(d.ask(reqGetFeatures, nil)); got != features {
		d.t.Fatalf("features %#x", got)
	}
	d.tell(reqSetProtocolFeatures, d.ask(reqGetProtocolFeatures, nil))
	d.tell(reqSetOwner, nil)
	d.tell(reqSetFeatures, u64s(want))
	b, fds := d.table(regions)
	d.tell(reqSetMemTable, b, fds...)
	for _, q := range d.queues {
		d.startQueue(q, 0)
	}
}

func (q *driverQueue) availAt() int { return q.base + ringSize*descSize }
func (q *driverQueue) usedAt() int  { return q.base + 4096 }

func (d *driver) startQueue(q *driverQueue, base uint32) {
	d.t.Helper()
	i := uint32(q.index)
	d.tell(reqSetVringNum, u32s(i, ringSize))
	d.tell(reqSetVringBase, u32s(i, base))
	d.tell(reqSetVringAddr, append(u32s(i, 0), u64s(userBase+uint64(q.base), userBase+uint64(q.usedAt()), userBase+uint64(q.availAt()), 0)...))
	d.tell(reqSetVringKick, u64s(uint64(i)), q.kick)
	d.tell(reqSetVringCall, u64s(uint64(i)), q.call)
	d.tell(reqSetVringEnable, u32s(i, 1))
}

// buffer is a part of a request in the guest's memory.
type buffer struct {
	at, size int
	write    bool
}

func (d *driver) desc(table, i int, addr uint64, size uint32, flags, next uint16) {
	b := d.mem[table+i*descSize:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], size)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// chain puts descriptors of the buffers into a table from index first on.
func (d *driver) chain(table, first int, bufs []buffer) {
	for i, b := range bufs {
		var flags uint16
		if b.write {
			flags |= descWrite
		}
		if i < len(bufs)-1 {
			flags |= descNext
		}
		d.desc(table, first+i, guestBase+uint64(b.at), uint32(b.size), flags, uint16(first+i+1))
	}
}

// publish makes a request that begins at a descriptor available, and kicks.
func (d *driver) publish(q *driverQueue, head uint16) {
	binary.LittleEndian.PutUint16(d.mem[q.availAt()+4+2*(int(q.next)%ringSize):], head)
	q.next++
	atomic.StoreUint32(word(d.mem, q.availAt()), uint32(q.next)<<16)
	one := [8]byte{1}
	_, err := unix.Write(q.kick, one[:])
	must(d.t, err)
}

// collect waits until every request of the queue is answered, and returns the
// length of the last answer.
func (d *driver) collect(q *driverQueue) int {
	d.t.Helper()
	if d.event {
		// As virtqueue_enable_cb does: call with the next.
		binary.LittleEndian.PutUint16(d.mem[q.availAt()+4+2*ringSize:], q.seen)
	}
	end := time.Now().Add(deadline)
	n := 0
	for q.seen != q.next {
		if used := uint16(atomic.LoadUint32(word(d.mem, q.usedAt())) >> 16); used != q.seen {
			n = int(binary.LittleEndian.Uint32(d.mem[q.usedAt()+4+8*(int(q.seen)%ringSize)+4:]))
			q.seen++
			continue
		}
		if time.Now().After(end) {
			d.t.Fatal("no answer")
		}
		// A second's end is no failure: the call may have come before.
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(q.call), Events: unix.POLLIN}}, 1000)
		if err != nil && err != unix.EINTR {
			d.t.Fatal(err)
		}
		var b [8]byte
		_, _ = unix.Read(q.call, b[:])
	}
	return n
}

// request is the bytes of a request.
func (d *driver) request(op uint32, node uint64, body ...[]byte) []byte {
	d.unique += 2
	b := u32s(0, op)
	b = append(b, u64s(d.unique, node)...)
	b = append(b, u32s(0, 0, 1, 0)...)
	for _, p := range body {
		b = append(b, p...)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

// do makes a request and returns the status of the answer and what follows its
// header. Every part of it is cut in two, as pages cut it, and the descriptors are
// indirect for every other request.
func (d *driver) do(op uint32, node uint64, room int, body ...[]byte) (fuse.Status, []byte) {
	d.t.Helper()
	q := d.queues[1]
	b := d.request(op, node, body...)
	head := min(len(b), headSize)
	copy(d.mem[bufferBase:], b)
	outAt := bufferBase + 3<<20
	clear(d.mem[outAt : outAt+replySize+room])
	bufs := []buffer{{at: bufferBase, size: head}, {at: bufferBase + head, size: len(b) - head},
		{at: outAt, size: replySize, write: true}, {at: outAt + replySize, size: room / 2, write: true},
		{at: outAt + replySize + room/2, size: room - room/2, write: true}}
	if d.unique%4 == 0 {
		d.chain(q.base+32<<10, 0, bufs)
		d.desc(q.base, 5, guestBase+uint64(q.base+32<<10), uint32(len(bufs)*descSize), descIndirect, 0)
		d.publish(q, 5)
	} else {
		d.chain(q.base, 7, bufs)
		d.publish(q, 7)
	}
	n := d.collect(q)
	out := d.mem[outAt:]
	if n < replySize || binary.LittleEndian.Uint32(out) != uint32(n) || binary.LittleEndian.Uint64(out[8:]) != d.unique {
		d.t.Fatalf("operation %d: answer of %d bytes: % x", op, n, out[:replySize])
	}
	return fuse.Status(-int32(binary.LittleEndian.Uint32(out[4:]))), append([]byte(nil), out[replySize:n]...)
}

// init is what the guest's kernel says first.
func (d *driver) init() uint64 {
	d.t.Helper()
	flags := uint32(0xffff_ffff)
	st, out := d.do(opInit, 0, 64, u32s(7, 38, 1<<20, flags), make([]byte, 48))
	if st != fuse.OK {
		d.t.Fatalf("INIT: %v", st)
	}
	return uint64(binary.LittleEndian.Uint32(out[12:]))
}

func (d *driver) lookup(parent uint64, name string) (uint64, fuse.Status) {
	d.t.Helper()
	st, out := d.do(opLookup, parent, 128, []byte(name), []byte{0})
	if st != fuse.OK {
		return 0, st
	}
	return binary.LittleEndian.Uint64(out), st
}

// walk looks a path up from the export's root on.
func (d *driver) walk(names ...string) uint64 {
	d.t.Helper()
	id := uint64(rootID)
	for _, name := range names {
		var st fuse.Status
		if id, st = d.lookup(id, name); st != fuse.OK || id == 0 {
			d.t.Fatalf("lookup %s: %v", name, st)
		}
	}
	return id
}

func (d *driver) read(node uint64, off uint64, size int) (string, fuse.Status) {
	d.t.Helper()
	st, out := d.do(opRead, node, size, u64s(0, off), u32s(uint32(size), 0), u64s(0), u32s(0, 0))
	return string(out), st
}

func (d *driver) write(node uint64, off uint64, data []byte) fuse.Status {
	d.t.Helper()
	st, out := d.do(opWrite, node, 8, u64s(0, off), u32s(uint32(len(data)), 0), u64s(0), u32s(0, 0), data)
	if st == fuse.OK && binary.LittleEndian.Uint32(out) != uint32(len(data)) {
		d.t.Errorf("WRITE of %d bytes: %d", len(data), binary.LittleEndian.Uint32(out))
	}
	return st
}

func (d *driver) create(parent uint64, name string) uint64 {
	d.t.Helper()
	st, out := d.do(opCreate, parent, 144, u32s(unix.O_RDWR, 0o100644, 0, 0), []byte(name), []byte{0})
	if st != fuse.OK {
		d.t.Fatalf("CREATE %s: %v", name, st)
	}
	return binary.LittleEndian.Uint64(out)
}
