package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/kernel"
)

const (
	// defaultCPUs and defaultMemory are a machine's where nothing else is
	// asked for.
	defaultCPUs   = 2
	defaultMemory = 1 << 30
)

// prepareMachine completes a request for a machine: it finds the driver's
// program and makes what the machine boots.
func (e *env) prepareMachine(ctx context.Context, st *snapshots.Store, r *owner.VM) error {
	if r.Driver == "" {
		r.Driver = "qemu"
	}
	if r.Driver == "qemu" && r.Program == "" {
		// An owner that runs has no $PATH; what is not there it says.
		r.Program, _ = exec.LookPath("qemu-system-x86_64")
	}
	if r.Config.CPUs == 0 {
		r.Config.CPUs = defaultCPUs
	}
	if r.Config.Memory == 0 {
		r.Config.Memory = defaultMemory
	}
	if r.Driver == "krun" && r.KernelFile == "" {
		// libkrunfw has the kernel, and libkrun starts the agent itself.
		var err error
		if r.Config.Init, err = kernel.FindGuest(""); err != nil {
			return machineError(err)
		}
		return nil
	}
	boot, err := kernel.Prepare(ctx, kernel.Options{Path: r.KernelFile, Cache: owner.MachineCache(st)})
	if err != nil {
		return machineError(err)
	}
	r.Config.Kernel, r.Config.Initrd = boot.Kernel, boot.Initrd
	return nil
}

// startMachine starts the session's machine through c, and says once that it
// has no hardware acceleration.
func (e *env) startMachine(ctx context.Context, c *owner.Client, r owner.VM) (owner.VMStatus, error) {
	p := e.progress("starting the machine")
	defer p.Close()
	vmst, err := c.StartVM(ctx, r)
	p.Close()
	if err != nil {
		return vmst, machineError(err)
	}
	if vmst.SlowNew {
		fmt.Fprintf(e.stderr, "galley: machines are emulated on this host, which is slow: %s\n", safeLine(vmst.Slow))
	}
	return vmst, nil
}

// machineError adds the next step to why a machine could not be started.
func machineError(err error) error {
	if errors.Is(err, vm.ErrUnavailable) {
		return withHint(err, "galley doctor says what machines need here")
	}
	return err
}
