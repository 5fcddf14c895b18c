package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// The descriptors that an owner is started with.
const (
	fdReport = 3 // a pipe for its readiness
	fdFirst  = 4 // the connection of its first user
)

// version is Galley's, as the build recorded it.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}

// Main runs an owner process; args are the arguments after [Command]. It
// returns the process's exit status. Only [Ensure] starts it: it expects its
// descriptors.
func Main(args []string) int {
	if len(args) > 0 && args[0] == basesCommand {
		return basesMain(args[1:])
	}
	report := os.NewFile(fdReport, "readiness")
	first := os.NewFile(fdFirst, "first user")
	if len(args) < 2 || !isPipe(report) {
		fmt.Fprintln(os.Stderr, "galley: "+Command+" is started by galley itself")
		return 2
	}
	o, err := begin(args[0], args[1], args[2:], first)
	say(report, err)
	if err != nil {
		return 1
	}
	if err := o.run(); err != nil {
		o.server.log.Error("end", "error", err)
		return 1
	}
	return 0
}

func isPipe(f *os.File) bool {
	if f == nil {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// process is an owner that has begun.
type process struct {
	store  *snapshots.Store
	server *server
	ln     *net.UnixListener
	runDir int
	socket string
	first  *net.UnixConn
}

// begin opens the session id in the store at home and its control socket.
func begin(home, id string, hide []string, first *os.File) (*process, error) {
	conn, err := connOf(first)
	if err != nil {
		return nil, fmt.Errorf("the first user's connection: %w", err)
	}
	// The bases are opened while the process may still have children with
	// namespaces of their own: those of a process that is not dumpable cannot
	// be given their ids.
	store, err := snapshots.OpenStore(home, snapshots.StoreOptions{})
	if err != nil {
		return nil, err
	}
	sess, err := store.Find(id)
	if err != nil {
		return nil, err
	}
	log, err := openLog(filepath.Join(sess.Dir(), LogFile))
	if err != nil {
		return nil, err
	}
	bases := detachBases(sess.Trees(), log)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("shut the process off from debuggers: %w", err)
	}
	live, err := sess.Open(context.Background(), snapshots.OpenOptions{
		Hide:     hostIDs(hide, log),
		OpenBase: bases.open,
	})
	bases.close()
	if err != nil {
		return nil, err
	}
	p := &process{store: store, server: newServer(live, log), first: conn, socket: sess.Socket()}
	if err := p.listen(); err != nil {
		_ = live.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return p, nil
}

// listen opens the control socket. A socket that is there already is a dead
// owner's: this process has the session's lock.
func (p *process) listen() error {
	var err error
	p.runDir, err = unix.Open(filepath.Dir(p.socket), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := p.unlink(); err != nil {
		return err
	}
	old := unix.Umask(0o177)
	p.ln, err = net.ListenUnix("unix", socketAddr(p.runDir, p.socket))
	unix.Umask(old)
	if err != nil {
		return err
	}
	p.ln.SetUnlinkOnClose(false)
	return nil
}

func (p *process) unlink() error {
	err := unix.Unlinkat(p.runDir, filepath.Base(p.socket), 0)
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// run serves until the last user has gone, or a signal asks to end.
func (p *process) run() error {
	// The modes that programs ask for arrive masked by their own umask.
	unix.Umask(0)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	s := p.server
	s.log.Info("begin", "pid", os.Getpid(), "version", version())
	s.start(p.first, true)
	go s.accept(p.ln)
	select {
	case <-s.end:
	case sig := <-term:
		s.log.Info("signal", "signal", sig.String())
	}
	// First the socket goes, so that whoever comes now starts another owner,
	// which waits for the lock; then the session is closed.
	err := p.unlink()
	err = errors.Join(err, p.ln.Close(), s.shutdown())
	s.log.Info("end")
	return errors.Join(err, p.store.Close())
}

// hostIDs are the identities of directories that are to be hidden.
func hostIDs(paths []string, log *slog.Logger) []overlay.HostID {
	var out []overlay.HostID
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			log.Warn("hide", "path", p, "error", err)
			continue
		}
		out = append(out, overlay.HostID{Dev: st.Dev, Ino: st.Ino})
	}
	return out
}
