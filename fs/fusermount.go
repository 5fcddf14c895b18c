package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// errNoFusermount names what to install.
var errNoFusermount = errors.New("fusermount3 is not installed; on Debian and Ubuntu: apt install fuse3")

// OpenFusermount mounts at dir through the set-uid helper fusermount3, so that
// an ordinary user's mount stands in the namespace everybody sees, and returns
// the /dev/fuse descriptor as [OpenMount] does. dir must belong to the user.
// Cancelling ctx kills the helper.
func OpenFusermount(ctx context.Context, dir string, o MountOptions) (*os.File, error) {
	bin, err := findFusermount()
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair for fusermount3: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer ours.Close()

	// The helper finds its end of the pair by this variable (fusermount3(1),
	// libfuse's mount_util protocol) and sends the descriptor over it.
	cmd := exec.CommandContext(ctx, bin, "-o", o.fusermount(), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	_ = theirs.Close()
	if err != nil {
		return nil, fusermountError("mount", dir, said.String(), err)
	}
	dev, err := receiveDevice(ours)
	if err != nil {
		return nil, fmt.Errorf("mount %s: fusermount3 succeeded, but sent no descriptor: %w", dir, err)
	}
	return dev, nil
}

func findFusermount() (string, error) {
	for _, name := range []string{"fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"} {
		if bin, err := exec.LookPath(name); err == nil {
			return bin, nil
		}
	}
	return "", errNoFusermount
}

// fusermountError puts what the helper said in front and adds the remedy where
// there is one.
func fusermountError(op, dir, said string, err error) error {
	said = strings.TrimSpace(said)
	if said == "" {
		said = err.Error()
	}
	hint := ""
	switch {
	case strings.Contains(said, "user_allow_other"):
		hint = "; as root, add a line user_allow_other to /etc/fuse.conf, or mount without allow_other"
	case strings.Contains(said, "failed to open "+devFuse):
		hint = "; as root: modprobe fuse && chmod 0666 " + devFuse
	case strings.Contains(said, "too many FUSE filesystems"):
		hint = "; raise mount_max in /etc/fuse.conf"
	case strings.Contains(said, "Operation not permitted"):
		hint = "; is fusermount3 still set-uid root, and are set-uid programs allowed here?"
	}
	return fmt.Errorf("%s %s: %s%s", op, dir, said, hint)
}

// receiveDevice takes the one descriptor that fusermount3 sends.
func receiveDevice(sock *os.File) (*os.File, error) {
	var data [4]byte
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	var err error
	for {
		n, oobn, _, _, err = unix.Recvmsg(int(sock.Fd()), data[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	if n == 0 && oobn == 0 {
		return nil, errors.New("it closed the socket")
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), devFuse), nil
		}
	}
	return nil, errors.New("its message holds no descriptor")
}
