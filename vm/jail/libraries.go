package jail

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os/exec"
	"sort"
	"strings"
)

// Libraries are the shared libraries that the dynamic linker loads for the
// programs and libraries at paths, with the linker itself, by the paths that
// it looks for them at. A static program has none.
func Libraries(paths ...string) ([]string, error) {
	linker, err := linkerOf(paths)
	if err != nil || linker == "" {
		return nil, err
	}
	found := map[string]bool{linker: true}
	for _, p := range paths {
		cmd := exec.Command(linker, "--list", p)
		cmd.Env = []string{}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("list the libraries of %s: %w: %s", p, err, strings.TrimSpace(stderr.String()))
		}
		for _, lib := range parseList(string(out)) {
			found[lib] = true
		}
	}
	libs := make([]string, 0, len(found))
	for lib := range found {
		libs = append(libs, lib)
	}
	sort.Strings(libs)
	return libs, nil
}

// linkerOf is the dynamic linker that the first program among paths names.
func linkerOf(paths []string) (string, error) {
	for _, p := range paths {
		f, err := elf.Open(p)
		if err != nil {
			return "", fmt.Errorf("%s: %w", p, err)
		}
		name := ""
		for _, prog := range f.Progs {
			if prog.Type != elf.PT_INTERP || prog.Filesz > 4096 {
				continue
			}
			b := make([]byte, prog.Filesz)
			if _, err := prog.ReadAt(b, 0); err == nil {
				name = string(bytes.TrimRight(b, "\x00"))
			}
		}
		_ = f.Close()
		if name != "" {
			return name, nil
		}
	}
	return "", nil
}

// parseList reads the paths from what `ld.so --list` prints:
//
//	linux-vdso.so.1 (0x00007ffd…)
//	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f…)
func parseList(out string) []string {
	var libs []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if _, after, ok := strings.Cut(line, " => "); ok {
			line = after
		}
		if i := strings.LastIndex(line, " ("); i > 0 {
			line = line[:i]
		}
		if strings.HasPrefix(line, "/") {
			libs = append(libs, line)
		}
	}
	return libs
}
