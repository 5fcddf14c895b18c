package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/snapshots"
)

// List is all names, in their order, with the images they stand for. An image
// that cannot be read is listed with its error.
func (s *Store) List() ([]Listed, error) {
	all, err := s.names()
	if err != nil {
		return nil, err
	}
	out := make([]Listed, 0, len(all))
	for _, r := range all {
		l := Listed{Name: short(r.Name), Digest: r.Digest, Time: r.Time, Source: r.Source}
		if l.Image, l.Err = s.imageOf(r); l.Err != nil {
			l.Image = &Image{Name: l.Name, Digest: l.Digest, Source: l.Source}
		}
		out = append(out, l)
	}
	return out, nil
}

// Listed is one line of a list of images.
type Listed struct {
	Name, Digest, Source string
	Time                 time.Time
	Image                *Image
	Err                  error
}

// Removed tells what [Store.Remove] and [Store.GC] took away, or would.
type Removed struct {
	Names  []string `json:"names"`
	Blobs  int      `json:"blobs"`
	Layers int      `json:"layers"`
	Bytes  int64    `json:"bytes"`
	// Kept are sessions that stand on an image whose name went: its layers stay
	// as long as they do.
	Kept []string `json:"kept"`
}

// Remove takes names away, all or none, and what only they needed. A name may be
// given as a digest, and then stands for all names of it.
func (s *Store) Remove(ctx context.Context, refs ...string) (Removed, error) {
	out := Removed{Names: []string{}, Kept: []string{}}
	gone := map[string]bool{}
	for _, ref := range refs {
		img, err := s.findNames(ref)
		if err != nil {
			return out, err
		}
		for _, n := range img {
			gone[n.Name] = true
		}
	}
	digests := map[string]bool{}
	err := s.change(func(all []record) ([]record, error) {
		return slices.DeleteFunc(all, func(r record) bool {
			if gone[r.Name] {
				out.Names = append(out.Names, short(r.Name))
				digests[r.Digest] = true
			}
			return gone[r.Name]
		}), nil
	})
	if err != nil {
		return out, err
	}
	uses, err := s.sessions.ImagesInUse(ctx)
	if err != nil {
		return out, err
	}
	for _, u := range uses {
		if digests[u.Image.Digest] && !slices.Contains(out.Kept, u.Session) {
			out.Kept = append(out.Kept, u.Session)
		}
	}
	swept, err := s.GC(ctx, GCOptions{})
	if errors.Is(err, ErrBusy) {
		return out, nil // the next gc does it
	}
	out.Blobs, out.Layers, out.Bytes = swept.Blobs, swept.Layers, swept.Bytes
	return out, err
}

// findNames are the records that a name or a digest means.
func (s *Store) findNames(ref string) ([]record, error) {
	all, err := s.names()
	if err != nil {
		return nil, err
	}
	want := ""
	if r, err := ParseName(ref); err == nil {
		want = r.Name()
		if o := byName(all, r); o != nil {
			return []record{*o}, nil
		}
	}
	found, err := byDigest(all, ref)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, notFound(ref, want, all)
	}
	var out []record
	for _, o := range all {
		if o.Digest == found.Digest {
			out = append(out, o)
		}
	}
	return out, nil
}

// GCOptions says what [Store.GC] does beside removing what nothing needs.
type GCOptions struct {
	// DryRun only reports.
	DryRun bool
	// Verify reads all blobs and removes those that are damaged.
	Verify bool
}

// partialAge is how long what was fetched of a blob is kept for another try.
const partialAge = 7 * 24 * time.Hour

// GC removes blobs and unpacked layers that no name and no session needs, and
// what was left half made. It fails with ErrBusy while images are fetched or
// unpacked.
func (s *Store) GC(ctx context.Context, opt GCOptions) (Removed, error) {
	out := Removed{Names: []string{}, Kept: []string{}}
	lock, err := tryLock(s.path(lockUse), unix.LOCK_EX)
	if err != nil {
		return out, err
	}
	if lock == nil {
		return out, fmt.Errorf("images: %w", ErrBusy)
	}
	defer lock.Close()
	g := &sweep{s: s, opt: opt, blobs: map[string]bool{}, chains: map[string]bool{}}
	if err := g.mark(ctx); err != nil {
		return g.out, err
	}
	g.out.Names, g.out.Kept = out.Names, out.Kept
	return g.out, g.run(ctx)
}

type sweep struct {
	s             *Store
	opt           GCOptions
	blobs, chains map[string]bool // that are needed
	out           Removed
}

