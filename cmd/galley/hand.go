package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// handTime is how long a hand holds a session between two steps. Who wants the
// session meanwhile waits, so it is short beside the time that they do.
const handTime = 2 * time.Second

// hand is the hold of one command on a session that it changes in several steps:
// its owner, or its lock. Opening a session reads its layers, so what follows
// soon uses the same hold.
type hand struct {
	sess *snapshots.Session
	upTo []string // see [owner.Control]

	mu    sync.Mutex
	ctrl  owner.Controller // protected by mu; nil while nothing is held
	timer *time.Timer      // protected by mu; lets go
}

// do runs one step.
func (h *hand) do(ctx context.Context, step func(owner.Controller) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctrl == nil {
		ctrl, err := owner.Control(ctx, h.sess, h.upTo...)
		if err != nil {
			return err
		}
		h.ctrl = ctrl
	}
	err := step(h.ctrl)
	if h.timer != nil {
		h.timer.Stop()
	}
	h.timer = time.AfterFunc(handTime, func() { _ = h.letGo() })
	// An owner that ended is looked for again by the next step.
	if errors.Is(err, owner.ErrNoOwner) {
		_ = h.drop()
	}
	return err
}

// letGo gives back what is held. The next step takes it again.
func (h *hand) letGo() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drop()
}

func (h *hand) drop() error {
	if h.timer != nil {
		h.timer.Stop()
	}
	if h.ctrl == nil {
		return nil
	}
	ctrl := h.ctrl
	h.ctrl = nil
	return ctrl.Close()
}
