package qemu

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/galleyfs/galley/vm"
	"github.com/galleyfs/galley/vm/jail"
)

// Where things are inside the confinement.
const (
	insideFirmware = "/firmware"
	insideModules  = "/modules"
	insideLibs     = "/libs"
	insideExe      = "/qemu"
	insideKernel   = "/boot/kernel"
	insideInitrd   = "/boot/initrd"
	insideKVM      = "/dev/kvm"
)

const (
	mib = 1 << 20
	// overhead is the address space that QEMU takes beside the guest's memory:
	// its program and libraries, arenas and stacks, which are reserved and
	// for the most part never used.
	overhead = 2 << 30
	// perCPU is what each processor adds to that.
	perCPU = 256 << 20
	// translated bounds the memory for translated code, in MiB, under
	// emulation.
	translated = 256
	// openFiles and processes (which are threads) bound what a hostile QEMU
	// could take of the host.
	openFiles = 512
	processes = 256
)

// guestCmdline is what every kernel is told: the console, silence on it, and
// to end the machine when it panics.
const guestCmdline = "console=ttyS0 quiet panic=-1"

// descriptors are the numbers that QEMU has for what it inherits; 0 is not
// there.
type descriptors struct{ console, qmp, agent, share, net int }

// arguments is QEMU's command line, without the program.
func arguments(c vm.Config, accel string, fd descriptors) []string {
	memory := strconv.FormatInt(roundUp(c.Memory), 10) + "M"
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-name", "galley",
		"-L", insideFirmware,
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", "q35,memory-backend=memory,vmport=off,smbus=off,sata=off,usb=off",
		"-smp", strconv.Itoa(c.CPUs),
		"-m", memory,
		"-object", "memory-backend-memfd,id=memory,share=on,size=" + memory,
		"-rtc", "base=utc",
	}
	if accel == vm.KVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		// What the emulation can do; without five levels of page tables,
		// which it would walk.
		args = append(args, "-accel", "tcg,tb-size="+strconv.Itoa(translated), "-cpu", "max,la57=off")
	}
	args = append(args, "-kernel", insideKernel)
	if c.Initrd != "" {
		args = append(args, "-initrd", insideInitrd)
	}
	cmdline := guestCmdline
	if c.Cmdline != "" {
		cmdline += " " + c.Cmdline
	}
	args = append(args, "-append", cmdline,
		"-add-fd", fmt.Sprintf("fd=%d,set=1", fd.console),
		"-chardev", "file,id=console,append=on,path=/dev/fdset/1",
		"-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fd.qmp),
		"-mon", "chardev=qmp,mode=control",
		"-object", "rng-builtin,id=rng",
		"-device", "virtio-rng-pci,rng=rng")
	if fd.agent != 0 {
		args = append(args,
			"-device", "virtio-serial-pci",
			"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fd.agent),
			"-device", "virtserialport,chardev=agent,name="+vm.AgentPort)
	}
	if fd.share != 0 {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=share,fd=%d", fd.share),
			"-device", "vhost-user-fs-pci,chardev=share,queue-size=1024,tag="+vm.ShareTag)
	}
	if fd.net != 0 {
		args = append(args,
			"-netdev", fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", fd.net),
			"-device", "virtio-net-pci,netdev=net,romfile=,mac="+vm.GuestMAC)
	}
	return args
}

func roundUp(bytes int64) int64 { return (bytes + mib - 1) / mib }

// spec is how the process is confined.
func (q *installation) spec(c vm.Config, accel string, fd descriptors) jail.Spec {
	s := jail.Spec{
		Argv: append([]string{insideExe}, arguments(c, accel, fd)...),
		Env: []string{
			"PATH=/nonexistent", "HOME=/", "LC_ALL=C",
			"LD_LIBRARY_PATH=" + insideLibs, "QEMU_MODULE_DIR=" + insideModules,
		},
		AddressSpace: uint64(roundUp(c.Memory)*mib) + overhead + uint64(c.CPUs)*perCPU + translated*mib,
		FileSize:     uint64(roundUp(c.Memory) * mib),
		OpenFiles:    openFiles,
		Processes:    processes + uint64(c.CPUs),
	}
	bind := func(host, inside string) { s.Binds = append(s.Binds, jail.Bind{Host: host, Inside: inside}) }
	bind(q.exe, insideExe)
	for _, lib := range q.libraries {
		if isLinker(lib) {
			bind(lib, lib) // the program names it by its path
		}
		bind(lib, filepath.Join(insideLibs, filepath.Base(lib)))
	}
	for _, m := range q.modules {
		bind(m, filepath.Join(insideModules, filepath.Base(m)))
	}
	for name, p := range q.firmware {
		bind(p, filepath.Join(insideFirmware, name))
	}
	bind(c.Kernel, insideKernel)
	if c.Initrd != "" {
		bind(c.Initrd, insideInitrd)
	}
	if accel == vm.KVM {
		s.Binds = append(s.Binds, jail.Bind{Host: deviceKVM, Inside: insideKVM, Write: true})
		s.Groups = kvmGroups()
	}
	return s
}

// isLinker tells the dynamic linker from the libraries.
func isLinker(lib string) bool {
	ok, err := filepath.Match("ld-*.so*", filepath.Base(lib))
	return err == nil && ok
}
