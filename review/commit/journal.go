package commit

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// The journal of a commit is one append-only file:
//
//	magic "GALLEYCJ", version (4 bytes)
//	frames: length of the payload (4), CRC-32C of kind and payload (4), kind (1), payload
//
// Numbers are little-endian, payloads JSON. It is called journal.new until
// everything the commit intends is in it and durable, and journal from then on;
// that rename is the point after which the base may change. So a journal.new
// never needs more than its stage removed, and a journal whose intent cannot be
// read in full is damaged, never merely torn. Only what was appended after the
// intent may be cut off by a crash.
const (
	journalMagic   = "GALLEYCJ"
	journalVersion = 1
	journalHeader  = len(journalMagic) + 4
	frameHeader    = 9
	maxFrame       = 16 << 20
	maxJournal     = 4 << 30
	journalNew     = "journal.new"
	journalName    = "journal"
)

// The kinds of frames. They are never reused.
const (
	frameStart     = 'H' // startRecord: first
	frameArea      = 'A' // area: a base or a stage; before the stage is made
	frameMoved     = 'M' // movedRecord: a stage will be elsewhere
	frameRoot      = 'B' // rootRecord: a stage was made
	frameObject    = 'O' // object
	frameTree      = 'T' // treeEntry of the object before it
	frameStep      = 'S' // step
	frameApplied   = 'C' // appliedRecord
	frameLeaving   = 'L' // leavingRecord
	frameNote      = 'N' // noteRecord
	frameIntent    = 'I' // intentRecord: all of the above is there
	frameReverting = 'R' // from here on the commit is being taken back
	frameDone      = 'D' // the base is new, durably
	frameReverted  = 'V' // the base is old, durably
	frameSettled   = 'X' // the session knows
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// startRecord opens a journal.
type startRecord struct {
	Digest  digest       `json:"digest"`
	Started int64        `json:"started"` // seconds since the epoch
	Trees   []treeRecord `json:"trees"`
	Keep    bool         `json:"keep"`
}

// treeRecord is a base as the journal knows it.
type treeRecord struct {
	Name     string   `json:"name"`
	BasePath pathName `json:"base"`
}

// rootRecord says which directory a stage is, now that it is made.
type rootRecord struct {
	Area  int          `json:"area"`
	Ino   uint64       `json:"ino"`
	Btime overlay.Time `json:"btime"`
}

// movedRecord says that a stage cannot be where its area says.
type movedRecord struct {
	Area int  `json:"area"`
	To   area `json:"to"`
}

// intentRecord closes the intent: how many of each came before it.
type intentRecord struct {
	Objects int `json:"objects"`
	Steps   int `json:"steps"`
	Applied int `json:"applied"`
	Leaving int `json:"leaving"`
}

// appliedRecord is an element of Result.Applied.
type appliedRecord struct {
	Tree int      `json:"tree"`
	Path pathName `json:"path"`
	Kind uint8    `json:"kind"`
	Dev  uint64   `json:"dev,omitempty"`
	Ino  uint64   `json:"ino,omitempty"`
}

// leavingRecord is an element of Result.Leaving.
type leavingRecord struct {
	Tree string   `json:"tree"`
	Path pathName `json:"path"`
}

// The classes of a noteRecord.
const (
	noteSkipped = "skipped"
	noteDropped = "dropped"
	noteLinks   = "links"
)

type noteRecord struct {
	Class string   `json:"class"`
	Tree  string   `json:"tree"`
	Path  pathName `json:"path"`
	What  string   `json:"what"`
}

// record is what a journal says, as read back.
type record struct {
	start     startRecord
	areas     []area
	objects   []object
	steps     []step
	applied   []appliedRecord
	leaving   []leavingRecord
	notes     []noteRecord
	intent    bool
	reverting bool
	done      bool
	reverted  bool
	settled   bool
	// end is where the next frame goes: after the last whole one.
	end int64
}

// journalStart is what a journal begins with.
func journalStart() []byte {
	return binary.LittleEndian.AppendUint32([]byte(journalMagic), journalVersion)
}

// journal is an open journal that frames are appended to.
type journal struct {
	fs  hostfs.FS
	dir int // the commit's directory
	fd  int
	off int64
	buf []byte
}

func appendFrame(buf []byte, kind byte, v any) ([]byte, error) {
	payload := []byte{}
	if v != nil {
		var err error
		if payload, err = json.Marshal(v); err != nil {
			return buf, fmt.Errorf("encode a journal frame: %w", err)
		}
	}
	if len(payload) > maxFrame {
		return buf, fmt.Errorf("a journal frame of %d bytes, more than %d", len(payload), maxFrame)
	}
	crc := crc32.Update(crc32.Checksum([]byte{kind}, castagnoli), castagnoli, payload)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(payload)))
	buf = binary.LittleEndian.AppendUint32(buf, crc)
	return append(append(buf, kind), payload...), nil
}

// add puts a frame into the buffer, and the buffer into the file when it is
// large.
func (j *journal) add(kind byte, v any) error {
	var err error
	if j.buf, err = appendFrame(j.buf, kind, v); err != nil {
		return err
	}
	if len(j.buf) < 1<<20 {
		return nil
	}
	return j.write()
}

func (j *journal) write() error {
	if err := hostfs.WriteFull(j.fs, j.fd, j.buf, j.off); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	j.off += int64(len(j.buf))
	j.buf = j.buf[:0]
	return nil
}

