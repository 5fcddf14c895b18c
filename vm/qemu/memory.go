package qemu

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// enoughMemory refuses a guest that would drive the host out of memory, where
// the kernel ends whatever it likes.
func enoughMemory(want int64) error {
	available, err := availableMemory("/proc/meminfo")
	if err != nil || want <= available {
		return nil // who cannot be asked refuses nothing
	}
	return fmt.Errorf("%d MiB of memory are more than this host has available, which is %d MiB; start the machine with less (--memory)", want/mib, available/mib)
}

func availableMemory(file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		var kib int64
		if _, err := fmt.Sscan(rest, &kib); err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("%s does not say what is available", file)
}
