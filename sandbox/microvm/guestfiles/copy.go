package guestfiles

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox/internal/tarcopy"
)

// The copies of galley cp: the process gets what to do as its arguments, and the
// other side is descriptor 0, a socket.
const (
	packArg   = "pack"
	unpackArg = "unpack"
)

// copyMain does one copy. What came of it is told in the stream: by the stream
// itself, or after it.
func copyMain(args []string) int {
	conn := os.Stdin
	switch {
	case len(args) == 2 && args[0] == packArg:
		if err := tarcopy.Pack(conn, args[1]); err != nil {
			return 1
		}
	case len(args) == 3 && args[0] == unpackArg:
		_, err := tarcopy.Unpack(conn, args[1], args[2])
		if err != nil {
			_, _ = fmt.Fprint(conn, err.Error())
			_ = errors.Join(unix.Shutdown(0, unix.SHUT_WR), drain(conn))
			return 1
		}
		_, _ = fmt.Fprint(conn, copied)
	default:
		return 2
	}
	return 0
}

// copied is what is said of a copy that went well.
const copied = "\x00ok"

// drain reads what the other side still sends, so that it hears what was said.
func drain(f *os.File) error {
	b := make([]byte, 64<<10)
	for {
		if _, err := f.Read(b); err != nil {
			return err
		}
	}
}
