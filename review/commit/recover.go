package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// State is how far a commit came.
type State int

const (
	// StateStaging: it was interrupted before the base changed.
	StateStaging State = iota
	// StateApplying: it was interrupted while the base changed.
	StateApplying
	// StateApplied: the base is new; the session was not yet told.
	StateApplied
	// StateSettled: the session knows. Nothing is left to do.
	StateSettled
	// StateReverted: the base is as it was; only the journal is left.
	StateReverted
)

// String is the word for a state in messages and JSON.
func (s State) String() string {
	words := [...]string{"staging", "applying", "applied", "settled", "reverted"}
	if s < 0 || int(s) >= len(words) {
		return fmt.Sprintf("state(%d)", int(s))
	}
	return words[s]
}

func (r *record) state() State {
	switch {
	case r.settled:
		return StateSettled
	case r.reverted:
		return StateReverted
	case r.done:
		return StateApplied
	case r.intent:
		return StateApplying
	}
	return StateStaging
}

// PendingCommit is a commit that is not settled.
type PendingCommit struct {
	// Dir is the commit's directory.
	Dir     string
	State   State
	Digest  review.Digest
	Started time.Time
	// Trees that it touches; without BaseID.
	Trees []Tree
	// Changes is how many it has, 0 as long as it is staging.
	Changes int
	// Err says why the journal cannot be read; the rest is then empty.
	Err error
}

// Pending lists the commits below a session's directory of commits that are not
// settled. One that is still at work looks like one that
// was interrupted: [Recover] finds out by its lock.
func Pending(fs hostfs.FS, commitsDir string) ([]PendingCommit, error) {
	if fs == nil {
		fs = hostfs.OS
	}
	fd, err := openHostDir(fs, commitsDir)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the directory of commits %q: %w", commitsDir, err)
	}
	defer fs.Close(fd)
	var names []string
	if err := hostfs.ReadDir(fs, fd, func(d hostfs.Dirent) error { names = append(names, d.Name); return nil }); err != nil {
		return nil, fmt.Errorf("list the commits in %q: %w", commitsDir, err)
	}
	slices.Sort(names)
	var out []PendingCommit
	for _, name := range names {
		dir := filepath.Join(commitsDir, name)
		if isSettled(fs, fd, name) {
			continue
		}
		rec, _, err := readCommit(fs, dir)
		if errors.Is(err, ErrNoCommit) {
			continue
		}
		if err != nil {
			out = append(out, PendingCommit{Dir: dir, Err: err})
			continue
		}
		if s := rec.state(); s == StateSettled {
			continue
		}
		out = append(out, rec.pending(dir))
	}
	return out, nil
}

// isSettled reports whether the journal of the commit dir ends with the frame
// that settles it. Most do, and each has several hundred bytes for each of its
// changes that need not be read for it. (No other frame ends that way: JSON
// holds no zero bytes.)
func isSettled(fs hostfs.FS, commits int, dir string) bool {
	file, err := fs.Open(commits, dir+"/"+journalName, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer fs.Close(file)
	_, ok := endsWith(fs, file, frameSettled)
	return ok
}

// endsWith reports whether the last frame of an open journal is one of that kind
// without a payload, and where the next goes.
func endsWith(fs hostfs.FS, journal int, kind byte) (end int64, ok bool) {
	tail, err := appendFrame(nil, kind, nil)
	if err != nil {
		return 0, false
	}
	var st unix.Statx_t
	if fs.Stat(journal, "", &st) != nil || st.Size < uint64(journalHeader+len(tail)) {
		return 0, false
	}
	end = int64(st.Size)
	got := make([]byte, len(tail))
	n, err := fs.Pread(journal, got, end-int64(len(tail)))
	return end, err == nil && n == len(tail) && bytes.Equal(got, tail)
}

func (r *record) pending(dir string) PendingCommit {
	p := PendingCommit{Dir: dir, State: r.state(), Digest: review.Digest(r.start.Digest),
		Started: time.Unix(r.start.Started, 0), Changes: len(r.applied)}
	for _, t := range r.start.Trees {
		p.Trees = append(p.Trees, Tree{Name: t.Name, BasePath: string(t.BasePath)})
	}
	return p
}

// readCommit reads the journal of a commit.
func readCommit(fs hostfs.FS, dir string) (*record, string, error) {
	fd, err := openHostDir(fs, dir)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil, "", fmt.Errorf("%s: %w", dir, ErrNoCommit)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open the commit's directory %q: %w", dir, err)
	}
	defer fs.Close(fd)
	name := journalName
	data, err := hostfs.ReadFile(fs, fd, name, maxJournal)
	if err == unix.ENOENT {
		name = journalNew
		data, err = hostfs.ReadFile(fs, fd, name, maxJournal)
	}
	if err == unix.ENOENT {
		return nil, "", fmt.Errorf("%s: %w", dir, ErrNoCommit)
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the journal in %q: %w", dir, err)
	}
	rec, err := parseJournal(data)
	if name == journalNew {
		if err != nil && !errors.Is(err, overlay.ErrFormat) {
			// Nothing was made before the first frames were durable.
			return &record{}, name, nil
		}
		if rec != nil {
			rec.intent = false
		}
		return rec, name, err
	}
	if err == nil && !rec.intent {
		err = fmt.Errorf("%w: the intent ends at byte %d of %d", overlay.ErrCorrupt, rec.end, len(data))
	}
	if err != nil {
		return nil, name, fmt.Errorf("journal in %q: %w", dir, err)
	}
	return rec, name, nil
}

