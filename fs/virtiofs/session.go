package virtiofs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
)

// maxBackground is how many reads ahead the guest's kernel may have under way.
const maxBackground = 64

// mountOptions are what is agreed on with a guest's kernel at INIT.
func mountOptions(log *slog.Logger) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:          fs.Subtype,
		MaxWrite:      maxIO,
		MaxBackground: maxBackground,
		DisableSplice: true,
		// No descriptor of the host is ever registered for a guest, and it
		// writes through.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_WRITEBACK_CACHE,
		ExtraCapabilities:    fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SUBMOUNTS | fuse.CAP_ASYNC_DIO,
		EnableSymlinkCaching: true,
		Logger:               slog.NewLogLogger(&fewer{Handler: log.Handler()}, slog.LevelWarn),
		PanicHandler: func(v any) fuse.Status {
			log.Error("panic in a guest's request", "value", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

// session answers the requests of one guest, over whatever brings them.
type session struct {
	x   *Export
	log *slog.Logger

	// gate is held by every request, and alone by INIT and DESTROY.
	gate sync.RWMutex
	root *fuse.ProtocolServer // protected by gate; nil before INIT
}

// scratch is memory for one request at a time.
type scratch struct {
	in, data, out []byte
	iov           [2][]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// room makes b n bytes long. What is in it is not kept.
func room(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// errShape: what stands in a ring is no request, or leaves no room for an answer.
var errShape = errors.New("no request, or no room for its answer")

// serve answers the request that in holds into out, both of which are memory of
// the guest, and returns how long the answer is.
func (s *session) serve(in, out [][]byte, sc *scratch) (n int, err error) {
	size, free := length(in), length(out)
	if size < headSize || size > writeSize+maxIO {
		return 0, fmt.Errorf("%w: %d bytes", errShape, size)
	}
	// Copied once: the guest may change its memory at any time.
	sc.in = room(sc.in, min(size, writeSize))
	gather(sc.in, in, 0)
	sc.data = sc.data[:0]
	op := binary.LittleEndian.Uint32(sc.in[4:])
	if !replyless(op) && free < replySize {
		return 0, fmt.Errorf("%w: %d bytes for it", errShape, free)
	}
	switch {
	case op == opWrite:
		sc.data = room(sc.data, size-len(sc.in))
		gather(sc.data, in, len(sc.in))
	case size > maxRequest:
		return 0, fmt.Errorf("%w: operation %d of %d bytes", errShape, op, size)
	case size > len(sc.in):
		// What has been looked at is kept as it was.
		head := len(sc.in)
		sc.in = slices.Grow(sc.in, size-head)[:size]
		gather(sc.in[head:], in, head)
	}
	r, st := parse(sc.in, sc.data, free)
	if st != fuse.OK {
		return s.refuse(&r, st, out, sc), nil
	}
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic in a guest's request", "operation", r.op, "value", v, "stack", string(debug.Stack()))
			n, err = s.refuse(&r, fuse.EIO, out, sc), nil
		}
	}()
	return s.answer(&r, out, free, sc), nil
}

// refuse answers with nothing but a status.
func (s *session) refuse(r *request, st fuse.Status, out [][]byte, sc *scratch) int {
	if replyless(r.op) {
		return 0
	}
	sc.out = errorReply(sc.out, r.unique, st)
	return scatter(out, sc.out)
}

// answer answers a request that was checked.
func (s *session) answer(r *request, out [][]byte, free int, sc *scratch) int {
	if r.op == opInit || r.op == opDestroy {
		return s.begin(r, out, sc)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	switch {
	case r.op == opInterrupt:
		return 0 // the Linux driver sends none; nothing here waits for long
	case r.op == opForget:
		s.forget(r.slot, r.node, r.uint64(headSize))
		return 0
	case r.op == opBatchForget:
		for at := headSize + 8; at < len(r.bytes); at += 16 {
			slot, node := fs.GuestSlot(r.uint64(at))
			s.forget(slot, node, r.uint64(at+8))
		}
		return 0
	case s.root == nil:
		return s.refuse(r, fuse.EIO, out, sc) // before INIT
	case r.slot == 0:
		return s.answerRoot(r, out, free, sc)
	}
	t := s.x.now.Load().bySlot[r.slot]
	if t == nil || !t.enter() {
		return s.refuse(r, errStale, out, sc)
	}
	defer t.leave()
	switch {
	case t.readOnly && r.shape.changes:
		return s.refuse(r, fuse.EROFS, out, sc)
	case r.reserved() && r.shape.changes:
		return s.refuse(r, fuse.EPERM, out, sc)
	case r.reserved():
		return s.refuse(r, fuse.ENOENT, out, sc)
	case r.op == opSyncfs:
		return s.refuse(r, t.guest.Sync(), out, sc)
	}
	return s.handle(t.protocol, r, out, free, sc)
}

func (s *session) answerRoot(r *request, out [][]byte, free int, sc *scratch) int {
	switch {
	case r.node != rootID:
		return s.refuse(r, errStale, out, sc)
	case r.shape.changes:
		return s.refuse(r, fuse.EROFS, out, sc)
	case r.reserved():
		return s.refuse(r, fuse.ENOENT, out, sc)
	case r.op == opSyncfs:
		return s.refuse(r, fuse.OK, out, sc)
	}
	return s.handle(s.root, r, out, free, sc)
}

// begin answers INIT and DESTROY, after which the guest knows nothing.
func (s *session) begin(r *request, out [][]byte, sc *scratch) int {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.x.reset()
	s.root = nil
	if r.op == opDestroy {
		return s.refuse(r, fuse.OK, out, sc)
	}
	root := fuse.NewProtocolServer(newRootFS(s.x), mountOptions(s.log))
	n := s.handle(root, r, out, length(out), sc)
	s.root = root
	return n
}

// forget gives back what the guest knew of a node.
func (s *session) forget(slot uint16, node, count uint64) {
	t := s.x.now.Load().bySlot[slot]
	if t == nil || !t.enter() {
		return
	}
	defer t.leave()
	t.requests.Forget(node, count)
}

// handle has go-fuse answer the request.
func (s *session) handle(p *fuse.ProtocolServer, r *request, out [][]byte, free int, sc *scratch) int {
	sc.iov = [2][]byte{r.bytes, r.data}
	in := sc.iov[:1]
	if r.op == opWrite {
		in = sc.iov[:2]
	}
	if r.op == opRead {
		// Straight into the guest's pages.
		if n, st := p.HandleRequest(in, out); st == fuse.OK && n >= replySize {
			return n
		}
		return s.refuse(r, fuse.EIO, out, sc)
	}
	need := replySize + int(r.shape.out) + r.payload
	if r.op == opReadlink {
		need = min(free, replySize+unix.PathMax)
	}
	sc.out = room(sc.out, need)
	n, st := p.HandleRequest(in, [][]byte{sc.out})
	if st != fuse.OK || n < replySize || n > len(sc.out) || int(binary.LittleEndian.Uint32(sc.out)) != n {
		return s.refuse(r, fuse.EIO, out, sc)
	}
	return scatter(out, sc.out[:n])
}

// quick reports whether the request that begins with head is answered at once,
// so that others may wait for it.
func (s *session) quick(op uint32, node uint64) bool {
	switch op {
	case opInit, opDestroy, opForget, opBatchForget, opInterrupt:
		return true
	case opSyncfs:
		return false
	}
	slot, inner := fs.GuestSlot(node)
	if slot == 0 {
		return true
	}
	t := s.x.now.Load().bySlot[slot]
	if t == nil || !t.enter() {
		return true
	}
	defer t.leave()
	return t.guest.Quick(op, inner)
}

func length(iov [][]byte) int {
	n := 0
	for _, b := range iov {
		n += len(b)
	}
	return n
}

// gather fills dst from what iov has from off on.
func gather(dst []byte, iov [][]byte, off int) {
	for _, b := range iov {
		if len(dst) == 0 {
			return
		}
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n := copy(dst, b[off:])
		dst, off = dst[n:], 0
	}
}

// scatter copies b to iov, as far as there is room, and returns how much that
// was.
func scatter(iov [][]byte, b []byte) int {
	done := 0
	for _, dst := range iov {
		n := copy(dst, b)
		b, done = b[n:], done+n
		if len(b) == 0 {
			break
		}
	}
	return done
}

// fewer passes the first messages on and then fewer and fewer: a guest decides
// how many there are.
type fewer struct {
	slog.Handler
	seen atomic.Uint64
}

// Handle passes a message on if its number is a power of two.
func (f *fewer) Handle(ctx context.Context, r slog.Record) error {
	n := f.seen.Add(1)
	if n&(n-1) != 0 {
		return nil
	}
	r.Add("times", n)
	return f.Handler.Handle(ctx, r)
}
