package jailtest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// World makes what there is outside to be found, for a test.
func World(t *testing.T) Outside {
	t.Helper()
	o := Outside{Contains: "the host's secret", PID: os.Getpid(), Abstract: fmt.Sprintf("galley-escape-%d-%s", os.Getpid(), t.Name())}
	dir := t.TempDir()
	o.Secret = filepath.Join(dir, "secret")
	if err := os.WriteFile(o.Secret, []byte(o.Contains), 0o644); err != nil {
		t.Fatal(err)
	}
	o.Abstract = strings.ReplaceAll(o.Abstract, "/", "-")
	ln, err := net.Listen("unix", "@"+o.Abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return o
}

// Judge fails t for everything in f that is more than a jail allows: what is
// seen must begin with one of seen, what is written with one of written.
func Judge(t *testing.T, report []byte, seen, written []string, capabilities uint64) Found {
	t.Helper()
	var f Found
	if err := json.Unmarshal(report, &f); err != nil {
		t.Fatalf("the program in its jail reported %q: %v", report, err)
	}
	within := func(p string, list []string) bool {
		for _, l := range list {
			if p == l || strings.HasPrefix(p, strings.TrimSuffix(l, "/")+"/") {
				return true
			}
		}
		return false
	}
	for _, p := range f.Seen {
		if !within(p, seen) {
			t.Errorf("it sees %s", p)
		}
	}
	for _, p := range f.Written {
		if !within(p, written) {
			t.Errorf("it can write to %s", p)
		}
	}
	for _, e := range f.Escapes {
		t.Errorf("it could: %s", e)
	}
	if len(f.Errors) < 30 {
		t.Errorf("only %d attempts were made", len(f.Errors))
	}
	if len(f.Processes) != 1 && len(f.Processes) != 0 {
		t.Errorf("it sees the processes %v", f.Processes)
	}
	if f.Capabilities&^capabilities != 0 {
		t.Errorf("it has the capabilities %x, more than %x", f.Capabilities, capabilities)
	}
	if len(f.Processes) == 1 && (f.NoNewPrivs != 1 || f.Seccomp != 2) {
		t.Errorf("no_new_privs is %d, seccomp %d", f.NoNewPrivs, f.Seccomp)
	}
	return f
}
