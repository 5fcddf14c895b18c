package kernel

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/galleyfs/galley/vm"
)

// wanted are the modules that a guest needs, and what is lost without each
// that it can do without.
var wanted = []struct {
	name     string
	required bool
}{
	{"virtio_pci", true},
	{"virtio_console", true}, // the agent's stream
	{"virtiofs", true},       // the share
	{"virtio_rng", false},    // some kernels know their randomness from the processor
	{"virtio_net", false},    // only with a network
}

// maxModule bounds a module, in bytes.
const maxModule = 64 << 20

// resolve finds the files of the wanted modules and of all that they depend on,
// in the order in which they can be loaded. A kernel without modules has none.
func resolve(image Image) ([]string, error) {
	if image.Modules == "" {
		return nil, nil
	}
	deps, err := readDependencies(filepath.Join(image.Modules, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("modules of kernel %s: %w", image.Path, err)
	}
	builtin, err := readBuiltin(filepath.Join(image.Modules, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("modules of kernel %s: %w", image.Path, err)
	}
	var order []string
	seen := map[string]bool{}
	var visit func(file string)
	visit = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		// The last one listed is to be loaded first.
		list := deps[file]
		for i := len(list) - 1; i >= 0; i-- {
			visit(list[i])
		}
		order = append(order, filepath.Join(image.Modules, file))
	}
	files := map[string]string{}
	for file := range deps {
		files[moduleName(file)] = file
	}
	for _, w := range wanted {
		file, ok := files[w.name]
		switch {
		case ok:
			visit(file)
		case w.required && !builtin[w.name]:
			return nil, &vm.Missing{
				What: fmt.Sprintf("kernel %s has no module %s, which a guest needs", image.Path, w.name),
				Fix:  distributed.Install(),
			}
		}
	}
	return order, nil
}

// moduleName is the name of the module in a file: virtio_rng of
// kernel/drivers/char/hw_random/virtio-rng.ko.xz.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readDependencies reads modules.dep: of each file, those that it needs.
func readDependencies(path string) (map[string][]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		file, list, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		needs := strings.Fields(list)
		for _, f := range append(needs, file) {
			if !filepath.IsLocal(f) {
				return nil, fmt.Errorf("%s: %q lies outside", path, f)
			}
		}
		deps[file] = needs
	}
	return deps, nil
}

// readBuiltin reads modules.builtin: the names of what the kernel itself has.
// A kernel without that list has nothing built in, as far as can be told.
func readBuiltin(path string) (map[string]bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		names[moduleName(strings.TrimSpace(line))] = true
	}
	return names, nil
}

// moduleContent uncompresses a module's file, whose content is b.
func moduleContent(file string, b []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch filepath.Ext(file) {
	case ".ko":
		return b, nil
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(b))
	case ".zst":
		r, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
	default:
		err = errors.New("its compression is not known")
	}
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(out) > maxModule {
		err = fmt.Errorf("larger than %d MiB", maxModule>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", file, err)
	}
	return out, nil
}
