package fs

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// maxBackground is how many reads ahead and writes behind the kernel may have
// under way at once.
const maxBackground = 64

// Source makes the face that a server shows, given the notifier that the face
// is to tell of changes.
type Source func(overlay.Notifier) (*overlay.Face, error)

// Live is a face that follows the tree's live view.
func Live(t *overlay.Tree) Source {
	return func(n overlay.Notifier) (*overlay.Face, error) { return t.Attach(n), nil }
}

// Snapshot is a read-only face on a fixed stack of sealed layers.
func Snapshot(t *overlay.Tree, s overlay.Stack) Source {
	return func(overlay.Notifier) (*overlay.Face, error) { return t.View(s) }
}

// Options are the options of a served face. The zero value is the default
// mode of docs/io-mode.md.
type Options struct {
	// Writeback lets the kernel collect writes in its page cache. It makes
	// small writes as cheap as natively and each open, fstat and close of a
	// file one request dearer; host edits to a file that somebody has
	// open may then show late.
	Writeback bool
	// Past shows older points under .galley/snapshots; nil shows none.
	Past Past
	// Acting is called for each request that may change something, before it
	// does, with the thread that made it, as the kernel numbers it in the pid
	// namespace of whoever mounted. It is not called where the kernel does not
	// know: for a process that the namespace lacks. It may be nil.
	Acting func(pid uint32)
	// Changed, unless nil, is told which process changed what, after each
	// request that did: by its number in the namespace of who mounted (0 is the
	// kernel), and the path in the tree, as far as that can be told.
	Changed func(pid uint32, path func() string)
	// Logger takes what goes wrong in serving (default slog.Default()).
	Logger *slog.Logger
}

// Server answers the requests of one mount. Its methods may be called from
// any goroutine.
type Server struct {
	raw    *rawFS
	past   *pastFS            // nil without one
	watch  *watchFS           // nil without [Options.Changed]
	serves fuse.RawFileSystem // raw, or past or watch around it
	fuse   *fuse.Server
	done   chan struct{} // closed when serving has ended

	closing atomic.Bool
	rings   *uring // nil without FUSE over io_uring
}

// Serve starts to serve the face that src makes on dev, the open /dev/fuse
// descriptor of a mount ([OpenMount], [OpenFusermount], or one received from
// another process). It takes dev over, also when it fails. It returns when the
// kernel's first request has been answered: from then on the mount works.
//
// It doubles GOMAXPROCS of the process, which must not use the mount itself: a thread
// that waits for its own process to answer can keep that from answering.
func Serve(dev *os.File, src Source, o Options) (*Server, error) {
	fd, own, err := takeDevice(dev)
	if err != nil {
		return nil, fmt.Errorf("serve FUSE: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	raw := &rawFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		log:           o.Logger,
		stale:         newStaler(),
		lister:        newLister(),
		dev:           own,
		writeback:     o.Writeback,
		acting:        o.Acting,
	}
	face, err := src(raw)
	if err != nil {
		_ = unix.Close(fd)
		own.close()
		return nil, fmt.Errorf("serve FUSE: %w", err)
	}
	raw.face, raw.nodes = face, newTable(face.Root())
	s := &Server{raw: raw, done: make(chan struct{})}
	s.serves = raw
	if o.Past != nil {
		s.past = newPastFS(raw, o.Past)
		s.serves = s.past
	}
	if o.Changed != nil {
		s.watch = &watchFS{RawFileSystem: s.serves, raw: raw, changed: o.Changed}
		s.serves = s.watch
	}
	mo := s.mountOptions(o)
	s.prepareRings(mo)
	s.fuse, err = newFuseServer(s.serves, fd, mo)
	if err == nil {
		err = s.beginRings(mo)
	} else if s.rings != nil {
		s.rings.giveUp()
	}
	if err != nil {
		// go-fuse has closed fd.
		face.Detach()
		own.close()
		return nil, fmt.Errorf("serve FUSE: the mount is gone, or somebody else serves it: %w", err)
	}
	go s.serve()
	go raw.stale.run(s.fuse, own, s.done)
	return s, nil
}

// procs is how many readers each server has: GOMAXPROCS as it was before the
// first server.
var (
	procsMu sync.Mutex
	procs   int // protected by procsMu
)

// newFuseServer makes go-fuse's server on the descriptor fd. It makes as many
// readers as GOMAXPROCS says; after that, GOMAXPROCS is doubled for the whole
// process. The readers wait in system calls, and while every processor of the
// runtime belongs to one that waits, its monitor wakes up each 20 µs to take
// them away, and each request has to get one back: a third of the process's CPU
// time, where programs do something between their requests.
func newFuseServer(raw fuse.RawFileSystem, fd int, mo *fuse.MountOptions) (*fuse.Server, error) {
	procsMu.Lock()
	defer procsMu.Unlock()
	if procs == 0 {
		procs = runtime.GOMAXPROCS(0)
	}
	runtime.GOMAXPROCS(procs)
	defer runtime.GOMAXPROCS(2 * procs)
	return fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), mo)
}

