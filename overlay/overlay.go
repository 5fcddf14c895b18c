// Package overlay is the engine: every copy-on-write rule of Galley is here
// and nowhere else. FUSE, virtio-fs, the in-process file system, the diff and
// the commit are views of it.
//
// # Model
//
// A [Tree] is a base and a stack of layers above it, merged. A layer is a
// directory in the upper format of the Linux kernel's overlayfs (Documentation/
// filesystems/overlayfs.rst): whiteouts are character devices 0:0, opaque
// directories, redirects and metadata-only copies are marked by xattrs in
// "trusted.overlay." or, without privilege, in "user.overlay.". Beside each
// layer lies its record, an append-only log of what the tree itself cannot
// say: the identity of every node, names, link counts, change times and what
// the base was. The tree is the payload, the record is the truth about it, and
// either can be checked against the other.
//
// In memory the tree is an index of versions. A [Node] is a file identity; it
// has one version for each layer in which it was changed. A directory has, for
// each name changed in it, one version of the entry for each layer. A view is
// a set of layers ([Stack]); what it shows of a node or an entry is the newest
// version whose layer is in the set, and the base where there is none. So
// sealing, switching and looking at an older snapshot change only the set, a
// lookup costs the same however many layers there are, and a miss costs one
// call on the base.
//
// # On disk
//
//	layers/N/tree     the layer, in overlayfs upper format
//	layers/N/record   its record
//	scratch/          new objects before their rename into place, and files
//	                  that have no name any more but are still open
//	index             a cache of all records, written on a clean close
//
// # Lock order
//
//	Tree.admit (shared by every operation, exclusive in a Barrier)
//	  Node.up (one node's copy-up, appends and changes of times)
//	    Tree.mu (the index and the layers' names)
//	      Tree.liveMu (nodes that faces hold)
//	        fdCache.mu, watcher.mu, listings.mu (leaves)
//	      Tree.facesMu (which faces are attached)
//	        Face.mu (a leaf: what a face holds and is to be told)
//
// A Barrier over several trees takes their admission in the order in which it
// was given them, always the same. An operation that is admitted asks for
// admission no second time: a barrier may wait in between.
//
// Data is read, written and copied up outside Tree.mu. Faces are notified by
// goroutines of their own, with no lock held.
package overlay
