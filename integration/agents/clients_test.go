package agents

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// A standIn takes the place of a client: it finds Galley in the client's own
// configuration file, in that client's form, starts the server as the client
// does, and works by a script where a model would.
type standIn struct {
	name string
	// file is where the configuration lies, below the project, or below the
	// home directory where it begins with "~/".
	file string
	// server finds in it how the server is started.
	server func(t *testing.T, text []byte) (command string, args []string)
	// denied says of a tool of the client's own whether its configuration
	// denies it; nil where no file of it can.
	denied func(t *testing.T, p project, tool string) bool
	// own are its own tools that change something.
	own []string
	// env are the only variables that the client hands to a server, beside
	// those that its configuration names; nil is all.
	env []string
	// program is what README starts inside; private is its own directory.
	program, private string
}

var standIns = []standIn{
	{
		name: "Claude Code", file: ".mcp.json", server: jsonServer("mcpServers", false), own: []string{"Bash", "Edit", "Write", "NotebookEdit"},
		denied: func(t *testing.T, p project, tool string) bool {
			var c struct {
				Permissions struct{ Allow, Deny []string }
			}
			fromJSON(t, snippetWith(t, "Claude Code", `"permissions"`), &c)
			return slices.Contains(c.Permissions.Deny, tool) && slices.Contains(c.Permissions.Allow, "mcp__galley")
		},
		program: "claude", private: ".claude",
	},
	{
		name: "Codex", file: "~/.codex/config.toml", server: tomlServer, own: []string{"shell", "apply_patch"},
		denied: func(t *testing.T, p project, _ string) bool {
			return readTOML(string(configOf(t, "Codex")))["sandbox_mode"] == `"read-only"`
		},
		env: []string{"HOME", "LOGNAME", "PATH", "SHELL", "USER", "LANG", "LC_ALL", "TERM", "TMPDIR", "TZ"}, program: "codex", private: ".codex",
	},
	{name: "Cursor", file: ".cursor/mcp.json", server: jsonServer("mcpServers", false), program: "cursor-agent", private: ".cursor"},
	{
		name: "VS Code", file: ".vscode/mcp.json", server: jsonServer("servers", true), own: []string{"editFiles", "runInTerminal"},
		denied: func(t *testing.T, _ project, tool string) bool {
			// A custom agent has the tools of its list and no others.
			list := regexp.MustCompile(`tools: (\[.*?\])`).FindStringSubmatch(rowOf(t, "VS Code"))
			var tools []string
			fromJSON(t, list[1], &tools)
			return slices.Equal(tools, []string{"galley/*"})
		},
		program: "code",
	},
	{
		name: "Zed", file: "~/.config/zed/settings.json", server: jsonServer("context_servers", false), own: []string{"terminal", "edit_file"},
		denied: func(t *testing.T, _ project, tool string) bool {
			var c struct {
				Agent struct {
					Profiles map[string]struct {
						Tools   map[string]bool `json:"tools"`
						Servers map[string]any  `json:"context_servers"`
					}
				}
			}
			fromJSON(t, string(configOf(t, "Zed")), &c)
			on, named := c.Agent.Profiles["galley"].Tools[tool]
			return named && !on && c.Agent.Profiles["galley"].Servers["galley"] != nil
		},
		program: "zed",
	},
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// rowOf are the lines of README's table about a client.
func rowOf(t *testing.T, client string) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(readme(t)) {
		switch {
		case strings.HasPrefix(line, "| "+client+" |"), len(out) > 0 && strings.HasPrefix(line, "| |"):
			out = append(out, line)
		case len(out) > 0:
			return strings.Join(out, "")
		}
	}
	t.Fatalf("README.md has no row about %s", client)
	return ""
}

// snippets are the pieces of code in it.
func snippets(t *testing.T, client string) []string {
	var out []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(rowOf(t, client), -1) {
		out = append(out, m[1])
	}
	return out
}

// snippetWith is the first of them that has a text.
func snippetWith(t *testing.T, client, has string) string {
	t.Helper()
	for _, s := range snippets(t, client) {
		if strings.HasPrefix(s, "{") && strings.Contains(s, has) {
			return s
		}
	}
	t.Fatalf("README.md shows no %s for %s", has, client)
	return ""
}

