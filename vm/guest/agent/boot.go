package agent

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The names by which a machine's agent finds its way to the host.
const (
	// portName is the virtio-serial port's.
	portName = "galley.agent"
	// vsockVariable holds another vsock port than the usual one.
	vsockVariable = "GALLEY_VSOCK"
	vsockPort     = 1024
	vsockHost     = 2
)

// underVariable names who started the agent in a machine whose first process is
// not the agent: libkrun, which has one of its own.
const underVariable = "GALLEY_GUEST"

// Main is the agent as the first process of a machine, or its only one but for
// that. It returns only when it is not that.
func Main() error {
	if os.Getpid() != 1 && os.Getenv(underVariable) != "krun" {
		return errors.New("galley-guest is the first process of Galley's virtual machines, and nothing else")
	}
	// Orphans fall to this process, to be waited for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	conn, err := boot()
	if err == nil {
		err = Run(conn, Options{End: powerOff})
	}
	fmt.Fprintln(os.Stderr, "galley-guest:", err)
	powerOff()
	return err
}

// boot mounts what the agent needs, loads modules and connects to the host.
func boot() (net.Conn, error) {
	for _, m := range []struct{ dir, fstype string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if _, err := os.Stat(m.dir); err != nil {
			if err := os.MkdirAll(m.dir, 0o755); err != nil {
				return nil, err
			}
		}
		if mounted(m.dir) {
			continue
		}
		err := unix.Mount(m.fstype, m.dir, m.fstype, 0, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules("/modules/order"); err != nil {
		return nil, err
	}
	return connect()
}

// mounted tells whether a file system stands at dir.
func mounted(dir string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// loadModules loads the files that order lists, one a line.
func loadModules(order string) error {
	f, err := os.Open(order)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name := strings.TrimSpace(s.Text())
		if name == "" {
			continue
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(order), name)
		}
		if err := loadModule(name); err != nil {
			// What really is missing is found out where it is used.
			fmt.Fprintf(os.Stderr, "galley-guest: module %s: %v\n", name, err)
		}
	}
	return nil
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// connectPatience is how long the machine's devices may take to appear.
const (
	connectPatience = 30 * time.Second
	connectPause    = 2 * time.Millisecond
)

// connect finds the way to the host: the virtio-serial port, or vsock.
func connect() (net.Conn, error) {
	for end := time.Now().Add(connectPatience); ; time.Sleep(connectPause) {
		dev, err := findPort()
		if dev != "" {
			return openPort(dev)
		}
		conn, verr := dialVsock()
		if verr == nil {
			return conn, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no way to the host: no virtio-serial port %s (%v), and by vsock: %w", portName, err, verr)
		}
	}
}

// findPort is the device of the virtio-serial port, or "".
func findPort() (string, error) {
	const class = "/sys/class/virtio-ports"
	ports, err := os.ReadDir(class)
	if err != nil {
		return "", err
	}
	for _, p := range ports {
		name, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
		if err == nil && strings.TrimSpace(string(name)) == portName {
			return "/dev/" + p.Name(), nil
		}
	}
	return "", errors.New("there is none of that name")
}

// port is a virtio-serial port as a connection.
type port struct{ *os.File }

// addr is the address of a connection that has none.
type addr string

func (a addr) Network() string { return string(a) }
func (a addr) String() string  { return string(a) }

// LocalAddr is the port's name.
func (p port) LocalAddr() net.Addr { return addr(portName) }

// RemoteAddr is the port's name.
func (p port) RemoteAddr() net.Addr { return addr(portName) }

// openPort opens the port. Until the kernel has heard that the host has its end
// open, a read would say that the stream has ended.
func openPort(dev string) (net.Conn, error) {
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dev, Err: err}
	}
	for end := time.Now().Add(connectPatience); ; time.Sleep(connectPause) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, err := unix.Poll(fds, 0)
		if err == nil && fds[0].Revents&unix.POLLHUP == 0 && fds[0].Revents&unix.POLLOUT != 0 {
			return port{os.NewFile(uintptr(fd), dev)}, nil
		}
		if time.Now().After(end) {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("the host has not opened its end of %s", dev)
		}
	}
}

// dialVsock connects to the host by vsock.
func dialVsock() (net.Conn, error) {
	n := uint64(vsockPort)
	if v := os.Getenv(vsockVariable); v != "" {
		var err error
		if n, err = strconv.ParseUint(v, 10, 32); err != nil {
			return nil, fmt.Errorf("%s=%q: %w", vsockVariable, v, err)
		}
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: vsockHost, Port: uint32(n)}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return port{os.NewFile(uintptr(fd), "vsock")}, nil
}

// powerOff ends the machine.
func powerOff() {
	syncAll()
	if os.Getenv("GALLEY_GUEST") == "krun" {
		// libkrun's machine has no way to be powered off, and ends when it
		// is reset.
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}
