// Command galley-guest is the agent in Galley's virtual machines: their first
// process, and the processes in them that work on files. It is built without
// cgo, so that it needs nothing of the guest.
package main

import (
	"fmt"
	"os"

	"github.com/galleyfs/galley/sandbox/microvm/guestfiles"
	"github.com/galleyfs/galley/vm/guest/agent"
)

func main() {
	if os.Args[0] == agent.FilesName {
		os.Exit(guestfiles.Main())
	}
	if err := agent.Main(); err != nil {
		fmt.Fprintln(os.Stderr, "galley-guest:", err)
		os.Exit(2)
	}
}
