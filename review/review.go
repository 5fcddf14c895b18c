// Package review turns what a session did into a change set: an ordered list
// of changes with a digest, which is what a person reads, what is committed,
// and the only thing that is ever committed.
//
// [Compute] asks the overlay for every difference between a sealed view and
// its base ([overlay.Face.Delta]) and costs time in the number of changes, not
// in the size of the tree. What the session wrote and left as it was is no
// change. Each change carries the facts that must still hold in the base for
// it to be applied; [CheckDrift] decides one of them, here and in the
// committer, so that the two cannot disagree.
//
// # Two coordinates
//
// Whatever a change takes away is named by its path in the base, and whatever
// it puts there by its path in the view. The two differ only below a renamed
// directory: after `mv a b; rm b/x; echo >>b/y` the change set is "renamed
// b, from a", "deleted a/x" and "modified b/y" (its [Change.Origin] is a/y). A
// change set is therefore applied in two phases: first everything old is moved
// out of the way (deletions and the sources of renames), then everything new
// is put in place, parents first. Swaps and chains of renames need no other
// rule.
//
// Nothing in this package runs a program or writes to a tree.
package review
