package agents

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// apiCall makes a request of galley serve's API with curl's part played by
// Python, which is there anyway.
func apiCall(t *testing.T, socket, path string, body any) string {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	const script = `
import sys, json
sys.path.insert(0, "../../docs/examples")
from sandbox import Sandbox
print(json.dumps(Sandbox(sys.argv[1]).call(sys.argv[2], json.loads(sys.argv[3]))))
`
	cmd := exec.Command("python3", "-B", "-c", script, socket, path, string(b))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", path, b, err, out)
	}
	return string(out)
}

// TestVirtualSession: a session is worked on in the virtual sandbox, whose
// process owns it: others look at it and run in it meanwhile, a mount is a tree
// of the session and reviewed as one, and the local sandbox goes on from there.
func TestVirtualSession(t *testing.T) {
	p := newProject(t)
	mounted := t.TempDir()
	if err := os.WriteFile(filepath.Join(mounted, "of-the-host"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket := serve(t, p, "--sandbox", "virtual", "--new", "--session", "v")
	exec := func(command, want string) {
		t.Helper()
		var r struct {
			Output   string
			ExitCode int `json:"exit_code"`
		}
		if err := json.Unmarshal([]byte(apiCall(t, socket, "/exec", m{"command": command})), &r); err != nil {
			t.Fatal(err)
		}
		out, err := base64.StdEncoding.DecodeString(r.Output)
		if err != nil || string(out) != want || r.ExitCode != 0 {
			t.Errorf("%s: %d, %q, want %q", command, r.ExitCode, out, want)
		}
	}
	exec("pwd; echo v >> main.go; wc -l < main.go", p.dir+"\n4\n")
	apiCall(t, socket, "/mount", m{"host": mounted, "path": "/srv/host", "write": true})
	exec("cat /srv/host/of-the-host; echo changed > /srv/host/of-the-host; echo new > /srv/host/new", "host\n")

	// Another process looks at it, by the owner that the server is.
	out, code := p.galley(t, "diff", "--name-status", "--session", "v")
	for _, want := range []string{"main.go", "of-the-host", "new"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("galley diff: %d, no %s in\n%s", code, want, out)
		}
	}
	// And a command of the host runs in it, over FUSE, which the server serves.
	if out, code := p.galley(t, "run", "--quiet", "--session", "v", "--", "sh", "-c", "tail -n 1 main.go; echo local > from-local; cat /srv/host/new"); code != 0 || out != "v\nnew\n" {
		t.Errorf("galley run beside it: %d, %q", code, out)
	}
	exec("cat from-local", "local\n")
	out, code = p.galley(t, "run", "--sandbox", "virtual", "--session", "v", "--", "true")
	if code != 125 || !strings.Contains(out, "--new starts another session") {
		t.Errorf("a second virtual sandbox: %d, %s", code, out)
	}
	if b, err := os.ReadFile(filepath.Join(mounted, "of-the-host")); err != nil || string(b) != "host\n" {
		t.Errorf("the mounted directory has %q, %v", b, err)
	}
	p.wantUntouched(t)
}

// TestVirtualRun: galley run in the virtual sandbox ends, reads and writes as
// in the local one.
func TestVirtualRun(t *testing.T) {
	p := newProject(t)
	for _, tc := range []struct {
		args []string
		in   string
		out  string
		code int
	}{
		{[]string{"cat", "go.mod"}, "", "module x\n", 0},
		{[]string{"sh", "-c", "exit 7"}, "", "", 7},
		{[]string{"sh", "-c", "echo \"$1\" '$2'", "sh", "it's"}, "", "it's $2\n", 0},
		{[]string{"sort"}, "b\na\n", "a\nb\n", 0},
		{[]string{"git", "status"}, "", "", 127},
		{[]string{"sh", "-c", "echo x > new; cat new"}, "", "x\n", 0},
		{[]string{"cat", "/etc/passwd"}, "", "", 1},
	} {
		cmd := p.command(append([]string{"run", "--sandbox", "virtual", "--quiet", "--"}, tc.args...)...)
		cmd.Stdin = strings.NewReader(tc.in)
		out, err := cmd.Output()
		code := 0
		if exit, ok := err.(*exec.ExitError); ok {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tc.code || string(out) != tc.out {
			t.Errorf("%q: %d, %q", tc.args, code, out)
		}
	}
	if out, code := p.galley(t, "diff", "--name-status"); code != 0 || !strings.Contains(out, "new") {
		t.Errorf("galley diff: %d, %s", code, out)
	}
	p.wantUntouched(t)
	if out, code := p.galley(t, "run", "--sandbox", "virtual", "--commit-if-ok", "--", "true"); code != 0 {
		t.Errorf("a commit after it: %d, %s", code, out)
	}
	if b, err := os.ReadFile(filepath.Join(p.dir, "new")); err != nil || string(b) != "x\n" {
		t.Errorf("the committed file is %q, %v", b, err)
	}
	for _, bad := range [][]string{{"--sandbox", "none"}, {"--sandbox", "virtual", "--host-tmp"}, {"--sandbox", "virtual", "--allow-socket", "/x"}} {
		if out, code := p.galley(t, append(append([]string{"run"}, bad...), "--", "true")...); code != 125 || !strings.Contains(out, "expected local") && !strings.Contains(out, "local sandbox") {
			t.Errorf("%q: %d, %s", bad, code, out)
		}
	}
}

// TestServeSocket: what stands in the socket's way is left alone, and said.
func TestServeSocket(t *testing.T) {
	p := newProject(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	taken := serve(t, p, "--socket", filepath.Join(dir, "taken"))
	for path, want := range map[string]string{
		file: "there is a file already", taken: "somebody serves it already", dir: "a directory",
		filepath.Join(dir, "none", "s"): "no such file", filepath.Join(dir, strings.Repeat("x", 120)): "shorter",
	} {
		if out, code := p.galley(t, "serve", "--socket", path); code != 125 || !strings.Contains(out, want) {
			t.Errorf("%s: %d, %s", path, code, out)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// TestServeSocketFromInside: who can open the socket can mount directories of the
// host. What runs in a sandbox cannot, also where the socket stands in the
// project: neither its own, nor one that is made while it runs.
func TestServeSocketFromInside(t *testing.T) {
	p := newProject(t)
	own := serve(t, p, "--new", "--session", "one", "--socket", filepath.Join(p.dir, "one.sock"))
	apiCall(t, own, "/exec", m{"command": "true"}) // it runs from now on
	later := serve(t, p, "--new", "--session", "two", "--socket", filepath.Join(p.dir, "two.sock"))
	const try = `import socket, sys; sys.exit(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))`
	for _, socket := range []string{own, later} {
		out := apiCall(t, own, "/exec", m{"command": "python3 -c '" + try + "' " + socket})
		if !strings.Contains(out, fmt.Sprintf(`"exit_code": %d,`, syscall.ECONNREFUSED)) {
			t.Errorf("%s from inside: %s", socket, out)
		}
	}
}
