package review

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"

	"github.com/galleyfs/galley/overlay"
)

// digestVersion begins every encoding. It changes with any change of what
// follows, so that digests of two versions never meet by accident.
const digestVersion = "galley change set 1\n"

// digestOf is the SHA-256 of the canonical encoding of an ordered list of
// changes. The encoding, version 1:
//
//	set     = digestVersion, count, change…
//	change  = tree, kind, path, from, origin, at, hasFromAt, fromAt, parts,
//	          sameData, similarity, link, meta(old), meta(new), facts
//	meta    = 0 | 1, mode, uid, gid, size, rdev, mtime, target,
//	          count, (name, value)…, digest
//	facts   = count, fact…
//	fact    = path, exists, dev, ino, mode, uid, gid, nlink, size, rdev,
//	          mtime, ctime, btime, seen, target, digest
//	digest  = 0 | 1, 32 bytes
//	time    = seconds, nanoseconds
//
// A number is 8 bytes, big-endian, signed ones in two's complement; a truth
// value is the number 0 or 1; a string is its length as a number and its
// bytes. So no two lists have the same encoding. What is derived from the rest
// or tells of the base as it is now (flags, drift) is left out.
func digestOf(changes []Change) Digest {
	h := sha256.New()
	e := encoder{bufio.NewWriterSize(h, 32<<10)}
	_, _ = e.w.WriteString(digestVersion)
	e.num(uint64(len(changes)))
	for i := range changes {
		e.change(&changes[i])
	}
	_ = e.w.Flush()
	return Digest(h.Sum(nil))
}

// encoder writes to a hash, which never fails.
type encoder struct {
	w *bufio.Writer
}

func (e *encoder) num(n uint64) {
	_, _ = e.w.Write(binary.BigEndian.AppendUint64(e.w.AvailableBuffer(), n))
}

func (e *encoder) flag(b bool) { e.num(uint64(boolInt(b))) }

func (e *encoder) str(s string) {
	e.num(uint64(len(s)))
	_, _ = e.w.WriteString(s)
}

func (e *encoder) time(t overlay.Time) {
	e.num(uint64(t.Sec))
	e.num(uint64(t.Nsec))
}

func (e *encoder) sum(has bool, sum [32]byte) {
	e.flag(has)
	if has {
		_, _ = e.w.Write(sum[:])
	}
}

func (e *encoder) change(c *Change) {
	e.str(c.Tree)
	e.num(uint64(c.Kind))
	e.str(c.Path)
	e.str(c.From)
	e.str(c.Origin)
	e.str(c.At)
	e.flag(c.HasFromAt)
	e.str(c.FromAt)
	e.num(uint64(c.Parts))
	e.flag(c.SameData)
	e.num(uint64(c.Similarity))
	e.str(c.Link)
	e.meta(c.Old)
	e.meta(c.New)
	e.num(uint64(len(c.Facts)))
	for i := range c.Facts {
		e.fact(&c.Facts[i])
	}
}

func (e *encoder) meta(m *Meta) {
	e.flag(m != nil)
	if m == nil {
		return
	}
	e.num(uint64(m.Mode))
	e.num(uint64(m.UID))
	e.num(uint64(m.GID))
	e.num(uint64(m.Size))
	e.num(m.Rdev)
	e.time(m.Mtime)
	e.str(m.Target)
	e.num(uint64(len(m.Xattrs)))
	for _, x := range m.Xattrs {
		e.str(x.Name)
		e.str(string(x.Value))
	}
	e.sum(m.HasDigest, m.Digest)
}

func (e *encoder) fact(w *overlay.Was) {
	e.str(w.Path)
	e.flag(w.Exists)
	e.num(w.ID.Dev)
	e.num(w.ID.Ino)
	e.num(uint64(w.Mode))
	e.num(uint64(w.UID))
	e.num(uint64(w.GID))
	e.num(uint64(w.Nlink))
	e.num(uint64(w.Size))
	e.num(w.Rdev)
	e.time(w.Mtime)
	e.time(w.Ctime)
	e.time(w.Btime)
	e.time(w.Seen)
	e.str(w.Target)
	e.sum(w.HasDigest, w.Digest)
}
