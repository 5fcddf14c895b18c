// Package snapshots keeps sessions on disk: their record, their history of
// snapshots, the lock of their owner, the trash, and what they occupy.
//
// # On disk
//
// A [Store] is one directory, $GALLEY_HOME, of mode 0700:
//
//	sessions/<id>/manifest.json       what the session is now (see Manifest)
//	sessions/<id>/lock                flock(2): held by whoever has the session open
//	sessions/<id>/history             one JSON line for each seal and retirement
//	sessions/<id>/trees/<tree>/       the state directory of one overlay tree
//	sessions/<id>/commits/<id>/       the journal of one commit
//	trash/<id>/                       a discarded session, or the record of discarded paths
//	run/<id>.sock                     the control socket of a live session
//
// # What a crash may leave
//
// The manifest is the session: it is replaced by write, fsync, rename and
// fsync of the directory, and every other step is arranged around that rename
// so that before it the old state is whole and after it the new one is. What a
// crash leaves besides (a directory prepared for a layer that no manifest
// names, a history line that was not written) is completed or removed by the
// next open or by [Store.GC], neither of which removes a layer that holds work
// which was neither committed nor discarded.
//
// # Locks
//
// The order is: the flock of a session, then Live.mu, then what the engine
// takes. A Store and a [Session] hold no lock; a [Live] serialises its seals.
package snapshots
