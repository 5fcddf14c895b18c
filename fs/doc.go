// Package fs is the FUSE face of the overlay engine: it mounts, serves a face
// of a tree on a /dev/fuse descriptor, and takes mounts down again.
//
// # Mounting and serving are two steps
//
// A mount is made by whoever may make it ([OpenMount] inside a user and mount
// namespace or as root, [OpenFusermount] elsewhere), and either returns the
// open /dev/fuse descriptor. [Serve] answers the requests that come out of
// such a descriptor, in the same process or, the descriptor sent over a
// socket, in another one that has no privilege at all.
//
// # Mode of I/O
//
// Opens, opendirs, flushes and releases never reach the server: OPEN, OPENDIR
// and FLUSH answer ENOSYS once, after which the kernel keeps pages, names and
// attributes until it is told otherwise. Requests therefore name nodes, never
// handles, and the server keeps no descriptor for an open file.
// docs/io-mode.md has the measurements behind the choice.
//
// # Transport
//
// Requests come through /dev/fuse, read by go-fuse, and where root has allowed
// it over io_uring, on a queue for each CPU.
//
// # Guests
//
// A [Guest] answers the kernel of a virtual machine, which cannot be notified;
// package virtiofs brings its requests.
//
// # Locks
//
// POSIX and flock(2) locks are the kernel's own, per mount: every program on
// one mount sees the others' locks at no cost in requests. Two mounts of one
// session are two file systems for the kernel and do not see each other's
// locks.
//
// # Lock order
//
// A shard of the node table is a leaf: nothing is called while it is held. The
// gate of notifications is held while one is sent, which may wait for requests
// to be answered; no request takes it. The lock of a queue over io_uring is a
// leaf.
package fs
