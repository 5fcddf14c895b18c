// Package agents tests what an agent is given: galley mcp and galley tool, as
// the program that a client starts, with clients that others wrote.
package agents

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/snapshotstest"
)

// galley is the program under test.
var galley string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "galley-agents-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	galley = filepath.Join(dir, "galley")
	out, err := exec.Command("go", "build", "-o", galley, "github.com/galleyfs/galley/cmd/galley").CombinedOutput()
	if err != nil {
		return 1, fmt.Errorf("build galley: %w\n%s", err, out)
	}
	if st, err := os.Stat("/dev/fuse"); err == nil && os.Geteuid() == 0 && st.Mode().Perm() != 0o666 {
		if err := os.Chmod("/dev/fuse", 0o666); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// project is a host directory with a few files, and a state directory.
type project struct {
	dir, home string
	extra     []string // further files that it has
}

func newProject(t *testing.T) project {
	t.Helper()
	return newProjectAt(t, t.TempDir())
}

// newProjectAt is newProject with the state directory at home.
func newProjectAt(t *testing.T, home string) project {
	t.Helper()
	p := project{dir: t.TempDir(), home: home}
	t.Cleanup(func() { p.waitNoOwner(t) })
	for name, text := range map[string]string{"go.mod": "module x\n", "main.go": "package main\n\nfunc main() {}\n", "docs/a.md": "# a\n"} {
		file := filepath.Join(p.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// waitNoOwner waits until the owners of the project's sessions have ended:
// they work in the state directory, which goes with the test.
func (p project) waitNoOwner(t *testing.T) {
	t.Helper()
	st, err := snapshots.OpenStore(p.home, snapshots.StoreOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	defer st.Close()
	list, err := st.List()
	if err != nil {
		t.Error(err)
	}
	for _, info := range list {
		sess, err := st.Find(info.ID)
		if err != nil {
			t.Error(err)
			continue
		}
		snapshotstest.WaitIdle(t, sess.Dir())
	}
}

func (p project) env() []string {
	return append(os.Environ(), "GALLEY_HOME="+p.home, "GALLEY_MCP_TOKEN=")
}

// command is a galley command in the project.
func (p project) command(args ...string) *exec.Cmd {
	cmd := exec.Command(galley, args...)
	cmd.Dir, cmd.Env = p.dir, p.env()
	return cmd
}

// galley runs a galley command to its end.
func (p project) galley(t *testing.T, args ...string) (string, int) {
	t.Helper()
	out, err := p.command(args...).CombinedOutput()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	code := 0
	if err != nil {
		code = err.(*exec.ExitError).ExitCode()
	}
	return string(out), code
}

// wantUntouched checks that the project is as it was made.
func (p project) wantUntouched(t *testing.T) {
	t.Helper()
	var names []string
	err := filepath.WalkDir(p.dir, func(file string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(file, p.dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := append([]string{"docs/a.md", "go.mod", "main.go"}, p.extra...)
	slices.Sort(want)
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("the project has now %v", names)
	}
	if b, err := os.ReadFile(filepath.Join(p.dir, "main.go")); err != nil || string(b) != "package main\n\nfunc main() {}\n" {
		t.Errorf("main.go of the project is now %q, %v", b, err)
	}
}
