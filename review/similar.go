package review

import (
	"fmt"
	"io"
	"slices"

	"github.com/galleyfs/galley/overlay"
)

const (
	// minSimilarity in percent is what git takes for a rename, too.
	minSimilarity = 50
	// maxSimilarSize bounds, in bytes, the files whose lines are compared;
	// larger ones are found only when their content is the same.
	maxSimilarSize = 1 << 20
	defaultPairs   = 250_000
	// maxChunk ends a line that is longer, so that a file without line ends
	// compares as well.
	maxChunk = 64
)

// findRenames pairs deletions with additions of like content, for programs that
// write a copy and remove the original. Exact copies first; then, if the pairs
// are not too many, by the share of lines in common, best first.
func (d *differ) findRenames(maxPairs int) error {
	if maxPairs <= 0 {
		maxPairs = defaultPairs
	}
	var added, deleted []*Change
	sizes := map[int64]bool{}
	for i := range d.changes {
		c := &d.changes[i]
		if c.Kind == Added && c.New.IsRegular() && c.New.Size > 0 && c.ino == 0 {
			added = append(added, c)
			sizes[c.New.Size] = true
		}
	}
	for i := range d.changes {
		c := &d.changes[i]
		if len(added) > 0 && c.Kind == Deleted && c.Old.IsRegular() && c.Old.Size > 0 && d.drift(c).Kind == DriftNone {
			deleted = append(deleted, c)
		}
	}
	if len(added) == 0 || len(deleted) == 0 {
		return nil
	}
	byPath := func(a, b *Change) int { return overlay.ComparePaths(a.Path, b.Path) }
	slices.SortFunc(added, byPath)
	slices.SortFunc(deleted, byPath)
	pairs := map[*Change]*Change{} // by the deletion
	added, err := d.pairExact(added, deleted, sizes, pairs)
	if err != nil {
		return err
	}
	if len(added)*(len(deleted)-len(pairs)) <= maxPairs {
		if err := d.pairSimilar(added, deleted, pairs); err != nil {
			return err
		}
	}
	d.applyRenames(pairs)
	return nil
}

// pairExact pairs equal contents, preferring an equal last component, and
// returns the additions that are left.
func (d *differ) pairExact(added, deleted []*Change, sizes map[int64]bool, pairs map[*Change]*Change) ([]*Change, error) {
	sources := map[[32]byte][]*Change{}
	for _, c := range deleted {
		if !sizes[c.Old.Size] {
			continue
		}
		if !c.Old.HasDigest {
			sum, err := d.hashBase(c.Path)
			if err != nil {
				return nil, fmt.Errorf("read %q in the base: %w", c.Path, err)
			}
			c.Old.Digest, c.Old.HasDigest = sum, true
		}
		sources[c.Old.Digest] = append(sources[c.Old.Digest], c)
	}
	var left []*Change
	for _, c := range added {
		list := sources[c.New.Digest]
		if len(list) == 0 {
			left = append(left, c)
			continue
		}
		at := max(0, slices.IndexFunc(list, func(s *Change) bool { return baseName(s.Path) == baseName(c.Path) }))
		src := list[at]
		sources[c.New.Digest] = slices.Delete(list, at, at+1)
		pairs[src] = c
		c.Similarity = 100
	}
	return left, nil
}

// match is a pair and how alike it is.
type match struct {
	from, to *Change
	score    int
	sameName bool
}

func (d *differ) pairSimilar(added, deleted []*Change, pairs map[*Change]*Change) error {
	view, base := map[*Change]chunks{}, map[*Change]chunks{}
	load := func(into map[*Change]chunks, c *Change, size int64, open func() (*Content, error)) (chunks, error) {
		if got, ok := into[c]; ok || size > maxSimilarSize {
			return got, nil
		}
		content, err := open()
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", c.Path, err)
		}
		defer content.Close()
		got, err := chunksOf(content)
		into[c] = got
		return got, err
	}
	var matches []match
	for _, to := range added {
		for _, from := range deleted {
			if err := d.ctx.Err(); err != nil {
				return err
			}
			small, large := min(from.Old.Size, to.New.Size), max(from.Old.Size, to.New.Size)
			if pairs[from] != nil || small*100 < large*minSimilarity {
				continue
			}
			a, err := load(base, from, from.Old.Size, func() (*Content, error) { return d.tree.base.open(from.Path) })
			if err != nil {
				return err
			}
			b, err := load(view, to, to.New.Size, func() (*Content, error) { return d.tree.view.Open(to.Path) })
			if err != nil {
				return err
			}
			if score := similarity(a, b, large); score >= minSimilarity {
				matches = append(matches, match{from, to, score, baseName(from.Path) == baseName(to.Path)})
			}
		}
	}
	slices.SortStableFunc(matches, func(a, b match) int {
		if a.score != b.score {
			return b.score - a.score
		}
		return boolInt(b.sameName) - boolInt(a.sameName)
	})
	taken := map[*Change]bool{}
	for _, m := range matches {
		if pairs[m.from] == nil && !taken[m.to] {
			pairs[m.from], taken[m.to] = m.to, true
			m.to.Similarity = m.score
		}
	}
	return nil
}

// applyRenames turns paired additions into renames and drops the deletions.
func (d *differ) applyRenames(pairs map[*Change]*Change) {
	for from, to := range pairs {
		to.Kind, to.From, to.Origin = Renamed, from.Path, from.Path
		to.FromAt, to.HasFromAt = from.At, true
		to.Old = from.Old
		to.Parts = metaParts(to.Old, to.New)
		if to.Similarity < 100 {
			to.Parts |= PartContent
		}
		to.Facts = append(slices.Clone(from.Facts), to.Facts...)
		from.Kind = 0
	}
	d.changes = slices.DeleteFunc(d.changes, func(c Change) bool { return c.Kind == 0 })
}

// chunks counts the bytes of a file by the hash of the line they are in.
type chunks map[uint64]int64

// chunksOf cuts content at line ends and after maxChunk bytes.
func chunksOf(c *Content) (chunks, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	out := chunks{}
	const seed, prime = 14695981039346656037, 1099511628211 // FNV-1a
	sum, n := uint64(seed), int64(0)
	for off := int64(0); ; {
		got, err := c.ReadAt(*buf, off)
		for _, b := range (*buf)[:got] {
			sum = (sum ^ uint64(b)) * prime
			if n++; b == '\n' || n == maxChunk {
				out[sum] += n
				sum, n = seed, 0
			}
		}
		off += int64(got)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if n > 0 {
		out[sum] += n
	}
	return out, nil
}

// contentSimilarity is how alike two files are, in percent: 100 only for the
// same content. Of files above maxSimilarSize it is an upper bound by their
// sizes, so that memory stays bounded.
func contentSimilarity(a, b *Content) (int, error) {
	small, large := min(a.Size, b.Size), max(a.Size, b.Size)
	if large == 0 {
		return 100, nil
	}
	if large > maxSimilarSize {
		return min(99, int(small/(large/100))), nil
	}
	ca, err := chunksOf(a)
	if err != nil {
		return 0, err
	}
	cb, err := chunksOf(b)
	if err != nil {
		return 0, err
	}
	return similarity(ca, cb, large), nil
}

// similarity is the share of the larger file, in percent below 100, that lies
// in lines both have.
func similarity(a, b chunks, large int64) int {
	if len(a) > len(b) {
		a, b = b, a
	}
	var common int64
	for sum, n := range a {
		common += min(n, b[sum])
	}
	return min(99, int(common*100/large))
}
