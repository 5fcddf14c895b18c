package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/tools"
)

// routes are all operations, in the order in which they are described.
var routes = []route{
	{"GET", "/v1/info", "info", "what the sandbox is and what it lacks", nil, reflect.TypeFor[sandbox.Info](), false, false, handleInfo},
	{"POST", "/v1/read", "read", "read a file, or lines of it", reflect.TypeFor[sandbox.ReadRequest](), reflect.TypeFor[ReadResult](), false, false, op("read", false, doRead)},
	{"POST", "/v1/write", "write", "make a file or replace its content, atomically", reflect.TypeFor[WriteRequest](), reflect.TypeFor[sandbox.WriteResult](), false, true, op("write", true, doWrite)},
	{"POST", "/v1/edit", "edit", "replace text in a file, atomically", reflect.TypeFor[EditRequest](), reflect.TypeFor[EditResult](), false, true, handleEdit},
	{"POST", "/v1/stat", "stat", "tell of one file", reflect.TypeFor[sandbox.StatRequest](), reflect.TypeFor[FileInfo](), false, false, op("stat", false, doStat)},
	{"POST", "/v1/list", "list", "list a directory, sorted by name", reflect.TypeFor[sandbox.ListRequest](), reflect.TypeFor[ListResult](), false, false, op("list", false, doList)},
	{"POST", "/v1/glob", "glob", "find files by a pattern of their paths", reflect.TypeFor[sandbox.GlobRequest](), reflect.TypeFor[sandbox.GlobResult](), false, false, op("glob", false, doGlob)},
	{"POST", "/v1/grep", "grep", "find lines by a regular expression (RE2)", reflect.TypeFor[sandbox.GrepRequest](), reflect.TypeFor[sandbox.GrepResult](), false, false, op("grep", false, doGrep)},
	{"POST", "/v1/mount", "mount", "show a directory of the host, read-only or copy-on-write", reflect.TypeFor[sandbox.MountRequest](), reflect.TypeFor[sandbox.MountResult](), false, false, op("mount", true, doMount)},
	{"POST", "/v1/exec", "exec", "run a command with bash and wait for its end; closing the connection ends it with all it started", reflect.TypeFor[ExecRequest](), reflect.TypeFor[ExecResult](), false, true, handleExec},
	{"POST", "/v1/exec/stream", "execStream", "run a command, with its output as it comes", reflect.TypeFor[ExecRequest](), reflect.TypeFor[ExecEvent](), true, true, handleExecStream},
	{"POST", "/v1/processes", "start", "start a command in the background", reflect.TypeFor[ExecRequest](), reflect.TypeFor[ProcessInfo](), false, true, handleStart},
	{"GET", "/v1/processes", "processes", "list the background processes", nil, reflect.TypeFor[ProcessList](), false, false, handleProcesses},
	{"POST", "/v1/processes/{id}/poll", "poll", "what it has put out since the last poll, and how it is", reflect.TypeFor[PollRequest](), reflect.TypeFor[sandbox.ProcessState](), false, false, process("poll", doPoll)},
	{"POST", "/v1/processes/{id}/wait", "wait", "wait for its end, and return all that was kept of its output", reflect.TypeFor[Done](), reflect.TypeFor[ExecResult](), false, false, process("wait", doWait)},
	{"POST", "/v1/processes/{id}/stdin", "stdin", "write to its standard input", reflect.TypeFor[StdinRequest](), reflect.TypeFor[Done](), false, false, process("stdin", doStdin)},
	{"POST", "/v1/processes/{id}/signal", "signal", "send it a signal", reflect.TypeFor[SignalRequest](), reflect.TypeFor[Done](), false, false, process("signal", doSignal)},
	{"POST", "/v1/processes/{id}/resize", "resize", "set the size of its terminal", reflect.TypeFor[ResizeRequest](), reflect.TypeFor[Done](), false, false, process("resize", doResize)},
	{"POST", "/v1/processes/{id}/kill", "kill", "end it with all it started", reflect.TypeFor[Done](), reflect.TypeFor[Done](), false, false, process("kill", doKill)},
	{"DELETE", "/v1/processes/{id}", "release", "forget it; one that runs is killed", nil, reflect.TypeFor[Done](), false, false, process("release", doRelease)},
	{"GET", "/v1/tools", "tools", "list the tools for agents, with their schemas", nil, reflect.TypeFor[ToolList](), false, false, handleTools},
	{"POST", "/v1/tools/{name}", "tool", "call a tool; the body are its arguments", reflect.TypeFor[json.RawMessage](), reflect.TypeFor[ToolResult](), false, true, handleTool},
	{"GET", "/v1/events", "events", "the session's events; with the query follow=1 also those to come", nil, reflect.TypeFor[json.RawMessage](), true, false, handleEvents},
}

