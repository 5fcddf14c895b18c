package agents

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/galleyfs/galley/sandbox/events"
)

const patience = 60 * time.Second

// connect starts galley mcp in the project with the SDK's own client.
func connect(t *testing.T, p project, o *mcp.ClientOptions) (*mcp.ClientSession, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, o)
	s, err := c.Connect(ctx, &mcp.CommandTransport{Command: p.command("mcp"), TerminateDuration: patience}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, ctx
}

func callTool(ctx context.Context, t *testing.T, s *mcp.ClientSession, name string, args any) (string, *mcp.CallToolResult) {
	t.Helper()
	r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	text := ""
	for _, c := range r.Content {
		if tc, ok := c.(*mcp.TextContent); ok {
			text += tc.Text
		}
	}
	return text, r
}

type m map[string]any

func TestMCPOverStandardIO(t *testing.T) {
	p := newProject(t)
	progress := make(chan string, 100)
	s, ctx := connect(t, p, &mcp.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *mcp.ProgressNotificationClientRequest) {
		select {
		case progress <- r.Params.Message:
		default:
		}
	}})
	list, err := s.ListTools(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range list.Tools {
		names = append(names, tool.Name)
		if tool.Annotations == nil || tool.OutputSchema == nil || tool.Description == "" {
			t.Errorf("%s lacks annotations, an output schema or a description", tool.Name)
		}
		if readOnly := strings.Contains(" Read Glob Grep Diff Log ", " "+tool.Name+" "); tool.Annotations.ReadOnlyHint != readOnly {
			t.Errorf("%s: read-only hint %v", tool.Name, tool.Annotations.ReadOnlyHint)
		}
	}
	if got := strings.Join(names, " "); len(names) != 12 || strings.Contains(strings.ToLower(got), "commit") {
		t.Errorf("tools: %s", got)
	}
	callTool(ctx, t, s, "Read", m{"path": "main.go"})
	if text, r := callTool(ctx, t, s, "Edit", m{"path": "main.go", "old": "func main() {}", "new": "func main() { println() }"}); r.IsError {
		t.Error(text)
	}
	callTool(ctx, t, s, "Write", m{"path": "new/file.txt", "content": "new\n"})
	text, r := callTool(ctx, t, s, "Bash", m{"command": "cat new/file.txt; exit 5"})
	b, err := json.Marshal(r.StructuredContent)
	if err != nil {
		t.Fatal(err)
	}
	if text != "new\n(exit code: 5)" || !strings.Contains(string(b), `"exit_code":5`) {
		t.Errorf("%q, %s", text, b)
	}
	if text, r := callTool(ctx, t, s, "Read", m{"path": "missing"}); !r.IsError || !strings.Contains(text, "missing") {
		t.Errorf("%q", text)
	}
	if text, _ := callTool(ctx, t, s, "Diff", m{}); !strings.Contains(text, "+func main() { println() }") || !strings.Contains(text, "new/file.txt") {
		t.Errorf("diff:\n%s", text)
	}
	if text, _ := callTool(ctx, t, s, "Log", m{}); !strings.Contains(text, "Edit") || !strings.Contains(text, "new/file.txt") {
		t.Errorf("log:\n%s", text)
	}
	callTool(ctx, t, s, "Snapshot", m{"name": "good"})
	callTool(ctx, t, s, "Bash", m{"command": "rm -r new docs"})
	if text, r := callTool(ctx, t, s, "Rollback", m{"to": "good"}); r.IsError {
		t.Error(text)
	}
	if text, _ := callTool(ctx, t, s, "Glob", m{"pattern": "**/*.{md,txt}"}); !strings.Contains(text, "docs/a.md\nnew/file.txt") {
		t.Errorf("after the rollback: %s", text)
	}
	if text, r := callTool(ctx, t, s, "RequestReview", m{"message": "done"}); r.IsError || !strings.Contains(text, "galley diff") {
		t.Error(text)
	}
	t.Run("progress and cancellation", func(t *testing.T) {
		call, cancel := context.WithCancel(ctx)
		defer cancel()
		params := &mcp.CallToolParams{Name: "Bash", Arguments: m{"command": "while :; do echo beat >> beats; echo going; sleep 0.2; done"}}
		params.SetProgressToken("token")
		ended := make(chan error, 1)
		go func() {
			_, err := s.CallTool(call, params)
			ended <- err
		}()
		select {
		case msg := <-progress:
			if msg != "going" {
				t.Errorf("progress %q", msg)
			}
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Error("the cancelled call came to an end by itself")
		}
		waitStill(ctx, t, s)
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	p.wantUntouched(t)
	if out, code := p.galley(t, "diff", "--name-status"); code != 0 || !strings.Contains(out, "main.go") {
		t.Errorf("galley diff: %d, %s", code, out)
	}
}

// waitStill waits until the cancelled command writes no more: two counts, each
// after a command that takes longer than a beat, agree.
func waitStill(ctx context.Context, t *testing.T, s *mcp.ClientSession) {
	t.Helper()
	for ctx.Err() == nil {
		text, _ := callTool(ctx, t, s, "Bash", m{"command": "a=$(wc -l < beats); sleep 1; b=$(wc -l < beats); [ $a = $b ] && echo still"})
		if strings.Contains(text, "still") {
			return
		}
	}
	t.Error("a cancelled command goes on")
}

func TestMCPOverHTTP(t *testing.T) {
	p := newProject(t)
	cmd := p.command("mcp", "--http", "127.0.0.1:0")
	cmd.Env = append(p.env(), "GALLEY_MCP_TOKEN=the-token")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	url := ""
	for in := bufio.NewScanner(stderr); url == "" && in.Scan(); {
		url = regexp.MustCompile(`http://\S+`).FindString(in.Text())
	}
	go func() { _, _ = bufio.NewReader(stderr).WriteTo(discard{}) }()
	for _, tc := range []struct {
		name  string
		set   func(*http.Request)
		wants int
	}{
		{"no token", func(*http.Request) {}, http.StatusUnauthorized},
		{"another token", func(r *http.Request) { r.Header.Set("Authorization", "Bearer other") }, http.StatusUnauthorized},
		{"another host", func(r *http.Request) { r.Host = "example.org"; bearer(r) }, http.StatusForbidden},
		{"another origin", func(r *http.Request) { r.Header.Set("Origin", "http://example.org"); bearer(r) }, http.StatusForbidden},
		{"an opaque origin", func(r *http.Request) { r.Header.Set("Origin", "null"); bearer(r) }, http.StatusForbidden},
		{"another path", func(r *http.Request) { r.URL.Path = "/"; bearer(r) }, http.StatusNotFound},
		{"no JSON", bearer, http.StatusBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("{"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Accept", "application/json, text/event-stream")
			tc.set(r)
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != tc.wants {
				t.Errorf("status %d, want %d", res.StatusCode, tc.wants)
			}
		})
	}
	denied := 0
	for _, e := range readEvents(t, p) {
		if e.Event == events.Denied && e.Text != "" {
			denied++
		}
	}
	if denied != 5 {
		t.Errorf("%d denials are on record, want 5", denied)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, name := range []string{"one", "two"} {
		c := mcp.NewClient(&mcp.Implementation{Name: name, Version: "1"}, nil)
		s, err := c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: &http.Client{Transport: withToken{}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, r := callTool(ctx, t, s, "Bash", m{"command": "echo " + name + " >> who; cat who"}); r.IsError || !strings.Contains(text, name) {
			t.Errorf("%q", text)
		}
		// A command that could read the token would have all rights of the client.
		if text, r := callTool(ctx, t, s, "Bash", m{"command": "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; echo end"}); r.IsError || !strings.Contains(text, "PATH=") || strings.Contains(text, "the-token") {
			t.Errorf("a command sees %q", text)
		}
		_ = s.Close()
	}
	p.wantUntouched(t)
}

func bearer(r *http.Request) { r.Header.Set("Authorization", "Bearer the-token") }

type withToken struct{}

func (withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	bearer(r)
	return http.DefaultTransport.RoundTrip(r)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// TestMCPFrames: whatever comes instead of a message, the server ends or goes
// on, and the session is unharmed.
func TestMCPFrames(t *testing.T) {
	p := newProject(t)
	for name, frame := range map[string]string{
		"cut":       `{"jsonrpc":"2.0","id":1,"method":"tools/ca`,
		"not JSON":  "hello\n",
		"a batch":   "[]\n",
		"no object": "17\n",
		"deep":      strings.Repeat("[", 100_000) + "\n",
		"huge":      `{"jsonrpc":"2.0","id":1,"method":"` + strings.Repeat("x", 65<<20) + "\"}\n",
		"NUL":       "\x00\x00\n",
		"nothing":   "",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := p.command("mcp")
			cmd.Stdin = strings.NewReader(frame)
			out, err := cmd.Output()
			if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() < 0 || strings.Contains(string(exit.Stderr), "goroutine ")) {
				t.Errorf("%v", err)
			}
			for line := range strings.Lines(string(out)) {
				if !json.Valid([]byte(line)) {
					t.Errorf("standard output has %q", line)
				}
			}
		})
	}
	if out, code := p.galley(t, "tool", "Bash", "--json", `{"command":"cat go.mod"}`); code != 0 || out != "module x\n\n" {
		t.Errorf("afterwards: %d, %q", code, out)
	}
	p.wantUntouched(t)
}
