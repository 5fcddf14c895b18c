package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/guest"
	"github.com/galleyfs/galley/vm/kernel"
)

// machineChapter measures virtual machines from outside.
var machineChapter = chapter{
	name:  "machines",
	title: fixed("Virtual machines"),
	about: fixed("A guest of one processor and 256 MiB, with the host's kernel and an image of busybox that is there already. " +
		"Processor time is that of all processes on the host. Without KVM that runs guests, the figures for it are not measured; " +
		"the first line says which it was."),
	rootOnly: true,
	measure:  machineRows,
}

const (
	machineImage  = "bench-busybox"
	machineStarts = 5
)

// startedMachine is a machine that a run of galley left at work.
type startedMachine struct {
	session string
	wall    time.Duration // until the command's first output
	cpu     time.Duration // of everything, until then
	state   machineState
}

// machineState is what `galley ps --json` tells of it.
type machineState struct {
	Session string          `json:"session"`
	Owner   int             `json:"owner"`
	Machine *owner.VMStatus `json:"machine"`
}

func machineRows(b *bench, w who, dir string, add func(figure)) error {
	project := dir + "/project"
	err := b.must(w, dir, fmt.Sprintf(`mkdir -p project image/bin image/etc image/dev image/proc image/sys image/tmp image/run image/workspace
		cp "$(command -v busybox)" image/bin/busybox; for i in sh echo true cat; do ln -s busybox image/bin/$i; done
		echo root:x:0:0::/:/bin/sh > image/etc/passwd
		%s image import image %s`, b.galley, machineImage))
	if err != nil {
		return err
	}
	if _, err := b.startMachine(w, project, "warm"); err != nil { // the caches of kernels, and what is found out about the host
		return err
	}
	if err := b.must(w, project, b.galley+" stop warm"); err != nil {
		return err
	}
	kernelCPU, err := b.bareKernel(w)
	if err != nil {
		return err
	}
	var all []startedMachine
	for i := range machineStarts {
		m, err := b.startMachine(w, project, fmt.Sprintf("one%d", i))
		if err != nil {
			return err
		}
		all = append(all, m)
		if i < machineStarts-1 {
			if err := b.must(w, project, b.galley+" stop "+m.session); err != nil {
				return err
			}
		}
	}
	startRows(all, kernelCPU, add)
	last := all[len(all)-1]
	defer func() { _ = b.must(w, project, b.galley+" stop "+last.session) }()
	if err := roundTripRow(b, w, last.session, add); err != nil {
		return err
	}
	add(figure{name: "memory of an idle machine: QEMU with the guest's, its supervisor and the session's owner", got: showSize(last.state.memory())})
	return b.fourRows(w, project, add)
}

// startRows are the stages of a start, each the median of several.
func startRows(all []startedMachine, kernelCPU time.Duration, add func(figure)) {
	stage := func(of func(startedMachine) time.Duration) time.Duration {
		var ds []time.Duration
		for _, m := range all {
			ds = append(ds, of(m))
		}
		return median(ds)
	}
	accel := all[0].state.Machine.Accel
	add(figure{name: "accelerator", got: accel})
	total := figure{name: "cold start to the first output of a command", got: showTime(stage(func(m startedMachine) time.Duration { return m.wall }))}
	if wall := stage(func(m startedMachine) time.Duration { return m.wall }); accel == vm.KVM {
		total = within(total.name, wall, 250*time.Millisecond, "")
	}
	add(total)
	const most = 100 * time.Millisecond
	boot := func(m startedMachine) owner.BootTimes { return m.state.Machine.Boot }
	rest := stage(func(m startedMachine) time.Duration {
		return m.wall - boot(m).Process - boot(m).Agent - boot(m).Setup
	})
	add(within("of that, the session, the image, the kernel's files and the command", rest, most, ""))
	add(within("of that, until the machine's process runs", stage(func(m startedMachine) time.Duration { return boot(m).Process }), most, ""))
	add(figure{name: "of that, the guest's kernel boots to the agent", got: showTime(stage(func(m startedMachine) time.Duration { return boot(m).Agent }))})
	add(within("of that, the agent makes the guest's tree", stage(func(m startedMachine) time.Duration { return boot(m).Setup }), most, ""))
	cpu := stage(func(m startedMachine) time.Duration { return m.cpu })
	add(figure{name: "processor time of the start", got: showTime(cpu)})
	add(figure{name: "processor time of the kernel's own boot, alone", got: showTime(kernelCPU)})
	add(within("processor time beyond the kernel's own boot", cpu-kernelCPU, 1500*time.Millisecond, ""))
}

