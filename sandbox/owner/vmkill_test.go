package owner

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm/guest"
)

// A kill -9 of the machine, of its parent or of the owner, at any moment of the
// guest's boot or work, leaves no process, mount or socket, and a session that
// has all that the guest had synced. GALLEY_KILLS asks for another number of
// moments than the 20 (with -short, 5).
func TestKilledMachines(t *testing.T) {
	moments := 20
	if testing.Short() {
		moments = 5
	}
	if s := os.Getenv("GALLEY_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		check(t, err)
		moments = n
	}
	_, err := prepared()
	check(t, err)
	rnd := rand.New(rand.NewPCG(20, 9))
	for i := range moments {
		k := killing{
			marker: fmt.Sprintf("galley.test=%d-%d", os.Getpid(), i),
			victim: []string{"machine", "parent", "owner"}[i%3],
			atWork: rnd.IntN(2) == 1,
		}
		// A boot takes some seconds, and a write some milliseconds.
		k.after = time.Duration(rnd.Int64N(int64(3 * time.Second)))
		if k.atWork {
			k.after /= 6
		}
		t.Run(fmt.Sprintf("%02d-%s", i, k.victim), func(t *testing.T) {
			t.Parallel()
			k.run(t)
		})
	}
}

// killing is one case of TestKilledMachines.
type killing struct {
	marker string // stands in the command line of the machine's process
	victim string
	atWork bool // the moment is counted from the first write, not from the start
	after  time.Duration
}

func (k killing) run(t *testing.T) {
	sess := guestSession(t)
	c, err := Ensure(t.Context(), sess, Options{What: "test"})
	check(t, err)
	defer c.Close()
	r := machineOf(t)
	r.Config.Cmdline = k.marker
	w := &writer{wrote: make(chan struct{}), over: make(chan struct{})}
	go w.run(c, r)
	pids := map[string]int{"owner": c.PID(), "machine": waitMachine(t, c)}
	pids["parent"] = parentOf(t, pids["machine"])
	if k.atWork {
		select {
		case <-w.wrote:
		case <-time.After(deadline):
			t.Fatal("the guest has not begun to write")
		}
	}
	<-time.After(k.after)
	check(t, unix.Kill(pids[k.victim], unix.SIGKILL))

	waitGone(t, pids["machine"])
	waitGone(t, pids["parent"])
	select {
	case <-w.over:
	case <-time.After(deadline):
		t.Fatal("whoever used the machine waits for ever")
	}
	if k.victim != "owner" {
		// The owner goes on, and says what became of the machine.
		st := waitEnded(t, c)
		if st.Exit == nil && st.PID != 0 || st.Exit != nil && st.Exit.OK() {
			t.Errorf("the machine ended so: %+v", st.Exit)
		}
	}
	check(t, c.Close())
	waitGone(t, c.PID())
	nothingLeft(t, k.marker, sess)
	k.whole(t, sess, w.acknowledged())
}

// whole checks that the session can be used and has what the guest had synced.
func (k killing) whole(t *testing.T, sess *snapshots.Session, last int) {
	t.Helper()
	next := ensure(t, sess, "next")
	_, err := next.Seal(t.Context(), snapshots.SealOptions{Durable: true})
	check(t, err)
	if _, err := os.Lstat(sess.Socket()); err != nil {
		t.Errorf("the control socket: %v", err)
	}
	found := map[int]bool{}
	check(t, filepath.WalkDir(sess.Dir(), func(p string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Base(filepath.Dir(p)) == "data" {
			n, nerr := strconv.Atoi(d.Name())
			b, rerr := os.ReadFile(p)
			if nerr == nil && rerr == nil && string(b) == d.Name()+"\n" {
				found[n] = true
			}
		}
		return err
	}))
	for n := 1; n <= last; n++ {
		if !found[n] {
			t.Errorf("the guest had synced the file %d of %d, and it is not in the session", n, last)
		}
	}
	check(t, next.Close())
	waitGone(t, next.PID())
	report, err := sess.Store().Check(t.Context(), snapshots.CheckOptions{Sessions: []string{sess.ID()}})
	check(t, err)
	for _, f := range report.Findings {
		t.Errorf("galley fsck finds %s: %s", f.Path, f.What)
	}
	t.Logf("killed %s %v after the %s, %d files synced", k.victim, k.after, map[bool]string{true: "first write", false: "start"}[k.atWork], last)
}

// writer starts the machine and has its guest write one file after the other,
// sync it and say so.
type writer struct {
	wrote chan struct{} // closed with the first file
	over  chan struct{} // closed when the guest is gone, or never came

	mu   sync.Mutex
	said strings.Builder
}

func (w *writer) run(c *Client, r VM) {
	defer close(w.over)
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	defer cancel()
	if _, err := c.StartVM(ctx, r); err != nil {
		return
	}
	const line = "i=0; while :; do i=$((i+1)); echo $i >/data/$i; sync; echo $i; done"
	var first sync.Once
	k, err := guest.NewClient(c.DialVM).Start(ctx, guest.Exec{Line: line}, func(_ int, b []byte) {
		w.mu.Lock()
		w.said.Write(b)
		w.mu.Unlock()
		first.Do(func() { close(w.wrote) })
	})
	if err != nil {
		return
	}
	select {
	case <-k.Gone():
	case <-ctx.Done():
	}
}

// acknowledged is the last file that the guest said to have synced.
func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := strings.Split(w.said.String(), "\n")
	last := 0
	for _, l := range lines[:len(lines)-1] { // what is not a whole line does not count
		if n, err := strconv.Atoi(l); err == nil {
			last = n
		}
	}
	return last
}

// waitMachine waits until the session's machine has a process.
func waitMachine(t *testing.T, c *Client) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		st, err := c.Status(ctx)
		check(t, err)
		if st.VM != nil && st.VM.PID != 0 {
			return st.VM.PID
		}
		if !pause(ctx) {
			t.Fatal("no machine starts")
		}
	}
}

// waitEnded waits until the owner says that the machine has ended.
func waitEnded(t *testing.T, c *Client) VMStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		st, err := c.Status(ctx)
		check(t, err)
		if st.VM != nil && st.VM.Phase == Ended {
			return *st.VM
		}
		if !pause(ctx) {
			t.Fatalf("the machine does not end: %+v", st.VM)
		}
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(t, err)
	// The name in parentheses may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ppid, err := strconv.Atoi(fields[1])
	check(t, err)
	return ppid
}

// nothingLeft looks for a process of the machine, a mount and a socket.
func nothingLeft(t *testing.T, marker string, sess *snapshots.Session) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	for _, p := range lines {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), marker) {
			t.Errorf("a process is left: %s: %q", p, b)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	if strings.Contains(string(mounts), sess.ID()) {
		t.Errorf("a mount is left: %s", mounts)
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	check(t, err)
	for line := range strings.Lines(string(sockets)) {
		// A killed owner's own socket is a name without anybody at it.
		if strings.Contains(line, sess.ID()) {
			t.Errorf("a socket is left: %s", line)
		}
	}
}
