package owner

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ConsoleLog is the name of the log of what a session's machine writes on its
// console, in the session's directory. What came before stands in the same
// name with ".old" after it.
const ConsoleLog = "console.log"

// maxConsole bounds a console's log, in bytes; two of them are kept.
const maxConsole = 4 << 20

// console keeps what a guest writes on its console, which may be without end.
type console struct {
	path string
	file *os.File
	size int64
}

// openConsole begins the log anew; the last machine's is kept under another
// name.
func openConsole(path string) (*console, error) {
	c := &console{path: path}
	return c, c.begin()
}

func (c *console) begin() error {
	if err := os.Rename(c.path, c.path+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if c.file != nil {
		_ = c.file.Close()
	}
	c.file, c.size = f, 0
	return nil
}

// copy keeps what r gives until its end. A log that cannot be written, on a
// full disk say, does not keep the guest from running.
func (c *console) copy(r io.Reader) {
	b := make([]byte, 32<<10)
	for {
		n, err := r.Read(b)
		if n > 0 {
			c.keep(b[:n])
		}
		if err != nil {
			break
		}
	}
	_ = c.file.Close()
}

func (c *console) keep(b []byte) {
	if c.size+int64(len(b)) > maxConsole {
		_ = c.begin()
	}
	n, _ := c.file.Write(b)
	c.size += int64(n)
}
