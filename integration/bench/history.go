package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// historyChapter measures what a point in a session's history costs.
var historyChapter = chapter{
	name: "history",
	title: func(s scale) string {
		return fmt.Sprintf("History: snapshots, rollback and fork, up to %d snapshots", s.snapshots)
	},
	about: fixed(`In one process, without FUSE, unless a row names a command. A seal is of one changed file beside those that the
session holds; "switch" of a rollback is how long operations are held up. A small checkpoint changes a line of a file of
20 lines.`),
	rootOnly: true,
	measure:  historyRows,
}

// past is a session in this process.
type past struct {
	store *snapshots.Store
	sess  *snapshots.Session
	live  *snapshots.Live
	face  *overlay.Face
	seq   int
}

func newPast(dir string) (*past, error) {
	if err := os.MkdirAll(filepath.Join(dir, "project"), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "project", "kept"), []byte("base\n"), 0o644); err != nil {
		return nil, err
	}
	p := &past{}
	var err error
	if p.store, err = snapshots.OpenStore(filepath.Join(dir, "state"), snapshots.StoreOptions{}); err != nil {
		return nil, err
	}
	p.sess, err = p.store.Create(context.Background(), snapshots.Spec{Name: "bench", Base: filepath.Join(dir, "project")})
	if err != nil {
		return nil, err
	}
	return p, p.open()
}

func (p *past) open() (err error) {
	if p.live, err = p.sess.Open(context.Background(), snapshots.OpenOptions{}); err != nil {
		return err
	}
	p.face = p.live.Tree(snapshots.Workspace).Attach(nil)
	return nil
}

func (p *past) close() error {
	if p.live == nil {
		return nil
	}
	p.face.Detach()
	err := p.live.Close()
	p.live = nil
	return err
}

// change changes a line of the file a, which it makes: 20 lines of 20 bytes.
func (p *past) change() error {
	p.seq++
	n, _, err := p.face.Lookup(p.face.Root(), "a")
	if err != nil {
		if n, _, err = p.face.Create(p.face.Root(), "a", 0o644, overlay.Caller{}); err != nil {
			return err
		}
	}
	defer p.face.Forget(n, 1)
	_, err = p.face.Write(n, fmt.Appendf(nil, "changed by %8d\n", p.seq), int64(p.seq-1)%20*20)
	return err
}

// fill makes n small files, a hundred in a directory.
func (p *past) fill(n int) error {
	var dir *overlay.Node
	for i := range n {
		if i%100 == 0 {
			d, _, err := p.face.Mkdir(p.face.Root(), fmt.Sprintf("d%d", i/100), 0o755, overlay.Caller{})
			if err != nil {
				return err
			}
			dir = d
		}
		f, _, err := p.face.Create(dir, fmt.Sprintf("f%d", i), 0o644, overlay.Caller{})
		if err != nil {
			return err
		}
		if _, err := p.face.Write(f, []byte("content\n"), 0); err != nil {
			return err
		}
		p.face.Forget(f, 1)
	}
	return nil
}

func (p *past) seal() (snapshots.Snapshot, time.Duration, error) {
	if err := p.change(); err != nil {
		return snapshots.Snapshot{}, 0, err
	}
	began := time.Now()
	s, err := p.live.Seal(context.Background(), snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseTool, Text: "bench"}})
	return s, time.Since(began), err
}

