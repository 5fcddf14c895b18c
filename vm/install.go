package vm

import (
	"fmt"
	"os"
	"strings"
)

// Package is what brings a program or a file on each distribution that Galley
// knows the names for.
type Package struct {
	Debian, Ubuntu, Fedora, Arch string
}

// Install says how to install p on this host, or on each distribution where
// the host's is none of those known.
func (p Package) Install() string { return p.install("/etc/os-release") }

func (p Package) install(osRelease string) string {
	all := []struct{ id, name, command string }{
		{"ubuntu", "Ubuntu", "apt-get install " + p.Ubuntu}, // before Debian, which Ubuntu says it is like
		{"debian", "Debian", "apt-get install " + p.Debian},
		{"fedora", "Fedora", "dnf install " + p.Fedora},
		{"arch", "Arch", "pacman -S " + p.Arch},
	}
	ids := distribution(osRelease)
	for _, d := range all {
		if ids[d.id] {
			return "as root: " + d.command
		}
	}
	var parts []string
	for _, d := range []int{1, 0, 2, 3} {
		parts = append(parts, fmt.Sprintf("%s: %s", all[d].name, all[d].command))
	}
	return "as root: " + strings.Join(parts, " · ")
}

// distribution are the ids of this host's distribution and of those that it is
// like (os-release(5)).
func distribution(file string) map[string]bool {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	ids := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key != "ID" && key != "ID_LIKE" {
			continue
		}
		for _, id := range strings.Fields(strings.Trim(value, `"'`)) {
			ids[id] = true
		}
	}
	return ids
}