// takeDevice makes the two descriptors that a server needs out of dev and
// closes it. Reads must block.
func takeDevice(dev *os.File) (int, *device, error) {
	defer dev.Close()
	raw := int(dev.Fd())
	if err := unix.SetNonblock(raw, false); err != nil {
		return -1, nil, err
	}
	fd, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, nil, err
	}
	own, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	return fd, &device{fd: own}, nil
}

func (s *Server) mountOptions(o Options) *fuse.MountOptions {
	extra := uint64(fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_HAS_EXPIRE_ONLY | fuse.CAP_ASYNC_DIO)
	if o.Writeback {
		extra |= fuse.CAP_WRITEBACK_CACHE
	}
	return &fuse.MountOptions{
		Name:          Subtype,
		MaxWrite:      maxIO,
		MaxBackground: maxBackground,
		// Nothing may be served from a descriptor that the kernel would
		// reopen with a program's own flags.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		ExtraCapabilities:    extra,
		EnableSymlinkCaching: true,
		// The engine tells of every change that is not this kernel's own,
		// so pages need not be dropped when a file's mtime moves: that
		// would be after each write of the kernel's own.
		ExplicitDataCacheControl: true,
		Logger:                   slog.NewLogLogger(quietHandler{o.Logger.Handler(), &s.closing}, slog.LevelWarn),
		PanicHandler: func(v any) fuse.Status {
			o.Logger.Error("panic in a FUSE request", "value", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

func (s *Server) serve() {
	s.fuse.Serve()
	if s.rings != nil {
		s.rings.end()
	}
	s.raw.dev.close()
	if s.past != nil {
		s.past.close()
	}
	s.raw.face.Detach()
	close(s.done)
}

// Tell makes the next write of a process tell [Options.Changed] of itself,
// though it goes on with what it wrote before.
func (s *Server) Tell() {
	if s.watch != nil {
		s.watch.sealed()
	}
}

// Wait returns when the mount is gone (unmounted everywhere, or aborted) and
// the face detached.
func (s *Server) Wait() { <-s.done }

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.done }

// closePoll is how often Close wakes the readers that are left.
const closePoll = 2 * time.Millisecond

// Close ends the server without waiting for the mount's users: what they call
// fails with ENOTCONN from then on, provided that no other process holds a
// copy of the descriptor. It returns when the face is detached. Unmounting
// first, where the mount can be reached, is the friendlier way: the server then
// ends by itself.
func (s *Server) Close() error {
	s.closing.Store(true)
	if !s.raw.dev.shutGate() {
		s.Wait() // it is ending already
		return nil
	}
	// The readers now leave at their next read. Those that sleep in one are
	// woken by a signal, after which the kernel starts their read anew.
	for {
		wakeThreads()
		select {
		case <-s.done:
			return nil
		case <-time.After(closePoll):
		}
	}
}

// wakeThreads sends every thread of the process SIGURG, which the Go runtime
// uses itself to interrupt threads and otherwise ignores.
func wakeThreads() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	pid := os.Getpid()
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Tgkill(pid, tid, unix.SIGURG)
		}
	}
}

// Stats are the requests answered so far, by the kernel's name of the
// operation, such as "LOOKUP"; operations that never came are left out.
// FORGET counts forgotten nodes, also those of a BATCH_FORGET.
func (s *Server) Stats() map[string]uint64 { return s.raw.stats.snapshot() }

// OverIOURing reports whether requests come over io_uring, on a queue for each
// CPU.
func (s *Server) OverIOURing() bool { return s.rings != nil }

// Known is how many nodes the kernel knows of at present.
func (s *Server) Known() int { return s.raw.nodes.len() }
