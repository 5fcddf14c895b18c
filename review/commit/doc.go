// Package commit applies a change set to a base. It is the only code in Galley
// that writes one.
//
// docs/commit.md says as numbered rules what a commit does; this is how. A
// commit has two phases. In the first everything new is made, complete in
// content and metadata and durable, in a stage: a hidden directory on the
// base's own file system. Then the intent is written to a journal, which counts
// from one rename on. The second phase only renames: what leaves the base goes
// into the stage, what is new comes out of it, and where something new takes
// the place of something old the two are exchanged by one renameat2(2), so that
// what was replaced can be looked at before it is gone. Every step can be taken
// back, and whether it has happened is told from where its node is; so the
// journal is not written while the base changes, and a recovery goes on, or
// back, from any point.
//
// All work on a base is done by [hostfs.FS] relative to descriptors of
// directories, each opened by one openat2(2) that stays beneath the base and
// follows no link. Nothing else of the host is written but the commit's own
// directory and its lock.
//
//   - plan.go decides what a change set carries under the options;
//   - build.go sorts it into what leaves, what arrives and what stays;
//   - stage.go, content.go and metadata.go make what is new;
//   - emit.go turns it into steps (steps.go), execute.go does them;
//   - journal.go is the record, recover.go and survey.go work from it.
package commit
