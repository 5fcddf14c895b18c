package fs

import (
	"github.com/galleyfs/galley/overlay"
)

// writeCached stores pages that the kernel collected. With the writeback cache
// the kernel owns a file's mtime: it moves when a program writes, and the
// kernel sends it by SETATTR. The pages come later, and writing them would
// move the stored mtime once more, to a time that shows up only after the
// kernel has forgotten the file; git and make would take that for a change.
// So a write of cached pages leaves the mtime as it is.
func (r *rawFS) writeCached(n *overlay.Node, data []byte, off int64, kill bool) (int, error) {
	if kill {
		if err := r.face.DropPrivileges(n); err != nil {
			return 0, err
		}
	}
	return r.face.WriteKeepTimes(n, data, off)
}
