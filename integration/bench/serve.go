package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	gfs "github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// serveMain is `bench serve BASE STATE DIR`: the engine and its FUSE face with
// no session and no program around them, what -direct measures. At the end it prints how many
// requests of each kind it has answered.
func serveMain(args []string) int {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	writeback := flags.Bool("writeback", false, "with the kernel's writeback cache")
	if err := flags.Parse(args); err != nil || flags.NArg() != 3 {
		fmt.Fprintln(os.Stderr, "usage: bench serve [-writeback] BASE STATE DIR")
		return 2
	}
	if err := serve(flags.Arg(0), flags.Arg(1), flags.Arg(2), *writeback); err != nil {
		fmt.Fprintf(os.Stderr, "serve: %v\n", err)
		return 1
	}
	return 0
}

func serve(base, state, dir string, writeback bool) error {
	const active = 1
	if _, err := os.Stat(state + "/layers"); err != nil {
		if err := overlay.InitState(hostfs.OS, state, active); err != nil {
			return err
		}
	}
	lower, err := overlay.OpenBase(hostfs.OS, base)
	if err != nil {
		return err
	}
	tree, err := overlay.Open(overlay.Config{Name: "bench", StateDir: state, Base: lower}, overlay.Stack{Active: active})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	open := gfs.OpenMount
	if os.Geteuid() != 0 {
		open = func(dir string, o gfs.MountOptions) (*os.File, error) { return gfs.OpenFusermount(ctx, dir, o) }
	}
	dev, err := open(dir, gfs.MountOptions{AllowOther: os.Geteuid() == 0})
	if err != nil {
		return err
	}
	server, err := gfs.Serve(dev, gfs.Live(tree), gfs.Options{Writeback: writeback})
	if err != nil {
		return err
	}
	select {
	case <-server.Done():
	case <-ctx.Done():
		if err := gfs.Unmount(context.Background(), dir); err != nil {
			return err
		}
		<-server.Done()
	}
	for name, n := range server.Stats() {
		fmt.Fprintf(os.Stderr, "%-12s %d\n", name, n)
	}
	return tree.Close()
}
