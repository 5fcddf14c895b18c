package realwork

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/integration/treecmp"
)

// limit is how long one piece of work may take before it counts as hanging.
const limit = 5 * time.Minute

// TestRealWork does each piece of work twice at the same path: in a plain copy
// of the tree, and inside `galley run`. Exit status, output and the tree left
// behind must be the same; the base must be untouched until the commit, and
// equal to the plain copy's tree after it.
func TestRealWork(t *testing.T) {
	files, err := filepath.Glob("testdata/*.sh")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".sh"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s, err := parse(string(text))
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			runCase(t, s)
		})
	}
}

// place is where one case works.
type place struct {
	dir     string // holds all below
	project string // the tree that is worked on; the same path both times
	keep    string // the tree as it was
	state   string // $GALLEY_HOME
}

func runCase(t *testing.T, s *script) {
	for _, cmd := range s.needs {
		if _, err := exec.LookPath(cmd); err != nil {
			t.Fatalf("the command %s is missing; `make test` installs it", cmd)
		}
	}
	p := newPlace(t)
	p.must(t, []string{"sh", "-euc", s.setup})
	// Old times, so that what the work sets can be told from what it leaves.
	p.must(t, []string{"find", ".", "-depth", "-exec", "touch", "-h", "-d", "2020-01-02 03:04:05.678", "{}", "+"})
	p.must(t, []string{"cp", "-a", p.project, p.keep})
	original := readTree(t, p.project)

	// Some clocks of file systems are a tick behind, and tar's whole seconds
	// are rounded down.
	began := time.Now().Add(-2 * time.Second)
	plain := p.each(t, s, nil)
	if s.network && plain[len(plain)-1].status != 0 {
		t.Skipf("no package registry can be reached from here: %s", plain[len(plain)-1].stderr)
	}
	if last := plain[len(plain)-1]; last.status != s.status {
		t.Fatalf("in the plain copy: status %d, want %d\n%s%s", last.status, s.status, last.stdout, last.stderr)
	}
	want := readTree(t, p.project)

	p.must(t, []string{"sh", "-c", `chmod -R u+rwX "$0"; rm -rf "$0" && cp -a "$1" "$0"`, p.project, p.keep})
	inside := p.each(t, s, []string{bench.galley, "run", "--"})
	for i := range plain {
		if plain[i].status != inside[i].status || plain[i].stdout != inside[i].stdout {
			t.Errorf("part %d in a plain copy: status %d, output:\n%s%sin galley run: status %d, output:\n%s%s", i+1,
				plain[i].status, plain[i].stdout, plain[i].stderr, inside[i].status, inside[i].stdout, inside[i].stderr)
		}
	}
	same := treecmp.Options{Ignore: matcher(s.ignore), Content: matcher(s.content), Since: began}
	diff(t, "the view of the session", want, p.view(t), same)
	diff(t, "the base before the commit", original, readTree(t, p.project), treecmp.Options{})

	p.must(t, []string{bench.galley, "commit", "--yes", "--keep-special"})
	same.AnyMtime = untouched(original, want)
	diff(t, "the base after the commit", want, readTree(t, p.project), same)
	if left := p.must(t, []string{bench.galley, "diff", "--name-status"}); left != "" {
		t.Errorf("changes left in the session after the commit of all:\n%s", left)
	}
	p.noneLeft(t)
}

// untouched names what a commit leaves to itself: the times of directories,
// and files that were written and left as they had been, which is no change.
func untouched(original, want treecmp.Tree) func(string) bool {
	was := make(map[string]treecmp.Entry)
	for _, e := range original {
		was[e.Path] = e
	}
	left := make(map[string]bool)
	for _, e := range want {
		old := was[e.Path]
		old.Mtime = e.Mtime
		left[e.Path] = e.Mode&unix.S_IFMT == unix.S_IFDIR || reflect.DeepEqual(old, e)
	}
	return func(path string) bool { return left[path] }
}

func newPlace(t *testing.T) *place {
	dir, err := os.MkdirTemp(bench.dir, "case-")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{dir: dir, project: dir + "/project", keep: dir + "/keep", state: dir + "/state"}
	for _, d := range []string{p.project, dir + "/home"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { removeAll(dir) })
	return p
}

type result struct {
	status         int
	stdout, stderr string
}

// each runs the parts of the work, with the words of prefix before them.
func (p *place) each(t *testing.T, s *script, prefix []string) []result {
	t.Helper()
	var all []result
	for _, part := range s.work {
		all = append(all, p.run(t, append(append([]string{}, prefix...), "sh", "-euc", part)))
	}
	return all
}

func (p *place) run(t *testing.T, argv []string, env ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = p.project
	cmd.Env = append(p.env(), env...)
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v\n%s%s", argv, err, &stdout, &stderr)
	}
	if ctx.Err() != nil {
		t.Fatalf("%q did not end within %v\n%s%s", argv, limit, &stdout, &stderr)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// env is the environment of all work: the caller's programs, a home of its
// own, and no time or name of this machine in what git writes.
func (p *place) env() []string {
	env := []string{
		"HOME=" + p.dir + "/home", "GALLEY_HOME=" + p.state, "LANG=C.UTF-8", "TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com",
		"GIT_COMMITTER_NAME=C", "GIT_COMMITTER_EMAIL=c@example.com",
		"GIT_AUTHOR_DATE=2020-02-03T04:05:06Z", "GIT_COMMITTER_DATE=2020-02-03T04:05:06Z",
		"GOFLAGS=-buildvcs=false -trimpath", "GOPROXY=off", "GOTELEMETRY=off",
		"npm_config_update_notifier=false", "npm_config_audit=false", "npm_config_fund=false",
		"npm_config_logs_max=0",
	}
	for _, name := range []string{"PATH", "USER", "LOGNAME", "http_proxy", "https_proxy", "no_proxy",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "npm_config_registry"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// must runs what has to succeed, and gives its output.
func (p *place) must(t *testing.T, argv []string) string {
	t.Helper()
	r := p.run(t, argv)
	if r.status != 0 {
		t.Fatalf("%q: status %d\n%s%s", argv, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// view takes down the tree as a program inside the session sees it.
func (p *place) view(t *testing.T) treecmp.Tree {
	t.Helper()
	r := p.run(t, []string{bench.galley, "run", "--", bench.self}, readTreeEnv+"="+p.project)
	if r.status != 0 {
		t.Fatalf("read the view: status %d\n%s", r.status, r.stderr)
	}
	var tree treecmp.Tree
	if err := json.Unmarshal([]byte(r.stdout), &tree); err != nil {
		t.Fatalf("read the view: %v in %.200q", err, r.stdout)
	}
	return tree
}

func readTree(t *testing.T, root string) treecmp.Tree {
	t.Helper()
	tree, err := treecmp.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func diff(t *testing.T, what string, want, got treecmp.Tree, o treecmp.Options) {
	t.Helper()
	lines := treecmp.Diff(want, got, o)
	if len(lines) == 0 {
		return
	}
	more := ""
	if n := len(lines); n > 30 {
		lines, more = lines[:30], "\n…"
	}
	t.Errorf("%s is not as it should be:\n%s%s", what, strings.Join(lines, "\n"), more)
}

// noneLeft fails if a mount below the case's directory is still there.
func (p *place) noneLeft(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, " "+p.dir) {
			t.Errorf("a mount was left behind: %s", line)
		}
	}
}
