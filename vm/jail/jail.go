// Package jail starts the process of a virtual machine confined: in user,
// mount, pid, network, IPC and UTS namespaces of its own, with a root file
// system in memory that holds what [Spec.Binds] names and nothing else,
// without capabilities and without a way to get any, and within limits.
//
// There are three processes:
//
//	caller       holds the write end of a pipe as long as it lives
//	supervisor   waits for the program; when the pipe ends, it ends too
//	program      is pid 1 of its namespaces, and gets SIGKILL with the supervisor
//
// The supervisor is there because a process that has made itself undumpable,
// as the owner of a session has, cannot give a child's user namespace its ids;
// and because the parent death signal belongs to a thread, of which a Go
// program has many.
package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// Spec says what is started and what it can reach.
type Spec struct {
	// Argv is the program, by its path inside, and its arguments.
	Argv []string `json:"argv"`
	// Env is its whole environment.
	Env []string `json:"env"`
	// Binds are what it sees of the host.
	Binds []Bind `json:"binds"`
	// AddressSpace, FileSize, OpenFiles and Processes are its limits
	// (setrlimit(2)); 0 is none.
	AddressSpace uint64 `json:"address_space,omitempty"`
	FileSize     uint64 `json:"file_size,omitempty"`
	OpenFiles    uint64 `json:"open_files,omitempty"`
	Processes    uint64 `json:"processes,omitempty"`
	// Dirs are empty directories that cannot be written to.
	Dirs []string `json:"dirs,omitempty"`
	// Memory are file systems in memory.
	Memory []Memory `json:"memory,omitempty"`
	// Devices are character devices of the host, by their names in /dev, which
	// the program finds there and may use if the caller may.
	Devices []string `json:"devices,omitempty"`
	// Proc shows it the processes of the jail, and nothing else of /proc.
	Proc bool `json:"proc,omitempty"`
	// FUSE is where FUSE mounts stand that are made in the jail. With any, the
	// last of the files is no descriptor of the program, but a connected
	// SOCK_SEQPACKET socket: see [ServeFUSE].
	FUSE []string `json:"fuse,omitempty"`
	// Owners: the program is root over 65536 ids of its own, and has the
	// capabilities to make files of each of them. Where there are no ids
	// to be had (no /etc/subuid, no newuidmap), it has one.
	Owners bool `json:"owners,omitempty"`
	// HostNetwork leaves it in the caller's network namespace.
	HostNetwork bool `json:"host_network,omitempty"`
	// Groups are supplementary groups of the host that it keeps, where root
	// starts it. Others keep all that they have.
	Groups []int `json:"groups,omitempty"`
}

// Bind is a file, directory or device of the host that is seen inside.
type Bind struct {
	// Host is its path. Symbolic links are followed.
	Host string `json:"host"`
	// Inside is where it is seen.
	Inside string `json:"inside"`
	// Write: it is not made read-only. Devices need it.
	Write bool `json:"write,omitempty"`
}

// Memory is a file system in memory.
type Memory struct {
	// Inside is where it stands.
	Inside string `json:"inside"`
	// Size is the most that it holds, in bytes.
	Size int64 `json:"size"`
	// Dirs are made in it.
	Dirs []string `json:"dirs,omitempty"`
	// Binds are put into it before it is made read-only.
	Binds []Bind `json:"binds,omitempty"`
	// Write lets the program write to it.
	Write bool `json:"write,omitempty"`
}

// Process is a program that was started.
type Process struct {
	cmd *exec.Cmd
	pid int
	// life is the pipe whose end is the supervisor's.
	life *os.File

	killing sync.Once
	done    chan struct{} // closed when the program and the supervisor are gone
	code    int           // valid when done
	signal  int
}

// begun is what the supervisor says once.
type begun struct {
	PID   int           `json:"pid,omitempty"`
	Error string        `json:"error,omitempty"`
	Errno syscall.Errno `json:"errno,omitempty"`
}

// setupError is an error of the supervisor or of the program before it began.
type setupError struct {
	text  string
	errno syscall.Errno
}

// Error is what was told.
func (e *setupError) Error() string { return e.text }

// Unwrap is the errno, if there was one.
func (e *setupError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// Start starts the program. Its standard output and error are stderr, its
// standard input is empty, and files are its descriptors from 3 on. All of them
// stay the caller's. When Start returns without an error, the program has been
// executed.
func Start(s Spec, stderr *os.File, files ...*os.File) (*Process, error) {
	spec, err := json.Marshal(work{Spec: s, Files: len(files)})
	if err != nil {
		return nil, err
	}
	lifeRead, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer lifeRead.Close()
	report, reportWrite, err := os.Pipe()
	if err != nil {
		_ = life.Close()
		return nil, err
	}
	defer report.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{supervisorName}
	cmd.Env = append(runtimeEnv(), "GOMAXPROCS=1")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = stderr, stderr
	cmd.ExtraFiles = append([]*os.File{lifeRead, reportWrite}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = reportWrite.Close()
	if err != nil {
		_ = life.Close()
		return nil, fmt.Errorf("start the supervisor of a machine: %w", err)
	}
	p := &Process{cmd: cmd, life: life, done: make(chan struct{})}
	if err := p.begin(spec, report); err != nil {
		_ = life.Close()
		_ = cmd.Wait()
		return nil, err
	}
	go p.wait()
	return p, nil
}

// begin hands the supervisor its work and waits until the program has begun.
func (p *Process) begin(spec []byte, report io.Reader) error {
	if err := writeFrame(p.life, spec); err != nil {
		return fmt.Errorf("tell the supervisor of a machine what to do: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(report, maxReport))
	if err != nil {
		return fmt.Errorf("hear from the supervisor of a machine: %w", err)
	}
	var r begun
	if err := json.Unmarshal(b, &r); err != nil {
		return errors.New("the supervisor of a machine ended before the machine began")
	}
	if r.Error != "" {
		return &setupError{r.Error, r.Errno}
	}
	p.pid = r.PID
	return nil
}

// wait reaps the supervisor, which ends after the program has.
func (p *Process) wait() {
	err := p.cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		ws, _ := exit.Sys().(syscall.WaitStatus)
		p.code = ws.ExitStatus()
		if ws.Signaled() {
			p.code, p.signal = -1, int(ws.Signal())
		}
	default:
		p.code = -1
	}
	if p.code > signalled {
		p.code, p.signal = -1, p.code-signalled
	}
	p.killing.Do(func() { _ = p.life.Close() })
	close(p.done)
}

// PID is the program's process id.
func (p *Process) PID() int { return p.pid }

// Supervisor is the process id of the program's parent.
func (p *Process) Supervisor() int { return p.cmd.Process.Pid }

// Wait returns the program's exit status, or -1 and the signal that ended it,
// when it is gone.
func (p *Process) Wait() (code, signal int) {
	<-p.done
	return p.code, p.signal
}

// Kill ends the program with SIGKILL and returns when it is gone.
func (p *Process) Kill() {
	p.killing.Do(func() { _ = p.life.Close() })
	<-p.done
}

// runtimeEnv is what of the environment is passed on: what tests tell Go's
// runtime.
func runtimeEnv() []string {
	env := []string{}
	for _, name := range []string{"GOCOVERDIR", "GORACE"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}
