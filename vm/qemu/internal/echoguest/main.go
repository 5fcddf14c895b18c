// Command echoguest is the init of a guest in the tests of machines: it loads
// the modules, opens the agent's port, says "ready", and does what it is told
// there, a command in a line:
//
//	echo TEXT   answers TEXT
//	cpus        answers the number of processors
//	devices     answers the guest's PCI devices
//	garbage N   writes N random words to each register of each device, and answers
//	ports N     writes N random bytes to random I/O ports
//	off, reset, panic, hang
//
// Started with arguments it is a program in a guest of another init, and does
// the one command that they are.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 {
		answer, err := obey(os.Args[1:])
		fmt.Println(answer, err)
		return
	}
	if err := run(); err != nil {
		fmt.Println("echoguest:", err)
	}
	power(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][3]string{{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}} {
		if err := unix.Mount(m[0], m[1], m[2], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := load(); err != nil {
		return err
	}
	port, err := agentPort()
	if err != nil {
		return err
	}
	if _, err := port.WriteString("ready\n"); err != nil {
		return err
	}
	lines := bufio.NewScanner(port)
	for lines.Scan() {
		answer, err := obey(strings.Fields(lines.Text()))
		if err != nil {
			answer = "error: " + err.Error()
		}
		if _, err := port.WriteString(answer + "\n"); err != nil {
			return err
		}
	}
	return lines.Err()
}

// load loads the modules of the initial file system, in order.
func load() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", name, err)
		}
		f.Close()
	}
	return nil
}

// agentPort waits for the agent's port to appear and opens it.
func agentPort() (*os.File, error) {
	for range 3000 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, _ := os.ReadFile(n)
			if strings.TrimSpace(string(b)) == "galley.agent" {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("no port galley.agent")
}

func obey(words []string) (string, error) {
	if len(words) == 0 {
		return "", nil
	}
	n := 0
	if len(words) > 1 {
		n, _ = strconv.Atoi(words[1])
	}
	switch words[0] {
	case "echo":
		return strings.Join(words[1:], " "), nil
	case "cpus":
		return strconv.Itoa(runtime.NumCPU()), nil
	case "devices":
		names, err := filepath.Glob("/sys/bus/pci/devices/*")
		return strings.Join(names, " "), err
	case "garbage":
		return garbage(n)
	case "ports":
		return ports(n)
	case "off":
		power(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reset":
		power(unix.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "hang":
		select {}
	}
	return "", fmt.Errorf("no command %q", words[0])
}

func power(cmd int) {
	unix.Sync()
	_ = unix.Reboot(cmd)
	select {}
}

// garbage writes to every register of every device that the guest can map. The
// seed is fixed, so that what it finds is found again.
func garbage(n int) (string, error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	bars, err := filepath.Glob("/sys/bus/pci/devices/*/resource[0-9]")
	if err != nil {
		return "", err
	}
	done := 0
	for _, bar := range bars {
		f, err := os.OpenFile(bar, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		st, err := f.Stat()
		if err != nil || st.Size() < 4 {
			f.Close()
			continue
		}
		size := int(min(st.Size(), 1<<16))
		mem, err := unix.Mmap(int(f.Fd()), 0, max(size, os.Getpagesize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		f.Close()
		if err != nil {
			continue
		}
		for range n {
			at := rnd.IntN(size/4) * 4
			binary.LittleEndian.PutUint32(mem[at:], rnd.Uint32())
		}
		done++
	}
	return fmt.Sprintf("wrote to %d of %d", done, len(bars)), nil
}

// ports writes to I/O ports through /dev/port, but for those by which a guest
// ends or resets itself.
func ports(n int) (string, error) {
	f, err := os.OpenFile("/dev/port", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	rnd := rand.New(rand.NewPCG(3, 4))
	for range n {
		at := rnd.Int64N(1 << 16)
		if at == 0x64 || at == 0x92 || at == 0xcf9 || at >= 0x600 && at < 0x680 || at == 0xb2 || at == 0xb3 {
			continue
		}
		if _, err := f.WriteAt([]byte{byte(rnd.Uint32())}, at); err != nil {
			return "", err
		}
	}
	return "done", nil
}