// mark finds what is needed. What cannot be read might need anything.
func (g *sweep) mark(ctx context.Context) error {
	names, err := g.s.names()
	if err != nil {
		return err
	}
	for _, r := range names {
		if err := g.image(r.Digest); err != nil {
			return err
		}
		if h, err := hexOf(r.Index); err == nil {
			g.blobs[h] = true
		}
	}
	uses, err := g.s.sessions.ImagesInUse(ctx)
	if err != nil {
		return fmt.Errorf("what sessions need is not known, so that no image is removed: %w", err)
	}
	for _, u := range uses {
		if err := g.image(u.Image.Digest); err != nil {
			return err
		}
		for _, chain := range u.Image.Layers {
			g.chains[chain] = true
		}
	}
	return nil
}

// image marks what an image needs. One that is damaged needs what can be read of
// it; where the disk does not answer nothing is known, and nothing removed.
func (g *sweep) image(digest string) error {
	h, err := hexOf(digest)
	if err != nil {
		return nil
	}
	g.blobs[h] = true
	text, err := g.s.small(digest, -1)
	if err != nil {
		return unlessDamaged(err)
	}
	m, err := parseManifest(text)
	if err != nil {
		return unlessDamaged(err)
	}
	g.blobs[m.Config.Digest.Hex] = true
	for _, l := range m.Layers {
		g.blobs[l.Digest.Hex] = true
	}
	img, err := g.s.load(digest)
	if err != nil {
		return unlessDamaged(err)
	}
	for _, l := range img.Layers {
		g.chains[l.Chain] = true
	}
	return nil
}

// unlessDamaged passes on what the host could not do; anything else is the
// image's own fault, and what is not there may be gone.
func unlessDamaged(err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) || errno == unix.ENOENT {
		return nil
	}
	return fmt.Errorf("what images need is not known, so that none is removed: %w", err)
}

func (g *sweep) run(ctx context.Context) error {
	blobs, err := os.ReadDir(g.s.path(dirBlobs))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if g.blobs[b.Name()] && (!g.opt.Verify || g.whole(b.Name())) {
			continue
		}
		if i, err := b.Info(); err == nil {
			g.out.Bytes += i.Size()
		}
		g.out.Blobs++
		if !g.opt.DryRun {
			if err := remove(g.s.blobPath(b.Name())); err != nil {
				return err
			}
		}
	}
	layers, err := os.ReadDir(g.s.sessions.ImageLayersDir())
	if err != nil {
		return err
	}
	for _, l := range layers {
		if !g.chains[l.Name()] {
			g.out.Layers++
			g.drop(filepath.Join(g.s.sessions.ImageLayersDir(), l.Name()))
		}
	}
	return g.leftovers()
}

// whole tells whether a blob has its digest.
func (g *sweep) whole(name string) bool {
	r, check, err := g.s.openBlob("sha256:"+name, -1)
	if err != nil {
		return false
	}
	defer r.Close()
	return check() == nil
}

// drop removes a tree. One that is renamed first is never half there.
func (g *sweep) drop(path string) {
	g.out.Bytes += diskUsage(path)
	if g.opt.DryRun {
		return
	}
	if !strings.HasPrefix(filepath.Base(path), stagePrefix) {
		if aside, err := g.s.stage(); err == nil {
			if err := os.Rename(path, filepath.Join(aside, "gone")); err == nil {
				path = aside
			} else {
				g.s.discard(aside)
			}
		}
	}
	g.s.discard(path)
}

// leftovers removes what was being made when a process ended, and what was
// fetched of blobs that nobody went on with.
func (g *sweep) leftovers() error {
	all, err := os.ReadDir(g.s.dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		if strings.HasPrefix(e.Name(), stagePrefix) {
			g.drop(g.s.path(e.Name()))
		}
	}
	partial, err := os.ReadDir(g.s.path(dirPartial))
	if err != nil {
		return err
	}
	for _, e := range partial {
		i, err := e.Info()
		if err != nil {
			continue
		}
		_, there := os.Lstat(g.s.blobPath(e.Name()))
		if there != nil && g.s.now().Sub(i.ModTime()) < partialAge {
			continue
		}
		g.out.Bytes += i.Size()
		if !g.opt.DryRun {
			if err := remove(g.s.path(dirPartial, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// diskUsage adds up the blocks of a tree, as far as it can be read.
func diskUsage(path string) (sum int64) {
	_ = filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

// InUse are the sessions that stand on an image, by its digest.
func (s *Store) InUse(ctx context.Context) (map[string][]snapshots.ImageUse, error) {
	uses, err := s.sessions.ImagesInUse(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]snapshots.ImageUse{}
	for _, u := range uses {
		out[u.Image.Digest] = append(out[u.Image.Digest], u)
	}
	return out, nil
}
