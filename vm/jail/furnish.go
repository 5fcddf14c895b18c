package jail

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/fsmount"
)

// host is what is taken from it into the jail.
type host struct {
	binds   []int   // of Spec.Binds
	memory  [][]int // of the binds of each of Spec.Memory
	devices []int   // of Spec.Devices, where root has not made them
	fuse    []int   // /dev/fuse, opened for each of Spec.FUSE
}

// openHost looks up what is to be seen of the host.
func (w *work) openHost() (host, error) {
	var h host
	var err error
	if h.binds, err = openBinds(w.Binds); err != nil {
		return h, err
	}
	for _, m := range w.Memory {
		fds, err := openBinds(m.Binds)
		if err != nil {
			return h, err
		}
		h.memory = append(h.memory, fds)
	}
	if w.DevFD == 0 {
		if h.devices, err = openBinds(w.deviceBinds()); err != nil {
			return h, err
		}
	}
	for range w.FUSE {
		fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return h, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
		}
		h.fuse = append(h.fuse, fd)
	}
	return h, nil
}

func openBinds(binds []Bind) ([]int, error) {
	trees := make([]int, len(binds))
	for i, b := range binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, &os.PathError{Op: "show to the machine", Path: b.Host, Err: err}
		}
		trees[i] = fd
	}
	return trees, nil
}

func (w *work) deviceBinds() []Bind {
	var out []Bind
	for _, name := range w.Devices {
		out = append(out, Bind{Host: "/dev/" + name, Inside: "/dev/" + name, Write: true})
	}
	return out
}

// furnish puts into the new root what the program is to find there.
func (w *work) furnish(root int, h host) error {
	if err := placeBinds(root, h.binds, w.Binds); err != nil {
		return err
	}
	for _, dir := range w.Dirs {
		fd, err := makePlace(root, dir, true)
		if err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
		_ = unix.Close(fd)
	}
	for i, m := range w.Memory {
		if err := placeMemory(root, m, h.memory[i]); err != nil {
			return fmt.Errorf("make %s: %w", m.Inside, err)
		}
	}
	if w.DevFD != 0 {
		if err := placeMount(root, w.DevFD, "/dev"); err != nil {
			return fmt.Errorf("make /dev: %w", err)
		}
	} else if err := placeBinds(root, h.devices, w.deviceBinds()); err != nil {
		return err
	}
	if w.Proc {
		if err := placeProc(root); err != nil {
			return fmt.Errorf("make /proc: %w", err)
		}
	}
	for i, inside := range w.FUSE {
		if err := w.placeFUSE(root, i, h.fuse[i]); err != nil {
			return fmt.Errorf("make %s: %w", inside, err)
		}
	}
	if len(w.FUSE) > 0 {
		_ = unix.Close(w.link())
	}
	return nil
}

// link is the socket over which FUSE mounts are handed out.
func (w *work) link() int { return filesFD + w.Files - 1 }

func placeBinds(root int, trees []int, binds []Bind) error {
	for i, b := range binds {
		if err := placeBind(root, trees[i], b); err != nil {
			return &os.PathError{Op: "show to the machine", Path: b.Host, Err: err}
		}
	}
	return nil
}

// placeMount puts the mount fd, which it closes, at the directory inside.
func placeMount(root, fd int, inside string) error {
	target, err := makePlace(root, inside, true)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	return fsmount.Place(fd, target)
}

