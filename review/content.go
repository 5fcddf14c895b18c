package review

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"github.com/galleyfs/galley/overlay/hostfs"
)

// copyBuffers bounds what reading content costs in memory, however many files
// and of whatever size.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// hash reads a content to its end.
func hash(ctx context.Context, c *Content) ([32]byte, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	h := sha256.New()
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return [32]byte{}, context.Cause(ctx)
		}
		n, err := c.ReadAt(*buf, off)
		h.Write((*buf)[:n])
		off += int64(n)
		if err == io.EOF {
			return [32]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return [32]byte{}, err
		}
	}
}

// hashAt is the SHA-256 of the regular file name in dirfd.
func hashAt(fs hostfs.FS, dirfd int, name string) ([32]byte, error) {
	fd, size, err := openRegular(fs, dirfd, name)
	if err != nil {
		return [32]byte{}, err
	}
	c := &Content{Size: size, read: func(p []byte, off int64) (int, error) { return fs.Pread(fd, p, off) }}
	defer fs.Close(fd)
	return hash(context.Background(), c)
}

// OpenNew gives the content that a change puts at its path: a regular file's,
// from the layers or, where the change leaves it as it was, from the base.
func (cs *ChangeSet) OpenNew(c *Change) (*Content, error) {
	t, err := cs.treeOf(c)
	if err != nil {
		return nil, err
	}
	if c.New == nil || !c.New.IsRegular() {
		return nil, fmt.Errorf("%s: no file content in this change", c.Path)
	}
	return t.view.Open(c.Path)
}

// OpenOld gives the content that the base has now at the change's origin.
// Where the base has drifted it is not what the session saw.
func (cs *ChangeSet) OpenOld(c *Change) (*Content, error) {
	t, err := cs.treeOf(c)
	if err != nil {
		return nil, err
	}
	if c.Old == nil || !c.Old.IsRegular() {
		return nil, fmt.Errorf("%s: no file content before this change", c.Path)
	}
	return t.base.open(c.Origin)
}

func (cs *ChangeSet) treeOf(c *Change) (*tree, error) {
	for _, t := range cs.trees {
		if t.name == c.Tree {
			return t, nil
		}
	}
	return nil, fmt.Errorf("the change set has no tree %q", c.Tree)
}
