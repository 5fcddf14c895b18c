package virtiofs

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/galleyfs/galley/fs"
)

const (
	// maxName is the longest name of an entry in bytes (NAME_MAX).
	maxName = 255
	// maxIO is the largest READ and WRITE in bytes.
	maxIO = 1 << 20
	// maxXattr is the largest value of an extended attribute, and the largest
	// list of names, in bytes (xattr(7)).
	maxXattr = 64 << 10
	// maxRequest is the largest request but a WRITE: an extended attribute
	// with its name, and what stands before them.
	maxRequest = maxXattr + 1024

	rootID = 1 // FUSE's number for a root

	headSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	replySize = int(unsafe.Sizeof(fuse.OutHeader{}))
	writeSize = int(unsafe.Sizeof(fuse.WriteIn{}))
)

// Operations, by their numbers in linux/fuse.h. Those that are not here are
// answered with ENOSYS.
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opFlush         = 25
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opAccess        = 34
	opCreate        = 35
	opInterrupt     = 36
	opDestroy       = 38
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opSyncfs        = 50
	opTmpfile       = 51
	opCount         = 52
)

// shape is what a request of one operation is made of.
type shape struct {
	known bool
	// fixed is the size of the structure that it begins with, the header
	// included.
	fixed uintptr
	// names is how many NUL-terminated names follow it.
	names int
	// more: something else follows, which the operation's own check knows.
	more bool
	// out is the size of the structure that the answer begins with, after the
	// header.
	out uintptr
	// changes: it is refused in a read-only tree.
	changes bool
	// second is the offset of another node id, 0 if there is none.
	second uintptr
}

const entryOut = unsafe.Sizeof(fuse.EntryOut{})

var shapes = [opCount]shape{
	opLookup:        {fixed: 40, names: 1, out: entryOut},
	opForget:        {fixed: unsafe.Sizeof(fuse.ForgetIn{})},
	opGetattr:       {fixed: unsafe.Sizeof(fuse.GetAttrIn{}), out: unsafe.Sizeof(fuse.AttrOut{})},
	opSetattr:       {fixed: unsafe.Sizeof(fuse.SetAttrIn{}), out: unsafe.Sizeof(fuse.AttrOut{}), changes: true},
	opReadlink:      {fixed: 40},
	opSymlink:       {fixed: 40, names: 2, out: entryOut, changes: true},
	opMknod:         {fixed: unsafe.Sizeof(fuse.MknodIn{}), names: 1, out: entryOut, changes: true},
	opMkdir:         {fixed: unsafe.Sizeof(fuse.MkdirIn{}), names: 1, out: entryOut, changes: true},
	opUnlink:        {fixed: 40, names: 1, changes: true},
	opRmdir:         {fixed: 40, names: 1, changes: true},
	opRename:        {fixed: 48, names: 2, changes: true, second: 40},
	opRename2:       {fixed: unsafe.Sizeof(fuse.RenameIn{}), names: 2, changes: true, second: 40},
	opLink:          {fixed: unsafe.Sizeof(fuse.LinkIn{}), names: 1, out: entryOut, changes: true, second: 40},
	opOpen:          {fixed: unsafe.Sizeof(fuse.OpenIn{}), out: unsafe.Sizeof(fuse.OpenOut{})},
	opRead:          {fixed: unsafe.Sizeof(fuse.ReadIn{})},
	opWrite:         {fixed: unsafe.Sizeof(fuse.WriteIn{}), more: true, out: unsafe.Sizeof(fuse.WriteOut{}), changes: true},
	opStatfs:        {fixed: 40, out: unsafe.Sizeof(fuse.StatfsOut{})},
	opRelease:       {fixed: unsafe.Sizeof(fuse.ReleaseIn{})},
	opFsync:         {fixed: unsafe.Sizeof(fuse.FsyncIn{})},
	opSetxattr:      {fixed: 48, more: true, changes: true},
	opGetxattr:      {fixed: unsafe.Sizeof(fuse.GetXAttrIn{}), names: 1},
	opListxattr:     {fixed: unsafe.Sizeof(fuse.GetXAttrIn{})},
	opRemovexattr:   {fixed: 40, names: 1, changes: true},
	opFlush:         {fixed: unsafe.Sizeof(fuse.FlushIn{})},
	opInit:          {fixed: 56, more: true, out: unsafe.Sizeof(fuse.InitOut{})},
	opOpendir:       {fixed: unsafe.Sizeof(fuse.OpenIn{}), out: unsafe.Sizeof(fuse.OpenOut{})},
	opReaddir:       {fixed: unsafe.Sizeof(fuse.ReadIn{})},
	opReaddirplus:   {fixed: unsafe.Sizeof(fuse.ReadIn{})},
	opReleasedir:    {fixed: unsafe.Sizeof(fuse.ReleaseIn{})},
	opFsyncdir:      {fixed: unsafe.Sizeof(fuse.FsyncIn{})},
	opAccess:        {fixed: unsafe.Sizeof(fuse.AccessIn{})},
	opCreate:        {fixed: unsafe.Sizeof(fuse.CreateIn{}), names: 1, out: unsafe.Sizeof(fuse.CreateOut{}), changes: true},
	opTmpfile:       {fixed: unsafe.Sizeof(fuse.CreateIn{}), names: 1, out: unsafe.Sizeof(fuse.CreateOut{}), changes: true},
	opInterrupt:     {fixed: unsafe.Sizeof(fuse.InterruptIn{})},
	opDestroy:       {fixed: 40},
	opBatchForget:   {fixed: 48, more: true},
	opFallocate:     {fixed: unsafe.Sizeof(fuse.FallocateIn{}), changes: true},
	opLseek:         {fixed: unsafe.Sizeof(fuse.LseekIn{}), out: unsafe.Sizeof(fuse.LseekOut{})},
	opCopyFileRange: {fixed: unsafe.Sizeof(fuse.CopyFileRangeIn{}), out: unsafe.Sizeof(fuse.WriteOut{}), changes: true, second: 40 + 16},
	opSyncfs:        {fixed: 48},
}

