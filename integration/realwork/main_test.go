package realwork

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/galleyfs/galley/integration/treecmp"
)

// readTreeEnv makes this test binary print the record of the tree it names,
// instead of running tests: how a test looks at a session's view from inside.
const readTreeEnv = "GALLEY_TEST_READ_TREE"

// bench is where the cases work, and the programs they need: in the home
// directory, for /tmp and /var/tmp are not the host's inside.
var bench struct {
	dir    string
	galley string // GALLEY_BIN, or built from this source
	self   string // this test binary
}

func TestMain(m *testing.M) {
	if root := os.Getenv(readTreeEnv); root != "" {
		os.Exit(printTree(root))
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "realwork: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func printTree(root string) int {
	tree, err := treecmp.Read(root)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(tree)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(m *testing.M) (int, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(home, ".galley-realwork-")
	if err != nil {
		return 0, err
	}
	defer removeAll(dir)
	bench.dir = dir
	if bench.self, err = os.Executable(); err != nil {
		return 0, err
	}
	self := filepath.Join(dir, "readtree")
	if out, err := exec.Command("cp", bench.self, self).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("copy the test binary: %w\n%s", err, out)
	}
	bench.self = self
	bench.galley = os.Getenv("GALLEY_BIN")
	if bench.galley == "" {
		bench.galley = filepath.Join(dir, "galley")
		args := append([]string{"build", "-o", bench.galley}, raceFlags...)
		build := exec.Command("go", append(args, "github.com/galleyfs/galley/cmd/galley")...)
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build galley: %w\n%s", err, out)
		}
	}
	return m.Run(), nil
}

// removeAll also removes what lies below directories that a case made
// unwritable.
func removeAll(dir string) {
	exec.Command("chmod", "-R", "u+rwX", dir).Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintf(os.Stderr, "realwork: %v\n", err)
	}
}
