package owner

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
	"github.com/galleyfs/galley/snapshots"
)

// The read-only mounts through which the engine reaches the bases need
// CAP_SYS_ADMIN to make and nothing to use. An ordinary user has it in a user
// namespace of his own; but the owner must not live in one, because there all
// owners and groups but one look the same, which would falsify what the
// session records of the base. So a short-lived child makes the mounts in a
// user and a mount namespace, and sends them up as descriptors.

// basesCommand, after Command, is how that child is started.
const basesCommand = "bases"

// fdBases is the child's end of the connection.
const fdBases = 3

// detached are the bases' mounts that could be made, by path.
type detached map[string]int

// detachBases makes the mounts of all trees. Where it may not, the engine's
// plain descriptors do; status tells which it is.
func detachBases(trees []snapshots.TreeSpec, log *slog.Logger) detached {
	out := detached{}
	var paths []string
	for _, t := range trees {
		if t.OnImage() {
			continue
		}
		fd, err := overlay.DetachBase(t.Base)
		if err == nil {
			out.put(t.Base, fd)
			continue
		}
		paths = append(paths, t.Base)
	}
	if len(paths) == 0 {
		return out
	}
	if err := out.fromChild(paths); err != nil {
		log.Warn("no read-only mount of the bases; they are reached as they are", "error", err)
	}
	return out
}

func (d detached) put(path string, fd int) {
	if old, ok := d[path]; ok {
		closeFD(old)
	}
	d[path] = fd
}

// open opens a base by its mount, if there is one.
func (d detached) open(path string) (*overlay.Base, error) {
	fd, ok := d[path]
	if !ok {
		return overlay.OpenBase(hostfs.OS, path)
	}
	// Two trees may have one base.
	mine, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return overlay.NewBase(hostfs.OS, mine, path, true)
}

func (d detached) close() {
	for _, fd := range d {
		closeFD(fd)
	}
}

// fromChild has a child in namespaces of its own make the mounts of paths.
func (d detached) fromChild(paths []string) error {
	mine, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer mine.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{Command, basesCommand}, paths...)...)
	cmd.Env = testEnv()
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// No ids are mapped: who is who on the host decides what the child may
		// reach, mapped or not, and an owner at work, which nobody may look
		// into, could not write the map.
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		_ = theirs.Close()
		return err
	}
	_ = theirs.Close()
	rerr := d.receive(mine, paths)
	return errors.Join(rerr, cmd.Wait())
}

// receive takes the mounts that the child sends, each with its number.
func (d detached) receive(conn *net.UnixConn, paths []string) error {
	l := &link{conn: conn}
	for range paths {
		b, fd, err := l.read()
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(b))
		if err != nil || n < 0 || n >= len(paths) || fd < 0 {
			closeFD(fd)
			return errors.New("the child that makes them sent " + strconv.Quote(string(b)))
		}
		d.put(paths[n], fd)
	}
	return nil
}

// basesMain is the child.
func basesMain(paths []string) int {
	conn, err := connOf(os.NewFile(fdBases, "bases"))
	if err != nil {
		return 2
	}
	l := &link{conn: conn}
	for i, p := range paths {
		fd, err := overlay.DetachBase(p)
		if err != nil {
			return 3
		}
		if err := l.write(i, fd); err != nil {
			return 4
		}
	}
	return 0
}
