// Package mcpserver offers the tools of package tools over the Model Context
// Protocol: on standard input and output, or over streamable HTTP.
//
// A client is answered at once; the sandbox starts with the first call that
// needs it. A cancelled call ends with its whole process tree.
package mcpserver

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/galleyfs/galley/sandbox/tools"
)

// maxFrame bounds a JSON-RPC message on standard input, in bytes: a longer one
// ends the connection.
const maxFrame = 64 << 20

// Options configures a server.
type Options struct {
	// Version is Galley's, for the client.
	Version string
	// Instructions tell the model where the tools land.
	Instructions string
	// Log gets the server's own troubles; nil discards them.
	Log *slog.Logger
}

// New makes a server of the tools.
func New(set *tools.Set, o Options) *mcp.Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := mcp.NewServer(&mcp.Implementation{Name: "galley", Title: "Galley", Version: o.Version}, &mcp.ServerOptions{
		Instructions: o.Instructions, Logger: o.Log, Capabilities: &mcp.ServerCapabilities{},
	})
	for _, t := range tools.Tools() {
		closed := false
		destructive := t.Destructive
		s.AddTool(&mcp.Tool{
			Name: t.Name, Title: t.Title, Description: t.Description, InputSchema: t.Input, OutputSchema: t.Output,
			Annotations: &mcp.ToolAnnotations{
				Title: t.Title, ReadOnlyHint: t.ReadOnly, IdempotentHint: t.Idempotent, DestructiveHint: &destructive, OpenWorldHint: &closed,
			},
		}, handler(set, t.Name))
	}
	return s
}

// handler answers the calls of one tool.
func handler(set *tools.Set, name string) mcp.ToolHandler {
	return func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		if id := req.Session.ID(); id != "" {
			ctx = tools.WithClient(ctx, id)
		}
		r, err := set.Call(ctx, name, req.Params.Arguments, progress(ctx, req))
		if err != nil {
			return nil, err
		}
		return result(r)
	}
}

func result(r tools.Result) (*mcp.CallToolResult, error) {
	out := &mcp.CallToolResult{IsError: r.Failed, Content: []mcp.Content{&mcp.TextContent{Text: r.Text}}}
	if r.Image != nil {
		out.Content = append(out.Content, &mcp.ImageContent{MIMEType: r.Image.MIME, Data: r.Image.Data})
	}
	if r.Data != nil {
		data, err := json.Marshal(r.Data)
		if err != nil {
			return nil, err
		}
		out.StructuredContent = json.RawMessage(data)
	}
	return out, nil
}

// progress tells the client how a call is getting on, if it asked for that.
func progress(ctx context.Context, req *mcp.CallToolRequest) tools.Progress {
	token := req.Params.GetProgressToken()
	if token == nil {
		return nil
	}
	var n atomic.Int64
	return func(message string) {
		_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: float64(n.Add(1)), Message: message})
	}
}

// ServeIO serves one client on a pair of streams until it goes.
func ServeIO(ctx context.Context, s *mcp.Server, in io.ReadCloser, out io.WriteCloser) error {
	return s.Run(ctx, &mcp.IOTransport{Reader: in, Writer: out, MaxLineLength: maxFrame})
}
