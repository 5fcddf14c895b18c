package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/guest"
)

// Info is [guest.Handler.Info].
func (a *Agent) Info(context.Context) (guest.Info, error) {
	a.mu.Lock()
	calls := a.calls
	a.mu.Unlock()
	i := guest.Info{Version: guest.Version, CPUs: runtime.NumCPU(), Calls: calls, Memory: memoryTotal(), Available: memoryInfo("MemAvailable")}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return i, err
	}
	i.Kernel = unix.ByteSliceToString(u.Release[:])
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return i, err
	}
	i.Uptime = time.Duration(s.Uptime) * time.Second
	return i, nil
}

func memoryTotal() int64 { return memoryInfo("MemTotal") }

// memoryInfo is a line of /proc/meminfo, in bytes.
func memoryInfo(name string) int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		rest, ok := strings.CutPrefix(line, name+":")
		if !ok {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0
		}
		return kb << 10
	}
	return 0
}

// SetClock is [guest.Handler.SetClock].
func (a *Agent) SetClock(_ context.Context, now time.Time) error { return setClock(now) }

func setClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
