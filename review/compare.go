package review

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// newMeta describes a node of the view, without its digest.
func (d *differ) newMeta(e *overlay.Entry) (*Meta, error) {
	a := &e.Attr
	m := &Meta{Mode: a.Mode, UID: a.UID, GID: a.GID, Size: a.Size, Rdev: a.Rdev, Mtime: a.Mtime}
	var err error
	switch {
	case m.IsDir():
		m.Size = 0
	case m.IsSymlink():
		if m.Target, err = d.tree.view.Readlink(e.Path); err != nil {
			return nil, fmt.Errorf("read the link %q in the view: %w", e.Path, err)
		}
	}
	if m.Xattrs, err = d.tree.view.Xattrs(e.Path); err != nil {
		return nil, fmt.Errorf("read the extended attributes of %q in the view: %w", e.Path, err)
	}
	return m, nil
}

// digestNew reads a file of the view.
func (d *differ) digestNew(e *overlay.Entry, m *Meta) error {
	if e.Attr.Nlink > 1 {
		if sum, ok := d.digests[e.Attr.Ino]; ok {
			m.Digest, m.HasDigest = sum, true
			return nil
		}
	}
	var err error
	if a, ok := d.ahead[e]; ok {
		m.Digest, err = a.sum, a.err
	} else {
		m.Digest, err = d.hashView(e.Path)
	}
	if err != nil {
		return fmt.Errorf("read %q in the view: %w", e.Path, err)
	}
	m.HasDigest = true
	if e.Attr.Nlink > 1 {
		d.digests[e.Attr.Ino] = m.Digest
	}
	return nil
}

// oldMeta describes what the session saw in the base, from the recorded facts;
// only extended attributes, which are not recorded, are read from the base.
func (d *differ) oldMeta(was *overlay.Was) (*Meta, error) {
	m := &Meta{Mode: was.Mode, UID: was.UID, GID: was.GID, Size: was.Size, Rdev: was.Rdev,
		Mtime: was.Mtime, Target: was.Target, Digest: was.Digest, HasDigest: was.HasDigest}
	if m.IsDir() {
		m.Size = 0
	}
	var err error
	m.Xattrs, err = d.tree.base.xattrs(was.Path)
	switch err {
	case nil, unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return m, nil
	}
	return nil, fmt.Errorf("read the extended attributes of %q in the base: %w", was.Path, err)
}

// compare fills Old, New and Parts of a change, and reports whether there is
// any difference. What equals the base as it is now is none either, although
// it differs from what the session saw: both sides made the same change.
func (d *differ) compare(e *overlay.Entry, was *overlay.Was, c *Change) (bool, error) {
	var err error
	if c.New, err = d.newMeta(e); err != nil {
		return false, err
	}
	if c.Old, err = d.oldMeta(was); err != nil {
		return false, err
	}
	if c.New.IsRegular() && !e.SameData {
		if err := d.digestNew(e, c.New); err != nil {
			return false, err
		}
	}
	drifted := d.tree.base.drift(*was).Kind != DriftNone
	if c.Old.Type() != c.New.Type() {
		return !drifted || !d.equalsNow(e, c.New, was.Path), nil
	}
	c.Parts = metaParts(c.Old, c.New)
	if c.New.IsRegular() && !e.SameData {
		same, err := d.sameContent(c, was.Path, drifted)
		if err != nil {
			return false, err
		}
		if !same {
			c.Parts |= PartContent
		}
	}
	if c.Parts != 0 && drifted && d.equalsNow(e, c.New, was.Path) {
		return false, nil
	}
	return c.Parts != 0, nil
}

// sameContent compares a file of the view with what the session saw. The base
// is read only where sizes are equal and no digest was recorded.
func (d *differ) sameContent(c *Change, path string, drifted bool) (bool, error) {
	if c.Old.Size != c.New.Size {
		return false, nil
	}
	if !c.Old.HasDigest && !drifted {
		sum, err := d.hashBase(path)
		if err != nil {
			return false, fmt.Errorf("read %q in the base: %w", path, err)
		}
		c.Old.Digest, c.Old.HasDigest = sum, true
	}
	return c.Old.HasDigest && c.Old.Digest == c.New.Digest, nil
}

func (d *differ) hashBase(path string) ([32]byte, error) {
	content, err := d.tree.base.open(path)
	if err != nil {
		return [32]byte{}, err
	}
	defer content.Close()
	return hash(d.ctx, content)
}

// equalsNow reports whether the base, which has drifted, has now what the view
// has. Whatever cannot be read is not equal.
func (d *differ) equalsNow(e *overlay.Entry, m *Meta, path string) bool {
	now, err := d.tree.base.factsNow(path)
	if err != nil || now == nil || typeBits(now.Mode) != m.Type() {
		return false
	}
	old, err := d.oldMeta(now)
	if err != nil || metaParts(old, m) != 0 {
		return false
	}
	if !m.IsRegular() || e.SameData {
		return true
	}
	if old.Size != m.Size {
		return false
	}
	sum, err := d.hashBase(path)
	return err == nil && sum == m.Digest
}

// metaParts compares two nodes of one type in all but a file's content.
func metaParts(a, b *Meta) Parts {
	var p Parts
	if a.Target != b.Target {
		p |= PartTarget
	}
	if a.Mode != b.Mode && !a.IsSymlink() {
		p |= PartMode
	}
	if a.UID != b.UID || a.GID != b.GID {
		p |= PartOwner
	}
	if a.Rdev != b.Rdev {
		p |= PartRdev
	}
	if !slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y Xattr) bool {
		return x.Name == y.Name && bytes.Equal(x.Value, y.Value)
	}) {
		p |= PartXattrs
	}
	return p
}
