package owner

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// The protocol. Both sides send frames: four bytes of length, big endian, then
// that many bytes of JSON, a request or a response. At most one descriptor
// (SCM_RIGHTS) travels with the length of a request. The client speaks first,
// with opHello; an owner of another protocol version answers that with an
// error and hangs up. Requests of one connection are worked on concurrently;
// the number tells which response belongs to which.

// protocol is raised by every change that the other side would misunderstand.
const protocol = 4

// maxFrame bounds a frame, in bytes. The largest are lists of committed paths:
// this is room for some 500,000 of them.
const maxFrame = 64 << 20

// op names what a request asks for.
type op string

const (
	opHello     op = "hello"
	opStatus    op = "status"
	opFUSE      op = "serve-fuse" // with a descriptor
	opSeal      op = "seal"
	opCommitted op = "committed"
	opDiscard   op = "discard"
	opRollback  op = "rollback"
	opTake      op = "take"
	opAddTree   op = "add-tree"
	opReplacing op = "replacing"
	opPrune     op = "prune"
	opWatch     op = "watch" // with a descriptor
	opWait      op = "wait-unmount"
	opAbort     op = "abort"
	opStop      op = "stop"

	opVMStart   op = "vm-start"
	opVMDial    op = "vm-dial" // with a descriptor
	opVMMount   op = "vm-mount"
	opVMUnmount op = "vm-unmount"
	opVMForward op = "vm-forward"
	opVMStop    op = "vm-stop"
)

type request struct {
	Number uint64          `json:"n"`
	Op     op              `json:"op"`
	Body   json.RawMessage `json:"body,omitempty"`
}

type response struct {
	Number uint64          `json:"n"`
	Error  *wireError      `json:"error,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

type helloBody struct {
	Protocol int `json:"protocol"`
	// What the client is, for status.
	What string `json:"what,omitempty"`
}

type helloAnswer struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	PID      int    `json:"pid"`
}

type mountBody struct {
	ID int `json:"id"`
}

type watchBody struct {
	Mount int `json:"mount"`
}

type stopBody struct {
	Force bool `json:"force,omitempty"`
}

// kinds are the errors that keep their identity over the wire.
var kinds = []struct {
	name string
	err  error
}{
	{"not-found", snapshots.ErrNotFound},
	{"exists", snapshots.ErrExists},
	{"busy", snapshots.ErrBusy},
	{"bad-base", snapshots.ErrBadBase},
	{"bad-name", snapshots.ErrBadName},
	{"corrupt", overlay.ErrCorrupt},
	{"format", overlay.ErrFormat},
	{"drifted", overlay.ErrDrifted},
}

// wireError is an error as it travels.
type wireError struct {
	Message string        `json:"message"`
	Kinds   []string      `json:"kinds,omitempty"`
	Errno   syscall.Errno `json:"errno,omitempty"`
}

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	w := &wireError{Message: err.Error()}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			w.Kinds = append(w.Kinds, k.name)
		}
	}
	errors.As(err, &w.Errno)
	return w
}

// remoteError is an error that the owner answered. It wraps what the owner's
// error wrapped, as far as both sides know it.
type remoteError struct {
	message string
	wraps   []error
}

// Error is the owner's message.
func (e *remoteError) Error() string { return e.message }

// Unwrap are the known errors in it.
func (e *remoteError) Unwrap() []error { return e.wraps }

func (w *wireError) err() error {
	if w == nil {
		return nil
	}
	e := &remoteError{message: w.Message}
	for _, k := range kinds {
		for _, name := range w.Kinds {
			if k.name == name {
				e.wraps = append(e.wraps, k.err)
			}
		}
	}
	if w.Errno != 0 {
		e.wraps = append(e.wraps, w.Errno)
	}
	return e
}

// decode reads exactly one JSON value with no unknown field.
func decode(b []byte, into any) error {
	if !utf8.Valid(b) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the message")
	}
	return nil
}

// decodeRequest decodes a request's frame; its body is decoded by its op.
func decodeRequest(b []byte) (request, error) {
	var r request
	if err := decode(b, &r); err != nil {
		return r, fmt.Errorf("request: %w", err)
	}
	if r.Number == 0 || r.Op == "" {
		return r, errors.New("request: without number or operation")
	}
	return r, nil
}

// body decodes the body of a request.
func body[T any](r request) (T, error) {
	var v T
	if err := decode(r.Body, &v); err != nil {
		return v, fmt.Errorf("%s: %w", r.Op, err)
	}
	return v, nil
}

// link sends and receives frames on a unix socket. Sending is safe for
// concurrent use; one goroutine receives.
type link struct {
	conn *net.UnixConn
	send sync.Mutex
}

// write sends v, and the descriptor fd unless it is negative.
func (l *link) write(v any, fd int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxFrame {
		return fmt.Errorf("message of %d bytes; up to %d are possible: %w", len(b), maxFrame, unix.EMSGSIZE)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	l.send.Lock()
	defer l.send.Unlock()
	// A unix stream socket takes four bytes whole or not at all.
	if _, _, err := l.conn.WriteMsgUnix(head, rights, nil); err != nil {
		return err
	}
	_, err = l.conn.Write(b)
	return err
}

// read receives a frame, and the descriptor that came with it or -1. Anything
// but a clean end between frames is an error other than io.EOF.
func (l *link) read() ([]byte, int, error) {
	var head [4]byte
	n, fd, err := l.readHead(head[:])
	if err == nil && n < len(head) {
		_, err = io.ReadFull(l.conn, head[n:])
		err = unexpected(err)
	}
	var b []byte
	if err == nil {
		b, err = readBody(l.conn, binary.BigEndian.Uint32(head[:]))
	}
	if err != nil {
		closeFD(fd)
		return nil, -1, err
	}
	return b, fd, nil
}

// readHead reads the first bytes of a frame with the descriptor beside them.
func (l *link) readHead(head []byte) (n, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(head, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, -1, err
	}
	fd, err = rights(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errSeveral
	}
	return n, fd, err
}

var errSeveral = errors.New("more than one descriptor in a message")

// rights is the one descriptor in a control message, or -1. The alignment of
// control messages leaves room for a second, which is as wrong as a third.
func rights(oob []byte) (int, error) {
	if len(oob) == 0 {
		return -1, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, fmt.Errorf("control message: %w", err)
	}
	var got []int
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		got = append(got, fds...)
	}
	switch len(got) {
	case 0:
		return -1, nil
	case 1:
		return got[0], nil
	}
	for _, fd := range got {
		closeFD(fd)
	}
	return -1, errSeveral
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readBody reads a frame's content. It believes the length only as far as the
// bytes arrive, so that a lie costs no memory.
func readBody(r io.Reader, size uint32) ([]byte, error) {
	if size == 0 || size > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes; 1 to %d are possible", size, maxFrame)
	}
	var b bytes.Buffer
	n, err := io.CopyN(&b, r, int64(size))
	if n < int64(size) {
		return nil, unexpected(err)
	}
	return b.Bytes(), nil
}
