package main

// Exit statuses of galley. Scripts depend on them: a number is never given
// another meaning and never used again.
//
// galley run and galley attach end with the status of the command they ran
// (128 and the signal's number when a signal ended it), and use only the last
// three of these for themselves, as env(1) and timeout(1) do.
const (
	exitOK      = 0   // done
	exitRefused = 1   // not done, and nothing changed: the answer was no, or the state forbids it
	exitDrift   = 3   // commit: the base changed on the host at paths of the change set
	exitDigest  = 4   // commit: the digest names another change set than the session now has
	exitDamage  = 5   // fsck: something is damaged, and was not repaired
	exitFailed  = 125 // Galley failed, or was called wrongly
	exitCannot  = 126 // run, attach: the command was found and cannot be executed
	exitMissing = 127 // run, attach: the command was not found
)
