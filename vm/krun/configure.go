package krun

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
)

const enosys = int(unix.ENOSYS)

// callError is a function of libkrun that failed.
type callError struct {
	Function string
	Errno    int
}

func (e *callError) Error() string {
	return fmt.Sprintf("libkrun: %s: %s", e.Function, unix.Errno(e.Errno).Error())
}

func (e *callError) Unwrap() error { return unix.Errno(e.Errno) }

// calls are the functions of libkrun, in the form that Go calls them.
type calls interface {
	initLog(fd int, level uint32) error
	createCtx() (uint32, error)
	freeCtx(ctx uint32) error
	setVMConfig(ctx uint32, cpus uint8, mib uint32) error
	setRoot(ctx uint32, dir string) error
	addVirtiofs(ctx uint32, tag, path string) error
	addReadOnlyVirtiofs(ctx uint32, tag, path string) error
	addNetUnixstream(ctx uint32, fd int, mac [6]byte) error
	disableImplicitVsock(ctx uint32) error
	addVsock(ctx uint32, tsi uint32) error
	addVsockPort(ctx uint32, port uint32, path string) error
	setPortMap(ctx uint32, ports []string) error
	setWorkdir(ctx uint32, dir string) error
	setExec(ctx uint32, path string, args, env []string) error
	setConsoleOutput(ctx uint32, path string) error
	setKernel(ctx uint32, path string, format uint32, initrd, cmdline string) error
	startEnter(ctx uint32) error
}

// machine is what a library is to be told.
type machine struct {
	CPUs    int    `json:"cpus"`
	MiB     int64  `json:"mib"`
	Root    string `json:"root"`    // directory that is the guest's first root, with the agent in it
	Share   string `json:"share"`   // directory that is shared under vm.ShareTag
	Agent   string `json:"agent"`   // socket that waits for the agent
	Console string `json:"console"` // pipe that takes the console's output
	Net     int    `json:"net"`     // descriptor of the network, or -1
	Kernel  string `json:"kernel"`  // "" is libkrunfw's
	Format  uint32 `json:"format"`
	Initrd  string `json:"initrd"`
	Cmdline string `json:"cmdline"`
	Log     int    `json:"log"` // descriptor that takes what the library says
}

// What the guest's kernel starts. libkrun puts all of it into the kernel's
// command line, in double quotes that it does not escape.
const guestInit = "/galley-guest"

var guestEnv = []string{
	"KRUN_INIT_PID1=1", // the agent takes the place of libkrun's own init
	"GALLEY_GUEST=krun", fmt.Sprintf("GALLEY_VSOCK=%d", vm.AgentVsock), "PATH=/bin:/sbin:/usr/bin:/usr/sbin",
}

// logWarnings is KRUN_LOG_LEVEL_WARN.
const logWarnings = 2

// maxMiB is what the library's own types can hold.
const maxMiB = 1 << 31

// rootTag is KRUN_FS_ROOT_TAG.
const rootTag = "/dev/root"

// refuse says why a machine must not be started with a library that can do
// what f says.
func refuse(f Features, m machine) error {
	missing := func(what, fix string) error { return &vm.Missing{What: what, Fix: fix} }
	const update = "install libkrun 1.17 or newer"
	switch {
	case len(f.Missing) > 0:
		return missing(fmt.Sprintf("%s is too old: it lacks %s", f.Path, strings.Join(f.Missing, ", ")), update)
	case m.Net >= 0 && !f.Net:
		return missing(fmt.Sprintf("%s was built without network devices", f.Path), "install a libkrun built with NET=1, or start without --net")
	case m.Net < 0 && !f.NoTSI:
		return missing(fmt.Sprintf("%s would give the guest the host's network: it cannot turn socket hijacking (TSI) off without a network device", f.Path),
			update+", or start with --net")
	case m.Kernel != "" && !f.Kernel:
		return missing(fmt.Sprintf("%s boots no kernel but libkrunfw's", f.Path), "install libkrun 1.11 or newer, or name no kernel")
	case f.MaxCPUs > 0 && m.CPUs > f.MaxCPUs:
		return missing(fmt.Sprintf("%d CPUs are more than KVM has here: %d", m.CPUs, f.MaxCPUs), "")
	case m.CPUs > 255 || m.MiB >= maxMiB:
		return fmt.Errorf("%d CPUs and %d MiB are more than libkrun can be told", m.CPUs, m.MiB)
	}
	return nil
}

// configure makes a context for m. The order of the calls matters:
//
//  1. the log, before anything can be said;
//  2. the context, which all others need;
//  3. processors and memory;
//  4. the guest's root, then the share;
//  5. the network device, before the port map, which a library without the
//     device would take for one of its own; and before vsock, because a
//     device there decides how an implicit vsock would be made;
//  6. the implicit vsock off, then one that hijacks nothing; ports after it;
//  7. an empty port map, where there is a hijacking to be told: no map at all
//     means every port;
//  8. console, kernel, and what is executed.
func configure(lib calls, f Features, m machine) (ctx uint32, err error) {
	if err := refuse(f, m); err != nil {
		return 0, err
	}
	if err := lib.initLog(m.Log, logWarnings); err != nil {
		return 0, err
	}
	if ctx, err = lib.createCtx(); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lib.freeCtx(ctx))
		}
	}()
	steps := []func() error{
		func() error { return lib.setVMConfig(ctx, uint8(m.CPUs), uint32(m.MiB)) },
		func() error {
			if f.ReadOnlyRoot {
				return lib.addReadOnlyVirtiofs(ctx, rootTag, m.Root)
			}
			return lib.setRoot(ctx, m.Root)
		},
		func() error {
			if m.Share == "" {
				return nil
			}
			return lib.addVirtiofs(ctx, vm.ShareTag, m.Share)
		},
		func() error {
			if m.Net < 0 {
				return nil
			}
			mac, err := hardwareAddress(vm.GuestMAC)
			if err != nil {
				return err
			}
			return lib.addNetUnixstream(ctx, m.Net, mac)
		},
		func() error {
			// With a network device an older library hijacks nothing.
			if !f.NoTSI {
				return nil
			}
			if err := lib.disableImplicitVsock(ctx); err != nil {
				return err
			}
			return lib.addVsock(ctx, 0)
		},
		func() error { return lib.addVsockPort(ctx, vm.AgentVsock, m.Agent) },
		func() error {
			if m.Net >= 0 || !f.PortMap {
				return nil
			}
			return lib.setPortMap(ctx, nil)
		},
		func() error { return lib.setConsoleOutput(ctx, m.Console) },
		func() error {
			if m.Kernel == "" {
				return nil
			}
			return lib.setKernel(ctx, m.Kernel, m.Format, m.Initrd, m.Cmdline)
		},
		func() error { return lib.setWorkdir(ctx, "/") },
		func() error { return lib.setExec(ctx, guestInit, nil, guestEnv) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return ctx, err
		}
	}
	return ctx, nil
}

// hardwareAddress reads six octets, as "5a:94:ef:e4:0c:ee".
func hardwareAddress(s string) (mac [6]byte, err error) {
	_, err = fmt.Sscanf(s, "%02x:%02x:%02x:%02x:%02x:%02x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5])
	return mac, err
}

// versionOf reads "1.17.4" from ".../libkrun.so.1.17.4".
func versionOf(path string) string {
	_, version, _ := strings.Cut(filepath.Base(path), ".so.")
	if !strings.Contains(version, ".") {
		return ""
	}
	return version
}
