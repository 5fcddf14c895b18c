package krun

// The functions of libkrun that are used, by their names.
const (
	fnInitLog              = "krun_init_log"
	fnCreateCtx            = "krun_create_ctx"
	fnFreeCtx              = "krun_free_ctx"
	fnSetVMConfig          = "krun_set_vm_config"
	fnSetRoot              = "krun_set_root"
	fnAddVirtiofs          = "krun_add_virtiofs"
	fnAddVirtiofs3         = "krun_add_virtiofs3"
	fnAddNetUnixstream     = "krun_add_net_unixstream"
	fnDisableImplicitVsock = "krun_disable_implicit_vsock"
	fnAddVsock             = "krun_add_vsock"
	fnAddVsockPort2        = "krun_add_vsock_port2"
	fnSetPortMap           = "krun_set_port_map"
	fnSetWorkdir           = "krun_set_workdir"
	fnSetExec              = "krun_set_exec"
	fnSetConsoleOutput     = "krun_set_console_output"
	fnSetKernel            = "krun_set_kernel"
	fnHasFeature           = "krun_has_feature"
	fnGetMaxVCPUs          = "krun_get_max_vcpus"
	fnStartEnter           = "krun_start_enter"
)

// required are the functions without which no machine can be started.
var required = []string{
	fnInitLog, fnCreateCtx, fnFreeCtx, fnSetVMConfig, fnSetRoot, fnAddVirtiofs, fnAddVsockPort2,
	fnSetWorkdir, fnSetExec, fnSetConsoleOutput, fnStartEnter,
}

// optional are the functions that a machine may do without.
var optional = []string{
	fnAddVirtiofs3, fnAddNetUnixstream, fnDisableImplicitVsock, fnAddVsock, fnSetPortMap, fnSetKernel,
	fnHasFeature, fnGetMaxVCPUs,
}

// featureNet is KRUN_FEATURE_NET: the library was built with network devices.
const featureNet = 0

// Features are what a libkrun can do, as far as a machine needs it.
type Features struct {
	// Path is the file that the library was loaded from, with its version.
	Path string `json:"path"`
	// Version is what the file's name says, and "" where it says nothing.
	Version string `json:"version"`
	// Since is the first release that has the newest function found in it.
	Since string `json:"since"`
	// NoTSI: socket hijacking can be turned off for a machine with no network.
	NoTSI bool `json:"no_tsi"`
	// Net: network devices can be added, which turns socket hijacking off.
	Net bool `json:"net"`
	// PortMap: it can be told that no port of the guest is to be the host's.
	PortMap bool `json:"port_map"`
	// ReadOnlyRoot: the agent's own file system can be shared read-only.
	ReadOnlyRoot bool `json:"read_only_root"`
	// Kernel: another kernel than libkrunfw's can be booted.
	Kernel bool `json:"kernel"`
	// MaxCPUs is the most virtual processors, 0 where the library does not say.
	MaxCPUs int `json:"max_cpus"`
	// Missing are the functions that it lacks, of those that are required.
	Missing []string `json:"missing,omitempty"`
}

// firstIn says in which release a function appeared, newest first.
var firstIn = []struct{ function, release string }{
	{fnAddVirtiofs3, "1.18"}, {fnHasFeature, "1.17.3"}, {fnAddVsock, "1.17"}, {fnGetMaxVCPUs, "1.16"},
	{fnAddNetUnixstream, "1.15"}, {fnInitLog, "1.13"}, {fnSetKernel, "1.11"}, {fnAddVsockPort2, "1.10"},
	{fnAddVirtiofs, "1.8"},
}

// features judges a library by the functions that it has; hasFeature asks the
// library itself, and returns a negative number where it cannot say.
func features(path string, has func(string) bool, hasFeature func(uint64) int) Features {
	f := Features{Path: path, Version: versionOf(path)}
	for _, name := range required {
		if !has(name) {
			f.Missing = append(f.Missing, name)
		}
	}
	for _, e := range firstIn {
		if has(e.function) {
			f.Since = e.release
			break
		}
	}
	f.NoTSI = has(fnDisableImplicitVsock) && has(fnAddVsock)
	// The function is there in builds without the devices too, and then
	// fails; before 1.17.3 nothing but a try can tell.
	f.Net = has(fnAddNetUnixstream) && hasFeature(featureNet) != 0
	f.ReadOnlyRoot = has(fnAddVirtiofs3)
	f.Kernel = has(fnSetKernel)
	f.PortMap = has(fnSetPortMap)
	return f
}
