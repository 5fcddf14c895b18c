// Package filerpc carries the calls on files over a byte stream, to a process
// that lives where the files are.
//
// A message is a length of four bytes, big endian, and that many bytes: two
// CBOR values, what the message is (head) and its body. A call has a number by
// which it is answered and can be cancelled. Neither side trusts the other:
// lengths are bounded, and believed only as far as the bytes arrive.
package filerpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/fxamacker/cbor/v2"

	"github.com/galleyfs/galley/sandbox"
)

// maxMessage bounds a message: the largest content of a Write, with room for
// what is around it.
const maxMessage = sandbox.MaxWrite + 64<<20

// head says what a message is.
type head struct {
	Call uint64 `cbor:"n"`
	// Op is the call, or cancel; an answer has none.
	Op string `cbor:"op,omitempty"`
	// Error of an answer.
	Error *failure `cbor:"error,omitempty"`
}

const opCancel = "cancel"

// Names of files need not be UTF-8. The elements of an answer are bounded by
// twice the highest limit of a request: what a lie costs is memory for each.
var (
	encMode = must(cbor.EncOptions{Time: cbor.TimeRFC3339Nano}.EncMode())
	decMode = must(cbor.DecOptions{
		UTF8: cbor.UTF8DecodeInvalid, MaxNestedLevels: 16, MaxArrayElements: 2 * sandbox.MaxGrep, MaxMapPairs: 64,
		IndefLength: cbor.IndefLengthForbidden,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// failure is a [sandbox.Error] as it goes over the wire.
type failure struct {
	Code    sandbox.Code `cbor:"code"`
	Op      string       `cbor:"op,omitempty"`
	Path    string       `cbor:"path,omitempty"`
	Message string       `cbor:"message"`
	Offset  int          `cbor:"offset"`
	Count   int          `cbor:"count,omitempty"`
	Errno   int          `cbor:"errno,omitempty"`
}

func failureOf(err error) *failure {
	if err == nil {
		return nil
	}
	var e *sandbox.Error
	if !errors.As(err, &e) {
		e = sandbox.Errorf(sandbox.Failed, "", "", "%w", err)
	}
	f := &failure{Code: e.Code, Op: e.Op, Path: e.Path, Message: e.Message, Offset: e.Offset, Count: e.Count}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
	}
	return f
}

func (f *failure) err() error {
	if f == nil {
		return nil
	}
	e := &sandbox.Error{Code: f.Code, Op: f.Op, Path: f.Path, Message: f.Message, Offset: f.Offset, Count: f.Count}
	if e.Code == "" {
		// A guest may say anything; an error has a code.
		e.Code = sandbox.Failed
	}
	if f.Errno != 0 {
		e.Err = syscall.Errno(f.Errno)
	}
	return e
}

// link sends and receives messages. Sending is safe for concurrent use; one
// goroutine receives.
type link struct {
	rw io.ReadWriteCloser
	mu sync.Mutex
}

// errTooLarge: a message that is not sent.
var errTooLarge = errors.New("the message is too large")

func (l *link) send(h head, body any) error {
	b, err := encode(h, body)
	if err != nil {
		return err
	}
	return l.write(b)
}

// encode makes a message.
func encode(h head, body any) ([]byte, error) {
	var out bytes.Buffer
	out.Write(make([]byte, 4))
	enc := encMode.NewEncoder(&out)
	if err := enc.Encode(h); err != nil {
		return nil, err
	}
	if err := enc.Encode(body); err != nil {
		return nil, err
	}
	b := out.Bytes()
	if len(b)-4 > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes; up to %d are possible", errTooLarge, len(b)-4, maxMessage)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b, nil
}

// write sends a message. It waits as long as the other side takes nothing.
func (l *link) write(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.rw.Write(b)
	return err
}

// receive returns what the next message is, and its body.
func (l *link) receive() (head, []byte, error) {
	var h head
	var size [4]byte
	if _, err := io.ReadFull(l.rw, size[:]); err != nil {
		return h, nil, err
	}
	n := int64(binary.BigEndian.Uint32(size[:]))
	if n > maxMessage {
		return h, nil, fmt.Errorf("a message of %d bytes; up to %d are possible", n, maxMessage)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, l.rw, n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return h, nil, err
	}
	body, err := decMode.UnmarshalFirst(b.Bytes(), &h)
	return h, body, err
}
