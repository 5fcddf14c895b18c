package fs

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// quietHandler drops what go-fuse complains about while a server is being
// closed: its readers then fail on purpose.
type quietHandler struct {
	slog.Handler
	closing *atomic.Bool
}

func (h quietHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return !h.closing.Load() && h.Handler.Enabled(ctx, l)
}
