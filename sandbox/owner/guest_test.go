package owner

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/galleyfs/galley/snapshots"
)

// What is mounted in a machine just when that ends goes with it.
func TestMountedAsTheMachineEnds(t *testing.T) {
	m := newMachine(&server{sess: newSession(t)}, VM{})
	released := 0
	tree := guestTree{name: "@1", release: func() { released++ }}
	m.phase = Running
	check(t, m.mounted("/a", tree))
	if _, ok := m.mounts["/a"]; !ok || released != 0 {
		t.Errorf("%v, released %d times", m.mounts, released)
	}
	for n, phase := range []Phase{Stopping, Ended} {
		m.phase = phase
		if err := m.mounted("/b", tree); !errors.Is(err, snapshots.ErrNotFound) {
			t.Errorf("%s: %v", phase, err)
		}
		if _, ok := m.mounts["/b"]; ok || released != n+1 {
			t.Errorf("%s: %v, released %d times", phase, m.mounts, released)
		}
	}
}

// A guest that has not answered yet is not asked, nor waited for, again.
func TestSilentGuestIsAskedOnce(t *testing.T) {
	s := &server{}
	s.machine = newMachine(s, VM{}) // has no agent that could be asked
	s.machine.phase, s.machine.syncing = Running, true
	if err := s.syncGuest(t.Context()); err == nil || !strings.Contains(err.Error(), "has not yet answered") {
		t.Errorf("%v", err)
	}
}

// An owner removes what one that was killed kept of mounted directories.
func TestStateOfKilledOwner(t *testing.T) {
	sess := newSession(t)
	left := filepath.Join(sess.Dir(), hostState+"1")
	check(t, os.MkdirAll(filepath.Join(left, "layers"), 0o700))
	h, err := Host(t.Context(), sess, slog.New(slog.DiscardHandler))
	check(t, err)
	defer h.Close()
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", left, err)
	}
}