func percentile(all []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func historyRows(b *bench, w who, dir string, add func(figure)) error {
	for _, n := range []int{0, 1000, b.scale.manyFiles} {
		if err := changedRows(filepath.Join(dir, fmt.Sprintf("changed%d", n)), n, add); err != nil {
			return err
		}
	}
	if err := manyRows(b, w, dir, add); err != nil {
		return err
	}
	if err := emptyRows(filepath.Join(dir, "empty"), add); err != nil {
		return err
	}
	if err := largeRows(b, w, dir, add); err != nil {
		return err
	}
	return invalidateRow(b, w, dir, add)
}

// changedRows measures a session that holds n changed files.
func changedRows(dir string, n int, add func(figure)) error {
	p, err := newPast(dir)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.fill(n); err != nil {
		return err
	}
	const rounds = 200
	var seals, switches, rollbacks, forks []time.Duration
	var last [2]snapshots.Snapshot
	for i := range rounds {
		s, d, err := p.seal()
		if err != nil {
			return err
		}
		last[i%2] = s
		if i > 0 {
			seals = append(seals, d) // the first one closes the layer with all of them
		}
	}
	for i := range 50 {
		began := time.Now()
		r, err := p.live.Rollback(context.Background(), snapshots.Rollback{To: last[i%2].Number})
		if err != nil {
			return err
		}
		rollbacks = append(rollbacks, time.Since(began))
		switches = append(switches, r.Switch)
	}
	for range 50 {
		began := time.Now()
		if _, err := p.store.Fork(context.Background(), p.sess, snapshots.Fork{At: last[0].Number}); err != nil {
			return err
		}
		forks = append(forks, time.Since(began))
	}
	with := fmt.Sprintf(", %d changed files", n)
	add(within("seal"+with+", p50", median(seals), time.Millisecond, ""))
	add(figure{name: "seal" + with + ", p99", got: showTime(percentile(seals, 0.99))})
	add(within("rollback"+with+", switch, p50", median(switches), 2*time.Millisecond, ""))
	add(figure{name: "rollback" + with + ", switch, p99", got: showTime(percentile(switches, 0.99))})
	add(figure{name: "rollback" + with + ", all of it, p50", got: showTime(median(rollbacks))})
	add(figure{name: "rollback" + with + ", all of it, p99", got: showTime(percentile(rollbacks, 0.99))})
	add(figure{name: "fork" + with + ", p50", got: showTime(median(forks))})
	add(figure{name: "fork" + with + ", p99", got: showTime(percentile(forks, 0.99))})
	return nil
}

// look is the time of a lookup, a listing and a read, each the median of many.
func (p *past) look() (lookup, list, read time.Duration, err error) {
	const rounds = 2000
	runtime.GC() // what was done before is not the lookup's
	var all [3][]time.Duration
	buf := make([]byte, 4096)
	for range rounds {
		began := time.Now()
		n, _, err := p.face.Lookup(p.face.Root(), "a")
		if err != nil {
			return 0, 0, 0, err
		}
		all[0] = append(all[0], time.Since(began))
		began = time.Now()
		if err := p.face.ReadDir(p.face.Root(), 0, func(overlay.DirEntry) bool { return true }); err != nil {
			return 0, 0, 0, err
		}
		all[1] = append(all[1], time.Since(began))
		began = time.Now()
		if _, err := p.face.Read(n, buf, 0); err != nil {
			return 0, 0, 0, err
		}
		all[2] = append(all[2], time.Since(began))
		p.face.Forget(n, 1)
	}
	return median(all[0]), median(all[1]), median(all[2]), nil
}

// lookByTurns is look for two sessions by turns, so that what else the machine
// does falls on both.
func lookByTurns(sessions [2]*past) (out [2][3]time.Duration, err error) {
	const turns = 10
	var all [2][3][]time.Duration
	for range turns {
		for i, p := range sessions {
			var at [3]time.Duration
			if at[0], at[1], at[2], err = p.look(); err != nil {
				return out, err
			}
			for k, d := range at {
				all[i][k] = append(all[i][k], d)
			}
		}
	}
	for i := range all {
		for k := range all[i] {
			out[i][k] = median(all[i][k])
		}
	}
	return out, nil
}

// manyRows measures a session with many snapshots.
func manyRows(b *bench, w who, dir string, add func(figure)) error {
	home := filepath.Join(dir, "many")
	p, err := newPast(home)
	if err != nil {
		return err
	}
	defer p.close()
	one, err := newPast(filepath.Join(dir, "one"))
	if err != nil {
		return err
	}
	defer one.close()
	if _, _, err := one.seal(); err != nil {
		return err
	}
	names := [3]string{"lookup", "readdir", "read"}
	heap := heapNow()
	for n := 1; n <= b.scale.snapshots; n++ {
		if _, _, err := p.seal(); err != nil {
			return err
		}
		if n != 1 && n != 100 && n != 1000 && n != 10000 {
			continue
		}
		at, err := lookByTurns([2]*past{one, p})
		if err != nil {
			return err
		}
		for i, d := range at[1] {
			f := figure{name: fmt.Sprintf("%s with %d snapshots", names[i], n), got: showTime(d)}
			if n == b.scale.snapshots {
				f.goal = fmt.Sprintf("≤ 1.1 × %s, that with 1 by turns", showTime(at[0][i]))
				f.reached = float64(d) <= 1.1*float64(at[0][i])
			}
			add(f)
		}
	}
	grown := float64(heapNow()-heap) / float64(b.scale.snapshots)
	add(figure{name: "memory for each small checkpoint", got: fmt.Sprintf("%.0f bytes", grown)})
	u, err := p.store.Du(context.Background(), p.sess)
	if err != nil {
		return err
	}
	add(figure{name: "disk for each small checkpoint", got: fmt.Sprintf("%.1f KiB", float64(u.Exclusive)/float64(b.scale.snapshots)/1024)})
	if err := p.close(); err != nil {
		return err
	}
	var opens []time.Duration
	for range 10 {
		began := time.Now()
		if err := p.open(); err != nil {
			return err
		}
		opens = append(opens, time.Since(began))
		if err := p.close(); err != nil {
			return err
		}
	}
	add(figure{name: fmt.Sprintf("opening the session with %d snapshots", b.scale.snapshots), got: showTime(median(opens))})
	return commandRows(b, w, home, add)
}

// emptyRows measures checkpoints that changed nothing.
func emptyRows(dir string, add func(figure)) error {
	p, err := newPast(dir)
	if err != nil {
		return err
	}
	defer p.close()
	if _, _, err := p.seal(); err != nil {
		return err
	}
	const rounds = 1000
	for _, named := range []bool{false, true} {
		before, err := p.store.Du(context.Background(), p.sess)
		if err != nil {
			return err
		}
		heap := heapNow()
		for i := range rounds {
			opt := snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseTool, Text: "bench"}}
			if named {
				opt.Name = fmt.Sprint("n", i)
			}
			if _, err := p.live.Seal(context.Background(), opt); err != nil {
				return err
			}
		}
		grown := float64(heapNow()-heap) / rounds
		after, err := p.store.Du(context.Background(), p.sess)
		if err != nil {
			return err
		}
		what := "checkpoint that changed nothing"
		if named {
			what = "named snapshot that changed nothing"
		}
		add(figure{name: "memory for each " + what, got: fmt.Sprintf("%.0f bytes", max(0, grown))})
		add(figure{name: "disk for each " + what, got: fmt.Sprintf("%.1f KiB", float64(after.Exclusive-before.Exclusive)/rounds/1024)})
	}
	return nil
}

