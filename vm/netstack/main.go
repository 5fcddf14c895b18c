package netstack

import (
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/jail"
)

// Init does the work of the network's process, and never returns, in one that
// [Start] started; in every other it returns at once. Call it first thing in
// main, and in TestMain, before flags are read.
func Init() {
	if len(os.Args) != 1 || os.Args[0] != programPath {
		return
	}
	control, err := connOf(fdControl, "control")
	if err == nil {
		err = serve(control)
	}
	if err != nil {
		// Whoever started it has its log.
		_ = control.SetWriteDeadline(time.Now().Add(time.Second))
		_ = writeMessage(control, report{Error: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(control *net.UnixConn) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	frames, err := connOf(fdFrames, "frames")
	if err != nil {
		return err
	}
	if err := jail.Filter(jail.Network); err != nil {
		return err
	}
	told := newTeller(control)
	n, err := New(PublicOnly{}, told.decided)
	if err != nil {
		return err
	}
	go func() {
		obey(n, control, told)
		n.Close()
	}()
	return n.Run(frames)
}

// obey does what it is told on the control connection until that ends.
func obey(n *Network, control *net.UnixConn, told *teller) {
	buf := make([]byte, maxControl)
	for {
		var o order
		if err := readMessage(control, buf, &o); err != nil {
			return
		}
		r := report{ID: o.ID}
		var err error
		switch {
		case o.Forward != 0:
			var f Forward
			f, err = n.Forward(o.Forward, o.Host)
			r.Forward = &f
		case o.Unforward != 0:
			err = n.Unforward(o.Unforward)
		default:
			n.SetResolvers(o.Resolvers)
		}
		if err != nil {
			r.Error, r.Forward = err.Error(), nil
		}
		if told.answer(r) != nil {
			return
		}
	}
}

// Decisions are told one by one up to burst, then perSecond; what a guest makes
// beyond that is counted.
const (
	burst     = 200
	perSecond = 50
)

// teller tells decisions, so many as can be read, and answers.
type teller struct {
	control *net.UnixConn

	mu     sync.Mutex // held for a message, with its deadline
	left   float64
	at     time.Time
	missed int
}

func newTeller(control *net.UnixConn) *teller {
	return &teller{control: control, left: burst, at: time.Now()}
}

// answer answers an order.
func (t *teller) answer(r report) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.control.SetWriteDeadline(time.Now().Add(dialTimeout))
	return writeMessage(t.control, r)
}

func (t *teller) decided(r Request, d Decision) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.left = min(burst, t.left+now.Sub(t.at).Seconds()*perSecond)
	t.at = now
	if t.left < 1 {
		t.missed++
		return
	}
	t.left--
	// The connection takes what it can: whoever does not read does not
	// stop the network.
	_ = t.control.SetWriteDeadline(now.Add(time.Second))
	if err := writeMessage(t.control, report{Request: &r, Decision: &d, Missed: t.missed}); err != nil {
		t.missed++
		return
	}
	t.missed = 0
}