// flush makes everything added durable.
func (j *journal) flush() error {
	if err := j.write(); err != nil {
		return err
	}
	if err := j.fs.Fsync(j.fd); err != nil {
		return fmt.Errorf("sync the journal: %w", err)
	}
	return nil
}

// mark appends one frame without payload, durably.
func (j *journal) mark(kind byte) error {
	if err := j.add(kind, nil); err != nil {
		return err
	}
	return j.flush()
}

// errTorn: a frame that is not whole.
var errTorn = errors.New("a frame is cut off or does not match its checksum")

// nextFrame splits the first frame off b.
func nextFrame(b []byte) (kind byte, payload, rest []byte, err error) {
	if len(b) < frameHeader {
		return 0, nil, nil, errTorn
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxFrame || int(n) > len(b)-frameHeader {
		return 0, nil, nil, errTorn
	}
	body := b[8 : frameHeader+int(n)]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return 0, nil, nil, errTorn
	}
	return body[0], body[1:], b[frameHeader+int(n):], nil
}

// parseJournal reads a journal. A tail that is not whole ends it; whether that
// is damage depends on where it ends, which the caller knows.
func parseJournal(b []byte) (*record, error) {
	if len(b) < journalHeader || string(b[:len(journalMagic)]) != journalMagic {
		return nil, fmt.Errorf("%w: no commit journal", overlay.ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[len(journalMagic):]); v != journalVersion {
		return nil, fmt.Errorf("%w: commit journal of version %d, this program knows %d", overlay.ErrFormat, v, journalVersion)
	}
	rec := &record{end: int64(journalHeader)}
	rest := b[journalHeader:]
	for first := true; len(rest) > 0; first = false {
		kind, payload, after, err := nextFrame(rest)
		if err != nil {
			break
		}
		if first != (kind == frameStart) {
			return nil, fmt.Errorf("%w: commit journal has a frame %q out of place", overlay.ErrCorrupt, kind)
		}
		if err := rec.take(kind, payload); err != nil {
			return nil, fmt.Errorf("%w: commit journal at byte %d: %w", overlay.ErrCorrupt, rec.end, err)
		}
		rec.end += int64(len(rest) - len(after))
		rest = after
	}
	if rec.end == int64(journalHeader) {
		return nil, fmt.Errorf("%w: commit journal without a start", overlay.ErrCorrupt)
	}
	return rec, nil
}

// take adds one frame to a record.
func (r *record) take(kind byte, payload []byte) error {
	if r.intent != (kind == frameReverting || kind == frameDone || kind == frameReverted || kind == frameSettled) {
		return fmt.Errorf("frame %q out of place", kind)
	}
	switch kind {
	case frameStart:
		return json.Unmarshal(payload, &r.start)
	case frameArea:
		return appendTo(&r.areas, payload)
	case frameMoved:
		return r.takeMoved(payload)
	case frameRoot:
		return r.takeRoot(payload)
	case frameObject:
		return appendTo(&r.objects, payload)
	case frameTree:
		if len(r.objects) == 0 {
			return errors.New("a tree entry before any object")
		}
		return appendTo(&r.objects[len(r.objects)-1].tree, payload)
	case frameStep:
		return appendTo(&r.steps, payload)
	case frameApplied:
		return appendTo(&r.applied, payload)
	case frameLeaving:
		return appendTo(&r.leaving, payload)
	case frameNote:
		return appendTo(&r.notes, payload)
	case frameIntent:
		return r.takeIntent(payload)
	case frameReverting:
		r.reverting = true
	case frameDone:
		r.done = true
	case frameReverted:
		r.reverted = true
	case frameSettled:
		r.settled = true
	default:
		return fmt.Errorf("unknown frame %q", kind)
	}
	return nil
}

func (r *record) takeRoot(payload []byte) error {
	var in rootRecord
	if err := json.Unmarshal(payload, &in); err != nil {
		return err
	}
	if in.Area < 0 || in.Area >= len(r.areas) || !r.areas[in.Area].Stage {
		return fmt.Errorf("area %d is no stage", in.Area)
	}
	r.areas[in.Area].Ino, r.areas[in.Area].Btime = in.Ino, in.Btime
	return nil
}

func (r *record) takeMoved(payload []byte) error {
	var in movedRecord
	if err := json.Unmarshal(payload, &in); err != nil {
		return err
	}
	if in.Area < 0 || in.Area >= len(r.areas) || !r.areas[in.Area].Stage || !in.To.Stage {
		return fmt.Errorf("area %d is no stage", in.Area)
	}
	r.areas[in.Area] = in.To
	return nil
}

func (r *record) takeIntent(payload []byte) error {
	var in intentRecord
	if err := json.Unmarshal(payload, &in); err != nil {
		return err
	}
	if in.Objects != len(r.objects) || in.Steps != len(r.steps) || in.Applied != len(r.applied) || in.Leaving != len(r.leaving) {
		return fmt.Errorf("it counts %d objects, %d steps, %d changes and %d entries, but has %d, %d, %d and %d",
			in.Objects, in.Steps, in.Applied, in.Leaving, len(r.objects), len(r.steps), len(r.applied), len(r.leaving))
	}
	r.intent = true
	return r.check()
}

func appendTo[T any](list *[]T, payload []byte) error {
	var v T
	if err := json.Unmarshal(payload, &v); err != nil {
		return err
	}
	*list = append(*list, v)
	return nil
}