// largeRows measures the first writes to a large file after a seal, where the
// file system clones and where it does not.
func largeRows(b *bench, w who, dir string, add func(figure)) (err error) {
	const mib = 256
	if err := largeRow(filepath.Join(dir, "large"), mib, "ext4, which copies", add); err != nil {
		return err
	}
	mnt := dir + "/clones"
	err = b.must(w, dir, fmt.Sprintf(`mkdir clones && truncate -s %dM clones.image && mkfs.xfs -q -m reflink=1 clones.image &&
		mount -o loop clones.image clones`, 6*mib+1024))
	if err != nil {
		return errors.Join(err, unmountIf(mnt))
	}
	defer func() { err = errors.Join(err, unmountIf(mnt)) }()
	return largeRow(filepath.Join(mnt, "large"), mib, "XFS, which clones", add)
}

func largeRow(dir string, mib int, where string, add func(figure)) error {
	p, err := newPast(dir)
	if err != nil {
		return err
	}
	defer p.close()
	n, _, err := p.face.Create(p.face.Root(), "large", 0o644, overlay.Caller{})
	if err != nil {
		return err
	}
	defer p.face.Forget(n, 1)
	chunk := bytes.Repeat([]byte("large"), 1<<20/5+1)[:1<<20]
	for i := range mib {
		if _, err := p.face.Write(n, chunk, int64(i)<<20); err != nil {
			return err
		}
	}
	var writes [2][]time.Duration
	for range 5 {
		if _, _, err := p.seal(); err != nil {
			return err
		}
		for i := range writes {
			began := time.Now()
			if _, err := p.face.Write(n, []byte("x"), 1<<20); err != nil {
				return err
			}
			writes[i] = append(writes[i], time.Since(began))
		}
	}
	add(figure{name: fmt.Sprintf("first write to a file of %d MiB after a seal, on %s", mib, where), got: showTime(median(writes[0]))})
	add(figure{name: fmt.Sprintf("second write to it, on %s", where), got: showTime(median(writes[1]))})
	return nil
}