// configOf is the configuration that README shows for a client's servers.
func configOf(t *testing.T, client string) []byte {
	t.Helper()
	if client != "Codex" {
		return []byte(snippetWith(t, client, `"galley"`))
	}
	// The lines of a TOML file: a table comes after what belongs to none.
	var top, table []string
	for _, s := range snippets(t, client) {
		switch {
		case strings.HasPrefix(s, "["), strings.HasPrefix(s, "command ="), strings.HasPrefix(s, "args ="):
			table = append(table, s)
		case strings.Contains(s, " = "):
			top = append(top, s)
		}
	}
	return []byte(strings.Join(append(top, table...), "\n") + "\n")
}

func fromJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// jsonServer finds a server as clients with JSON files have it: by its name
// below key. typed: its transport must be named.
func jsonServer(key string, typed bool) func(*testing.T, []byte) (string, []string) {
	return func(t *testing.T, text []byte) (string, []string) {
		t.Helper()
		var all map[string]json.RawMessage
		fromJSON(t, string(text), &all)
		var servers map[string]struct {
			Type    string
			Command string
			Args    []string
		}
		fromJSON(t, string(all[key]), &servers)
		s, ok := servers["galley"]
		if !ok || typed && s.Type != "stdio" {
			t.Fatalf("no server galley below %s in %s", key, text)
		}
		return s.Command, s.Args
	}
}

// readTOML reads the few lines that README shows: keys by their table.
func readTOML(text string) map[string]string {
	out := map[string]string{}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			table = strings.TrimSuffix(name, "]") + "."
			continue
		}
		if key, value, ok := strings.Cut(line, " = "); ok {
			out[table+key] = value
		}
	}
	return out
}

func tomlServer(t *testing.T, text []byte) (command string, args []string) {
	t.Helper()
	all := readTOML(string(text))
	fromJSON(t, all["mcp_servers.galley.command"], &command)
	fromJSON(t, all["mcp_servers.galley.args"], &args)
	return command, args
}

// userProject is a project of a user with a home directory: Galley's state is
// where it is by default.
func userProject(t *testing.T) (p project, home string) {
	t.Helper()
	// Not below /tmp, which is private inside.
	own, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	if home, err = os.MkdirTemp(own, ".galley-agents-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	return newProjectAt(t, filepath.Join(home, ".local", "state", "galley")), home
}

// userEnv are the variables of a program that the user starts.
func userEnv(home string, extra ...string) map[string]string {
	env := map[string]string{"HOME": home, "PATH": strings.Join(append(extra, filepath.Dir(galley), os.Getenv("PATH")), ":"), "USER": "somebody", "LANG": "C.UTF-8", "EDITOR": "vi"}
	if v := os.Getenv("GORACE"); v != "" {
		env["GORACE"] = v
	}
	return env
}

func asList(env map[string]string) []string {
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	return out
}

// TestClientsOutside: for each client a stand-in starts galley from the
// configuration that README shows, and works with its tools alone. The
// project stays as it is, though the work is in the session.
func TestClientsOutside(t *testing.T) {
	for _, c := range standIns {
		t.Run(c.name, func(t *testing.T) {
			p, home := userProject(t)
			file := filepath.Join(p.dir, c.file)
			if rest, ok := strings.CutPrefix(c.file, "~/"); ok {
				file = filepath.Join(home, rest)
			} else {
				// A file of the project's own, such as it is checked in.
				p.extra = append(p.extra, c.file)
			}
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, configOf(t, c.name), 0o644); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			command, args := c.server(t, text)
			env := userEnv(home)
			maps.DeleteFunc(env, func(k, _ string) bool { return c.env != nil && !slices.Contains(c.env, k) })
			work(t, p, c, command, args, asList(env))
			for _, tool := range c.own {
				if !c.denied(t, p, tool) {
					t.Errorf("the configuration leaves the client its own %s", tool)
				}
			}
			p.wantUntouched(t)
			diff := exec.Command(galley, "diff", "--name-status")
			diff.Dir, diff.Env = p.dir, asList(userEnv(home))
			if out, err := diff.CombinedOutput(); err != nil || !strings.Contains(string(out), "by-the-agent.txt") || !strings.Contains(string(out), "main.go") {
				t.Errorf("galley diff: %v\n%s", err, out)
			}
		})
	}
}

