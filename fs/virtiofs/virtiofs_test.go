package virtiofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
)

// TestGuest goes through what a guest does, with each kind of rings and with
// memory in several regions.
func TestGuest(t *testing.T) {
	for _, event := range []bool{true, false} {
		for _, regions := range []int{1, 8} {
			t.Run(fmt.Sprintf("event=%t,regions=%d", event, regions), func(t *testing.T) {
				x, tree, _ := newExport(t)
				d := connect(t, x)
				d.event = event
				d.begin(regions)
				if got := d.init(); got&fuse.CAP_SUBMOUNTS == 0 || got&fuse.CAP_AUTO_INVAL_DATA == 0 || got&fuse.CAP_WRITEBACK_CACHE != 0 {
					t.Errorf("flags %#x", got)
				}
				root := d.walk("workspace")
				a := d.walk("workspace", "a.txt")
				if got, st := d.read(a, 0, 4096); got != "the base's a\n" {
					t.Errorf("read: %q, %v", got, st)
				}
				big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
				n := d.create(root, "new")
				if st := d.write(n, 0, big); st != fuse.OK {
					t.Errorf("write of 1 MiB: %v", st)
				}
				if got, st := d.read(n, 0, len(big)); got != string(big) {
					t.Errorf("read of 1 MiB: %d bytes, %v", len(got), st)
				}
				if got, st := d.read(n, uint64(len(big))-3, 4096); got != "def" {
					t.Errorf("read at the end: %q, %v", got, st)
				}
				other := tree.Attach(nil)
				defer other.Detach()
				node, attr, err := other.Walk("new")
				must(t, err)
				other.Forget(node, 1)
				if attr.Size != int64(len(big)) {
					t.Errorf("another face sees %d bytes", attr.Size)
				}
				if st, _ := d.do(opFsync, n, 0, u64s(0), u32s(0, 0)); st != fuse.OK {
					t.Errorf("fsync: %v", st)
				}
				if st, _ := d.do(opSyncfs, root, 0, u64s(0)); st != fuse.OK {
					t.Errorf("syncfs: %v", st)
				}
				st, out := d.do(opReaddirplus, root, 4096, u64s(0, 0), u32s(4096, 0), u64s(0), u32s(0, 0))
				if st != fuse.OK || !bytes.Contains(out, []byte("a.txt")) || !bytes.Contains(out, []byte("dir")) {
					t.Errorf("readdirplus: %v, %q", st, out)
				}
				st, out = d.do(opReaddir, rootID, 4096, u64s(0, 0), u32s(4096, 0), u64s(0), u32s(0, 0))
				if st != fuse.OK || !bytes.Contains(out, []byte("workspace")) {
					t.Errorf("readdir of the root: %v, %q", st, out)
				}
				d.forget(a, 1<<40) // more often than it was told of
				d.collect(d.queues[0])
				if _, st := d.read(a, 0, 10); st != errStale {
					t.Errorf("read of a forgotten node: %v", st)
				}
			})
		}
	}
}

// forget sends FORGET on its own queue, which has no answer.
func (d *driver) forget(node, count uint64) {
	q := d.queues[0]
	b := d.request(opForget, node, u64s(count))
	at := bufferBase + 6<<20
	copy(d.mem[at:], b)
	d.chain(q.base, 0, []buffer{{at: at, size: len(b)}})
	d.publish(q, 0)
}