// commandRows measures the commands on a session with many snapshots.
func commandRows(b *bench, w who, home string, add func(figure)) error {
	project := filepath.Join(home, "project")
	galley := "GALLEY_HOME=" + filepath.Join(home, "state") + " " + b.galley
	// An owner, as while an agent works.
	mnt := filepath.Join(home, "mnt")
	if err := b.must(w, project, "mkdir "+mnt+" && "+galley+" mount bench "+mnt); err != nil {
		return err
	}
	defer func() { _ = b.must(w, "/", galley+" unmount "+mnt) }()
	snap, err := b.times(w, project, 20, "echo x >> "+mnt+"/a", galley+" snapshot > /dev/null")
	if err != nil {
		return err
	}
	add(within(fmt.Sprintf("`galley snapshot` of a session at work, with %d snapshots", b.scale.snapshots), snap, 20*time.Millisecond, ""))
	for _, c := range []string{"log -n 20", "log", "blame a"} {
		d, err := b.times(w, project, 3, "", galley+" "+c+" > /dev/null")
		if err != nil {
			return err
		}
		add(figure{name: fmt.Sprintf("`galley %s` with %d snapshots", c, b.scale.snapshots), got: showTime(d)})
	}
	return nil
}

// invalidateRow measures how long it takes until a kernel that knows many
// entries was told of a rollback.
func invalidateRow(b *bench, w who, dir string, add func(figure)) error {
	home := filepath.Join(dir, "told")
	n := min(b.scale.manyFiles, 10000)
	p, err := newPast(home)
	if err != nil {
		return err
	}
	defer p.close()
	if _, _, err := p.seal(); err != nil {
		return err
	}
	if err := p.fill(n); err != nil {
		return err
	}
	if _, _, err := p.seal(); err != nil {
		return err
	}
	if err := p.close(); err != nil {
		return err
	}
	mnt := filepath.Join(home, "mnt")
	galley := "GALLEY_HOME=" + filepath.Join(home, "state") + " " + b.galley
	if err := b.must(w, home, "mkdir "+mnt+" && "+galley+" mount bench "+mnt); err != nil {
		return err
	}
	defer func() { _ = b.must(w, "/", galley+" unmount "+mnt) }()
	var all []time.Duration
	for i := range 10 {
		if err := b.must(w, home, "find "+mnt+" -printf '%s' > /dev/null"); err != nil {
			return err
		}
		cmd := b.command(w, home, "sh", "-c", galley+fmt.Sprintf(" rollback --json --session bench %d", 1+(i+1)%2))
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("rollback: %w: %s", err, out)
		}
		var r struct{ Switch, Invalidate float64 }
		if err := json.NewDecoder(strings.NewReader(string(out))).Decode(&r); err != nil {
			return err
		}
		if i%2 == 1 { // what the kernel knows goes
			all = append(all, time.Duration(r.Invalidate*float64(time.Second)))
		}
	}
	per := time.Duration(float64(median(all)) / float64(n) * 1000)
	add(figure{name: "telling the kernel of a rollback, for each 1,000 entries that it caches", got: showTime(per)})
	return nil
}

// heapNow is what the process holds after a collection.
func heapNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