// startMachine runs a command in a new session's machine, which it leaves at
// work.
func (b *bench) startMachine(w who, project, session string) (startedMachine, error) {
	m := startedMachine{session: session}
	cmd := b.command(w, project, b.galley, "run", "--new", "--session", session, "--sandbox", "microvm", "--image", machineImage,
		"--cpus", "1", "--memory", "256M", "--detach", "--quiet", "--", "echo", "up")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return m, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return m, err
	}
	line, rerr := bufio.NewReader(out).ReadString('\n')
	m.wall = time.Since(begin)
	if err := cmd.Wait(); err != nil || rerr != nil || line != "up\n" {
		return m, fmt.Errorf("start a machine: %w, %q\n%s", errors.Join(err, rerr), line, errs.String())
	}
	if m.state, err = b.machineState(w, session); err != nil {
		return m, err
	}
	m.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	m.cpu += cpuOf(m.state.pids())
	return m, nil
}

func (b *bench) machineState(w who, session string) (machineState, error) {
	out, err := b.command(w, "/", b.galley, "ps", "--json").Output()
	if err != nil {
		return machineState{}, fmt.Errorf("galley ps: %w", err)
	}
	var all []machineState
	if err := json.Unmarshal(out, &all); err != nil {
		return machineState{}, err
	}
	for _, s := range all {
		if s.Session == session && s.Machine != nil {
			return s, nil
		}
	}
	return machineState{}, fmt.Errorf("galley ps does not list the machine of %s", session)
}

// pids are the machine's process, its supervisor and the owner.
func (s machineState) pids() []int {
	return []int{s.Owner, s.Machine.PID, parentOf(s.Machine.PID)}
}

// memory is what they hold, with what they share in shares.
func (s machineState) memory() int64 {
	var sum int64
	for _, pid := range s.pids() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kb, _ := strconv.ParseInt(f[1], 10, 64)
				sum += kb << 10
			}
		}
	}
	return sum
}

func showSize(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/(1<<20)) }

// statOf are the fields of /proc/PID/stat from the state on.
func statOf(pid int) []string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

func parentOf(pid int) int {
	if f := statOf(pid); len(f) > 1 {
		n, _ := strconv.Atoi(f[1])
		return n
	}
	return 0
}

// bareKernel is the processor time of the kernel's own boot: under emulation,
// up to where it finds no root.
func (b *bench) bareKernel(w who) (time.Duration, error) {
	image, err := kernel.Uncompressed(context.Background(), kernel.Options{Cache: filepath.Join(w.home, "state", "machines")})
	if err != nil {
		return 0, err
	}
	var ds []time.Duration
	for range 3 {
		cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35,accel=tcg",
			"-cpu", "max,la57=off", "-m", "256M", "-kernel", image, "-append", "quiet panic=-1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("boot the kernel alone: %w\n%s", err, out)
		}
		ds = append(ds, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	return median(ds), nil
}

// roundTripRow is how long a command takes in a machine that runs.
func roundTripRow(b *bench, w who, session string, add func(figure)) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	st, err := snapshots.OpenStore(filepath.Join(w.home, "state"), snapshots.StoreOptions{})
	if err != nil {
		return err
	}
	defer st.Close()
	sess, err := st.Find(session)
	if err != nil {
		return err
	}
	c, err := owner.Dial(ctx, sess)
	if err != nil {
		return err
	}
	defer c.Close()
	status, err := c.Status(ctx)
	if err != nil {
		return err
	}
	agent := guest.NewClient(c.DialVM)
	trip := func(n int, one func() error) (time.Duration, error) {
		var ds []time.Duration
		for range n {
			begin := time.Now()
			if err := one(); err != nil {
				return 0, err
			}
			ds = append(ds, time.Since(begin))
		}
		return median(ds), nil
	}
	ask, err := trip(100, func() error { _, err := agent.Info(ctx); return err })
	if err != nil {
		return err
	}
	run, err := trip(50, func() error {
		k, err := agent.Start(ctx, guest.Exec{Argv: []string{"/bin/true"}}, func(int, []byte) {})
		if err != nil {
			return err
		}
		<-k.Gone()
		return nil
	})
	if err != nil {
		return err
	}
	add(figure{name: "a question to the agent and its answer", got: showTime(ask)})
	f := figure{name: "a warm `true` in the guest, from the call to its end", got: showTime(run)}
	if status.VM.Accel == vm.KVM {
		f = within(f.name, run, 5*time.Millisecond, "")
	}
	add(f)
	return nil
}

// fourRows start four machines at once.
func (b *bench) fourRows(w who, project string, add func(figure)) error {
	var starting sync.WaitGroup
	machines := make([]startedMachine, 4)
	errs := make([]error, len(machines))
	begin := time.Now()
	for i := range machines {
		starting.Go(func() { machines[i], errs[i] = b.startMachine(w, project, fmt.Sprintf("four%d", i)) })
	}
	starting.Wait()
	wall := time.Since(begin)
	var sum int64
	for _, m := range machines {
		if m.state.Machine != nil {
			sum += m.state.memory()
			defer func() { _ = b.must(w, project, b.galley+" stop "+m.session) }()
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	add(figure{name: "four machines at once, until each has put out something", got: showTime(wall)})
	add(figure{name: "memory of the four", got: showSize(sum)})
	return nil
}
