package kernel

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/galleyfs/galley/vm"
)

// guestName is the agent's program.
const guestName = "galley-guest"

// FindGuest finds the agent's program, which must be one that runs where there
// is nothing else.
func FindGuest(named string) (string, error) {
	if named == "" {
		named = os.Getenv("GALLEY_GUEST")
	}
	if named != "" {
		return named, checkGuest(named)
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	dir := filepath.Dir(exe)
	for _, p := range []string{
		filepath.Join(dir, guestName),
		filepath.Join(dir, "../libexec/galley", guestName),
		filepath.Join(dir, "../lib/galley", guestName),
	} {
		err := checkGuest(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return p, err
	}
	return "", &vm.Missing{
		What: fmt.Sprintf("the guest agent is not there: %s was looked for beside %s and in ../libexec/galley", guestName, exe),
		Fix:  "make build makes it; or say where it is: GALLEY_GUEST=FILE",
	}
}

func checkGuest(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return fmt.Errorf("guest agent: %w", err)
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("guest agent %s: %w", p, err)
	}
	if e.Machine != elf.EM_X86_64 {
		return fmt.Errorf("guest agent %s: it is for %v, not for x86-64", p, e.Machine)
	}
	for _, prog := range e.Progs {
		if prog.Type == elf.PT_INTERP {
			return fmt.Errorf("guest agent %s: it needs shared libraries, which a guest does not have; build it with CGO_ENABLED=0", p)
		}
	}
	return nil
}