// Want says which way a recovery should go.
type Want int

const (
	// Auto finishes the commit, and reverts it where the host changed
	// something that finishing it needs.
	Auto Want = iota
	// Finish makes the base new, or fails.
	Finish
	// Revert makes the base as it was, or fails.
	Revert
)

// RecoverConfig is what [Recover] works with.
type RecoverConfig struct {
	// FS is the host; nil is hostfs.OS.
	FS hostfs.FS
	// CommitDir of the commit to recover, LockDir as for [Apply].
	CommitDir, LockDir string
	Want               Want
	// Log may be nil.
	Log *slog.Logger
}

// Outcome is what a recovery did.
type Outcome int

const (
	// Cleaned: there was nothing to finish or revert, only to tidy up.
	Cleaned Outcome = iota
	// Finished: the base is new. The session is to be told, as after Apply.
	Finished
	// Reverted: the base is as it was before the commit.
	Reverted
)

// String is the word for an outcome in messages and JSON.
func (o Outcome) String() string {
	words := [...]string{"cleaned", "finished", "reverted"}
	if o < 0 || int(o) >= len(words) {
		return fmt.Sprintf("outcome(%d)", int(o))
	}
	return words[o]
}

// Recovery is what [Recover] found and did.
type Recovery struct {
	Outcome Outcome
	// Result of the commit, when it is Finished.
	Result *Result
}

// Recover finishes or reverts an interrupted commit. It needs neither the
// session nor its content: everything new is staged. Every path is judged by
// what is there; where the host changed something meanwhile it is left alone,
// and a [ConflictError] names it. Recover can itself be interrupted and
// repeated any number of times.
func Recover(ctx context.Context, cfg RecoverConfig) (*Recovery, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	r := &recovery{cfg: cfg, fs: cfg.FS, log: cfg.Log}
	if r.fs == nil {
		r.fs = hostfs.OS
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	defer r.close()
	if err := r.open(); err != nil {
		return nil, err
	}
	unlock, err := lockBases(r.fs, cfg.LockDir, r.pl, len(r.rec.start.Trees))
	if err != nil {
		return nil, err
	}
	defer unlock()
	// The commit may have ended while the lock was not yet taken.
	if err := r.reread(); err != nil {
		return nil, err
	}
	return r.run()
}

type recovery struct {
	cfg     RecoverConfig
	fs      hostfs.FS
	log     *slog.Logger
	rec     *record
	pl      *places
	dirFD   int
	journal *journal
	clean   *cleaner
}

func (r *recovery) close() {
	if r.pl != nil {
		r.pl.close()
	}
	if r.journal != nil {
		_ = r.fs.Close(r.journal.fd)
	}
	if r.clean != nil {
		_ = r.fs.Close(r.dirFD)
	}
}

// open reads the journal and opens the bases and stages that are still there.
func (r *recovery) open() error {
	if err := r.reread(); err != nil {
		return err
	}
	r.pl = newPlaces(r.fs, r.rec.areas)
	for i := range r.rec.areas {
		if err := r.openArea(i); err != nil {
			return err
		}
	}
	var err error
	if r.dirFD, err = openHostDir(r.fs, r.cfg.CommitDir); err != nil {
		return fmt.Errorf("open the commit's directory %q: %w", r.cfg.CommitDir, err)
	}
	r.clean = &cleaner{r.fs, r.pl, r.rec.start.Trees, r.cfg.CommitDir, r.dirFD}
	return nil
}

// reread reads the journal.
func (r *recovery) reread() error {
	rec, _, err := readCommit(r.fs, r.cfg.CommitDir)
	if err == nil {
		r.rec = rec
	}
	return err
}

// openArea opens one base or stage. One that is gone stays closed: whether that
// matters is seen when it is needed.
func (r *recovery) openArea(i int) error {
	a := &r.rec.areas[i]
	var st unix.Statx_t
	var fd int
	var err error
	if a.Stage {
		fd, err = r.openStage(a, &st)
	} else {
		fd, err = openRoot(r.fs, string(r.rec.start.Trees[a.Tree].BasePath), &st)
	}
	if err != nil && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		return nil
	}
	if err != nil {
		return err
	}
	if f := factsOf(&st); a.Ino != 0 && (f.Ino != a.Ino || f.Btime != a.Btime) {
		_ = r.fs.Close(fd)
		return fmt.Errorf("%s is not the directory that this commit worked in", r.pl.hostPath(r.rec.start.Trees, loc{Area: i}))
	}
	r.pl.setRoot(i, fd, &st)
	return nil
}

