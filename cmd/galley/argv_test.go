package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/galleyfs/galley/snapshots"
)

func testEnv(t *testing.T) *env {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	return newEnv(null, null, null, func(string) string { return "" })
}

func TestReorder(t *testing.T) {
	app := newApp(testEnv(t))
	for _, tc := range []struct {
		name     string
		in, want []string
	}{
		{"nothing", []string{"galley"}, []string{"galley"}},
		{"options after operands", []string{"galley", "diff", "main.go", "--stat"}, []string{"galley", "diff", "--stat", "--", "main.go"}},
		{"an option's value is no operand", []string{"galley", "diff", "a", "--session", "s", "b"}, []string{"galley", "diff", "--session", "s", "--", "a", "b"}},
		{"value after an equals sign", []string{"galley", "diff", "a", "--session=s", "b"}, []string{"galley", "diff", "--session=s", "--", "a", "b"}},
		{"dashes end the options", []string{"galley", "diff", "--stat", "--", "--json"}, []string{"galley", "diff", "--stat", "--", "--json"}},
		{"a lone dash is an operand", []string{"galley", "diff", "-", "--stat"}, []string{"galley", "diff", "--stat", "--", "-"}},
		{"run keeps the command's options", []string{"galley", "run", "--new", "ls", "-l", "--all"}, []string{"galley", "run", "--new", "--", "ls", "-l", "--all"}},
		{"run with dashes", []string{"galley", "run", "--new", "--", "ls", "-l"}, []string{"galley", "run", "--new", "--", "ls", "-l"}},
		{"run keeps dashes of the command", []string{"galley", "run", "--", "git", "checkout", "--", "f"}, []string{"galley", "run", "--", "git", "checkout", "--", "f"}},
		{"attach takes options around its session", []string{"galley", "attach", "s", "--quiet", "ls", "-l"}, []string{"galley", "attach", "--quiet", "--", "s", "ls", "-l"}},
		{"attach with dashes", []string{"galley", "attach", "s", "--", "ls", "--all"}, []string{"galley", "attach", "--", "s", "ls", "--all"}},
		{"subcommands", []string{"galley", "sessions", "rm", "a", "--help"}, []string{"galley", "sessions", "rm", "--help", "--", "a"}},
		{"options of a command with subcommands", []string{"galley", "sessions", "--json"}, []string{"galley", "sessions", "--json"}},
		{"global options", []string{"galley", "--debug", "diff", "a", "--stat"}, []string{"galley", "--debug", "diff", "--stat", "--", "a"}},
		{"unknown command", []string{"galley", "dif", "--stat"}, []string{"galley", "dif", "--stat"}},
		{"a value is missing", []string{"galley", "diff", "a", "--session"}, []string{"galley", "diff", "--session", "--", "a"}},
		{"words to complete stay", []string{"galley", "__complete", "diff", "--st"}, []string{"galley", "__complete", "diff", "--st"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, reorder(app, tc.in, operandsOf)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	app := newApp(testEnv(t))
	sessions := func() []string { return []string{"app", "fix-login"} }
	for _, tc := range []struct {
		words []string
		want  []string
	}{
		{[]string{"unm"}, []string{"unmount\ttake a mount down"}},
		{[]string{"attach", "f"}, []string{"fix-login"}},
		{[]string{"attach", "fix-login", ""}, []string{":commands", ":files"}},
		{[]string{"sessions", "rename", "a"}, []string{"app"}},
		{[]string{"diff", "--session", ""}, []string{"app", "fix-login"}},
		{[]string{"diff", "--st"}, []string{"--stat\tone line for each file and a sum"}},
		{[]string{"diff", ""}, []string{":files"}},
		{[]string{"run", "--base", ""}, []string{":dirs"}},
		{[]string{"run", "--", "l"}, []string{":commands", ":files"}},
		{[]string{"completion", "z"}, []string{"zsh"}},
	} {
		if d := cmp.Diff(tc.want, complete(app, tc.words, sessions)); d != "" {
			t.Errorf("%q: %s", tc.words, d)
		}
	}
}

// Every command that a person can find has examples, exit statuses and, where
// it prints data, the shape of its JSON.
func TestEveryCommandHasAManual(t *testing.T) {
	app := newApp(testEnv(t))
	for _, c := range app.Commands {
		if c.Hidden {
			continue
		}
		for _, section := range []string{"USAGE", "EXAMPLES", "EXIT STATUS"} {
			if !strings.Contains(c.CustomHelpTemplate, section) {
				t.Errorf("galley %s --help has no %s", c.Name, section)
			}
		}
		for _, f := range c.Flags {
			if f.Names()[0] == "json" && !strings.Contains(c.CustomHelpTemplate, "\nJSON\n") {
				t.Errorf("galley %s --help does not say what its JSON looks like", c.Name)
			}
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"brave-otter", "app", "app-2", "fix-login"}
	for in, want := range map[string]string{
		"brave-oter": "brave-otter", "brvae-otter": "brave-otter", "fix": "fix-login", "ap": "app", "zebra": "", "": "",
	} {
		if got := nearest(in, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTreeName(t *testing.T) {
	taken := map[string]bool{snapshots.Workspace: true}
	for _, tc := range [][2]string{
		{"/home/u/.config", "config"}, {"/etc/.config", "config-2"}, {"/srv/My Files", "myfiles"}, {"/srv/日本", "tree"}, {"/x/workspace", "workspace-2"},
	} {
		if got := snapshots.TreeName(tc[0], taken); got != tc[1] {
			t.Errorf("snapshots.TreeName(%q) = %q, want %q", tc[0], got, tc[1])
		}
	}
}

func TestResolvePaths(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"app/src", "conf", "elsewhere"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("app", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "app", "src"))
	trees := []snapshots.TreeSpec{
		{Name: "workspace", Base: dir + "/app", Mount: dir + "/app"},
		{Name: "conf", Base: dir + "/conf", Mount: dir + "/app/conf"},
	}
	for _, tc := range []struct {
		operand string
		want    treePath
	}{
		{"main.go", treePath{"workspace", "src/main.go"}},
		{"..", treePath{"workspace", ""}},
		{"../gone/file", treePath{"workspace", "gone/file"}},
		{dir + "/conf/x", treePath{"conf", "x"}},
		{"../conf/x", treePath{"conf", "x"}},
		{dir + "/link/src/new", treePath{"workspace", "src/new"}},
		{"a*b", treePath{"workspace", "src/a*b"}},
	} {
		got, err := resolvePaths(trees, []string{tc.operand})
		if err != nil {
			t.Errorf("%q: %v", tc.operand, err)
			continue
		}
		if got[0] != tc.want {
			t.Errorf("%q = %v, want %v", tc.operand, got[0], tc.want)
		}
	}
	for _, outside := range []string{dir + "/elsewhere", "../../appendix", "/"} {
		if _, err := resolvePaths(trees, []string{outside}); err == nil {
			t.Errorf("%q is in no tree, and was taken", outside)
		}
	}
}
