// Command init is the program of a guest of package testvm: as process 1 it does
// what it is told over its port. Started otherwise, it runs its cases on the
// directory in GUEST_DIR, as a test binary does.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/testvm"
)

func main() {
	if os.Getpid() != 1 {
		runCases()
		return
	}
	fmt.Println("init:", serve())
	off()
}

func off() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// serve does what it is told; it returns when that is not possible any more.
func serve() error {
	for _, m := range []struct{ what, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.at, m.what, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := os.MkdirAll("/export", 0o755); err != nil {
		return err
	}
	if err := os.Symlink("/proc/self/fd", "/dev/fd"); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		if err := load(name); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	h := handler{files: map[int]*os.File{}, maps: map[int][]byte{}}
	var write sync.Mutex
	in := bufio.NewReaderSize(port, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		var r testvm.Request
		if err := json.Unmarshal(line, &r); err != nil {
			return err
		}
		go func() {
			begin := time.Now()
			reply, err := h.do(r)
			reply.ID, reply.Nanos = r.ID, max(reply.Nanos, int64(time.Since(begin)))
			if err != nil {
				reply.Err = err.Error()
				errors.As(err, &reply.Errno)
			}
			b, err := json.Marshal(reply)
			if err != nil {
				b = []byte(`{"Err":"no answer"}`)
			}
			write.Lock()
			defer write.Unlock()
			_, _ = port.Write(append(b, '\n'))
		}()
	}
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// openPort waits for the port: the bus is looked through while this runs.
func openPort() (*os.File, error) {
	for range 3000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == testvm.PortName {
				// Blocking: the port is read by one thread.
				fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(n)), unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err != nil {
					return nil, err
				}
				return os.NewFile(uintptr(fd), "port"), nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("no port " + testvm.PortName)
}
