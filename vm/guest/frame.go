package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// Version is the protocol's. Both sides must have the same: the agent is built
// with the program that boots it.
const Version = 1

// Frame types. The comment names the sender.
const (
	frameCall   byte = iota + 1 // host: what is asked for
	frameAnswer                 // agent: what came of it
	frameFailed                 // agent: a Failure

	frameStdin  // host: bytes of standard input
	frameEOF    // host: the end of standard input
	frameSignal // host: a signal to the process group
	frameResize // host: the terminal's size
	frameKill   // host: end all of it
	frameTaken  // agent: how many bytes of standard input the command took

	frameStarted // agent: the command runs
	frameStdout  // agent: bytes of standard output, or of the terminal
	frameStderr  // agent: bytes of standard error
	frameExited  // agent: the command's own process has ended
	frameGone    // agent: all of it has ended and its output was sent

	frameLast
)

// Limits of frames.
const (
	// maxCall bounds a call: a command and its environment, 1 MiB each, with
	// room for what is around them.
	maxCall = 4 << 20
	// maxAnswer bounds an answer. No call on files is answered this way.
	maxAnswer = 1 << 20
	// maxData bounds a piece of input or output.
	maxData = 64 << 10
	// maxEvent bounds all others.
	maxEvent = 64 << 10
)

func limitOf(t byte) int {
	switch t {
	case frameCall:
		return maxCall
	case frameAnswer:
		return maxAnswer
	case frameStdin, frameStdout, frameStderr:
		return maxData
	}
	return maxEvent
}

const frameHead = 5

// ErrProtocol: the other side sent what the protocol does not have.
var ErrProtocol = errors.New("the guest's agent broke the protocol")

// encMode and decMode say how values are encoded. Names of files need not be
// UTF-8, on either side.
var (
	encMode = must(cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.EncMode())
	decMode = must(cbor.DecOptions{
		UTF8: cbor.UTF8DecodeInvalid, MaxNestedLevels: 16, MaxArrayElements: 1 << 16, MaxMapPairs: 1 << 12,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsAllowed, DefaultMapType: reflect.TypeFor[map[string]any](),
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Encode encodes a value of the protocol.
func Encode(v any) ([]byte, error) { return encMode.Marshal(v) }

// Decode decodes one, and nothing behind it.
func Decode(b []byte, into any) error {
	if err := decMode.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// frames sends and receives frames on a stream. Sending is safe for concurrent
// use; one goroutine receives.
type frames struct {
	rw   io.ReadWriteCloser
	mu   sync.Mutex
	head [frameHead]byte // of what is received
	buf  []byte
}

// send sends bytes as they are.
func (f *frames) send(t byte, b []byte) error {
	if len(b) > limitOf(t) {
		return fmt.Errorf("a message of type %d has %d bytes; up to %d are possible", t, len(b), limitOf(t))
	}
	out := make([]byte, frameHead+len(b))
	out[0] = t
	binary.BigEndian.PutUint32(out[1:], uint32(len(b)))
	copy(out[frameHead:], b)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.rw.Write(out)
	return err
}

// sendValue sends a value.
func (f *frames) sendValue(t byte, v any) error {
	b, err := Encode(v)
	if err != nil {
		return err
	}
	return f.send(t, b)
}

// receive returns the next frame, whose bytes are valid until the next call.
// The end of the stream between two frames is io.EOF.
func (f *frames) receive() (byte, []byte, error) {
	if _, err := io.ReadFull(f.rw, f.head[:]); err != nil {
		return 0, nil, err
	}
	t, n := f.head[0], int(binary.BigEndian.Uint32(f.head[1:]))
	if t == 0 || t >= frameLast {
		return 0, nil, fmt.Errorf("%w: message of type %d", ErrProtocol, t)
	}
	if n > limitOf(t) {
		return 0, nil, fmt.Errorf("%w: message of type %d with %d bytes", ErrProtocol, t, n)
	}
	var err error
	if f.buf, err = readBytes(f.rw, f.buf[:0], n); err != nil {
		return 0, nil, err
	}
	return t, f.buf, nil
}

// chunk is how far the length that a frame claims is believed at once.
const chunk = 64 << 10

// readBytes appends n bytes of r to b. It believes the length only as far as
// the bytes arrive, so that a lie costs no memory.
func readBytes(r io.Reader, b []byte, n int) ([]byte, error) {
	for n > 0 {
		k, have := min(n, chunk), len(b)
		if cap(b)-have < k {
			b = append(b, make([]byte, k)...)
		} else {
			b = b[:have+k]
		}
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return b[:have], err
		}
		n -= k
	}
	return b, nil
}
