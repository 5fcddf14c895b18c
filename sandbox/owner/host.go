package owner

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// Hosted is a session whose owner is this very process, for a sandbox that
// works on the trees in process. Every other command talks to it as to any
// owner. It is safe for concurrent use.
type Hosted struct {
	p    *process
	ctx  context.Context // ends when the owner was told to end
	stop context.CancelFunc
}

// Host opens a session in this process and serves its control socket. While
// another process owns the session it is refused with [snapshots.ErrBusy].
func Host(ctx context.Context, sess *snapshots.Session, log *slog.Logger) (*Hosted, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	bases := detachBases(sess.Trees(), log)
	defer bases.close()
	live, err := sess.Open(ctx, snapshots.OpenOptions{OpenBase: bases.open})
	if err != nil {
		return nil, err
	}
	p := &process{server: newServer(live, log), socket: sess.Socket(), runDir: -1}
	p.server.hosted = true
	if err := p.listen(); err != nil {
		closeFD(p.runDir)
		_ = live.Close()
		return nil, err
	}
	h := &Hosted{p: p}
	h.ctx, h.stop = context.WithCancel(context.Background())
	go func() {
		<-p.server.end
		h.stop()
	}()
	go p.server.accept(p.ln)
	return h, nil
}

// Live is the session.
func (h *Hosted) Live() *snapshots.Live { return h.p.server.live }

// Tree is a tree of the session, or nil.
func (h *Hosted) Tree(name string) *overlay.Tree { return h.p.server.live.Tree(name) }

// Done is closed when somebody asked the owner to end: whoever hosts it then
// gives the trees back and closes it.
func (h *Hosted) Done() <-chan struct{} { return h.ctx.Done() }

// AddTree adds a tree on a directory of the host to the session, as
// [Client.AddTree] does.
func (h *Hosted) AddTree(ctx context.Context, a AddTree) (*overlay.Tree, string, error) {
	base, err := realDir(a.Base)
	if err != nil {
		return nil, "", err
	}
	a.Base = base
	name, err := h.p.server.addTree(ctx, a)
	if err != nil {
		return nil, "", err
	}
	return h.Tree(name), name, nil
}

// Close ends the serving and closes the session. The trees must not be in use
// any more.
func (h *Hosted) Close() error {
	// First the socket goes, so that whoever comes now starts an owner, which
	// waits for the lock.
	err := h.p.unlink()
	err = errors.Join(err, h.p.ln.Close(), h.p.server.shutdown())
	h.stop()
	closeFD(h.p.runDir)
	return err
}

// Control is what seals the session and rolls it back from within this process.
// Closing it closes nothing.
func (h *Hosted) Control() Controller { return kept{h.p.server.live, h.p.server} }

// kept is a session that stays open when one who controls it is done.
type kept struct {
	*snapshots.Live
	server *server
}

// Seal is [snapshots.Live.Seal], with what the owner knows of who changed what.
func (k kept) Seal(ctx context.Context, opt snapshots.SealOptions) (snapshots.Snapshot, error) {
	return k.server.seal(ctx, opt)
}

func (kept) Close() error { return nil }

// realDir is the directory as a base is named: absolute and free of links.
func realDir(p string) (string, error) {
	p, err := filepath.EvalSymlinks(p)
	if err != nil {
		return "", err
	}
	return filepath.Abs(p)
}
