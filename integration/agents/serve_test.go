package agents

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/galleyfs/galley/sandbox/events"
)

// serve starts galley serve in the project and returns its socket.
func serve(t *testing.T, p project, args ...string) string {
	t.Helper()
	cmd := p.command(append([]string{"serve"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("galley serve: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// TestServeExamples runs the examples of other languages against galley serve,
// in both sandboxes.
func TestServeExamples(t *testing.T) {
	deps := tsClient(t)
	js := t.TempDir()
	source, err := filepath.Abs("../../docs/examples/sandbox.mts")
	if err != nil {
		t.Fatal(err)
	}
	// Beside it lie no packages: only the types of Node are taken from there.
	tsc := exec.Command("node", filepath.Join(deps, "node_modules/typescript/bin/tsc"), "--strict", "--module", "nodenext", "--target", "es2022",
		"--typeRoots", filepath.Join(deps, "node_modules/@types"), "--types", "node", "--rootDir", filepath.Dir(source), "--outDir", js, source)
	if testing.Short() {
		tsc.Args = append(tsc.Args, "--noCheck") // which takes most of the time
	}
	if out, err := tsc.CombinedOutput(); err != nil {
		t.Fatalf("tsc: %v\n%s", err, out)
	}
	for _, kind := range []string{"local", "virtual"} {
		t.Run(kind, func(t *testing.T) {
			p := newProject(t)
			socket := serve(t, p, "--sandbox", kind, "--new", "--session", "api")
			st, err := os.Stat(socket)
			if err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("the socket is %v, %v", st.Mode(), err)
			}
			if st, err := os.Stat(filepath.Dir(socket)); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("its directory is %v, %v", st.Mode(), err)
			}
			for name, cmd := range map[string]*exec.Cmd{
				"python":     exec.Command("python3", "../../docs/examples/sandbox.py", socket),
				"typescript": exec.Command("node", filepath.Join(js, "sandbox.mjs"), socket),
			} {
				out, err := cmd.CombinedOutput()
				want := []string{"sandbox " + kind + " session api", "edited 1", `one\n2\n`, "exit 4", `line 1\nline 2\nline 3\n`, "refused not_found", "review"}
				for _, w := range want {
					if err != nil || !strings.Contains(string(out), w) {
						t.Errorf("%s: %v: no %q in\n%s", name, err, w, out)
					}
				}
			}
			if out, code := p.galley(t, "diff", "--name-status"); code != 0 || !strings.Contains(out, "notes/python.txt") || !strings.Contains(out, "notes/typescript.txt") {
				t.Errorf("galley diff: %d, %s", code, out)
			}
			p.wantUntouched(t)
		})
	}
}

// readEvents are the events of the project's session.
func readEvents(t *testing.T, p project) []events.Event {
	t.Helper()
	out, code := p.galley(t, "events", "--json")
	if code != 0 {
		t.Fatalf("galley events: %d, %s", code, out)
	}
	var list []events.Event
	for line := range strings.Lines(out) {
		var e events.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		e.Raw = json.RawMessage(line)
		list = append(list, e)
	}
	return list
}

// TestEventsAndSecrets: a session has one stream of what happened, and no
// secret is in it, nor in the history, nor in anything that was answered.
func TestEventsAndSecrets(t *testing.T) {
	const secret = "hunter2-and-more"
	p := newProject(t)
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	say := func(args ...string) string {
		cmd := p.command(args...)
		cmd.Env = append(cmd.Env, "OTHER="+secret)
		out, _ := cmd.CombinedOutput()
		all.Write(out)
		return string(out)
	}
	say("run", "--secret", "TOKEN="+file, "--", "sh", "-c", "echo $TOKEN; echo "+secret+" >&2; echo $TOKEN > in-file; test \"$TOKEN\" = "+secret)
	say("run", "--sandbox", "virtual", "--secret", "TOKEN=OTHER", "--", "sh", "-c", "echo $TOKEN; echo "+secret+" >&2")
	for _, kind := range []string{"local", "virtual"} {
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Bash", "--json", `{"command":"echo $OTHER; cat in-file; echo `+secret+` > x"}`)
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Read", "--json", `{"path":"in-file"}`)
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Grep", "--json", `{"pattern":"`+secret+`"}`)
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Edit", "--json", `{"path":"in-file","old":"`+secret+`","new":"`+secret+`-"}`)
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Read", "--json", `{"path":"/`+secret+`"}`)
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Diff")
		say("tool", "--sandbox", kind, "--secret", "OTHER", "--data", "Write", "--json", `{"path":"/etc/passwd","content":""}`)
	}
	mounted := t.TempDir()
	if out := say("tool", "Mount", "--json", `{"host":"`+mounted+`","path":"/galley-mounted/m"}`); !strings.HasPrefix(out, "Mounted") {
		t.Error(out)
	}
	list := readEvents(t, p)
	say("events")
	say("events", "--json")
	say("log", "--json")
	if out := all.String(); strings.Contains(out, secret) {
		t.Errorf("the secret is in what Galley put out:\n%s", out)
	} else if strings.Count(out, "[REDACTED:TOKEN]") < 4 {
		t.Errorf("the outputs have no mark:\n%s", out)
	}
	count := map[string]int{}
	for _, e := range list {
		count[e.Event]++
		if e.Event == events.Call && e.Tool == "Bash" {
			if e.Exit == nil || *e.Exit != 0 || e.Duration <= 0 || len(e.Changes) == 0 || e.Changes[0].Path != "x" || !strings.Contains(string(e.Args), "[REDACTED:OTHER]") {
				t.Errorf("the event of a command: %s", e.Raw)
			}
		}
	}
	if count[events.Command] != 2 || count[events.Call] != 15 || count[events.Mount] != 1 || count[events.Denied] == 0 || count[events.Start] == 0 || count[events.Start] != count[events.End] {
		t.Errorf("events %v", count)
	}
	for _, bad := range []string{"TOKEN", "TOKEN=NOT_SET", "TOKEN=./missing", "1=OTHER", "S=SHORT"} {
		cmd := p.command("run", "--secret", bad, "--", "true")
		cmd.Env = append(cmd.Env, "OTHER="+secret, "SHORT=abc")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "--secret") {
			t.Errorf("--secret %s: %v, %s", bad, err, out)
		}
	}
	p.wantUntouched(t)
}
