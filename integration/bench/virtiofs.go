package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/fs/virtiofs"
	"github.com/galleyfs/galley/integration/testvm"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// virtiofsChapter compares what a guest has of the engine's virtio-fs with what
// QEMU's own server gives it of the same stack under kernel overlayfs.
var virtiofsChapter = chapter{
	name:  "virtiofs",
	title: fixed("virtio-fs in a guest: the engine, QEMU's virtiofsd on kernel overlayfs of the same stack, virtiofsd on the plain tree"),
	about: func(s scale) string {
		return fmt.Sprintf("One guest (QEMU's emulation, TCG: this says nothing of KVM; one CPU, the distribution's kernel) has all three mounted. CPU time of QEMU, guest included, "+
			"and of the server; in brackets wall time by the guest's clock, and the same for virtiofsd on overlayfs and on the plain tree. Medians of %d interleaved rounds, each on "+
			"a fresh tree; %d files of 2 KiB, a stream of %d MiB. The guest's caches are dropped before each row but the warm one. The goal is virtiofsd on overlayfs.", vfsRounds, vfsFiles(s), vfsStream(s)>>20)
	},
	rootOnly: true,
	measure:  virtiofsRows,
}

const (
	virtiofsd = "/usr/lib/qemu/virtiofsd"
	vfsRounds = 5
)

func vfsFiles(s scale) int {
	if s.name == "small" {
		return 200
	}
	return 1000
}

func vfsStream(s scale) int {
	if s.name == "small" {
		return 16 << 20
	}
	return 64 << 20
}

// vfsRow is one kind of work in the guest: base works on what the base has, the
// others on what was made before them.
type vfsRow struct {
	name, op, dir string
	n, size       func(scale) int
}

func vfsRowsOf() []vfsRow {
	page := func(scale) int { return 4096 }
	small := func(scale) int { return 2048 }
	return []vfsRow{
		{"walk of a base tree, with a stat of each file", "walk", "base", vfsFiles, small},
		{"stat of each file", "stat", "base", vfsFiles, small},
		{"failed stat beside each", "failed stat", "base", vfsFiles, small},
		{"read of each file", "read", "base", vfsFiles, small},
		{"create and write each file", "create", "new", vfsFiles, small},
		{"rename of each", "rename", "new", vfsFiles, small},
		{"removal of each", "unlink", "new", vfsFiles, small},
		{"stream written and synced", "stream write", "", vfsFiles, vfsStream},
		{"stream read", "stream read", "", vfsFiles, vfsStream},
		{"stream read again, warm", "warm read", "", vfsFiles, vfsStream},
		{"writes of 4 KiB to one file", "small writes", "", vfsFiles, page},
	}
}

// vfsSide is one of the three, in the guest at /m/TAG.
type vfsSide struct {
	tag, share string // share is the directory within the mount, which the tree is at
	pid        int    // of its server
	wall, cpu  map[string][]time.Duration
}

func virtiofsRows(b *bench, w who, dir string, add func(figure)) error {
	if _, err := os.Stat(virtiofsd); err != nil {
		return fmt.Errorf("%w (on Debian it is in qemu-system-common)", err)
	}
	sides := []*vfsSide{{tag: "galley", share: "/w"}, {tag: "ovl"}, {tag: "plain"}}
	for _, s := range sides {
		s.wall, s.cpu = map[string][]time.Duration{}, map[string][]time.Duration{}
	}
	for round := range vfsRounds {
		if err := virtiofsRound(b, w, fmt.Sprintf("%s/r%d", dir, round), round, sides); err != nil {
			return err
		}
	}
	for _, row := range vfsRowsOf() {
		var wall, cpu [3]time.Duration
		for i, s := range sides {
			wall[i], cpu[i] = median(s.wall[row.name]), median(s.cpu[row.name])
		}
		add(within(row.name, cpu[0], cpu[1], fmt.Sprintf(" (%s; on overlayfs %s; plain %s, %s)",
			showTime(wall[0]), showTime(wall[1]), showTime(cpu[2]), showTime(wall[2]))))
	}
	return nil
}

