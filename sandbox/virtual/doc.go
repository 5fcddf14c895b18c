// Package virtual is a sandbox with no process at all: bash scripts are
// interpreted in Go over overlay trees in process, and the commands that
// agents use are written on the same view. Nothing of the host is visible but
// what the trees show, and nothing is touched but the trees' state and one
// scratch directory.
//
// What it lacks is declared ([sandbox.Info.Lacks]): a terminal, signals, and
// the programs of the host. What differs from bash and coreutils otherwise is
// listed in docs/virtual.md, and tested.
//
// A session of package snapshots is opened in process: its trees are what
// snapshots.Live.Tree returns, and diff and commit work on it as on any other.
//
// # Locks
//
// Sandbox.mu guards the processes and the mounts and is held for no call that
// waits. Locks of a process (proc.mu) are taken after it.
package virtual
