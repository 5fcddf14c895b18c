package jail

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// argv[0] of the two processes that are this program again; ps shows the first.
const (
	supervisorName = "galley: machine supervisor"
	programName    = "galley: machine"
)

// The descriptors that both inherit, beside 0, 1 and 2. Those of the program
// follow.
const (
	lifeFD   = 3
	reportFD = 4
	filesFD  = 5
)

const (
	// signalled is added to a signal to make the supervisor's exit status.
	signalled = 128
	maxReport = 64 << 10
	maxSpec   = 4 << 20
	maxFiles  = 32
)

// Init does the work of the supervisor, or becomes the program, in a process
// that [Start] started, and returns at once in every other. Call it first
// thing in main, and in TestMain, before flags are read.
func Init() {
	if len(os.Args) != 1 {
		return
	}
	switch os.Args[0] {
	case supervisorName:
		runtime.LockOSThread()
		os.Exit(supervise())
	case programName:
		runtime.LockOSThread()
		os.Exit(become())
	}
}

// supervise starts the program and waits for it, on the thread that is its
// parent. It ends when the program does, or the caller.
func supervise() int {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGTERM, unix.SIGQUIT)
	life := os.NewFile(lifeFD, "life")
	report := os.NewFile(reportFD, "report")
	unix.CloseOnExec(lifeFD)
	unix.CloseOnExec(reportFD)
	b, err := readFrame(life)
	if err != nil {
		return 1 // the caller is gone, nobody is there to tell
	}
	w, err := decodeWork(b)
	if err != nil {
		tell(report, 0, err)
		return 1
	}
	cmd, err := startProgram(w, report)
	if err != nil {
		tell(report, 0, err)
		return 1
	}
	go func() {
		var one [1]byte
		_, _ = life.Read(one[:]) // nothing follows: the caller ended, or wants the program's end
		_ = cmd.Process.Kill()
	}()
	return statusOf(cmd.Wait())
}

// statusOf is the exit status that tells the caller how the program ended.
func statusOf(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		return 1
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return signalled + int(ws.Signal())
	}
	return exit.ExitCode()
}

// tell reports that the program has begun, or why not.
func tell(report *os.File, pid int, err error) {
	r := begun{PID: pid}
	if err != nil {
		r.Error = err.Error()
		errors.As(err, &r.Errno)
	}
	if b, merr := json.Marshal(r); merr == nil {
		_, _ = report.Write(b)
	}
	_ = report.Close()
}

// startProgram starts this program again in the new namespaces, where it makes
// its root and executes the program, and reports that it has. Of the
// descriptors that were passed, only the program keeps any.
func startProgram(w work, report *os.File) (*exec.Cmd, error) {
	files := make([]*os.File, w.Files)
	for i := range files {
		files[i] = os.NewFile(uintptr(filesFD+i), fmt.Sprintf("passed %d", i))
		unix.CloseOnExec(filesFD + i)
	}
	lifeRead, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer life.Close()
	failure, failureWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failure.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{programName}
	cmd.Env = append(runtimeEnv(), "GOMAXPROCS=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = append([]*os.File{lifeRead, failureWrite}, files...)
	w.Root, w.NoGroups = os.Geteuid() == 0, !setgroupsAllowed()
	if err := w.prepareDevices(cmd); err != nil {
		return nil, err
	}
	if cmd.SysProcAttr, err = attributes(w); err != nil {
		return nil, err
	}
	if w.Root && !w.Owners {
		w.UID, w.GID = unusedID(cmd.SysProcAttr.UidMappings), unusedID(cmd.SysProcAttr.GidMappings)
	}
	encoded, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	err = cmd.Start()
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("make the namespaces of a machine: %w%s", err, whyNoNamespaces(err))
	}
	if w.Owners {
		if err := mapOwners(cmd.Process.Pid); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return nil, fmt.Errorf("give a machine its ids: %w", err)
		}
	}
	// A program that fails at once does not read.
	_ = writeFrame(life, encoded)
	said, _ := io.ReadAll(io.LimitReader(failure, maxReport))
	if len(said) > 0 {
		_, _ = report.Write(said)
		_ = report.Close()
	} else {
		tell(report, cmd.Process.Pid, nil)
	}
	return cmd, nil
}

// work is what the caller tells the supervisor, and that the program.
type work struct {
	Spec
	// Files counts the descriptors for the program.
	Files int `json:"files"`
	// Root started the program, which is to change to UID and GID.
	Root bool `json:"root,omitempty"`
	UID  int  `json:"uid,omitempty"`
	GID  int  `json:"gid,omitempty"`
	// NoGroups: groups cannot be set.
	NoGroups bool `json:"no_groups,omitempty"`
	// DevFD is a file system with the devices, made by root, or 0.
	DevFD int `json:"dev_fd,omitempty"`
}

func decodeWork(b []byte) (work, error) {
	var w work
	err := json.Unmarshal(b, &w)
	if err == nil && (len(w.Argv) == 0 || w.Files < 0 || w.Files > maxFiles) {
		err = errors.New("no program, or too many descriptors")
	}
	if err != nil {
		return w, fmt.Errorf("what the supervisor of a machine is to do: %w", err)
	}
	return w, nil
}

// writeFrame writes b after its length.
func writeFrame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readFrame reads what writeFrame wrote.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxSpec {
		return nil, fmt.Errorf("%d bytes are too many", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
