package local

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The caller and the supervisor talk over a SOCK_SEQPACKET pair: one packet is
// one message, at most one descriptor rides on it. The set-up is too large for
// a packet (an environment may be megabytes) and goes in a memfd instead.
//
// The pair stays open as long as the sandbox lives, and the supervisor keeps
// its privileges over the mount namespace, so that calls can be started and
// further views mounted while it runs.

// A kind says what a message means. The comment names its sender.
type kind byte

const (
	// kindView (supervisor) carries the /dev/fuse descriptor of view n.
	kindView kind = iota + 1
	// kindServed (caller): view n is being served.
	kindServed
	// kindStarted (supervisor): the command runs; n is its pid inside.
	kindStarted
	// kindStopped (supervisor): signal n stopped the command.
	kindStopped
	// kindExited (supervisor): the command ended with wait status n.
	kindExited
	// kindFailed (supervisor): the sandbox could not be built or the command
	// not started; n is the errno, code what to exit with, text the story.
	kindFailed
	// kindSignal (caller): send signal n to the command.
	kindSignal
	// kindSignalGroup (caller): send signal n to the command's process group.
	kindSignalGroup
	// kindContinue (caller): continue the stopped command; n is 1 when it gets
	// the terminal back.
	kindContinue
	// kindCall (caller) carries the socket of call n, for the process that is
	// started for it; see call.go.
	kindCall
	// kindGone (supervisor): nothing of call n is left. text says why it could
	// not be started, with the errno in code.
	kindGone
	// kindMount (caller) asks for view n at the path text, read-only where code
	// is 1. The supervisor answers with kindView, and, after kindServed, with
	// kindMounted.
	kindMount
	// kindMounted (supervisor): view n stands in its place; text says why not,
	// with the errno in code.
	kindMounted
	// kindFile (caller, to a call) carries the next of the call's descriptors:
	// its set-up, standard input, output and error.
	kindFile
	// kindProc (supervisor) carries its /proc; text is what identifies its pid
	// namespace.
	kindProc
	// kindTerminal (call) carries the master of the call's terminal.
	kindTerminal
)

// maxText bounds a message's text in bytes; longer text is cut.
const maxText = 4096

type message struct {
	kind kind
	n    int32
	code int32
	text string
}

// setup is what the supervisor needs of a Config. Gob, because paths and
// arguments are bytes and not always UTF-8.
type setup struct {
	Command, Env    []string
	Dir             string
	Views           []viewSetup
	AllowSockets    []string
	AllowAbstract   bool
	HostTmp         bool
	Caches, Hide    []string
	UserNamespace   bool // the supervisor's rights end at its user namespace
	Foreground      bool // the command takes the terminal
	TerminalOnStdio int  // the descriptor among 0, 1, 2 that is a terminal, or -1
	Agent           bool // the command is the process that works on files
}

type viewSetup struct {
	Path, Source, Subtype string
	ReadOnly              bool
	MaxRead               int
}

// A channel is one end of the socket pair. Sending is safe from several
// goroutines at once, receiving is for one.
type channel struct{ fd int }

// newChannelPair returns the caller's end, and the supervisor's as a file to
// be inherited.
func newChannelPair() (channel, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return channel{}, nil, fmt.Errorf("socket pair to the supervisor: %w", err)
	}
	return channel{fds[0]}, os.NewFile(uintptr(fds[1]), "supervisor socket"), nil
}

// send sends m, with the descriptor fd unless it is negative.
func (c channel) send(m message, fd int) error {
	text := m.text
	if len(text) > maxText {
		text = text[:maxText]
	}
	buf := make([]byte, 0, 9+len(text))
	buf = append(buf, byte(m.kind))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(m.n))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(m.code))
	buf = append(buf, text...)
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	return retryEINTR(func() error {
		return unix.Sendmsg(c.fd, buf, rights, nil, unix.MSG_NOSIGNAL)
	})
}

// receive returns the next message and the descriptor on it, or -1. The other
// end's death is io.EOF.
func (c channel) receive() (message, int, error) {
	buf := make([]byte, 9+maxText)
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	err := retryEINTR(func() (err error) {
		n, oobn, _, _, err = unix.Recvmsg(c.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if errors.Is(err, unix.ECONNRESET) || err == nil && n == 0 {
		return message{}, -1, io.EOF
	}
	if err != nil {
		return message{}, -1, err
	}
	fd := receivedFD(oob[:oobn])
	if n < 9 {
		return message{}, fd, fmt.Errorf("message of %d bytes on the supervisor's socket", n)
	}
	return message{
		kind: kind(buf[0]),
		n:    int32(binary.LittleEndian.Uint32(buf[1:])),
		code: int32(binary.LittleEndian.Uint32(buf[5:])),
		text: string(buf[9:n]),
	}, fd, nil
}

func receivedFD(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	return fds[0]
}

func (c channel) close() { _ = unix.Close(c.fd) }

// writeSetup puts s in a memfd, ready to be read from its start.
func writeSetup(s any) (*os.File, error) {
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(s); err != nil {
		return nil, fmt.Errorf("encode the set-up: %w", err)
	}
	fd, err := unix.MemfdCreate("galley-setup", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd for the set-up: %w", err)
	}
	f := os.NewFile(uintptr(fd), "set-up")
	if _, err := f.WriteAt(buf.Bytes(), 0); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write the set-up: %w", err)
	}
	return f, nil
}

func readSetup(f *os.File) (*setup, error) {
	var s setup
	if err := gob.NewDecoder(f).Decode(&s); err != nil {
		return nil, fmt.Errorf("read the set-up: %w", err)
	}
	return &s, nil
}

func retryEINTR(call func() error) error {
	for {
		err := call()
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