func (r *recovery) openStage(a *area, st *unix.Statx_t) (int, error) {
	parent, err := stageParent(r.fs, r.pl, a)
	if err != nil {
		return -1, err
	}
	defer r.fs.Close(parent)
	fd, err := r.fs.Open(parent, string(a.Name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	if err := r.fs.Stat(fd, "", st); err != nil {
		_ = r.fs.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (r *recovery) run() (*Recovery, error) {
	switch r.rec.state() {
	case StateStaging, StateReverted:
		if _, err := r.clean.stages(false); err != nil {
			return nil, err
		}
		return &Recovery{Outcome: Cleaned}, removeCommit(r.fs, r.cfg.CommitDir)
	case StateSettled:
		_, err := r.clean.stages(r.rec.start.Keep)
		return &Recovery{Outcome: Cleaned}, err
	case StateApplied:
		return r.finished()
	}
	if err := r.openJournal(); err != nil {
		return nil, err
	}
	for i := range r.rec.areas {
		if r.pl.roots[i] < 0 {
			return nil, fmt.Errorf("%s is gone, and with it what the interrupted commit needs",
				r.pl.hostPath(r.rec.start.Trees, loc{Area: i}))
		}
	}
	return r.resume()
}

func (r *recovery) openJournal() error {
	fd, err := r.fs.Open(r.dirFD, journalName, unix.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open the journal in %q: %w", r.cfg.CommitDir, err)
	}
	r.journal = &journal{fs: r.fs, dir: r.dirFD, fd: fd, off: r.rec.end}
	return nil
}

// resume finishes or reverts a commit that was interrupted in the middle.
func (r *recovery) resume() (*Recovery, error) {
	x := newExecutor(r.fs, r.log, r.pl, r.rec.objects, r.rec.steps, r.rec.start.Trees)
	defer x.close()
	x.recovering = true
	if err := x.survey(); err != nil {
		return nil, r.conflict(err)
	}
	if r.cfg.Want == Revert || r.cfg.Want == Auto && r.rec.reverting {
		return r.revert(x, nil)
	}
	err := x.forward()
	if err == nil {
		err = x.syncAll()
	}
	if err == nil {
		if err := r.journal.mark(frameDone); err != nil {
			return nil, err
		}
		r.rec.done = true
		return r.finished()
	}
	var drift *DriftError
	if r.cfg.Want == Finish || !errors.As(err, &drift) {
		return nil, r.conflict(err)
	}
	r.log.Info("the host changed what an interrupted commit needs: it is reverted", "dir", r.cfg.CommitDir, "err", err)
	return r.revert(x, err)
}

// revert takes a commit back. cause is why it could not be finished.
func (r *recovery) revert(x *executor, cause error) (*Recovery, error) {
	if err := r.journal.mark(frameReverting); err != nil {
		return nil, err
	}
	// Whether the last change of metadata was reached is not known.
	for i := range x.steps {
		if x.steps[i].Op == opMeta {
			x.done[i] = true
		}
	}
	if err := x.backward(); err != nil {
		return nil, r.conflict(errors.Join(cause, err))
	}
	if err := x.syncAll(); err != nil {
		return nil, err
	}
	if err := r.journal.mark(frameReverted); err != nil {
		return nil, err
	}
	if _, err := r.clean.stages(false); err != nil {
		return nil, err
	}
	return &Recovery{Outcome: Reverted}, removeCommit(r.fs, r.cfg.CommitDir)
}

func (r *recovery) finished() (*Recovery, error) {
	res := r.rec.result(r.pl)
	kept, err := r.clean.stages(r.rec.start.Keep)
	if err != nil {
		return nil, err
	}
	res.Replaced = kept
	return &Recovery{Outcome: Finished, Result: res}, nil
}

// conflict makes a ConflictError of drift met by a recovery.
func (r *recovery) conflict(err error) error {
	var drift *DriftError
	if !errors.As(err, &drift) {
		return err
	}
	return &ConflictError{Dir: r.cfg.CommitDir, Paths: drift.Paths}
}

// Settle records that the session has dropped the committed entries: nothing is
// left to do for this commit. It may be repeated.
func Settle(ctx context.Context, fs hostfs.FS, commitDir string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if fs == nil {
		fs = hostfs.OS
	}
	dir, err := openHostDir(fs, commitDir)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return fmt.Errorf("%s: %w", commitDir, ErrNoCommit)
	}
	if err != nil {
		return fmt.Errorf("open the commit's directory %q: %w", commitDir, err)
	}
	defer fs.Close(dir)
	fd, err := fs.Open(dir, journalName, unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("open the journal in %q: %w", commitDir, err)
	}
	if err == nil {
		defer fs.Close(fd)
	}
	end, done := int64(0), false
	if err == nil {
		// As it is right after the commit: nothing more need be read.
		end, done = endsWith(fs, fd, frameDone)
	}
	if !done {
		rec, _, err := readCommit(fs, commitDir)
		if err != nil {
			return err
		}
		switch rec.state() {
		case StateSettled:
			return nil
		case StateApplied:
			end = rec.end
		default:
			return fmt.Errorf("%s is %s: %w", commitDir, rec.state(), ErrUnfinished)
		}
	}
	j := &journal{fs: fs, dir: dir, fd: fd, off: end}
	return j.mark(frameSettled)
}
