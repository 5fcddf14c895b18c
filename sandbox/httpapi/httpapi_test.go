package httpapi_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/httpapi"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
	"github.com/galleyfs/galley/sandbox/tools"
	"github.com/galleyfs/galley/sandbox/virtual"
	"github.com/galleyfs/galley/sandbox/virtual/virtualtest"
)

// newSandbox is a virtual sandbox over base, or over nothing.
func newSandbox(t testing.TB, base string) *virtual.Sandbox {
	t.Helper()
	return virtualtest.Open(t, base, virtual.Limits{})
}

func newSet(sb sandbox.Sandbox, secrets map[string]string) *tools.Set {
	return tools.New(tools.Options{Client: "test", Secrets: secrets, Sandbox: func(context.Context) (sandbox.Sandbox, error) { return sb, nil }})
}

// TestConformance: the suite of the contract passes over the API.
func TestConformance(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Harness{Kind: "virtual", Open: func(t *testing.T, base string) sandbox.Sandbox {
		sb := newSandbox(t, base)
		set := newSet(sb, nil)
		socket := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- httpapi.Serve(ctx, ln, httpapi.Handler(httpapi.Options{Set: set, Info: sb.Info()})) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		c := &client{http: dial(socket), end: set.Close}
		if c.info, err = ask[sandbox.Info](t.Context(), c, "GET", "/info", nil); err != nil {
			t.Fatal(err)
		}
		return c
	}})
}

// TestRequests: what is no request of the API is an error that says what is.
func TestRequests(t *testing.T) {
	set := newSet(newSandbox(t, ""), map[string]string{"TOKEN": "s3cr3t-value"})
	h := httpapi.Handler(httpapi.Options{Set: set})
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		code                     sandbox.Code
		has                      string
	}{
		{"no such path", "GET", "/v1/commit", "", 404, sandbox.NotFound, "docs/openapi.json"},
		{"no version", "POST", "/read", "{}", 404, sandbox.NotFound, ""},
		{"another method", "GET", "/v1/read", "", 405, sandbox.Invalid, "POST"},
		{"no JSON", "POST", "/v1/read", "{", 400, sandbox.Invalid, "path, offset, limit"},
		{"misspelt field", "POST", "/v1/read", `{"file":"x"}`, 400, sandbox.Invalid, `unknown field "file"`},
		{"two objects", "POST", "/v1/read", `{"path":"x"} {}`, 400, sandbox.Invalid, "follows"},
		{"a list", "POST", "/v1/read", `[]`, 400, sandbox.Invalid, ""},
		{"no base64", "POST", "/v1/write", `{"path":"x","content":"?"}`, 400, sandbox.Invalid, "base64"},
		{"a mode", "POST", "/v1/write", `{"path":"x","content":"","mode":4095}`, 400, sandbox.Invalid, "0777"},
		{"missing", "POST", "/v1/read", `{"path":"missing"}`, 404, sandbox.NotFound, "no such file"},
		{"pattern", "POST", "/v1/grep", `{"pattern":"a("}`, 400, sandbox.InvalidPattern, "RE2"},
		{"NUL", "POST", "/v1/stat", `{"path":"a\u0000b"}`, 400, sandbox.Invalid, "offset 1"},
		{"no process", "POST", "/v1/processes/p9/poll", `{}`, 404, sandbox.NotFound, "process"},
		{"a long wait", "POST", "/v1/processes/p9/poll", `{"wait_ms":9}`, 404, sandbox.NotFound, ""},
		{"timeout", "POST", "/v1/exec", `{"command":"true","timeout_ms":-1}`, 400, sandbox.Invalid, "timeout_ms"},
		{"terminal", "POST", "/v1/exec", `{"command":"true","pty":{}}`, 501, sandbox.NotSupported, "terminal"},
		{"no such tool", "POST", "/v1/tools/Commit", `{}`, 404, sandbox.NotFound, "RequestReview"},
		{"no events", "GET", "/v1/events", ``, 501, sandbox.NotSupported, ""},
		{"secret in an error", "POST", "/v1/read", `{"path":"s3cr3t-value"}`, 404, sandbox.NotFound, "[REDACTED:TOKEN]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, strings.NewReader(tc.body)))
			var f httpapi.Failure
			if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil || f.Error == nil {
				t.Fatalf("%v: %s", err, w.Body)
			}
			if w.Code != tc.status || f.Error.Code != tc.code || !strings.Contains(w.Body.String(), strings.ReplaceAll(tc.has, `"`, `\"`)) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), "s3cr3t") {
				t.Error("the secret is in it")
			}
		})
	}
	t.Run("another type", func(t *testing.T) {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/read", strings.NewReader(`{"path":"x"}`))
		r.Header.Set("Content-Type", "text/plain")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "application/json") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
	t.Run("secrets in streams", func(t *testing.T) {
		w := httptest.NewRecorder()
		body := `{"command":"printf s3cr; printf '3t-val'; echo ue; echo $TOKEN >&2","separate":true}`
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/exec/stream", strings.NewReader(body)))
		var out, errs string
		for dec := json.NewDecoder(w.Body); ; {
			var e httpapi.ExecEvent
			if err := dec.Decode(&e); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			switch e.Stream {
			case "stdout":
				out += string(e.Data)
			case "stderr":
				errs += string(e.Data)
			}
		}
		if out != "[REDACTED:TOKEN]\n" || errs != out {
			t.Errorf("%q, %q", out, errs)
		}
	})
	t.Run("a tool", func(t *testing.T) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/tools/Bash", strings.NewReader(`{"command":"echo $TOKEN; exit 3"}`)))
		var r httpapi.ToolResult
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || r.Text != "[REDACTED:TOKEN]\n(exit code: 3)" || !strings.Contains(string(r.Data), `"output":"[REDACTED:TOKEN]`) {
			t.Errorf("%v: %s", err, w.Body)
		}
	})
}

// FuzzRequest: no request does harm, and every answer is JSON.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{`{"path":"x"}`, `{"path":"x","content":"aGk="}`, `{"command":"echo hi"}`, `{"pattern":"**"}`, `{`, `{"path":"\u0000"}`, `[[[[`, `{"limit":1e99}`} {
		for i := range uint8(24) {
			f.Add(i, body)
		}
	}
	sb := newSandbox(f, "")
	h := httpapi.Handler(httpapi.Options{Set: newSet(sb, nil), Info: sb.Info()})
	paths := httpapi.Paths()
	f.Fuzz(func(t *testing.T, n uint8, body string) {
		p := paths[int(n)%len(paths)]
		if p[1] == "/v1/mount" || strings.Contains(p[1], "processes") && p[0] == "POST" || strings.Contains(p[1], "exec") && len(body) > 200 {
			return // a host directory is not for a fuzzer to choose, nor what runs on
		}
		w := httptest.NewRecorder()
		path := strings.NewReplacer("{id}", "1", "{name}", "Read").Replace(p[1])
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // of a command that runs on
		defer cancel()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, p[0], path, strings.NewReader(body)))
		for dec := json.NewDecoder(w.Body); ; {
			var v any
			if err := dec.Decode(&v); err == io.EOF {
				return
			} else if err != nil {
				t.Fatalf("%s %q: %v", path, body, err)
			}
		}
	})
}
