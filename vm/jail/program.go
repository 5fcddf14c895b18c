package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// programFD is the first of the descriptors that the program was passed.
const programFD = 3

// become makes the root, gives up all rights and executes the program. Only a
// failure returns.
func become() int {
	// The program's descriptors go to where it expects them, below which
	// this process's own are.
	life, failure, err := moveUp()
	if err != nil {
		return 1
	}
	err = execute(life)
	r := begun{Error: err.Error()}
	errors.As(err, &r.Errno)
	if b, merr := json.Marshal(r); merr == nil {
		_, _ = failure.Write(b)
	}
	return 1
}

// moveUp makes room for the program's descriptors.
func moveUp() (life, failure *os.File, err error) {
	var fds [2]int
	for i, fd := range []int{lifeFD, reportFD} {
		if fds[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, filesFD+maxFiles); err != nil {
			return nil, nil, err
		}
	}
	return os.NewFile(uintptr(fds[0]), "life"), os.NewFile(uintptr(fds[1]), "failure"), nil
}

func execute(life *os.File) error {
	b, err := readFrame(life)
	if err != nil {
		return fmt.Errorf("read what to start: %w", err)
	}
	w, err := decodeWork(b)
	if err != nil {
		return err
	}
	if err := makeRoot(w); err != nil {
		return err
	}
	if err := placeFiles(w.programFiles()); err != nil {
		return err
	}
	if err := renounce(w); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent death signal: %w", err)
	}
	// Had the supervisor died before that call, its end of the pipe is closed.
	fds := []unix.PollFd{{Fd: int32(life.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); err != nil || n > 0 {
		return errors.New("the supervisor is gone")
	}
	// Limits come last, because this program itself might be over them.
	if err := limit(w.Spec); err != nil {
		return err
	}
	err = unix.Exec(w.Argv[0], w.Argv, w.Env)
	return fmt.Errorf("execute %s: %w", w.Argv[0], err)
}

// placeFiles moves the n descriptors that were passed down to programFD, and
// has all others closed by execve(2).
func placeFiles(n int) error {
	for i := range n {
		if err := unix.Dup3(filesFD+i, programFD+i, 0); err != nil {
			return fmt.Errorf("place descriptor %d: %w", programFD+i, err)
		}
	}
	if err := unix.CloseRange(uint(programFD+n), ^uint(0)>>1&0x7fffffff, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	return nil
}

// renounce gives up all rights for good: those of the host's root, all
// capabilities over the new namespaces, and every way to get some by execve(2).
//
// A program with owners keeps what making their files takes, over its own user
// namespace; it is root there, and execve(2) would restore what is not taken
// from the bounding set.
func renounce(w work) error {
	var keep uint64
	if w.Owners {
		keep = ownerCapabilities
	}
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the last one that this kernel has
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if w.Root && !w.Owners {
		if err := changeIDs(w); err != nil {
			return err
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	caps := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return w.fence()
}

// changeIDs changes the ids of this thread, the one that executes the program.
func changeIDs(w work) error {
	groups := make([]uint32, len(w.Groups))
	for i, g := range w.Groups {
		groups[i] = uint32(g)
	}
	if err := setgroups(groups); err != nil && !w.NoGroups {
		return fmt.Errorf("set groups: %w", err)
	}
	uid, gid := uintptr(w.UID), uintptr(w.GID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("change the group: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("change the user: %w", errno)
	}
	return nil
}

// setgroups is setgroups(2) for the calling thread alone.
func setgroups(ids []uint32) error {
	var p unsafe.Pointer
	if len(ids) > 0 {
		p = unsafe.Pointer(&ids[0])
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(ids)), uintptr(p), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func limit(s Spec) error {
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"core size", unix.RLIMIT_CORE, 0},
		{"file size", unix.RLIMIT_FSIZE, s.FileSize},
		{"open files", unix.RLIMIT_NOFILE, s.OpenFiles},
		{"processes", unix.RLIMIT_NPROC, s.Processes},
		{"address space", unix.RLIMIT_AS, s.AddressSpace},
	} {
		if l.value == 0 && l.resource != unix.RLIMIT_CORE {
			continue
		}
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("read the limit of %s: %w", l.name, err)
		}
		v := min(l.value, now.Max)
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("limit %s to %d: %w", l.name, v, err)
		}
	}
	return nil
}
