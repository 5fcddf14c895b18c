package doctor

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for in, want := range map[string][2]int{"6.1.0-13-amd64": {6, 1}, "6.18.44": {6, 18}, "5.15": {5, 15}, "6.9-rc1": {6, 9}, "odd": {0, 0}} {
		if got := parseVersion(in); got.major != want[0] || got.minor != want[1] {
			t.Errorf("%q = %d.%d, want %d.%d", in, got.major, got.minor, want[0], want[1])
		}
	}
	if v := parseVersion("6.1.0"); v.less(6, 1) || !v.less(6, 2) || !v.less(7, 0) || v.less(5, 12) {
		t.Errorf("%v is ordered wrongly", v)
	}
}

// On an old kernel the features that it lacks are named, with what follows.
func TestOldKernelIsExplained(t *testing.T) {
	for _, f := range kernelFeatures(parseVersion("6.1.0")) {
		if f.Name == "FUSE passthrough" {
			// Nothing follows: it is not used anyway.
			if !strings.Contains(f.Found, "older than 6.9") {
				t.Errorf("%s: %q, want its kernel named", f.Name, f.Found)
			}
			continue
		}
		if f.Level != Note || f.Means == "" || f.Fix == "" {
			t.Errorf("%s: %+v, want a note that says what follows and what to do", f.Name, f)
		}
	}
	if f := kernelFinding(parseVersion("5.10.0")); f.Level != Fail || f.Fix == "" {
		t.Errorf("Linux 5.10: %+v, want a failure with a remedy", f)
	}
}

// A state directory that is not there yet is judged by the one it will be in,
// and is not made.
func TestStateDirectoryIsNotMade(t *testing.T) {
	home := filepath.Join(t.TempDir(), "a", "b")
	if _, usable := stateDirectory(home); !usable {
		t.Error("a new directory below a usable one is usable")
	}
	if got, err := filepath.Glob(filepath.Dir(filepath.Dir(home)) + "/*"); err != nil || len(got) > 0 {
		t.Errorf("left behind: %q, %v", got, err)
	}
	if f, usable := stateDirectory("/proc/galley"); usable || f[0].Fix == "" {
		t.Errorf("/proc: usable %v, %+v; want a failure with a remedy", usable, f)
	}
}
