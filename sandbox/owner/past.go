package owner

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/snapshots"
)

// past shows the session's snapshots in the live mounts of one tree.
type past struct {
	live *snapshots.Live
	tree string
}

// Names lists the snapshots, by number, and the names that some have.
func (p past) Names() ([]string, error) {
	history, err := p.live.Session().History()
	if err != nil {
		return nil, err
	}
	var out []string
	named := map[string]bool{}
	for _, s := range history {
		out = append(out, strconv.Itoa(int(s.Number)))
		if s.Name != "" && !named[s.Name] {
			named[s.Name] = true
			out = append(out, s.Name)
		}
	}
	return out, nil
}

// View shows one of them.
func (p past) View(name string) (*overlay.Face, uint64, error) {
	snap, err := p.live.Session().Snapshot(name)
	if err != nil {
		return nil, 0, unix.ENOENT
	}
	face, err := p.live.View(p.tree, snap.Number)
	if errors.Is(err, snapshots.ErrNotFound) {
		err = unix.ENOENT // it went meanwhile
	}
	return face, uint64(snap.Number), err
}
