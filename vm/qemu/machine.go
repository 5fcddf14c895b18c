package qemu

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/jail"
)

// machine is QEMU running. It is the [vm.Machine] of this driver.
type machine struct {
	process *jail.Process
	accel   string
	said    *tail // what QEMU wrote on standard error

	mu     sync.Mutex
	killed bool
	reason string // what the control connection told of the end

	done chan struct{} // closed when the process is gone and exit is set
	exit vm.Exit       // valid when done
}

// start starts QEMU.
func (q *installation) start(c vm.Config, accel string) (*machine, error) {
	control, qmp, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer qmp.Close()
	stderr, stderrWrite, err := os.Pipe()
	if err != nil {
		_ = control.Close()
		return nil, fmt.Errorf("start a machine: %w", err)
	}
	defer stderrWrite.Close()
	var fd descriptors
	var files []*os.File
	pass := func(f *os.File) int {
		if f == nil {
			return 0
		}
		files = append(files, f)
		return firstDescriptor + len(files) - 1
	}
	fd.console, fd.qmp = pass(c.Console), pass(qmp)
	fd.agent, fd.share, fd.net = pass(c.Agent), pass(c.Share), pass(c.Net)
	process, err := jail.Start(q.spec(c, accel, fd), stderrWrite, files...)
	if err != nil {
		_ = control.Close()
		_ = stderr.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	m := &machine{process: process, accel: accel, said: newTail(), done: make(chan struct{})}
	var reading sync.WaitGroup
	reading.Go(func() { m.said.read(stderr) })
	reading.Go(func() { m.listen(control) })
	go func() {
		code, signal := process.Wait()
		reading.Wait() // both ends went with the process
		m.mu.Lock()
		m.exit = vm.Exit{Code: code, Signal: signal, Killed: m.killed, Reason: m.why(code), At: time.Now()}
		m.mu.Unlock()
		close(m.done)
	}()
	return m, nil
}

// firstDescriptor is the number of the first that a confined process is passed.
const firstDescriptor = 3

// controlPair makes the connection over which QEMU tells what happens.
func controlPair() (mine, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("start a machine: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "control of a machine"), os.NewFile(uintptr(fds[1]), "control of a machine"), nil
}

// why says why the machine ended, as far as QEMU told.
//
// Preconditions: mu is held.
func (m *machine) why(code int) string {
	var parts []string
	if m.reason != "" {
		parts = append(parts, m.reason)
	}
	if said := m.said.String(); said != "" && (code != 0 || m.reason != "") {
		parts = append(parts, said)
	}
	return strings.Join(parts, ": ")
}

// PID is [vm.Machine.PID].
func (m *machine) PID() int { return m.process.PID() }

// Supervisor is the process id of QEMU's parent, for tests.
func (m *machine) Supervisor() int { return m.process.Supervisor() }

// Accel is [vm.Machine.Accel].
func (m *machine) Accel() string { return m.accel }

// Wait is [vm.Machine.Wait].
func (m *machine) Wait() (vm.Exit, error) {
	<-m.done
	return m.exit, nil
}

// Kill is [vm.Machine.Kill].
func (m *machine) Kill() error {
	m.kill("")
	<-m.done
	return nil
}

// kill ends the process. With a reason it is a fault and not a wish.
func (m *machine) kill(reason string) {
	m.mu.Lock()
	select {
	case <-m.done:
	default:
		if reason == "" {
			m.killed = true
		} else if m.reason == "" {
			m.reason = reason
		}
	}
	m.mu.Unlock()
	m.process.Kill()
}
