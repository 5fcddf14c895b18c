package krun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/jail"
)

// programPath is where the process of a machine finds itself in its jail, and by
// it knows what it is.
const programPath = "/galley-krun"

// What else stands in the jail.
const (
	guestRoot   = "/guest" // the guest's first root, with its agent
	shareDir    = "/share"
	runDir      = "/run"
	agentSocket = "/run/agent"
	consolePipe = "/run/console"
	kernelFile  = "/kernel"
	initrdFile  = "/initrd"
)

// The descriptors of the process.
const (
	fdSetup   = 3 // what to do, as JSON
	fdState   = 4 // what became of it, as JSON, until the machine is started
	fdLog     = 5 // what libkrun says
	fdAgent   = 6
	fdConsole = 7
	fdNet     = 8 // if there is one
)

// setup is what the process is told.
type setup struct {
	Krun    string  `json:"krun"`   // library
	Krunfw  string  `json:"krunfw"` // library, or ""
	Inspect bool    `json:"inspect,omitempty"`
	Machine machine `json:"machine"`
}

// state is what it says before it becomes the machine.
type state struct {
	Features Features `json:"features"`
	// Error is a fault, Missing what the host lacks.
	Error   string `json:"error,omitempty"`
	Missing bool   `json:"missing,omitempty"`
	// Started: everything is configured, and the machine starts now.
	Started bool `json:"started,omitempty"`
}

// startFailed is the exit status of a machine that libkrun did not start; its
// own are 125 to 127, and those of guests.
const startFailed = 124

// Init becomes a machine, and never returns, in a process that a driver
// started; in every other it returns at once. Call it first thing in main, and
// in TestMain, before flags are read.
func Init() {
	if len(os.Args) != 1 || os.Args[0] != programPath {
		return
	}
	// libkrun makes the thread that starts the machine its main one, and the
	// threads of the machine have the rights of this one.
	runtime.LockOSThread()
	os.Exit(become())
}

func become() int {
	out := json.NewEncoder(os.NewFile(fdState, "state"))
	var s setup
	err := json.NewDecoder(os.NewFile(fdSetup, "setup")).Decode(&s)
	if err == nil {
		err = jail.Filter(jail.Machine)
	}
	if err != nil {
		_ = out.Encode(state{Error: err.Error()})
		return startFailed
	}
	lib, f, err := open(s)
	if err == nil && !s.Inspect {
		var ctx uint32
		if ctx, err = prepare(lib, f, s.Machine); err == nil {
			_ = out.Encode(state{Features: f, Started: true})
			// Nobody waits for the state any more; the log tells.
			fmt.Fprintln(os.NewFile(fdLog, "log"), lib.startEnter(ctx))
			return startFailed
		}
	}
	if err != nil {
		_ = out.Encode(state{Features: f, Error: err.Error(), Missing: errors.Is(err, vm.ErrUnavailable)})
		return startFailed
	}
	_ = out.Encode(state{Features: f})
	return 0
}

// open loads the libraries.
func open(s setup) (*Library, Features, error) {
	// libkrun looks for libkrunfw by its name alone, and then finds the one
	// that is loaded.
	if s.Krunfw != "" {
		if err := Preload(s.Krunfw); err != nil {
			return nil, Features{}, err
		}
	}
	lib, err := Open(s.Krun)
	if err != nil {
		return nil, Features{}, err
	}
	return lib, lib.Features(), nil
}

// prepare makes the ways to the guest and configures the machine.
func prepare(lib *Library, f Features, m machine) (uint32, error) {
	if err := carryAgent(m.Agent); err != nil {
		return 0, err
	}
	if err := carryConsole(m.Console); err != nil {
		return 0, err
	}
	return configure(lib, f, m)
}

// carryAgent waits for the guest's agent at the socket path and carries its
// bytes; the first connection is the agent's, and there is no second.
func carryAgent(path string) error {
	far, err := net.FileConn(os.NewFile(fdAgent, "agent"))
	if err != nil {
		return fmt.Errorf("the agent's stream: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		near, err := ln.Accept()
		_ = ln.Close()
		if err != nil {
			_ = far.Close()
			return
		}
		guest.Join(near, far)
	}()
	return nil
}

// carryConsole makes a pipe at path and carries what libkrun writes there.
func carryConsole(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// Open for both, it neither waits for libkrun nor ends with it.
	from, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	to := os.NewFile(fdConsole, "console")
	go func() {
		if _, err := io.Copy(to, from); err != nil {
			_, _ = io.Copy(io.Discard, from) // the guest's console must not wait
		}
	}()
	return nil
}
