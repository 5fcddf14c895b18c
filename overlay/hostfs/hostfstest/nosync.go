package hostfstest

import "github.com/galleyfs/galley/overlay/hostfs"

// NoSync is a host that never waits for its disk: for tests of what a process
// leaves that is cut off or killed, which loses nothing that it had written.
type NoSync struct{ hostfs.FS }

// Fsync does nothing.
func (NoSync) Fsync(int) error { return nil }

// Fdatasync does nothing.
func (NoSync) Fdatasync(int) error { return nil }

// Syncfs does nothing.
func (NoSync) Syncfs(int) error { return nil }
