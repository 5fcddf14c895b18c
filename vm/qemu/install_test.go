package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/galleyfs/galley/vm"
)

// script makes a program that stands for QEMU.
func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), program)
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestVersionOf(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)": "7.2.22",
		"QEMU emulator version 10.0 (Arch)":                           "10.0",
	} {
		if got, err := versionOf(script(t, "echo '"+text+"'")); err != nil || got != want {
			t.Errorf("%q is version %q, %v; want %q", text, got, err, want)
		}
	}
	_, err := versionOf(script(t, "echo QEMU emulator version 6.2.0"))
	if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "6.2.0; Galley needs 7.2 or newer") {
		t.Errorf("an old one: %v", err)
	}
	if _, err := versionOf(script(t, "echo hello")); err == nil {
		t.Error("something else than QEMU has a version")
	}
	if _, err := versionOf(script(t, "echo broken >&2; exit 3")); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("one that fails: %v", err)
	}
}

// What was found out is used until one of its files changes.
func TestInstallationIsRemembered(t *testing.T) {
	dir := t.TempDir()
	lib, exe := filepath.Join(dir, "lib.so"), filepath.Join(dir, program)
	for _, p := range []string{lib, exe} {
		if err := os.WriteFile(p, []byte("x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := New(Options{Cache: filepath.Join(dir, "cache")})
	if d.remembered(exe) != nil {
		t.Error("remembered what nobody found")
	}
	d.remember(&installation{exe: exe, version: "7.2.1", libraries: []string{lib}, firmware: map[string]string{"bios": lib}})
	if q := d.remembered(exe); q == nil || q.version != "7.2.1" || q.libraries[0] != lib || q.firmware["bios"] != lib {
		t.Errorf("remembered %+v", q)
	}
	if d.remembered(lib) != nil {
		t.Error("remembered for another program")
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(lib, later, later); err != nil {
		t.Fatal(err)
	}
	if d.remembered(exe) != nil {
		t.Error("remembered though a library changed")
	}
}

// A verdict on KVM holds for the boot, QEMU and kernel it was found for.
func TestVerdictIsKept(t *testing.T) {
	exe := script(t, "")
	d := New(Options{Cache: t.TempDir()})
	of := identity(exe, "/kernel")
	if of == "" {
		t.Fatal("no identity")
	}
	d.keep(verdict{Why: "it hangs", Of: of})
	if v, ok := d.kept(of); !ok || v.Why != "it hangs" || v.KVM {
		t.Errorf("kept %+v, %v", v, ok)
	}
	if _, ok := d.kept(identity(exe, "/other")); ok {
		t.Error("kept for another kernel")
	}
	if identity("/nonexistent", "/kernel") != "" {
		t.Error("a QEMU that is not there has an identity")
	}
}
