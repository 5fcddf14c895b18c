package virtiofs

import (
	"encoding/binary"
	"math"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
)

// raw sends bytes as a request with room for an answer and returns what the
// answer's header says. The length in the header is the bytes' own.
func (d *driver) raw(b []byte, room int) fuse.Status {
	d.t.Helper()
	q := d.queues[1]
	copy(d.mem[bufferBase:], b)
	out := bufferBase + 3<<20
	clear(d.mem[out : out+replySize])
	d.chain(q.base, 0, []buffer{{at: bufferBase, size: len(b)}, {at: out, size: replySize + room, write: true}})
	d.publish(q, 0)
	d.collect(q)
	return fuse.Status(-int32(binary.LittleEndian.Uint32(d.mem[out+4:])))
}

// TestHostileRequests: what others' servers fell to is refused, and the guest
// goes on.
func TestHostileRequests(t *testing.T) {
	x, _, _ := newExport(t)
	d := connect(t, x)
	d.begin(1)
	d.init()
	root, file := d.walk("workspace"), d.walk("workspace", "a.txt")
	name := func(s string) []byte { return append([]byte(s), 0) }
	read := func(size uint32, off uint64) [][]byte {
		return [][]byte{u64s(0, off), u32s(size, 0), u64s(0), u32s(0, 0)}
	}
	lying := func(b []byte, n uint32) []byte {
		binary.LittleEndian.PutUint32(b, n)
		return b
	}
	withExt := func(b []byte) []byte { b[36] = 1; return b }
	for what, c := range map[string]struct {
		b    []byte
		room int
		want fuse.Status
	}{
		"length too long":             {lying(d.request(opLookup, root, name("a.txt")), 4096), 128, fuse.EINVAL},
		"length of four GiB":          {lying(d.request(opLookup, root, name("a.txt")), math.MaxUint32), 128, fuse.EINVAL},
		"name without an end":         {d.request(opLookup, root, []byte("a.txt")), 128, fuse.EINVAL},
		"two names for one":           {d.request(opLookup, root, name("a.txt"), name("b")), 128, fuse.EINVAL},
		"no name":                     {d.request(opLookup, root), 128, fuse.EINVAL},
		"empty name":                  {d.request(opLookup, root, name("")), 128, fuse.EINVAL},
		"dot":                         {d.request(opLookup, root, name(".")), 128, fuse.EINVAL},
		"dot dot":                     {d.request(opLookup, root, name("..")), 128, fuse.EINVAL},
		"a way out":                   {d.request(opLookup, root, name("../../etc/passwd")), 128, fuse.EINVAL},
		"an absolute name":            {d.request(opMkdir, root, u32s(0o755, 0), name("/tmp/x")), 128, fuse.EINVAL},
		"name too long":               {d.request(opLookup, root, name(strings.Repeat("n", 256))), 128, fuse.Status(syscall.ENAMETOOLONG)},
		"no room for the answer":      {d.request(opGetattr, file, u32s(0, 0), u64s(0)), 50, fuse.EINVAL},
		"read of four GiB":            {d.request(opRead, file, read(math.MaxUint32, 0)...), 4096, fuse.EINVAL},
		"read of more than there is":  {d.request(opRead, file, read(1<<20, 0)...), 4096, fuse.EINVAL},
		"read at the end of the sky":  {d.request(opRead, file, read(4096, math.MaxUint64-10)...), 4096, fuse.EINVAL},
		"readdir of four GiB":         {d.request(opReaddirplus, root, read(math.MaxUint32, 0)...), 4096, fuse.EINVAL},
		"readdir of a file":           {d.request(opReaddir, file, read(4096, 0)...), 4096, fuse.ENOTDIR},
		"xattr list of four GiB":      {d.request(opListxattr, file, u32s(math.MaxUint32, 0)), 4096, errBig},
		"xattr value that lies":       {d.request(opSetxattr, file, u32s(1000, 0), name("user.x"), []byte("v")), 0, fuse.EINVAL},
		"xattr without a name's end":  {d.request(opSetxattr, file, u32s(0, 0), []byte("user.x")), 0, fuse.EINVAL},
		"write that lies":             {d.request(opWrite, file, u64s(0, 0), u32s(1000, 0), u64s(0), u32s(0, 0), []byte("x")), 8, fuse.EINVAL},
		"write at the end of the sky": {d.request(opWrite, file, u64s(0, math.MaxUint64), u32s(1, 0), u64s(0), u32s(0, 0), []byte("x")), 8, fuse.EINVAL},
		"structure cut short":         {d.request(opSetattr, file, u32s(1, 0)), 104, fuse.EINVAL},
		"an extension":                {withExt(d.request(opMkdir, root, u32s(0o755, 0), name("x"), make([]byte, 8))), 128, fuse.EINVAL},
		"a node of no slot":           {d.request(opGetattr, 2, u32s(0, 0), u64s(0)), 104, errStale},
		"a node of no tree":           {d.request(opGetattr, 77<<fs.GuestIDBits|1, u32s(0, 0), u64s(0)), 104, errStale},
		"a forged node":               {d.request(opGetattr, 1<<fs.GuestIDBits|12345678, u32s(0, 0), u64s(0)), 104, errStale},
		"go-fuse's own node":          {d.request(opGetattr, math.MaxUint64, u32s(0, 0), u64s(0)), 104, errStale},
		"go-fuse's own name":          {d.request(opLookup, root, []byte(hackName)), 128, fuse.ENOENT},
		"its creation":                {d.request(opMkdir, root, u32s(0o755, 0), []byte(hackName)), 128, fuse.EPERM},
		"its lookup at the root":      {d.request(opLookup, rootID, []byte(hackName)), 128, fuse.ENOENT},
		"a file in the root":          {d.request(opMkdir, rootID, u32s(0o755, 0), name("x")), 128, fuse.EROFS},
		"unknown flags of a rename":   {d.request(opRename2, root, u64s(root), u32s(0xffff, 0), name("a.txt"), name("b")), 0, fuse.EINVAL},
		"DAX mapping":                 {d.request(48, file, make([]byte, 40)), 0, fuse.ENOSYS},
		"ioctl":                       {d.request(39, file, make([]byte, 32)), 4096, fuse.ENOSYS},
		"operation 0":                 {d.request(0, file), 0, fuse.ENOSYS},
		"operation of four billion":   {d.request(math.MaxUint32, file), 0, fuse.ENOSYS},
		"notify reply":                {d.request(41, file, make([]byte, 40)), 0, fuse.ENOSYS},
	} {
		if got := d.raw(c.b, c.room); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
	// Those without an answer: nothing happens.
	for _, b := range [][]byte{
		d.request(opForget, file, u64s(math.MaxUint64)),
		d.request(opForget, 99<<fs.GuestIDBits|5, u64s(1)),
		d.request(opBatchForget, 0, u32s(math.MaxUint32, 0)),
		d.request(opBatchForget, 0, u32s(2, 0), u64s(file, 1<<60, root, 7)),
		d.request(opInterrupt, 0, u64s(4)),
	} {
		d.raw(b, 0)
	}
	if _, st := d.read(file, 0, 10); st != errStale {
		t.Errorf("a node that was forgotten too often: %v", st)
	}
	if got, st := d.read(d.walk("workspace", "a.txt"), 0, 100); st != fuse.OK || got != "the base's a\n" {
		t.Errorf("afterwards: %q, %v", got, st)
	}
}

// TestHostileRings: rings that cannot be are not looked at any more, and nothing
// else suffers; the device can be started anew.
func TestHostileRings(t *testing.T) {
	x, _, _ := newExport(t)
	for what, breakIt := range map[string]func(d *driver, q *driverQueue){
		"index beyond the ring": func(d *driver, q *driverQueue) { d.publish(q, ringSize) },
		"more than the ring":    func(d *driver, q *driverQueue) { q.next += ringSize + 1; d.publish(q, 0) },
		"a loop": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase+bufferBase, 16, descNext, 1)
			d.desc(q.base, 1, guestBase+bufferBase, 16, descNext, 0)
			d.publish(q, 0)
		},
		"next beyond the ring": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase+bufferBase, 16, descNext, 60000)
			d.publish(q, 0)
		},
		"outside of memory": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase+driverMem-8, 16, 0, 0)
			d.publish(q, 0)
		},
		"around the end of addresses": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, math.MaxUint64-4, 16, 0, 0)
			d.publish(q, 0)
		},
		"a size of four GiB": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase, math.MaxUint32, 0, 0)
			d.publish(q, 0)
		},
		"indirect of no size": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase+bufferBase, 0, descIndirect, 0)
			d.publish(q, 0)
		},
		"indirect of a broken size": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase+bufferBase, 17, descIndirect, 0)
			d.publish(q, 0)
		},
		"indirect in indirect": func(d *driver, q *driverQueue) {
			d.desc(q.base, 0, guestBase+uint64(q.base+32<<10), 32, descIndirect, 0)
			d.desc(q.base+32<<10, 0, guestBase+uint64(q.base+32<<10), 32, descIndirect, 0)
			d.publish(q, 0)
		},
		"written before read": func(d *driver, q *driverQueue) {
			d.chain(q.base, 0, []buffer{{at: bufferBase, size: 64, write: true}, {at: bufferBase, size: 64}})
			d.publish(q, 0)
		},
		"no request in it": func(d *driver, q *driverQueue) {
			d.chain(q.base, 0, []buffer{{at: bufferBase, size: 10}})
			d.publish(q, 0)
		},
		"no room for an answer": func(d *driver, q *driverQueue) {
			copy(d.mem[bufferBase:], d.request(opGetattr, 1, u32s(0, 0), u64s(0)))
			d.chain(q.base, 0, []buffer{{at: bufferBase, size: 56}})
			d.publish(q, 0)
		},
	} {
		t.Run(what, func(t *testing.T) {
			d := connect(t, x)
			d.begin(1)
			d.init()
			breakIt(d, d.queues[1])
			// The other queue is served on.
			node := d.walkOver(d.queues[0])
			if node == 0 {
				t.Error("the other queue is not served")
			}
			// And this one after a reset of the device.
			q := d.queues[1]
			d.tell(reqSetVringEnable, u32s(1, 0))
			d.ask(reqGetVringBase, u32s(1, 0))
			clear(d.mem[q.base : q.base+ringSpace])
			q.next, q.seen = 0, 0
			d.startQueue(q, 0)
			d.walk("workspace", "a.txt")
		})
	}
}