func placeMemory(root int, m Memory, binds []int) error {
	fs, err := newMemory(strconv.FormatInt(m.Size, 10), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	again, err := unix.FcntlInt(uintptr(fs), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(again)
	if err := placeMount(root, fs, m.Inside); err != nil {
		return err
	}
	for _, dir := range m.Dirs {
		fd, err := makePlace(again, dir, true)
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
	}
	if err := placeBinds(again, binds, m.Binds); err != nil {
		return err
	}
	if m.Write {
		return nil
	}
	return unix.MountSetattr(again, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// placeProc mounts a /proc that shows this pid namespace and nothing of the
// kernel, which is allowed where the host's own /proc is covered in part, too.
func placeProc(root int) error {
	fd, err := fsmount.New("proc", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, fsmount.Option{"subset", "pid"})
	if err != nil {
		return err
	}
	return placeMount(root, fd, "/proc")
}

// placeFUSE mounts FUSE in the program's user namespace, so that its ids are
// those of the files, hands the descriptor out and waits until it is served.
func (w *work) placeFUSE(root, number, dev int) error {
	fd, err := fsmount.New("fuse", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV,
		fsmount.Option{"source", "galley"}, fsmount.Option{"subtype", "galley"},
		fsmount.Option{"fd", strconv.Itoa(dev)}, fsmount.Option{"rootmode", "40000"},
		fsmount.Option{"user_id", "0"}, fsmount.Option{"group_id", "0"},
		fsmount.Option{"default_permissions", ""}, fsmount.Option{"allow_other", ""})
	if err != nil {
		return err
	}
	for {
		err = unix.Sendmsg(w.link(), []byte{byte(number)}, unix.UnixRights(dev), nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	// With one open here, a dead server's mount would wait for answers for ever.
	_ = unix.Close(dev)
	if err == nil {
		err = awaitServed(w.link())
	}
	if err != nil {
		return fmt.Errorf("hand it out: %w", err)
	}
	return placeMount(root, fd, w.FUSE[number])
}

// fuseServed is the answer to the descriptor of a mount.
const fuseServed = 's'

func awaitServed(link int) error {
	var b [1]byte
	for {
		n, err := unix.Read(link, b[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n != 1 || b[0] != fuseServed:
			return errors.New("nobody serves it")
		default:
			return nil
		}
	}
}

// ServeFUSE does the caller's part of Spec.FUSE: it waits for the descriptors of
// the mounts on link, the other end of the socket that was passed, gives each
// to serve with its number, and lets the program go on. serve takes the
// descriptor over, and returns when requests are answered. ServeFUSE returns when
// the program has begun, or will not.
func ServeFUSE(link *os.File, serve func(number int, dev *os.File) error) error {
	for {
		var b [1]byte
		oob := make([]byte, unix.CmsgSpace(4))
		n, on, _, _, err := unix.Recvmsg(int(link.Fd()), b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		dev, err := oneDescriptor(oob[:on])
		if err != nil {
			return err
		}
		if err := serve(int(b[0]), dev); err != nil {
			return err
		}
		if _, err := link.Write([]byte{fuseServed}); err != nil {
			return err
		}
	}
}

func oneDescriptor(oob []byte) (*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("the descriptor of a share: %w", errors.Join(err, unix.EPROTO))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("the descriptor of a share: %w", errors.Join(err, unix.EPROTO))
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}

// prepareDevices makes, where root starts a program that is root of its own
// ids, the nodes of its devices: it is nobody on the host, whose own nodes it could not open.
func (w *work) prepareDevices(cmd *exec.Cmd) error {
	if !w.Root || !w.Owners || len(w.Devices) == 0 {
		return nil
	}
	fs, err := newMemory("64k", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	for _, name := range w.Devices {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil {
			return &os.PathError{Op: "show to the machine", Path: "/dev/" + name, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || path.Base(name) != name {
			return fmt.Errorf("/dev/%s: not a character device", name)
		}
		err := unix.Mknodat(fs, name, unix.S_IFCHR|0o600, int(st.Rdev))
		if err == nil {
			err = unix.Fchmodat(fs, name, 0o666, 0)
		}
		if err != nil {
			return fmt.Errorf("make a node of /dev/%s for the machine: %w (a container needs the capability MKNOD for that)", name, err)
		}
	}
	w.DevFD = filesFD + len(cmd.ExtraFiles) - 2
	cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fs), "devices"))
	return nil
}

// programFiles counts the descriptors that stay open in the program.
func (w *work) programFiles() int {
	if len(w.FUSE) > 0 {
		return w.Files - 1
	}
	return w.Files
}

// Self is the spec of this program itself, which finds itself at path.
func Self(at string) (Spec, error) {
	exe, err := os.Executable()
	if err != nil {
		return Spec{}, err
	}
	libs, err := Libraries(exe)
	if err != nil {
		return Spec{}, err
	}
	s := Spec{Argv: []string{at}, Env: runtimeEnv(), Binds: []Bind{{Host: exe, Inside: at}}}
	return s.With(libs...), nil
}

// With adds files that are seen at their own paths.
func (s Spec) With(paths ...string) Spec {
	for _, p := range paths {
		s.Binds = append(s.Binds, Bind{Host: p, Inside: p})
	}
	return s
}