func init() {
	for i := range shapes {
		shapes[i].known = shapes[i].fixed > 0
	}
}

const (
	errStale = fuse.Status(syscall.ESTALE)
	errCross = fuse.Status(syscall.EXDEV)
	errBig   = fuse.Status(syscall.E2BIG)
)

// request is a checked request. Its bytes are a copy that the guest cannot
// change.
type request struct {
	op     uint32
	unique uint64
	slot   uint16
	node   uint64 // within the slot
	bytes  []byte // all of it but what a WRITE carries
	data   []byte // what a WRITE carries
	shape  *shape
	// payload is the most that the answer may have after its structure.
	payload int
}

func (r *request) uint32(off int) uint32 { return binary.LittleEndian.Uint32(r.bytes[off:]) }
func (r *request) uint64(off int) uint64 { return binary.LittleEndian.Uint64(r.bytes[off:]) }

// replyless reports whether the operation is never answered.
func replyless(op uint32) bool {
	return op == opForget || op == opBatchForget || op == opInterrupt
}

// parse checks the request in bytes (and data, of a WRITE) for which the guest
// has left room bytes for the answer. Node ids are checked for their slot and
// then stand in bytes without it. A request that is refused is only to be
// answered with the status.
//
// Preconditions: bytes holds a header at least.
func parse(bytes, data []byte, room int) (request, fuse.Status) {
	r := request{bytes: bytes, data: data}
	r.op, r.unique = r.uint32(4), r.uint64(8)
	r.slot, r.node = fs.GuestSlot(r.uint64(16))
	if int64(r.uint32(0)) != int64(len(bytes)+len(data)) {
		return r, fuse.EINVAL
	}
	// Extensions (security contexts, groups) are never agreed to.
	if binary.LittleEndian.Uint16(bytes[36:]) != 0 {
		return r, fuse.EINVAL
	}
	if r.op >= opCount || !shapes[r.op].known {
		return r, fuse.ENOSYS
	}
	r.shape = &shapes[r.op]
	fixed := int(r.shape.fixed)
	if len(bytes) < fixed {
		return r, fuse.EINVAL
	}
	if !r.shape.more && !names(bytes[fixed:], r.shape.names) {
		return r, fuse.EINVAL
	}
	if st := r.checkOp(bytes[fixed:]); st != fuse.OK {
		return r, st
	}
	if !replyless(r.op) && room < replySize+int(r.shape.out)+r.payload {
		return r, fuse.EINVAL
	}
	if st := r.ownSlot(); st != fuse.OK {
		return r, st
	}
	return r, fuse.OK
}

