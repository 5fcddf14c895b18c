package netstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
)

// programPath is where the process finds itself in its jail, and by it knows
// what it is.
const programPath = "/galley-network"

// The process's descriptors.
const (
	fdFrames  = 3 // the guest's device
	fdControl = 4 // who started it
)

// maxControl bounds a message on the control connection.
const maxControl = 64 << 10

// order is what the process is told to do; each is answered.
type order struct {
	ID        int              `json:"id"`
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"` // with nothing else: the host's resolvers are these
	Forward   int              `json:"forward,omitempty"`   // port of the guest
	Host      int              `json:"host,omitempty"`      // port of the host for Forward
	Unforward int              `json:"unforward,omitempty"` // port of the guest
}

// report is what the process says: an answer, or a decision.
type report struct {
	ID       int       `json:"id,omitempty"`
	Error    string    `json:"error,omitempty"`
	Forward  *Forward  `json:"forward,omitempty"`
	Request  *Request  `json:"request,omitempty"`
	Decision *Decision `json:"decision,omitempty"`
	Missed   int       `json:"missed,omitempty"` // decisions before this one that were too many to tell
}

// connOf makes a connection of descriptor fd.
func connOf(fd int, name string) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), name)
	if f == nil {
		return nil, fmt.Errorf("%s: no descriptor %d", name, fd)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("%s: not a unix socket", name)
	}
	return u, nil
}

// readMessage reads one message, which is a datagram of its own.
func readMessage(c *net.UnixConn, buf []byte, v any) error {
	k, err := c.Read(buf)
	if err == nil && k == 0 {
		err = io.EOF
	}
	if err != nil {
		return err
	}
	if k == len(buf) {
		return errors.New("message too long")
	}
	return json.Unmarshal(buf[:k], v)
}

func writeMessage(c *net.UnixConn, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}
