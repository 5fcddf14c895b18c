package commit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/review"
)

// copyBuffers bounds what copying costs in memory.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// stageAll makes every new node in its stage, complete in content and
// metadata, and in the end records what it is there.
func (j *job) stageAll(ctx context.Context) error {
	var files, links, rest, dirs []*in
	for _, s := range j.shapes {
		for _, n := range s.inOrder {
			j.assignSlot(n)
			switch {
			case !n.staged():
			case n.c.New.IsDir():
				dirs = append(dirs, n)
			case n.link != nil && n.link.area == n.area:
				links = append(links, n)
			case n.c.New.IsRegular():
				files = append(files, n)
				j.stageOf(n).files++
			default:
				rest = append(rest, n)
			}
		}
	}
	for _, n := range dirs {
		if err := j.inSlot(n, func(fd int, name string) error { return j.fs.Mkdir(fd, name, 0o700) }); err != nil {
			return err
		}
	}
	if err := j.stageFiles(ctx, files); err != nil {
		return err
	}
	for _, n := range rest {
		if err := j.inSlot(n, func(fd int, name string) error { return j.makeSpecial(n, fd, name) }); err != nil {
			return err
		}
	}
	for _, n := range links {
		if err := j.makeLink(n); err != nil {
			return err
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := j.finishDir(dirs[i]); err != nil {
			return err
		}
	}
	return j.recordStaged()
}

// assignSlot decides where in its stage a node is made, or passes through.
func (j *job) assignSlot(n *in) {
	switch {
	case n.parent != nil:
		_, name := split(n.path)
		n.slot = join(n.parent.slot, name)
	case n.staged():
		n.slot = j.stageOf(n).slot('n')
	case n.other != "" || !n.direct:
		n.slot = j.stageOf(n).slot('o')
	}
}

func (j *job) stageOf(n *in) *stage {
	for _, s := range j.stageList {
		if s.area == n.area {
			return s
		}
	}
	return nil
}

// inSlot calls f with the directory and name of a node's slot.
func (j *job) inSlot(n *in, f func(dirfd int, name string) error) error {
	fd, name, err := j.pl.at(loc{n.area, pathName(n.slot)})
	if err == nil {
		err = f(fd, name)
	}
	if err != nil {
		return stageError(n, err)
	}
	return nil
}

func stageError(n *in, err error) error {
	var content *ContentError
	if errors.As(err, &content) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("stage the new %s %q: %w", review.TypeName(n.c.New.Mode), n.path, err)
}

// stageFiles copies the content of all files, by several workers.
func (j *job) stageFiles(ctx context.Context, files []*in) error {
	workers := j.cfg.workers
	if workers == 0 {
		workers = min(4, runtime.GOMAXPROCS(0))
	}
	if workers == 1 {
		dir := &slotDir{fd: -1}
		defer dir.close(j.fs)
		for i, n := range files {
			if err := j.stageFile(ctx, n, dir); err != nil {
				return stageError(n, err)
			}
			j.progress("stage", i+1, len(files))
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *in)
	done := make(chan struct{}, len(files))
	for range workers {
		g.Go(func() error {
			dir := &slotDir{fd: -1}
			defer dir.close(j.fs)
			for n := range work {
				if err := j.stageFile(ctx, n, dir); err != nil {
					return stageError(n, err)
				}
				done <- struct{}{}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		for _, n := range files {
			select {
			case work <- n:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	finished := make(chan error, 1)
	go func() { finished <- g.Wait() }()
	for count := 0; ; {
		select {
		case <-done:
			count++
			j.progress("stage", count, len(files))
		case err := <-finished:
			return err
		}
	}
}

// slotDir is the directory of a stage that a worker made a file in last, open:
// the next is mostly in it as well.
type slotDir struct {
	area int
	path string
	fd   int // -1: none
}

func (d *slotDir) open(j *job, area int, path string) (int, error) {
	if path == "" {
		return j.pl.roots[area], nil
	}
	if d.fd >= 0 && d.area == area && d.path == path {
		return d.fd, nil
	}
	d.close(j.fs)
	fd, err := hostfs.OpenDeep(j.fs, j.pl.roots[area], path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	d.area, d.path, d.fd = area, path, fd
	return fd, nil
}

func (d *slotDir) close(fs hostfs.FS) {
	if d.fd >= 0 {
		_ = fs.Close(d.fd)
		d.fd = -1
	}
}

// stageFile makes one regular file in its slot.
func (j *job) stageFile(ctx context.Context, n *in, at *slotDir) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s := j.stageOf(n)
	dir, name := split(n.slot)
	dirfd, err := at.open(j, n.area, dir)
	if err != nil {
		return err
	}
	src, release, err := j.cfg.Source.Open(n.c)
	if err != nil {
		return fmt.Errorf("open the sealed content: %w", err)
	}
	defer release()
	fd, err := j.fs.Open(dirfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer j.fs.Close(fd)
	if err := j.copyContent(ctx, s, n, src, fd); err != nil {
		return err
	}
	if err := j.setAll(n, s, fd, ""); err != nil {
		return err
	}
	if s.bulk() {
		return nil
	}
	return j.fs.Fsync(fd)
}

// copyContent fills a staged file and compares its content with what was
// reviewed. A clone is compared too: by reading it.
func (j *job) copyContent(ctx context.Context, s *stage, n *in, src, dst int) error {
	m := n.c.New
	h := sha256.New()
	var size int64
	var err error
	if j.clone(s, m, dst, src) {
		size, err = pump(ctx, j.fs, dst, -1, 0, m.Size, h)
	} else {
		size, err = j.copyData(ctx, src, dst, m.Size, h)
	}
	if err != nil {
		return err
	}
	if size != m.Size {
		return &ContentError{n.c.Tree, n.path, fmt.Sprintf("it has at least %d bytes, not %d", size, m.Size)}
	}
	sum := digest(h.Sum(nil))
	if m.HasDigest && sum != m.Digest {
		return &ContentError{n.c.Tree, n.path, "its content has another digest"}
	}
	n.facts.Digest = &sum
	return nil
}

// clone tries to share the source's blocks. Below a block or so, copying is
// cheaper than asking.
func (j *job) clone(s *stage, m *review.Meta, dst, src int) bool {
	if m.Size < 16<<10 || s.noClone.Load() {
		return false
	}
	err := j.fs.Clone(dst, src)
	if err == unix.EXDEV || err == unix.EOPNOTSUPP || err == unix.ENOTTY || err == unix.EINVAL {
		s.noClone.Store(true)
	}
	return err == nil
}

// copyData copies extent by extent, so that holes stay holes.
func (j *job) copyData(ctx context.Context, src, dst int, want int64, h hash.Hash) (int64, error) {
	if want < 64<<10 {
		return pump(ctx, j.fs, src, dst, 0, want+1, h)
	}
	var off int64
	for off < want {
		data, err := j.fs.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // only a hole is left
		}
		if err != nil {
			// No holes to be told of: all is data.
			return pump(ctx, j.fs, src, dst, off, want+1, h)
		}
		hashZeros(h, min(data, want)-off)
		off = min(data, want)
		end, err := j.fs.Seek(src, off, unix.SEEK_HOLE)
		if err != nil {
			return off, err
		}
		if off, err = pump(ctx, j.fs, src, dst, off, end, h); err != nil {
			return off, err
		}
		if off < end {
			return off, nil // it is shorter than it said
		}
	}
	if off < want {
		var st unix.Statx_t
		if err := j.fs.Stat(src, "", &st); err != nil {
			return off, err
		}
		if int64(st.Size) != want {
			return int64(st.Size), nil
		}
		hashZeros(h, want-off)
		off = want
	}
	return off, j.fs.Truncate(dst, off)
}

// pump copies from off up to end, or to the end of the file, into dst, if that
// is not -1, and h. It returns where it stopped.
func pump(ctx context.Context, fs hostfs.FS, src, dst int, off, end int64, h hash.Hash) (int64, error) {
	bufp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bufp)
	for off < end {
		if ctx.Err() != nil {
			return off, context.Cause(ctx)
		}
		buf := (*bufp)[:min(int64(len(*bufp)), end-off)]
		n, err := fs.Pread(src, buf, off)
		if err != nil {
			return off, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return off, nil
		}
		h.Write(buf[:n])
		if dst >= 0 {
			if err := hostfs.WriteFull(fs, dst, buf[:n], off); err != nil {
				return off, err
			}
		}
		off += int64(n)
	}
	return off, nil
}

var zeros [64 << 10]byte

func hashZeros(h hash.Hash, n int64) {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		h.Write(zeros[:part])
		n -= part
	}
}

// makeSpecial makes a symbolic link or, where that was asked for, a fifo,
// socket or device node.
func (j *job) makeSpecial(n *in, dirfd int, name string) error {
	m := n.c.New
	var err error
	if m.IsSymlink() {
		err = j.fs.Symlink(m.Target, dirfd, name)
	} else {
		err = j.fs.Mknod(dirfd, name, m.Type()|0o600, m.Rdev)
	}
	if err != nil {
		return err
	}
	return j.setAll(n, j.stageOf(n), dirfd, name)
}

// makeLink makes a staged node another name of an earlier one.
func (j *job) makeLink(n *in) error {
	from, fromName, err := j.pl.at(loc{n.area, pathName(n.link.slot)})
	if err != nil {
		return stageError(n, err)
	}
	// Two directories of the cache at once: the first stays valid while
	// the second is opened, as the cache holds more than two.
	return j.inSlot(n, func(fd int, name string) error { return j.fs.Link(from, fromName, fd, name) })
}

// finishDir gives a staged directory its metadata, when all is in it.
func (j *job) finishDir(n *in) error {
	fd, err := j.pl.dir(loc{n.area, pathName(n.slot)})
	if err == nil {
		err = j.setAll(n, j.stageOf(n), fd, "")
	}
	if err != nil {
		return stageError(n, err)
	}
	if s := j.stageOf(n); s.bulk() {
		return nil
	}
	rw, err := j.fs.Open(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.EACCES {
		return nil // not readable by its owner: the stage's own sync must do
	}
	if err == nil {
		err = j.fs.Fsync(rw)
		_ = j.fs.Close(rw)
	}
	if err != nil {
		return stageError(n, err)
	}
	return nil
}

// recordStaged records what every staged node is, now that nothing changes it
// any more.
func (j *job) recordStaged() error {
	for _, s := range j.shapes {
		for _, n := range s.inOrder {
			if !n.staged() {
				continue
			}
			var st unix.Statx_t
			if err := j.pl.stat(loc{n.area, pathName(n.slot)}, &st); err != nil {
				return stageError(n, err)
			}
			sum := n.facts.Digest
			if n.link != nil {
				sum = n.link.facts.Digest
			}
			n.facts = factsOf(&st)
			n.facts.Digest = sum
		}
	}
	return nil
}

// timespecs are the times that utimensat(2) sets for a modification time.
func timespecs(t overlay.Time) *[2]unix.Timespec {
	return &[2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.Sec, Nsec: int64(t.Nsec)}}
}
