package review

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// stopped is a host whose clock stands still: all that is written, is written
// within one tick of it.
type stopped struct{ hostfs.FS }

func (s stopped) Stat(dirfd int, name string, st *unix.Statx_t) error {
	err := s.FS.Stat(dirfd, name, st)
	st.Ctime, st.Mtime = unix.StatxTimestamp{Sec: 1}, unix.StatxTimestamp{Sec: 1}
	return err
}

// TestBetweenWithinATick: two writes of one size, within a tick of the clock,
// on both sides of a seal are a change all the same.
func TestBetweenWithinATick(t *testing.T) {
	s := newSession(t, nil)
	s.close()
	s.fs = stopped{hostfs.OS}
	s.open()
	s.write("a", "one")
	s.write("kept", "same")
	s.seal()
	s.write("a", "two")
	s.seal()
	var faces [2]*overlay.Face
	for i := range faces {
		f, err := s.tree.View(overlay.Stack{Sealed: []overlay.Range{{From: 1, To: overlay.LayerID(i + 1)}}})
		s.must(err)
		defer f.Detach()
		faces[i] = f
	}
	set, err := Between(context.Background(), []Pair{{Name: "workspace", Old: faces[0], New: faces[1]}}, Options{})
	s.must(err)
	if len(set.Changes) != 1 || set.Changes[0].Path != "a" || set.Changes[0].Parts&PartContent == 0 {
		t.Errorf("changes: %+v", set.Changes)
	}
}
