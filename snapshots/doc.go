// Package snapshots keeps sessions on disk: their record, their history of
// snapshots, the lock of their owner, the trash, and what they occupy.
//
// # Words
//
// A layer is one set of changes, numbered; numbers are never used twice. The
// active layer takes the writes. To seal is to make it immutable and another
// one active. A stack is which layers a view of a tree is made of. A snapshot
// is a numbered point: the stacks of all trees of a session as they were when a
// layer was sealed, with the cause. It may have a name; one that Galley made by
// itself, around a command or a tool call, is a checkpoint. The history is the
// list of a session's snapshots.
//
// A rollback gives a session an older stack again, under a new active layer;
// what came after stays in the history. A fork is a session that begins as a
// snapshot of another and has its layers in common with it. To prune is to
// forget snapshots; to merge, to put the layers between those that stay
// together in one.
//
// # Lifecycle of a snapshot
//
//	changes ──Seal──▶ snapshot ──Prune──▶ forgotten
//	                   │  ▲
//	          Rollback │  │ Seal
//	                   ▼  │
//	                  live view        Fork ──▶ another session
//
// A layer is there as long as something names it: a stack of the session, a
// line of its history, the record of what a commit or discard retired (until
// the retention), the record of what a commit replaced, or a fork.
//
// # What is true
//
// The manifest is the session now: its trees with their stacks, the latest
// snapshot, the counters, and what waits for its removal. The history is the
// older snapshots, one line each. Both are truth, and neither is a cache.
// Directories that neither accounts for are garbage where they are empty or
// made of what is elsewhere, and are kept and reported where they may hold work.
// The engine's index is a cache.
//
// # Order of layers
//
// A layer lies above those of lower numbers. Three kinds share the numbers:
//
//	1, 2, 3 …            what a session changed, as it was sealed
//	-1, -2 …             merged from those, at the bottom of stacks
//	-2^30, -2^30-1 …     what commits replaced in the base, directly above it
//
// Of the last kind the later commit has the lower number: the newer state of
// the base is beneath the older. They make points older than a commit, and
// forks, show the base as it was; to these views they are a part of the base,
// and no change of theirs.
//
// # Layers that two sessions have in common
//
// A fork's manifest names the sessions that it descends from (Origins), and up
// to which numbers layers are theirs; the engine opens these in the other
// session's directory. Nothing is copied or linked, so that a fork costs the
// same however large the layers are and however many. Both go on with their own
// numbers above the common ones. No layer is removed, by GC, prune or purge,
// without the lock of the store and a look at what the forks of its session
// need; of a session that is purged, the shared layers stay until the last fork
// has gone.
//
// # The durable step of each operation
//
//	Seal       manifest renamed; the line in the history follows
//	Rollback   manifest renamed; a line for what was not sealed yet precedes it
//	Fork       the new session's directory renamed into sessions/
//	Prune      history renamed; before it, the manifest names the merged layers
//	           and what is to be removed
//	Take       manifest renamed by the seal at its end; until then the manifest
//	           says to which snapshot to return
//	Replacing  manifest renamed; the layer is written before
//	Committed  manifest renamed; see retire.go
//	Remove     marked in the manifest; the directory is moved second
//
// Each is arranged so that before that step the old state is whole and after it
// the new one is. What a crash leaves besides (a prepared or half-written layer
// that nothing names, a line that was not written or is one too many) is
// completed or removed by the next open or by [Store.GC].
//
// A manifest is replaced by write, fsync, rename and fsync of the directory.
// Automatic checkpoints leave out the fsyncs (see lazy.go): a power cut may lose
// them, but nothing that a program had synced.
//
// # On disk
//
// A [Store] is one directory, $GALLEY_HOME, of mode 0700:
//
//	sessions/<id>/manifest.json       what the session is now (see Manifest)
//	sessions/<id>/manifest.kept       the one before, while that is not on the disk
//	sessions/<id>/lock                flock(2): held by whoever has the session open
//	sessions/<id>/history             one JSON line for each snapshot
//	sessions/<id>/trees/<tree>/       the state directory of one overlay tree
//	sessions/<id>/commits/<id>/       the journal of one commit
//	trash/<id>/                       a discarded session, or the record of discarded paths
//	run/<id>.sock                     the control socket of a live session
//
// # Locks
//
// The order is: the lock of a session, then Live.sem, then the lock of the
// store, then what the engine takes. Under the lock of the store a session's is
// only tried, never waited for. A Store and a [Session] hold no lock; a [Live]
// does one thing at a time.
package snapshots