type handler = func(*api, http.ResponseWriter, *http.Request, []byte) (any, error)

// op makes a handler of one call of the contract. The content that a request
// carries is not recorded.
func op[A, R, O any](name string, changes bool, do func(context.Context, sandbox.Sandbox, A) (R, func(R) O, error)) handler {
	return func(a *api, _ http.ResponseWriter, r *http.Request, body []byte) (any, error) {
		in, err := decode[A](name, body)
		if err != nil {
			return nil, err
		}
		shape := func(R) O { var none O; return none }
		out, err := tools.Do(r.Context(), a.opt.Set, name, recorded(in), changes, func(ctx context.Context, sb sandbox.Sandbox) (R, error) {
			out, s, err := do(ctx, sb, in)
			shape = s
			return out, err
		})
		if err != nil {
			return nil, err
		}
		return shape(out), nil
	}
}

// same leaves a result as the contract has it.
func same[R any](r R) R { return r }

// recorded is a request for the record: without what may be large, which is
// not text there anyway.
func recorded(in any) any {
	switch in := in.(type) {
	case WriteRequest:
		in.Content = nil
		return in
	case EditRequest:
		return struct {
			Path, Old, New string
			All            bool
		}{in.Path, string(in.Old), string(in.New), in.All}
	case ExecRequest:
		in.Stdin = nil
		return in
	}
	return in
}

func doRead(ctx context.Context, sb sandbox.Sandbox, in sandbox.ReadRequest) (sandbox.ReadResult, func(sandbox.ReadResult) ReadResult, error) {
	r, err := sb.Read(ctx, in)
	return r, func(r sandbox.ReadResult) ReadResult {
		return ReadResult{r.Content, infoOf(r.Info), r.FirstLine, r.LineCount, r.TotalLines, r.Truncated, r.Digest}
	}, err
}

func doWrite(ctx context.Context, sb sandbox.Sandbox, in WriteRequest) (sandbox.WriteResult, func(sandbox.WriteResult) sandbox.WriteResult, error) {
	if in.Mode > 0o777 {
		return sandbox.WriteResult{}, same[sandbox.WriteResult], sandbox.Errorf(sandbox.Invalid, "write", in.Path, "mode is 0%o; expected permission bits up to 0777", in.Mode)
	}
	r, err := sb.Write(ctx, sandbox.WriteRequest{Path: in.Path, Content: in.Content, Mode: fs.FileMode(in.Mode), New: in.New, Digest: in.Digest, Client: in.Client})
	return r, same[sandbox.WriteResult], err
}

func handleEdit(a *api, _ http.ResponseWriter, r *http.Request, body []byte) (any, error) {
	in, err := decode[EditRequest]("edit", body)
	if err != nil {
		return nil, err
	}
	out, err := tools.Do(r.Context(), a.opt.Set, "edit", recorded(in), true, func(ctx context.Context, sb sandbox.Sandbox) (sandbox.EditResult, error) {
		return sb.Edit(ctx, in.EditRequest)
	})
	switch sandbox.CodeOf(err) {
	case "":
		return in.result(out), nil
	case sandbox.NoMatch, sandbox.Ambiguous:
		return nil, &editFailure{err, in.result(out)}
	}
	return nil, err
}

func doStat(ctx context.Context, sb sandbox.Sandbox, in sandbox.StatRequest) (sandbox.FileInfo, func(sandbox.FileInfo) FileInfo, error) {
	r, err := sb.Stat(ctx, in)
	return r, infoOf, err
}