// virtiofsRound measures every row once on each side, in a guest of its own.
func virtiofsRound(b *bench, w who, dir string, round int, sides []*vfsSide) (err error) {
	n := vfsFiles(b.scale)
	// The same base below all; the plain tree is a copy.
	err = b.must(w, "/", fmt.Sprintf(`mkdir -p %[1]s/base/base %[1]s/state %[1]s/up %[1]s/work %[1]s/ovl %[1]s/vm && cd %[1]s/base/base &&
		for d in 0 1 2 3 4 5 6 7 8 9; do mkdir d$d; done &&
		i=0; while [ $i -lt %[2]d ]; do head -c 2048 /dev/zero > d$((i %% 10))/f$i; i=$((i+1)); done &&
		cp -a %[1]s/base %[1]s/plain && mount -t overlay -o lowerdir=%[1]s/base,upperdir=%[1]s/up,workdir=%[1]s/work overlay %[1]s/ovl`, dir, n))
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, unmountIf(dir+"/ovl"), os.RemoveAll(dir))
	}()
	sockets := map[string]string{}
	sides[0].pid = os.Getpid()
	for _, s := range sides[1:] {
		sockets[s.tag] = dir + "/vm/" + s.tag
		pid, stop, err := startVirtiofsd(dir+"/"+s.tag, sockets[s.tag])
		if err != nil {
			return err
		}
		defer stop()
		s.pid = pid
	}
	share, stop, err := serveEngine(dir)
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	vm, err := testvm.Start(ctx, testvm.Options{Dir: dir + "/vm", Memory: 512, Share: share, Sockets: sockets})
	if err != nil {
		return err
	}
	defer vm.Kill()
	for _, s := range sides {
		at := "/m/" + s.tag
		for _, r := range []testvm.Request{
			{Op: "mkdir", Path: at, N: 0o755},
			{Op: "mount", To: s.tag, Path: at, Args: []string{"virtiofs", ""}},
			{Op: "mkdir", Path: at + s.share + "/new", N: 0o755},
		} {
			if _, err := vm.Call(ctx, r); err != nil {
				return err
			}
		}
	}
	for i, row := range vfsRowsOf() {
		for j := range sides {
			s := sides[(i+j+round)%len(sides)]
			before := ticks(vm.PID()) + ticks(s.pid)
			got, err := vm.Call(ctx, testvm.Request{Op: "bench", Path: "/m/" + s.tag + s.share + "/" + row.dir, Args: []string{row.op}, N: row.n(b.scale), Size: row.size(b.scale)})
			if err != nil {
				return fmt.Errorf("%s on %s: %w", row.name, s.tag, err)
			}
			wall, cpu := time.Duration(got.Nanos), ticks(vm.PID())+ticks(s.pid)-before
			log.Printf("%-50s %-8s cpu %s, wall %s", row.name, s.tag, showTime(cpu), showTime(wall))
			s.wall[row.name], s.cpu[row.name] = append(s.wall[row.name], wall), append(s.cpu[row.name], cpu)
		}
	}
	return nil
}

// ticks is the CPU time that a process has taken, all its threads together, as
// finely as the kernel tells (10 ms).
func ticks(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// Behind the name, which may hold anything: fields 14 and 15 are user and
	// system time.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// startVirtiofsd starts QEMU's server of the directory source.
func startVirtiofsd(source, socket string) (pid int, stop func(), err error) {
	cmd := exec.Command(virtiofsd, "--socket-path="+socket, "-o", "source="+source, "-o", "cache=auto", "-o", "sandbox=chroot", "-o", "log_level=err")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for end := time.Now().Add(30 * time.Second); ; {
		if _, err := os.Stat(socket); err == nil {
			return cmd.Process.Pid, stop, nil
		}
		if time.Now().After(end) {
			stop()
			return 0, nil, fmt.Errorf("%s makes no socket %s", virtiofsd, socket)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// serveEngine serves a new tree on the base as "w" of an export.
func serveEngine(dir string) (share *os.File, stop func(), err error) {
	base, err := overlay.OpenBase(hostfs.OS, dir+"/base")
	if err != nil {
		return nil, nil, err
	}
	if err := overlay.InitState(hostfs.OS, dir+"/state", 1); err != nil {
		return nil, nil, err
	}
	tree, err := overlay.Open(overlay.Config{Name: "w", StateDir: dir + "/state", Base: base}, overlay.Stack{Active: 1})
	if err != nil {
		return nil, nil, err
	}
	x := virtiofs.NewExport(virtiofs.ExportOptions{Logger: slog.Default()})
	if err := x.Add("w", fs.Live(tree), virtiofs.TreeOptions{}); err != nil {
		return nil, nil, errors.Join(err, tree.Close())
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	server, err := virtiofs.Serve(os.NewFile(uintptr(pair[0]), "share"), x, virtiofs.Options{})
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[1]), "share"), func() {
		_ = server.Close()
		x.Close()
		if err := tree.Close(); err != nil {
			log.Print(err)
		}
	}, nil
}
