package mcpserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/mcpserver"
	"github.com/galleyfs/galley/sandbox/tools"
)

// out takes what the server writes.
type out struct{ bytes.Buffer }

func (*out) Close() error { return nil }

const greeting = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"f","version":"1"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
`

// FuzzFrames: whatever comes on standard input, the server ends with it, and
// answers with lines of JSON alone.
func FuzzFrames(f *testing.F) {
	for _, s := range []string{
		"", "\n", "{", "null\n", "[]\n", "17\n", "\x00\xff\n",
		`{"jsonrpc":"2.0","id":2,"method":"tools/list"}` + "\n",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"Read","arguments":{"path":"x"}}}` + "\n",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"Commit","arguments":{}}}` + "\n",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"Bash","arguments":{"command":7}}}` + "\n",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"Write","arguments":[1]}}` + "\n",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"Edit","arguments":{"path":"` + "\xff" + `"}}}` + "\n",
		`{"jsonrpc":"1.0","id":{},"method":3}` + "\n", `{"jsonrpc":"2.0","id":2,"result":{}}` + "\n",
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}` + "\n",
		`{"jsonrpc":"2.0","id":1e400,"method":"ping"}` + "\n", strings.Repeat("[", 1000) + "\n",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, frames []byte, greeted bool) {
		set := tools.New(tools.Options{Sandbox: func(context.Context) (sandbox.Sandbox, error) { return nil, errors.New("none here") }})
		defer set.Close()
		in := io.Reader(bytes.NewReader(frames))
		if greeted {
			in = io.MultiReader(strings.NewReader(greeting), in)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var o out
		_ = mcpserver.ServeIO(ctx, mcpserver.New(set, mcpserver.Options{Version: "1"}), io.NopCloser(in), &o)
		if ctx.Err() != nil {
			t.Fatal("the server does not end with its client")
		}
		for line := range bytes.Lines(o.Bytes()) {
			if !json.Valid(line) {
				t.Fatalf("it answered %q", line)
			}
		}
	})
}
