package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one measurement of one piece of work.
type sample struct {
	cpu  time.Duration // program, children and server
	wall time.Duration
	note string // in place of figures, where the work cannot be done
}

// who says as whom a command runs.
type who struct {
	name     string // "root" or the ordinary user's
	uid, gid uint32
	home     string
}

// command is argv as this user, in dir, with the bench's environment.
func (b *bench) command(w who, dir string, argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(b.env, "HOME="+w.home, "USER="+w.name, "GALLEY_HOME="+filepath.Join(w.home, "state"))
	if w.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: w.uid, Gid: w.gid}}
	}
	return cmd
}

// must runs a shell text that has to succeed, unmeasured.
func (b *bench) must(w who, dir, script string) error {
	if script == "" {
		return nil
	}
	cmd := b.command(w, dir, "sh", "-euc", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s (as %s in %s): %w\n%s", script, w.name, dir, err, out)
	}
	return nil
}

// measure runs a shell text and counts its CPU time and that of the servers.
// A work that times itself prints a line "ns N", which replaces the wall time,
// or "note TEXT".
func (b *bench) measure(w who, dir, script string, servers []int) (sample, error) {
	cmd := b.command(w, dir, "sh", "-euc", script)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	before := cpuOf(servers)
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		return sample{}, fmt.Errorf("%s (as %s in %s): %w\n%s%s", script, w.name, dir, err, &out, &errs)
	}
	s := sample{wall: wall}
	s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() + cpuOf(servers) - before
	for _, line := range strings.Split(out.String(), "\n") {
		if text, ok := strings.CutPrefix(line, "note "); ok {
			s.note = text
		}
		if text, ok := strings.CutPrefix(line, "ns "); ok {
			ns, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return sample{}, err
			}
			s.wall = time.Duration(ns)
		}
	}
	return s, nil
}

// cpuOf sums the CPU time of running processes, ended threads included, by
// their CPU clocks (see clock_getcpuclockid(3)): these count nanoseconds,
// where /proc counts hundredths of a second.
func cpuOf(pids []int) time.Duration {
	const schedClock = 2 // CPUCLOCK_SCHED, of the whole process
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if unix.ClockGettime(int32(^pid<<3|schedClock), &ts) == nil {
			sum += time.Duration(ts.Nano())
		}
	}
	return sum
}

// servers lists the processes that serve the target: those with a path below
// its place among their arguments. (Not by a mark in
// the environment: Galley's owner is started with a clean one.)
func (t *target) servers() []int {
	var pids []int
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(args, []byte(t.place+"/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// resident sums the resident memory of processes in bytes.
func resident(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(text), "\n") {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				sum += kb << 10
			}
		}
	}
	return sum
}

// dropCaches makes the next look at any tree a cold one.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}