func doList(ctx context.Context, sb sandbox.Sandbox, in sandbox.ListRequest) (sandbox.ListResult, func(sandbox.ListResult) ListResult, error) {
	r, err := sb.List(ctx, in)
	return r, func(r sandbox.ListResult) ListResult {
		out := ListResult{Entries: make([]FileInfo, len(r.Entries)), Truncated: r.Truncated}
		for i, e := range r.Entries {
			out.Entries[i] = infoOf(e)
		}
		return out
	}, err
}

func doGlob(ctx context.Context, sb sandbox.Sandbox, in sandbox.GlobRequest) (sandbox.GlobResult, func(sandbox.GlobResult) sandbox.GlobResult, error) {
	r, err := sb.Glob(ctx, in)
	return r, same[sandbox.GlobResult], err
}

func doGrep(ctx context.Context, sb sandbox.Sandbox, in sandbox.GrepRequest) (sandbox.GrepResult, func(sandbox.GrepResult) sandbox.GrepResult, error) {
	r, err := sb.Grep(ctx, in)
	return r, same[sandbox.GrepResult], err
}

func doMount(ctx context.Context, sb sandbox.Sandbox, in sandbox.MountRequest) (sandbox.MountResult, func(sandbox.MountResult) sandbox.MountResult, error) {
	r, err := sb.Mount(ctx, in)
	return r, same[sandbox.MountResult], err
}

func handleInfo(a *api, _ http.ResponseWriter, _ *http.Request, _ []byte) (any, error) {
	return a.opt.Info, nil
}

// exec runs a command to its end, with its output to on as it comes.
func (a *api) exec(r *http.Request, body []byte, on func(sandbox.Output)) (*ExecResult, error) {
	in, err := decode[ExecRequest]("exec", body)
	if err != nil {
		return nil, err
	}
	req, err := in.bash()
	if err != nil {
		return nil, err
	}
	if len(in.Stdin) > 0 {
		req.Stdin = bytes.NewReader(in.Stdin)
	}
	req.OnOutput = on
	ran := false
	res, err := tools.Do(r.Context(), a.opt.Set, "exec", recorded(in), true, func(ctx context.Context, sb sandbox.Sandbox) (sandbox.BashResult, error) {
		res, err := a.opt.Set.Bash(ctx, sb, req)
		ran = err == nil || res.Duration > 0
		return res, err
	})
	if err != nil && !ran {
		return nil, err
	}
	return execOf(res, err), nil
}

func handleExec(a *api, _ http.ResponseWriter, r *http.Request, body []byte) (any, error) {
	return a.exec(r, body, nil)
}

func handleExecStream(a *api, w http.ResponseWriter, r *http.Request, body []byte) (any, error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	lines := newLines(w)
	var mu sync.Mutex
	res, err := a.exec(r.WithContext(ctx), body, func(o sandbox.Output) {
		name := "stdout"
		if o.Stream == sandbox.Stderr {
			name = "stderr"
		}
		mu.Lock()
		defer mu.Unlock()
		if lines.put(ExecEvent{Stream: name, Data: o.Data}) != nil {
			cancel() // nobody listens any more
		}
	})
	if err != nil {
		return nil, err // before anything was put out
	}
	res.Output, res.Stdout, res.Stderr, res.Dropped, res.DroppedErr, res.Head, res.HeadErr = nil, nil, nil, 0, 0, 0, 0
	mu.Lock()
	defer mu.Unlock()
	_ = lines.put(ExecEvent{Result: res})
	return nil, nil
}

func handleStart(a *api, _ http.ResponseWriter, r *http.Request, body []byte) (any, error) {
	in, err := decode[ExecRequest]("start", body)
	if err != nil {
		return nil, err
	}
	req, err := in.bash()
	if err != nil {
		return nil, err
	}
	if len(in.Stdin) > 0 {
		req.Stdin = bytes.NewReader(in.Stdin)
	}
	p, err := a.opt.Set.Start(r.Context(), recorded(in), req)
	if err != nil {
		return nil, err
	}
	return ProcessInfo{p.ID()}, nil
}

func handleProcesses(a *api, _ http.ResponseWriter, r *http.Request, _ []byte) (any, error) {
	return tools.Do(r.Context(), a.opt.Set, "processes", struct{}{}, false, func(_ context.Context, sb sandbox.Sandbox) (ProcessList, error) {
		out := ProcessList{Processes: []ProcessInfo{}}
		for _, p := range sb.Processes() {
			out.Processes = append(out.Processes, ProcessInfo{p.ID()})
		}
		return out, nil
	})
}