// work starts the server and does what an agent does.
func work(t *testing.T, p project, c standIn, command string, args, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	cmd := exec.CommandContext(ctx, lookPath(t, command, path), args...)
	cmd.Dir, cmd.Env, cmd.Stderr = p.dir, env, os.Stderr
	began := time.Now()
	s, err := mcp.NewClient(&mcp.Implementation{Name: c.name, Version: "1"}, nil).Connect(ctx, &mcp.CommandTransport{Command: cmd, TerminateDuration: patience}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s was answered after %v", c.name, time.Since(began))
	list, err := s.ListTools(ctx, nil)
	if err != nil || len(list.Tools) != 12 {
		t.Fatalf("%d tools, %v", len(list.Tools), err)
	}
	for _, call := range []struct {
		tool string
		args m
		has  string
	}{
		{"Glob", m{"pattern": "**/*.go"}, "main.go"},
		{"Read", m{"path": "main.go"}, "func main() {}"},
		{"Edit", m{"path": "main.go", "old": "func main() {}", "new": "func main() { println(1) }"}, "1 replacement"},
		{"Write", m{"path": "by-the-agent.txt", "content": c.name + "\n"}, "Wrote"},
		{"Bash", m{"command": "cat by-the-agent.txt; rm docs/a.md; ls docs"}, c.name},
		{"Grep", m{"pattern": "println"}, "main.go:3"},
		{"RequestReview", m{"message": "done"}, "only a person can commit"},
	} {
		text, r := callTool(ctx, t, s, call.tool, call.args)
		if r.IsError || !strings.Contains(text, call.has) {
			t.Errorf("%s: %s", call.tool, text)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func lookPath(t *testing.T, name, path string) string {
	t.Helper()
	for dir := range strings.SplitSeq(path, ":") {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return filepath.Join(dir, name)
		}
	}
	t.Fatalf("no %s in %s", name, path)
	return ""
}

// insideLine is the command with which README starts a program inside.
func insideLine(t *testing.T, program string) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^    (.*galley (?:run|mount) .*\b` + program + `\b.*)$`).FindStringSubmatch(readme(t))
	if line == nil {
		t.Fatalf("README.md does not start %s", program)
	}
	return line[1]
}

// TestClientsInside: the agent itself runs in the session, as README starts it,
// with its own tools. Its credentials are there, Galley's state is not, and
// neither the project nor the agent's own directory is changed. An editor works
// in a mount.
func TestClientsInside(t *testing.T) {
	for _, c := range standIns {
		t.Run(c.name, func(t *testing.T) {
			p, home := userProject(t)
			bin := filepath.Join(home, "bin")
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			agent := `#!/bin/sh
set -e
case "$*" in
	--wait\ *) cd "$2" ;;
	*)
		cat "$HOME/%[1]s/credentials"
		echo "used $(date)" > "$HOME/%[1]s/history"
		if ls "$HOME/.local/state/galley/sessions" >/dev/null 2>&1; then echo "STATE IN REACH"; fi
		;;
esac
echo "func more() {}" >> main.go
rm docs/a.md
mkdir -p new
echo "by %[2]s" > new/file
rm -rf .git
ls
`
			if err := os.WriteFile(filepath.Join(bin, c.program), fmt.Appendf(nil, agent, c.private, c.name), 0o755); err != nil {
				t.Fatal(err)
			}
			if c.private != "" {
				if err := os.MkdirAll(filepath.Join(home, c.private), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(home, c.private, "credentials"), []byte("the credentials\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			env := asList(userEnv(home, bin))
			sh := func(line string) string {
				cmd := exec.Command("sh", "-c", line)
				cmd.Dir, cmd.Env = p.dir, env
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("%s: %v\n%s", line, err, out)
				}
				return string(out)
			}
			line := insideLine(t, c.program)
			mounts := strings.Contains(line, "galley mount")
			out := sh(line)
			if mounts {
				sh("galley unmount ~/proof")
			}
			if strings.Contains(out, "STATE IN REACH") || !strings.Contains(out, "main.go") || !mounts && !strings.Contains(out, "the credentials") {
				t.Errorf("%s\n%s", line, out)
			}
			p.wantUntouched(t)
			if c.private != "" {
				if _, err := os.Stat(filepath.Join(home, c.private, "history")); err == nil {
					t.Error("the agent's own directory was written to")
				}
			}
			diff := sh("galley diff --name-status")
			for _, want := range []string{"main.go", "docs/a.md", "new/file"} {
				if !strings.Contains(diff, want) {
					t.Errorf("galley diff has no %s:\n%s", want, diff)
				}
			}
			if c.private != "" && !strings.Contains(diff, "history") {
				t.Errorf("galley diff has nothing of the agent's own directory:\n%s", diff)
			}
		})
	}
}
