package overlay

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// A record is a log of frames. Each frame is
//
//	uint32  length of the payload, little endian
//	uint32  CRC-32C of the payload
//	payload a kind byte, then the fields of that kind
//
// Numbers are unsigned varints unless said otherwise, strings a length and
// bytes. A record starts with one frameHeader. Frames describe states, not
// steps: of several frames on one subject the last holds, and reading a record
// twice changes nothing. A frame that ends beyond the end of the file, or whose
// checksum is wrong with nothing valid after it, is what a crash leaves: the
// record ends before it. The index is a record that covers several layers,
// with a frameLayer before the frames of each.
type frameKind byte

const (
	frameHeader  frameKind = 'H' // format version, layer, xattr prefix
	frameLayer   frameKind = 'L' // layer that the following frames belong to
	frameNode    frameKind = 'N' // a node's version
	frameEntry   frameKind = 'E' // a name's version: directory, name, node (0 for a whiteout)
	frameDropped frameKind = 'R' // the layer no longer says anything of a name: directory, name
	frameGone    frameKind = 'G' // the layer no longer holds a node: node, whether it has no name at all
	frameWas     frameKind = 'W' // what the base had
	frameDevice  frameKind = 'V' // number given to a device of the base
	frameKept    frameKind = 'K' // what the host did not take of a node's version, after that
	frameInode   frameKind = 'I' // inode numbers up to this one are taken
	frameEnd     frameKind = 'Z' // of an index: how long the newest record was
)

// recordVersion is the format that this program writes. It reads no newer one.
const recordVersion = 1

