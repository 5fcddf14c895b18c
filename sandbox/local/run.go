package local

import (
	"context"
	"errors"
	"fmt"
)

// Run runs cfg.Command in a sandbox and returns when the command has ended
// and every process it left behind is gone. While it runs, the caller's
// signals and the terminal's job control are passed on. A non-nil error means
// that the command did not start, or that the sandbox broke; Result.Code is
// then still what to exit with. Only one Run at a time may use the terminal.
// Cancelling ctx ends the sandbox with SIGKILL.
func Run(ctx context.Context, cfg Config) (Result, error) {
	return Result{Code: 125}, fmt.Errorf("run %q: %w", cfg.Command, errors.ErrUnsupported)
}

// Init does the supervisor's work and never returns in a process that Run
// started, and returns at once in every other. Call it first in main, before
// flags are read.
func Init() {}

// DefaultCaches returns the directories below home that common tools write to
// as a cache, for Config.Caches.
func DefaultCaches(home string) []string { return nil }

// A Feature is one thing that the sandbox takes from the kernel or the host.
type Feature struct {
	Name     string // short, such as "user namespaces"
	OK       bool
	Required bool   // without it Run fails
	Detail   string // what was found, or what is missing and what to do
}

// Features reports, for `galley doctor`, what this host offers to the sandbox.
func Features() []Feature { return nil }
