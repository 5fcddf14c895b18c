// Package virtiofs is the virtio-fs face of the overlay engine: it serves
// trees to the kernel of a virtual machine, as a vhost-user device on one
// connected socket, with no mount on the host and no other daemon.
//
// # The export
//
// A guest gets one file system. Its root is private to Galley: a directory of
// trees (workspace, root, one for each mount), each of which the guest's kernel
// mounts for itself when it is first looked at (FUSE_SUBMOUNTS), so that each
// has a device number of its own. Trees come and go while it is served.
//
// # What a guest may do
//
// Everything that comes from the guest is hostile: descriptors, rings, requests
// and all that is in them; what the virtual machine's monitor sends over the
// socket as well, since a guest may have taken it over. Guest memory is taken
// only as a memfd that cannot shrink, requests are copied out of it once and
// checked in every field before anything acts on them ([parse]), answers are
// made outside of it. Only content of files moves without a copy.
//
// A ring that is not as it must be is not looked at any more until the device
// is reset; a message that is not ends the connection.
//
// # Caches of the guest
//
// The Linux driver takes no notifications, so nothing is trusted for longer
// than a second and there is no writeback cache; see [fs.Guest]. Locks stay in
// the guest's kernel. The owner of an export is told what changed by other ways
// than the guest ([ExportOptions]), so that it can have the guest look again at
// once.
//
// # Lock order
//
// Server.gate, then tree.use, then what the engine takes. queue.mu is a leaf, and
// so is Export.mu. Nobody waits for a queue's goroutines while holding a lock
// that those take.
package virtiofs
