package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/galleyfs/galley/overlay/overlaytest"
	"github.com/galleyfs/galley/sandbox/virtual/internal/view"
)

// newView is a view of an empty tree in process.
func newView(t testing.TB) *view.View {
	t.Helper()
	tree, _ := overlaytest.OpenTree(t, "")
	face := tree.Attach(nil)
	t.Cleanup(face.Detach)
	v := view.New(face, uint32(os.Getuid()), uint32(os.Getgid()), 1000)
	for _, d := range []string{"/tmp", "/w"} {
		if err := v.Mkdir(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// fixture is what every script of the table finds in its directory. A value
// that begins with "-> " is a symbolic link, one of "/" a directory.
var fixture = map[string]string{
	"a.txt":        "alpha\nbeta\ngamma\ndelta\nalpha\n",
	"b.txt":        "alpha\nbeta\nGAMMA\ndelta\nepsilon\n",
	"nums":         "10\n9\n2\n33\n1\n2\n",
	"csv":          "name,age,city\nbob,30,Paris\nalice,25,Rome\ncarl,41,Oslo\n",
	"noeol":        "one\ntwo",
	"empty":        "",
	"words":        "the quick brown fox\njumps over the lazy dog\n",
	"src/main.go":  "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"hello\") // TODO: greet\n}\n",
	"src/util.go":  "package main\n\n// TODO(bob): remove\nfunc helper(x int) int {\n\treturn x * 2\n}\n",
	"src/sub/x.md": "# Title\n\nsome text, some more\n",
	"dir":          "/",
	"link":         "-> a.txt",
	"dlink":        "-> src",
	"broken":       "-> nowhere",
	"json":         "{\"name\": \"x\", \"list\": [1, 2, 3], \"nested\": {\"k\": \"v\"}}\n",
}

// scripts are the cases of the files in testdata/oracle: one in a line, and in
// blocks.txt what is between lines of "%%".
func scripts(t testing.TB) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("testdata/oracle/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	out := map[string][]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name, sep := strings.TrimSuffix(filepath.Base(f), ".txt"), "\n"
		if name == "blocks" {
			sep = "\n%%\n"
		}
		for _, s := range strings.Split(string(b), sep) {
			if s = strings.Trim(s, "\n"); s != "" {
				out[name] = append(out[name], s)
			}
		}
	}
	return out
}

type outcome struct {
	out, err string
	status   int
	tree     string
}

// TestScriptsAsBash runs every script in the sandbox and in the real bash with
// the real coreutils: same output, same status, same files.
func TestScriptsAsBash(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Fatal(err)
	}
	table := scripts(t)
	n := 0
	v := newView(t)
	for name, list := range table {
		n += len(list)
		t.Run(name, func(t *testing.T) {
			for i, s := range list {
				if testing.Short() && i%3 != 0 {
					continue
				}
				dir := fmt.Sprintf("/w/%s%d", name, i)
				want := realBash(t, s)
				got := virtualBash(t, v, dir, s)
				if want.out != got.out || want.status != got.status || want.tree != got.tree || (want.err == "") != (got.err == "") {
					t.Errorf("%s #%d\n%s\n--- bash: status %d\n%s--- stderr\n%s--- virtual: status %d\n%s--- stderr\n%s%s", name, i, s,
						want.status, clip(want.out), clip(want.err), got.status, clip(got.out), clip(got.err), treeDiff(want.tree, got.tree))
				}
			}
		})
	}
	if n < 400 {
		t.Errorf("%d scripts; expected 400 at least", n)
	}
}

func clip(s string) string {
	if len(s) > 800 {
		return s[:800] + "…\n"
	}
	return s
}

func treeDiff(want, got string) string {
	if want == got {
		return ""
	}
	return "--- tree of bash\n" + want + "--- tree of virtual\n" + got
}

func realBash(t *testing.T, script string) outcome {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range sortedKeys(fixture) {
		p, c := filepath.Join(dir, name), fixture[name]
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case c == "/":
			err = os.Mkdir(p, 0o755)
		case strings.HasPrefix(c, "-> "):
			err = os.Symlink(c[3:], p)
		default:
			err = os.WriteFile(p, []byte(c), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "umask 022\n"+script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "HOME=/home/user", "TZ=UTC", "TMPDIR=" + t.TempDir()}
	cmd.Stdin = strings.NewReader("stdin one\nstdin two\n")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	var o outcome
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
		o.status = exit.ExitCode()
	}
	o.out = strings.ReplaceAll(out.String(), dir, "/W")
	o.err = errOut.String()
	o.tree = realTree(t, dir)
	return o
}

func realTree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(p string, i os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		content := ""
		switch {
		case i.Mode()&os.ModeSymlink != 0:
			content, _ = os.Readlink(p)
			fmt.Fprintf(&b, "%s link %q\n", rel, content)
			return nil
		case i.Mode().IsRegular():
			c, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			content = string(c)
		}
		fmt.Fprintf(&b, "%s %v %q\n", rel, i.Mode(), strings.ReplaceAll(clip(content), dir, "/W"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func sortedKeys(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func write(t testing.TB, v *view.View, p, content string) {
	t.Helper()
	f, err := v.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	if _, err := f.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// populate makes the fixture in a new directory of the view.
func populate(t testing.TB, v *view.View, dir string) {
	t.Helper()
	if err := v.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range sortedKeys(fixture) {
		p, c := dir+"/"+name, fixture[name]
		for i := len(dir) + 1; i < len(p); i++ {
			if p[i] == '/' {
				_ = v.Mkdir(p[:i], 0o755)
			}
		}
		var err error
		switch {
		case c == "/":
			err = v.Mkdir(p, 0o755)
		case strings.HasPrefix(c, "-> "):
			err = v.Symlink(c[3:], p)
		default:
			write(t, v, p, c)
		}
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
	}
}

var testEnv = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "HOME=/home/user", "TZ=UTC", "TMPDIR=/tmp"}

func virtualBash(t testing.TB, v *view.View, dir, script string) outcome {
	t.Helper()
	populate(t, v, dir)
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, err := Run(ctx, v, Script{
		Text: script, Dir: dir, Env: testEnv, Home: "/home/user", UID: 1000, Umask: 0o022,
		Stdin: strings.NewReader("stdin one\nstdin two\n"), Stdout: &out, Stderr: &errOut,
	})
	if err != nil {
		t.Errorf("%s\n%v", script, err)
	}
	return outcome{
		out: strings.ReplaceAll(out.String(), dir, "/W"), err: errOut.String(), status: status, tree: viewTree(t, v, dir, dir),
	}
}

func viewTree(t testing.TB, v *view.View, dir, top string) string {
	t.Helper()
	var b strings.Builder
	rel := "."
	if dir != top {
		rel = dir[len(top)+1:]
	}
	i, err := v.Stat(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case i.Mode()&os.ModeSymlink != 0:
		target, err := v.Readlink(dir)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s link %q\n", rel, target)
	case !i.IsDir():
		content := ""
		if i.Mode().IsRegular() {
			f, err := v.OpenFile(dir, os.O_RDONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, i.Size())
			if n, err := f.ReadAt(buf, 0); int64(n) != i.Size() {
				t.Fatal(n, err)
			}
			_ = f.Close()
			content = string(buf)
		}
		return fmt.Sprintf("%s %v %q\n", rel, i.Mode(), strings.ReplaceAll(clip(content), top, "/W"))
	}
	fmt.Fprintf(&b, "%s %v \"\"\n", rel, i.Mode())
	entries, err := v.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b.WriteString(viewTree(t, v, dir+"/"+e.Name(), top))
	}
	return b.String()
}
