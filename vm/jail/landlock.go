package jail

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a ruleset may do with files, by the version of Landlock that knows it.
var landlockAccess = []struct {
	abi    int
	access uint64
}{
	{1, unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM},
	{2, unix.LANDLOCK_ACCESS_FS_REFER},
	{3, unix.LANDLOCK_ACCESS_FS_TRUNCATE},
	{5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
}

const (
	// landlockFile are the rights that a rule about a file may have.
	landlockFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	landlockRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR

	landlockNet    = 4 // ABI that can refuse TCP
	landlockScopes = 6 // ABI that keeps abstract sockets and signals inside
)

// fence puts this thread, and what it executes, into a Landlock domain in which
// only what was placed can be used, as it was placed: a second fence around
// the mounts. Where the kernel has none, there is only the first.
func (w *work) fence() error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil
	}
	abi := int(version)
	var attr unix.LandlockRulesetAttr
	for _, a := range landlockAccess {
		if abi >= a.abi {
			attr.Handled_access_fs |= a.access
		}
	}
	if abi >= landlockNet && !w.HostNetwork {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	if abi >= landlockScopes {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make a Landlock ruleset: %w", errno)
	}
	rules := int(fd)
	defer unix.Close(rules)
	for path, access := range w.accesses() {
		if err := allow(rules, path, access&attr.Handled_access_fs); err != nil {
			return &os.PathError{Op: "Landlock rule", Path: path, Err: err}
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0); errno != 0 {
		return fmt.Errorf("enter the Landlock domain: %w", errno)
	}
	return nil
}

// accesses says what the program may do with what was placed.
func (w *work) accesses() map[string]uint64 {
	const all = ^uint64(0)
	// What is placed is all there is; its names are no secret.
	out := map[string]uint64{"/": unix.LANDLOCK_ACCESS_FS_READ_DIR}
	bind := func(below string, b Bind) {
		out[below+b.Inside] = landlockRead
		if b.Write {
			out[below+b.Inside] = all
		}
	}
	for _, b := range w.Binds {
		bind("", b)
	}
	for _, d := range w.Dirs {
		out[d] = landlockRead
	}
	for _, m := range w.Memory {
		out[m.Inside] = landlockRead
		if m.Write {
			out[m.Inside] = all
		}
		for _, b := range m.Binds {
			bind(m.Inside, b)
		}
	}
	for _, d := range w.Devices {
		out["/dev/"+d] = all
	}
	if w.Proc {
		out["/proc"] = landlockRead
	}
	for _, inside := range w.FUSE {
		out[inside] = all
	}
	return out
}

func allow(rules int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= landlockFile
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