// walkOver looks the workspace up over another queue than usual.
func (d *driver) walkOver(q *driverQueue) uint64 {
	d.t.Helper()
	usual := d.queues[1]
	d.queues[1] = q
	defer func() { d.queues[1] = usual }()
	return d.walk("workspace")
}

// TestHostileMonitor: messages that are none end the connection, and wishes that
// cannot be met are refused.
func TestHostileMonitor(t *testing.T) {
	x, _, _ := newExport(t)
	ends := map[string]func(d *driver){
		"unknown message": func(d *driver) { d.send(99, 0, nil) },
		"version":         func(d *driver) { d.send(reqSetOwner, 2, nil) },
		"too long":        func(d *driver) { _, _ = d.conn.Write(u32s(reqSetOwner, 1, math.MaxUint32)) },
		"cut short":       func(d *driver) { _, _ = d.conn.Write(u32s(reqSetFeatures, 1, 8)); _ = d.conn.CloseWrite() },
		"features":        func(d *driver) { d.send(reqSetFeatures, 0, u64s(1<<26)) },
		"queue 9":         func(d *driver) { d.send(reqSetVringNum, 0, u32s(9, 64)) },
		"kick without":    func(d *driver) { d.send(reqSetVringKick, 0, u64s(1)) },
		"descriptors": func(d *driver) {
			d.send(reqSetVringKick, 0, u64s(1), d.queues[0].kick, d.queues[1].kick)
		},
		"short state": func(d *driver) { d.send(reqGetVringBase, 0, u32s(1)) },
	}
	for what, f := range ends {
		t.Run(what, func(t *testing.T) {
			ours, theirs := socketpair(t)
			s, err := Serve(theirs, x, Options{Logger: quietLog()})
			must(t, err)
			d := &driver{t: t, conn: ours, server: s}
			for i := range d.queues {
				kick, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
				must(t, err)
				defer unix.Close(kick)
				d.queues[i] = &driverQueue{kick: kick}
			}
			f(d)
			d.wait()
			if s.Err() == nil {
				t.Error("no error")
			}
			_ = ours.Close()
		})
	}
	d := connect(t, x)
	refused := func(what string, request uint32, body []byte, fds ...int) {
		t.Helper()
		if b := d.ask(request, body, fds...); binary.LittleEndian.Uint64(b) == 0 {
			t.Errorf("%s: taken", what)
		}
	}
	region := func(v ...uint64) []byte { return append(u32s(uint32(len(v)/4), 0), u64s(v...)...) }
	refused("no region", reqSetMemTable, u32s(0, 0))
	refused("no descriptor", reqSetMemTable, region(guestBase, driverMem, userBase, 0))
	refused("beyond the memory", reqSetMemTable, region(guestBase, driverMem+4096, userBase, 0), d.fd)
	refused("around the end", reqSetMemTable, region(math.MaxUint64-4096, driverMem, userBase, 0), d.fd)
	refused("an offset around the end", reqSetMemTable, region(guestBase, driverMem, userBase, math.MaxUint64-4095), d.fd)
	refused("of no size", reqSetMemTable, region(guestBase, 0, userBase, 0), d.fd)
	refused("overlapping", reqSetMemTable, region(guestBase, 8192, userBase, 0, guestBase+4096, 8192, userBase, 0), d.fd, d.fd)
	refused("a queue of 100000", reqSetVringNum, u32s(1, 100_000))
	d.begin(1)
	refused("while it runs", reqSetVringBase, u32s(1, 7))
	for _, addr := range [][]uint64{
		{userBase + driverMem - 16, userBase, userBase, 0},
		{userBase, userBase + 2, userBase, 0},
		{userBase, userBase, userBase + 1, 0},
		{0, 0, 0, 0}, {math.MaxUint64, math.MaxUint64, math.MaxUint64, 0},
	} {
		d.tell(reqSetVringEnable, u32s(1, 0))
		d.tell(reqSetVringAddr, append(u32s(1, 0), u64s(addr...)...))
		refused("rings outside", reqSetVringEnable, u32s(1, 1))
	}
	file := sealedMemory(t, 4096, 0)
	defer unix.Close(file)
	d.tell(reqSetVringAddr, append(u32s(1, 0), u64s(userBase, userBase+4096, userBase+2048, 0)...))
	d.ask(reqSetVringKick, u64s(1), file)
	refused("a kick that is a file", reqSetVringEnable, u32s(1, 1))
}