// names reports whether b is exactly n names, each ended by a NUL. What may be in
// a name is checked where it is used.
func names(b []byte, n int) bool {
	for range n {
		i := bytes.IndexByte(b, 0)
		if i < 0 {
			return false
		}
		b = b[i+1:]
	}
	return len(b) == 0
}

// checkOp checks what only the operation knows of; rest is what follows its
// structure.
func (r *request) checkOp(rest []byte) fuse.Status {
	switch r.op {
	case opRead, opReaddir, opReaddirplus:
		size := r.uint32(56)
		if size > maxIO {
			return fuse.EINVAL
		}
		r.payload = int(size)
	case opReadlink:
		// The kernel leaves a page; a longer target does not exist.
		r.payload = 0
	case opGetxattr, opListxattr:
		size := r.uint32(40)
		if size > maxXattr {
			return errBig
		}
		if r.payload = int(size); size == 0 {
			r.payload = 8 // the size alone
		}
	case opSetxattr:
		i := bytes.IndexByte(rest, 0)
		if i < 0 || uint64(len(rest)-i-1) != uint64(r.uint32(40)) {
			return fuse.EINVAL
		}
	case opWrite:
		if uint64(len(r.data)) != uint64(r.uint32(56)) || len(r.data) > maxIO || len(rest) != 0 {
			return fuse.EINVAL
		}
	case opBatchForget:
		if uint64(len(rest)) != uint64(r.uint32(40))*16 {
			return fuse.EINVAL
		}
	case opInit:
		// Newer kernels send more than older ones.
		if len(r.bytes) > int(unsafe.Sizeof(fuse.InitIn{})) {
			r.bytes = r.bytes[:unsafe.Sizeof(fuse.InitIn{})]
		}
	}
	return fuse.OK
}

// ownSlot takes the slot out of the node ids in the request.
func (r *request) ownSlot() fuse.Status {
	binary.LittleEndian.PutUint64(r.bytes[16:], r.node)
	if r.shape.second == 0 {
		return fuse.OK
	}
	at := r.bytes[r.shape.second:]
	slot, node := fs.GuestSlot(binary.LittleEndian.Uint64(at))
	if slot != r.slot {
		return errCross
	}
	binary.LittleEndian.PutUint64(at, node)
	return fuse.OK
}

// hackName is a name that go-fuse keeps at a root for itself.
const hackName = ".go-fuse-epoll-hack\x00"

// reserved reports whether the request is about that name. Nothing of that name
// is shown to a guest.
func (r *request) reserved() bool {
	return r.node == rootID && r.shape.names > 0 && bytes.HasPrefix(r.bytes[r.shape.fixed:], []byte(hackName))
}

// errorReply is the answer that holds nothing but a status.
func errorReply(b []byte, unique uint64, st fuse.Status) []byte {
	b = binary.LittleEndian.AppendUint32(b[:0], uint32(replySize))
	b = binary.LittleEndian.AppendUint32(b, uint32(-int32(st)))
	return binary.LittleEndian.AppendUint64(b, unique)
}
