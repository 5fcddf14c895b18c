package krun

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// verdictFile keeps what booting a kernel told.
const verdictFile = "krun.json"

// verdict is why KVM does not run guests, "" if it does.
type verdict struct {
	Why string `json:"why"`
	// Of is what it was found for: this boot of the host, libkrun, the user.
	Of string `json:"of"`
}

// verdict boots a kernel, or remembers what came of that; fresh is whether it
// did.
func (d *Driver) verdict(ctx context.Context, f Features) (why string, fresh bool, err error) {
	of := identity(f.Path)
	if b, err := os.ReadFile(filepath.Join(d.opt.Cache, verdictFile)); err == nil && d.opt.Cache != "" {
		var v verdict
		if json.Unmarshal(b, &v) == nil && v.Of == of {
			return v.Why, false, nil
		}
	}
	if why, err = d.tryBoot(ctx); err != nil {
		return "", false, err
	}
	if why != "" {
		d.opt.Log.Warn("libkrun cannot run machines", "why", why)
	}
	d.keep(verdict{why, of})
	return why, true, nil
}

// keep writes what was found where the next looks. It may fail: then the next
// finds it out anew.
func (d *Driver) keep(v verdict) {
	if d.opt.Cache == "" {
		return
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = os.MkdirAll(d.opt.Cache, 0o700)
	}
	path := filepath.Join(d.opt.Cache, verdictFile)
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err == nil {
		err = os.WriteFile(temp, b, 0o600)
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		d.opt.Log.Warn("keep what KVM can do", "error", err)
	}
}

// identity changes when a verdict may.
func identity(library string) string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var st unix.Stat_t
	_ = unix.Stat(library, &st)
	return fmt.Sprintf("%s %s %d %d %d", strings.TrimSpace(string(boot)), library, st.Size, st.Mtim.Nano(), os.Geteuid())
}
