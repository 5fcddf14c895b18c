package doctor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// version is a kernel release, as far as features depend on it.
type version struct {
	major, minor int
	text         string
}

func (v version) less(major, minor int) bool {
	return v.major < major || v.major == major && v.minor < minor
}

func kernelVersion() version {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return version{text: "unknown"}
	}
	return parseVersion(unix.ByteSliceToString(u.Release[:]))
}

// parseVersion reads "6.1.0-13-amd64". What is not a number counts as 0.
func parseVersion(release string) version {
	v := version{text: release}
	parts := strings.SplitN(release, ".", 3)
	v.major, _ = strconv.Atoi(parts[0])
	if len(parts) > 1 {
		digits := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
		if digits < 0 {
			digits = len(parts[1])
		}
		v.minor, _ = strconv.Atoi(parts[1][:digits])
	}
	return v
}

// oldest is the kernel that Galley is tested on from: Debian 12's.
var oldest = version{major: 6, minor: 1}

func kernelFinding(v version) Finding {
	f := Finding{Name: "kernel", Level: OK, Found: v.text}
	switch {
	case v.less(5, 12):
		f.Level = Fail
		f.Means = "mount_setattr(2), which makes the base read-only for Galley itself, needs Linux 5.12"
		f.Fix = "run a kernel of 6.1 or later"
	case v.less(oldest.major, oldest.minor):
		f.Level = Note
		f.Means = "Galley is tested from Linux 6.1 on"
	}
	return f
}

// kernelFeatures are the features that a newer kernel than the oldest has.
func kernelFeatures(v version) []Finding {
	list := []struct {
		name         string
		major, minor int
		means        string
	}{
		{"O_TMPFILE in a view", 6, 2, "open(2) with O_TMPFILE fails with EOPNOTSUPP in a view; programs then use a named file"},
		{"FUSE over io_uring", 6, 14, "requests go through /dev/fuse, one at a time for each reader"},
	}
	out := []Finding{passthroughFinding(v)}
	for _, k := range list {
		f := Finding{Name: k.name, Level: OK, Found: fmt.Sprintf("kernel %s", v.text)}
		switch {
		case v.less(k.major, k.minor):
			f.Level = Note
			f.Found = fmt.Sprintf("kernel %s is older than %d.%d", v.text, k.major, k.minor)
			f.Means = k.means
			f.Fix = fmt.Sprintf("run a kernel of %d.%d or later", k.major, k.minor)
		case k.major == 6 && k.minor == 14:
			uringEnabled(&f, k.means)
		}
		out = append(out, f)
	}
	return out
}

// passthroughFinding tells those who look for it why it makes no difference.
func passthroughFinding(v version) Finding {
	has := "has it"
	if v.less(6, 9) {
		has = "is older than 6.9"
	}
	return Finding{Name: "FUSE passthrough", Level: OK,
		Found: fmt.Sprintf("kernel %s %s; Galley uses it in no mode: all data goes through Galley, and no program gets at a file below", v.text, has)}
}

func uringEnabled(f *Finding, means string) {
	const param = "/sys/module/fuse/parameters/enable_uring"
	b, err := os.ReadFile(param)
	if err == nil && strings.TrimSpace(string(b)) == "Y" {
		f.Found = "switched on"
		return
	}
	f.Level, f.Means = Note, means
	f.Found = "switched off, or not built in"
	if err == nil {
		f.Fix = "as root: echo Y > " + param
	}
}

// landlockScopes is the Landlock ABI that can keep a process from abstract
// sockets and signals outside its domain (Linux 6.12).
const landlockScopes = 6

func landlockFinding() Finding {
	f := Finding{Name: "Landlock", Level: OK}
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case errno != 0:
		f.Level = Note
		f.Found = "not available: " + errno.Error()
		f.Means = "the second fence around a command (beside its namespaces) is missing"
		f.Fix = "add landlock to the kernel's lsm= parameter"
	case abi < landlockScopes:
		f.Level = Note
		f.Found = fmt.Sprintf("ABI %d; scopes need 6 (Linux 6.12)", abi)
		f.Means = "abstract sockets are hidden only together with the network"
		f.Fix = "run a kernel of 6.12 or later"
	default:
		f.Found = fmt.Sprintf("ABI %d, with scopes", abi)
	}
	return f
}
