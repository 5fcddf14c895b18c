// Command galley runs programs over a copy-on-write view of a real tree, and
// lets a person see, keep or drop what they did.
//
// This package is the command line and nothing else: each command is one file
// (cmd_VERB.go) with its help, its options and a function that calls the
// packages which do the work.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/vm/jail"
	"github.com/galleyfs/galley/vm/krun"
	"github.com/galleyfs/galley/vm/netstack"
)

func main() {
	// The program starts itself again in several roles. They come before
	// anything else, because they run with other privileges and in other
	// namespaces than the command line.
	local.Init()
	jail.Init()
	netstack.Init()
	krun.Init()
	if len(os.Args) > 1 && os.Args[1] == owner.Command {
		os.Exit(owner.Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == overlayServer {
		os.Exit(overlayMain(os.Args[2:]))
	}
	collectLate()
	// A signal cancels the work at hand, which then ends at a point where
	// nothing is half done. While a command runs in a sandbox, signals are
	// the command's (see env.work).
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code := Main(ctx, os.Args, newEnv(os.Stdin, os.Stdout, os.Stderr, os.Getenv))
	stop()
	os.Exit(code)
}

// collectLate has a command that ends soon begin to collect garbage at 32 MB
// instead of 4. One that goes on has the usual pace from then on.
func collectLate() {
	usual := debug.SetGCPercent(800)
	if usual != 100 {
		debug.SetGCPercent(usual) // somebody has chosen
		return
	}
	first := new([16]byte)
	runtime.AddCleanup(first, func(p int) { debug.SetGCPercent(p) }, usual)
}