// TestTreesComeAndGo: trees are shown, removed and shown anew while a guest uses
// others; node ids of one never are those of another.
func TestTreesComeAndGo(t *testing.T) {
	x, _, _ := newExport(t)
	d := connect(t, x)
	d.begin(1)
	d.init()
	if _, st := d.lookup(rootID, "m1"); st != fuse.ENOENT {
		t.Errorf("before: %v", st)
	}
	second, _ := newTree(t)
	must(t, x.Add("m1", fs.Live(second), TreeOptions{ReadOnly: true}))
	if err := x.Add("m1", fs.Live(second), TreeOptions{}); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("twice: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "x\x00", strings.Repeat("n", 256)} {
		if err := x.Add(bad, fs.Live(second), TreeOptions{}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	first, m1 := d.walk("workspace"), d.walk("m1")
	a1, a2 := d.walk("workspace", "a.txt"), d.walk("m1", "a.txt")
	if first == m1 || a1 == a2 {
		t.Errorf("ids are equal: %#x, %#x", a1, a2)
	}
	if st := d.write(a2, 0, []byte("x")); st != fuse.EROFS {
		t.Errorf("write in a read-only tree: %v", st)
	}
	// From one tree into another nothing moves.
	name := []byte("a.txt\x00")
	for op, body := range map[uint32][][]byte{
		opRename:        {u64s(m1), name, []byte("b\x00")},
		opRename2:       {u64s(m1), u32s(0, 0), name, []byte("b\x00")},
		opLink:          {u64s(a2), []byte("b\x00")},
		opCopyFileRange: {u64s(0, 0, m1, 0, 0, 10, 0)},
	} {
		if st, _ := d.do(op, first, 128, body...); st != errCross {
			t.Errorf("operation %d across trees: %v", op, st)
		}
	}
	must(t, x.Remove("m1"))
	if err := x.Remove("m1"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("removed twice: %v", err)
	}
	if _, st := d.read(a2, 0, 10); st != errStale {
		t.Errorf("read in a tree that is gone: %v", st)
	}
	must(t, x.Add("m1", fs.Live(second), TreeOptions{}))
	if again := d.walk("m1", "a.txt"); again == a2 {
		t.Errorf("a node id came back: %#x", again)
	}
	if _, st := d.read(a2, 0, 10); st != errStale {
		t.Errorf("read by an id of before: %v", st)
	}
	must(t, x.Remove("m1"))
}

// TestTeardown: however the monitor ends a queue or the connection, with requests
// under way and more to come, the device ends and holds nothing.
func TestTeardown(t *testing.T) {
	for _, how := range []string{"disable", "base", "hang up", "close", "memory"} {
		t.Run(how, func(t *testing.T) {
			x, _, _ := newExport(t)
			d := connect(t, x)
			d.begin(1)
			d.init()
			n := d.create(d.walk("workspace"), "f")
			q := d.queues[1]
			// Many at once, of those that take long: copies, syncs, reads.
			for i := range 40 {
				at := bufferBase + i*8192
				var b []byte
				switch i % 3 {
				case 0:
					b = d.request(opFsync, n, u64s(0), u32s(0, 0))
				case 1:
					b = d.request(opWrite, n, u64s(0, uint64(i)), u32s(100, 0), u64s(0), u32s(0, 0), make([]byte, 100))
				default:
					b = d.request(opRead, n, u64s(0, 0), u32s(4096, 0), u64s(0), u32s(0, 0))
				}
				copy(d.mem[at:], b)
				// One descriptor each: too little room for some answers, which
				// must not matter.
				d.desc(q.base+16<<10, 2*i, guestBase+uint64(at), uint32(len(b)), descNext, 1)
				d.desc(q.base+16<<10, 2*i+1, guestBase+uint64(at+4096), 4096, descWrite, 0)
				d.desc(q.base, i, guestBase+uint64(q.base+16<<10+2*i*descSize), 2*descSize, descIndirect, 0)
				d.publish(q, uint16(i))
			}
			switch how {
			case "disable":
				d.tell(reqSetVringEnable, u32s(1, 0))
				d.tell(reqSetVringEnable, u32s(1, 1))
				d.collect(q)
			case "base":
				b := d.ask(reqGetVringBase, u32s(1, 0))
				d.startQueue(q, binary.LittleEndian.Uint32(b[4:]))
				d.collect(q)
				d.walk("workspace", "f")
			case "memory":
				b, fds := d.table(2)
				d.tell(reqSetMemTable, b, fds...)
				d.collect(q)
				d.walk("workspace", "f")
			case "hang up":
				must(t, d.conn.Close())
				d.wait()
			case "close":
				must(t, d.server.Close())
			}
			if how == "hang up" || how == "close" {
				if n := x.Known("workspace"); n != 0 {
					t.Errorf("%d nodes are known to a guest that is gone", n)
				}
				// The export serves the next guest.
				again := connect(t, x)
				again.begin(1)
				again.init()
				again.walk("workspace", "a.txt")
			}
		})
	}
}

// TestOneGuestAtATime: an export is not shown to two.
func TestOneGuestAtATime(t *testing.T) {
	x, _, _ := newExport(t)
	connect(t, x)
	_, theirs := socketpair(t)
	if _, err := Serve(theirs, x, Options{}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("second guest: %v", err)
	}
}

// TestInitAgain: a guest that begins anew knows nothing of before.
func TestInitAgain(t *testing.T) {
	x, _, _ := newExport(t)
	d := connect(t, x)
	d.begin(1)
	if st, _ := d.do(opGetattr, rootID, 104, u32s(0, 0), u64s(0)); st != fuse.EIO {
		t.Errorf("before INIT: %v", st)
	}
	d.init()
	a := d.walk("workspace", "a.txt")
	d.init()
	if _, st := d.read(a, 0, 10); st != errStale {
		t.Errorf("a node of before INIT: %v", st)
	}
	d.walk("workspace", "a.txt")
	if st, _ := d.do(opDestroy, 0, 0); st != fuse.OK {
		t.Errorf("DESTROY: %v", st)
	}
	if n := x.Known("workspace"); n != 0 {
		t.Errorf("%d nodes are known after DESTROY", n)
	}
}

// TestUnsealedMemory: memory that could shrink under the server is not taken.
func TestUnsealedMemory(t *testing.T) {
	x, _, _ := newExport(t)
	d := connect(t, x)
	for name, seals := range map[string]int{"none": 0, "growing": unix.F_SEAL_GROW} {
		fd := sealedMemory(t, driverMem, seals)
		table := append(u32s(1, 0), u64s(guestBase, driverMem, userBase, 0)...)
		if b := d.ask(reqSetMemTable, table, fd); binary.LittleEndian.Uint64(b) == 0 {
			t.Errorf("%s: taken", name)
		}
		must(t, unix.Close(fd))
	}
}