// process makes a handler of one thing that is done to a background process.
func process[A, R any](name string, do func(context.Context, sandbox.Process, A) (R, error)) handler {
	return func(a *api, _ http.ResponseWriter, r *http.Request, body []byte) (any, error) {
		in, err := decode[A](name, body)
		if err != nil {
			return nil, err
		}
		p, err := a.opt.Set.Process(r.Context(), r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		return do(r.Context(), p, in)
	}
}

func doPoll(ctx context.Context, p sandbox.Process, in PollRequest) (sandbox.ProcessState, error) {
	if in.WaitMS < 0 || in.WaitMS > maxPoll.Milliseconds() {
		return sandbox.ProcessState{}, sandbox.Errorf(sandbox.Invalid, "poll", "", "wait_ms is %d; expected up to %d", in.WaitMS, maxPoll.Milliseconds())
	}
	return p.Poll(ctx, time.Duration(in.WaitMS)*time.Millisecond)
}

func doWait(ctx context.Context, p sandbox.Process, _ Done) (*ExecResult, error) {
	r, err := p.Wait(ctx)
	if err != nil && r.Duration == 0 {
		return nil, err
	}
	return execOf(r, err), nil
}

func doStdin(ctx context.Context, p sandbox.Process, in StdinRequest) (Done, error) {
	if len(in.Data) > 0 {
		if err := p.Write(ctx, in.Data); err != nil {
			return Done{}, err
		}
	}
	if in.Close {
		return Done{}, p.CloseStdin()
	}
	return Done{}, nil
}

func doSignal(_ context.Context, p sandbox.Process, in SignalRequest) (Done, error) {
	return Done{}, tools.Signal(p, in.Signal)
}

func doResize(_ context.Context, p sandbox.Process, in ResizeRequest) (Done, error) {
	return Done{}, p.Resize(in.Rows, in.Cols)
}

func doKill(_ context.Context, p sandbox.Process, _ Done) (Done, error) { return Done{}, p.Kill() }

func doRelease(_ context.Context, p sandbox.Process, _ Done) (Done, error) {
	return Done{}, p.Release()
}

func handleTools(*api, http.ResponseWriter, *http.Request, []byte) (any, error) {
	out := ToolList{}
	for _, t := range tools.Tools() {
		in, err := json.Marshal(t.Input)
		if err != nil {
			return nil, err
		}
		result, err := json.Marshal(t.Output)
		if err != nil {
			return nil, err
		}
		out.Tools = append(out.Tools, ToolInfo{t.Name, t.Description, t.ReadOnly, in, result})
	}
	return out, nil
}

func handleTool(a *api, _ http.ResponseWriter, r *http.Request, body []byte) (any, error) {
	res, err := a.opt.Set.Call(r.Context(), r.PathValue("name"), body, nil)
	if err != nil {
		return nil, err
	}
	out := ToolResult{Failed: res.Failed, Code: string(res.Code), Text: res.Text}
	if res.Data != nil {
		if out.Data, err = json.Marshal(res.Data); err != nil {
			return nil, err
		}
	}
	if res.Image != nil {
		out.Image = &Image{res.Image.MIME, res.Image.Data}
	}
	return out, nil
}

func handleEvents(a *api, w http.ResponseWriter, r *http.Request, _ []byte) (any, error) {
	if a.opt.Events == nil {
		return nil, sandbox.Errorf(sandbox.NotSupported, "events", "", "this sandbox has no session, so that it has no events")
	}
	follow := false
	switch q := r.URL.Query().Get("follow"); q {
	case "", "0":
	case "1":
		follow = true
	default:
		return nil, sandbox.Errorf(sandbox.Invalid, "events", "", "follow is %q; expected 0 or 1", q)
	}
	lines := newLines(w)
	w.Header().Set("Content-Type", ndjson)
	w.WriteHeader(http.StatusOK)
	lines.begun = true
	_ = lines.flush.Flush()
	_ = a.opt.Events(r.Context(), follow, func(e json.RawMessage) error { return lines.put(e) })
	return nil, nil
}
