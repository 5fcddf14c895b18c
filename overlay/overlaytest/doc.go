// Package overlaytest proves the engine right: an in-memory reference file
// system written from POSIX and the Linux kernel's rules alone ([Ref]), random
// programs of operations ([Op], [Generator]), and drivers that run the same
// program on the reference, on an overlay.Face in process ([FaceFS]) and on a
// real directory through system calls ([DirFS]: a plain directory, a kernel
// overlayfs mount, a Galley mount).
//
// The reference is itself checked against a plain directory of the host, so a
// difference between engine and reference is a difference from Linux.
//
// Nothing here is safe for concurrent use; a test that wants concurrency runs
// several programs on several trees.
package overlaytest