const (
	maxFrame   = 1 << 20
	frameHead  = 8
	maxNameLen = 255
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type nodeFrame struct {
	ino     uint64
	typ     uint32
	flags   verFlags
	nlink   uint32
	parent  uint64
	name    string
	data    LayerID // of the content, when verMeta
	lower   string
	ctime   Time
	born    bool // in the base
	base    string
	id      HostID
	btime   Time
	bornIn  LayerID
	hasData bool // data is a layer; otherwise the base
}

// encoder appends fields to a frame under construction.
type encoder struct{ b []byte }

func (e *encoder) begin(k frameKind) int {
	at := len(e.b)
	e.b = append(e.b, 0, 0, 0, 0, 0, 0, 0, 0, byte(k))
	return at
}

func (e *encoder) end(at int) {
	payload := e.b[at+frameHead:]
	binary.LittleEndian.PutUint32(e.b[at:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(e.b[at+4:], crc32.Checksum(payload, castagnoli))
}

func (e *encoder) uint(v uint64)  { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)    { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) str(s string)   { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) time(t Time)    { e.int(t.Sec); e.uint(uint64(t.Nsec)) }
func (e *encoder) bool(v bool)    { e.b = append(e.b, b2i(v)) }
func (e *encoder) host(id HostID) { e.uint(id.Dev); e.uint(id.Ino) }

func b2i(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func (e *encoder) header(l LayerID, prefix string) {
	at := e.begin(frameHeader)
	e.uint(recordVersion)
	e.uint(uint64(uint32(l)))
	e.str(prefix)
	e.end(at)
}

func (e *encoder) layer(l LayerID) {
	at := e.begin(frameLayer)
	e.uint(uint64(uint32(l)))
	e.end(at)
}

func (e *encoder) node(f *nodeFrame) {
	at := e.begin(frameNode)
	e.uint(f.ino)
	e.uint(uint64(f.typ))
	e.uint(uint64(f.flags))
	e.uint(uint64(f.nlink))
	e.uint(f.parent)
	e.str(f.name)
	if f.flags&verMeta != 0 {
		e.bool(f.hasData)
		e.uint(uint64(uint32(f.data)))
	}
	e.str(f.lower)
	if f.flags&verCtime != 0 {
		e.time(f.ctime)
	}
	e.bool(f.born)
	if f.born {
		e.str(f.base)
		e.host(f.id)
		e.time(f.btime)
		e.uint(uint64(uint32(f.bornIn)))
	}
	e.end(at)
}

func (e *encoder) entry(dir uint64, name string, child uint64) {
	at := e.begin(frameEntry)
	e.uint(dir)
	e.str(name)
	e.uint(child)
	e.end(at)
}

func (e *encoder) dropped(dir uint64, name string) {
	at := e.begin(frameDropped)
	e.uint(dir)
	e.str(name)
	e.end(at)
}

func (e *encoder) gone(ino uint64, entirely bool) {
	at := e.begin(frameGone)
	e.uint(ino)
	e.bool(entirely)
	e.end(at)
}

func (e *encoder) was(w *Was) {
	at := e.begin(frameWas)
	e.str(w.Path)
	e.bool(w.Exists)
	if w.Exists {
		e.host(w.ID)
		e.uint(uint64(w.Mode))
		e.uint(uint64(w.UID))
		e.uint(uint64(w.GID))
		e.uint(uint64(w.Nlink))
		e.int(w.Size)
		e.uint(w.Rdev)
		e.time(w.Mtime)
		e.time(w.Ctime)
		e.time(w.Btime)
		e.time(w.Seen)
		e.str(w.Target)
		e.bool(w.HasDigest)
		if w.HasDigest {
			e.b = append(e.b, w.Digest[:]...)
		}
	}
	e.end(at)
}

func (e *encoder) device(dev uint64, n uint32) {
	at := e.begin(frameDevice)
	e.uint(dev)
	e.uint(uint64(n))
	e.end(at)
}

func (e *encoder) inode(next uint64) {
	at := e.begin(frameInode)
	e.uint(next)
	e.end(at)
}

func (e *encoder) endMark(active LayerID, size int64) {
	at := e.begin(frameEnd)
	e.uint(uint64(uint32(active)))
	e.int(size)
	e.end(at)
}

// decoder reads the fields of one frame. After the first error everything
// reads as zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uint()
	if v > 1<<32-1 {
		d.bad = true
	}
	return uint32(v)
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) str() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) bool() bool {
	if len(d.b) == 0 {
		d.bad = true
		return false
	}
	v := d.b[0]
	d.b = d.b[1:]
	if v > 1 {
		d.bad = true
	}
	return v == 1
}

func (d *decoder) time() Time {
	t := Time{Sec: d.int(), Nsec: d.uint32()}
	if t.Nsec >= 1e9 {
		d.bad = true
	}
	return t
}

func (d *decoder) host() HostID { return HostID{Dev: d.uint(), Ino: d.uint()} }

func (d *decoder) node() *nodeFrame {
	f := &nodeFrame{ino: d.uint(), typ: d.uint32(), flags: verFlags(d.uint()), nlink: d.uint32()}
	f.parent, f.name = d.uint(), d.str()
	if f.flags&verMeta != 0 {
		f.hasData = d.bool()
		f.data = LayerID(d.uint32())
	}
	f.lower = d.str()
	if f.flags&verCtime != 0 {
		f.ctime = d.time()
	}
	if f.born = d.bool(); f.born {
		f.base, f.id, f.btime, f.bornIn = d.str(), d.host(), d.time(), LayerID(d.uint32())
	}
	if f.ino == 0 || f.typ&^unix.S_IFMT != 0 || f.typ == 0 {
		d.bad = true
	}
	return f
}

func (d *decoder) was() *Was {
	w := &Was{Path: d.str(), Exists: d.bool()}
	if !w.Exists {
		return w
	}
	w.ID = d.host()
	w.Mode, w.UID, w.GID, w.Nlink = d.uint32(), d.uint32(), d.uint32(), d.uint32()
	w.Size, w.Rdev = d.int(), d.uint()
	w.Mtime, w.Ctime, w.Btime, w.Seen = d.time(), d.time(), d.time(), d.time()
	w.Target = d.str()
	if w.HasDigest = d.bool(); w.HasDigest {
		if len(d.b) < len(w.Digest) {
			d.bad = true
			return w
		}
		d.b = d.b[copy(w.Digest[:], d.b):]
	}
	return w
}

// readFrames calls fn for each frame of b and returns how many bytes were
// good: the length of b, or where a torn tail begins. A damaged frame that is
// followed by a good one is no torn tail, but damage: ErrCorrupt.
func readFrames(b []byte, fn func(frameKind, *decoder) error) (int, error) {
	off := 0
	for off < len(b) {
		payload, size := frameAt(b[off:])
		if payload == nil {
			if resumes(b[off:]) {
				return off, fmt.Errorf("frame at byte %d: wrong checksum or length: %w", off, ErrCorrupt)
			}
			return off, nil
		}
		d := &decoder{b: payload[1:]}
		if err := fn(frameKind(payload[0]), d); err != nil {
			return off, fmt.Errorf("frame at byte %d: %w", off, err)
		}
		if d.bad || len(d.b) != 0 {
			return off, fmt.Errorf("frame at byte %d: kind %q does not decode: %w", off, payload[0], ErrCorrupt)
		}
		off += size
	}
	return off, nil
}

// frameAt returns the payload of the frame at the start of b and the frame's
// size, or nil where there is no whole frame.
func frameAt(b []byte) ([]byte, int) {
	if len(b) < frameHead+1 {
		return nil, 0
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n < 1 || n > maxFrame || frameHead+n > int64(len(b)) {
		return nil, 0
	}
	payload := b[frameHead : frameHead+n]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0
	}
	return payload, frameHead + int(n)
}

// resumes reports whether a whole frame begins anywhere soon after the start
// of b. Appends are in order, so nothing whole follows a torn one.
func resumes(b []byte) bool {
	const window = 4096
	for i := 1; i < len(b) && i < window; i++ {
		if p, _ := frameAt(b[i:]); p != nil && knownFrame(frameKind(p[0])) {
			return true
		}
	}
	return false
}

func knownFrame(k frameKind) bool {
	switch k {
	case frameHeader, frameLayer, frameNode, frameEntry, frameDropped, frameGone,
		frameWas, frameKept, frameDevice, frameInode, frameEnd:
		return true
	}
	return false
}

// recordWriter appends to the record of the active layer. Its buffer reaches
// the kernel before the operation that filled it is acknowledged, so that a
// killed process loses nothing; the disk sees it with Fsync and Seal.
type recordWriter struct {
	fs     hostfs.FS
	fd     int
	size   int64 // of the file
	synced int64 // how much of it is durable
	enc    encoder
	// err is the first failure to append: after it the layer takes no more
	// changes, for they could not be recorded.
	err error
}

func (w *recordWriter) flush() error {
	if w.err != nil {
		return w.err
	}
	if len(w.enc.b) == 0 {
		return nil
	}
	if err := hostfs.WriteFull(w.fs, w.fd, w.enc.b, w.size); err != nil {
		// What reached the file, if anything, is cut off again, so that the
		// next append does not follow a torn frame.
		if terr := w.fs.Truncate(w.fd, w.size); terr != nil {
			w.err = fmt.Errorf("append to record: %w", err)
		}
		return fmt.Errorf("append to record: %w", err)
	}
	w.size += int64(len(w.enc.b))
	w.enc.b = w.enc.b[:0]
	if cap(w.enc.b) > 64<<10 {
		w.enc.b = nil
	}
	return nil
}

func (w *recordWriter) close() error {
	if w == nil || w.fd < 0 {
		return nil
	}
	err := w.flush()
	if cerr := w.fs.Close(w.fd); err == nil {
		err = cerr
	}
	w.fd = -1
	return err
}
