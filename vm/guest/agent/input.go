package agent

import (
	"os"
	"sync"

	"github.com/galleyfs/galley/vm/guest"
)

// maxInput is how much standard input may wait for a command; the host sends no
// more until it is told that some was taken.
const maxInput = 256 << 10

// input is a command's standard input on its way.
type input struct {
	to  *os.File
	tty bool

	mu    sync.Mutex
	more  sync.Cond
	buf   []byte
	ended bool // no more comes
	over  bool // the command is over
}

func newInput(to *os.File, tty bool) *input {
	in := &input{to: to, tty: tty}
	in.more.L = &in.mu
	return in
}

// add takes more; false when it is more than there is room for.
func (in *input) add(b []byte) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.buf)+len(b) > maxInput {
		return false
	}
	in.buf = append(in.buf, b...)
	in.more.Signal()
	return true
}

// end notes that no more comes.
func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.tty {
		in.buf = append(in.buf, 4) // the end-of-file character is typed
	} else {
		in.ended = true
	}
	in.more.Signal()
}

// next waits for input; nil is the end.
func (in *input) next() []byte {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.buf) == 0 && !in.ended && !in.over {
		in.more.Wait()
	}
	if in.over {
		return nil
	}
	b := in.buf
	in.buf = nil
	return b
}

// pump writes what comes to the command. What a command does not read any more
// is taken all the same, so that nobody waits for it.
func (in *input) pump(t *guest.Task) {
	broken := false
	for {
		b := in.next()
		if len(b) == 0 {
			break
		}
		if !broken {
			_, err := in.to.Write(b)
			broken = err != nil
		}
		if t.Taken(len(b)) != nil {
			break
		}
	}
	if !in.tty {
		_ = in.to.Close()
	}
}

// close ends the pump.
func (in *input) close() {
	in.mu.Lock()
	in.over = true
	in.more.Signal()
	in.mu.Unlock()
	_ = in.to.Close()
}
