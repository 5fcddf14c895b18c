package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/httpapi"
)

// client is the contract over the API, as a program in another language would
// have it: what the suite sees of the sandbox has gone over the wire.
type client struct {
	http *http.Client
	info sandbox.Info
	end  func() error
}

var _ sandbox.Sandbox = (*client)(nil)

func dial(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}, MaxIdleConnsPerHost: 64}}
}

// do makes a request. The error of a cancelled one is as the contract has it.
func (c *client) do(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	var bad invalid
	if in != nil {
		b, err := json.Marshal(bad.mend(reflect.ValueOf(in)).Interface())
		if err != nil {
			return nil, err
		}
		// As a program would send it that does not look at its strings.
		body = bytes.NewReader(bytes.ReplaceAll(b, []byte(string(stand)), []byte{0xff}))
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://galley/v1"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			err = sandbox.Wrap(strings.Trim(path, "/"), "", ctx.Err())
		}
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var f httpapi.Failure
	if err := json.NewDecoder(res.Body).Decode(&f); err != nil || f.Error == nil {
		return nil, fmt.Errorf("status %d without an error: %w", res.StatusCode, err)
	}
	if bad.field != "" && f.Error.Code == sandbox.Invalid && strings.Contains(f.Error.Message, "not UTF-8") {
		// The server tells the offset in the body, the suite asks for that in
		// the string.
		f.Error.Offset = bad.offset
		if bad.field == "Pattern" {
			f.Error.Code = sandbox.InvalidPattern
		}
	}
	if errno, ok := errnos[f.Error.Code]; ok {
		f.Error.Err = errno
	}
	if f.Edit != nil {
		return nil, &refusedEdit{f.Error, *f.Edit}
	}
	return nil, f.Error
}

// refusedEdit is an edit that says what it found.
type refusedEdit struct {
	error
	edit httpapi.EditResult
}

func (e *refusedEdit) Unwrap() error { return e.error }

// errnos are those that the suite asks for.
var errnos = map[sandbox.Code]syscall.Errno{sandbox.NotFound: unix.ENOENT, sandbox.ReadOnly: unix.EROFS, sandbox.Exists: unix.EEXIST}

// stand takes the place of a byte that is not UTF-8 while JSON is made.
const stand = '\uf8ff'

// invalid is the first string of a request that is not UTF-8.
type invalid struct {
	field  string
	offset int
}

// mend puts the stand-in into the strings of a request.
func (b *invalid) mend(in reflect.Value) reflect.Value {
	v := reflect.New(in.Type()).Elem()
	v.Set(in)
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Struct:
			f.Set(b.mend(f))
		case reflect.String:
			mended := strings.ToValidUTF8(f.String(), string(stand))
			if at := strings.IndexRune(mended, stand); at >= 0 && b.field == "" {
				b.field, b.offset = v.Type().Field(i).Name, at
			}
			f.SetString(mended)
		}
	}
	return v
}

// millis is a duration, also one that is only a little too much.
func millis(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

func ask[T any](ctx context.Context, c *client, method, path string, in any) (T, error) {
	var out T
	res, err := c.do(ctx, method, path, in)
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	return out, json.NewDecoder(res.Body).Decode(&out)
}

func (c *client) Info() sandbox.Info { return c.info }

func infoOf(i httpapi.FileInfo) sandbox.FileInfo {
	mode := fs.FileMode(i.Mode & 0o777)
	for bit, m := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if i.Mode&bit != 0 {
			mode |= m
		}
	}
	mode |= map[string]fs.FileMode{"directory": fs.ModeDir, "symlink": fs.ModeSymlink, "fifo": fs.ModeNamedPipe, "socket": fs.ModeSocket, "device": fs.ModeDevice}[i.Type]
	return sandbox.FileInfo{Path: i.Path, Mode: mode, Size: i.Size, ModTime: i.ModTime, UID: i.UID, GID: i.GID, Nlink: i.Nlink, Ino: i.Ino, Target: i.Target}
}

func (c *client) Read(ctx context.Context, r sandbox.ReadRequest) (sandbox.ReadResult, error) {
	o, err := ask[httpapi.ReadResult](ctx, c, "POST", "/read", r)
	return sandbox.ReadResult{Content: o.Content, Info: infoOf(o.Info), FirstLine: o.FirstLine, LineCount: o.LineCount, TotalLines: o.TotalLines, Truncated: o.Truncated, Digest: o.Digest}, err
}

func (c *client) Write(ctx context.Context, r sandbox.WriteRequest) (sandbox.WriteResult, error) {
	return ask[sandbox.WriteResult](ctx, c, "POST", "/write", httpapi.WriteRequest{Path: r.Path, Content: r.Content, Mode: uint32(r.Mode), New: r.New, Digest: r.Digest, Client: r.Client})
}

func (c *client) Edit(ctx context.Context, r sandbox.EditRequest) (sandbox.EditResult, error) {
	o, err := ask[httpapi.EditResult](ctx, c, "POST", "/edit", httpapi.EditRequest{EditRequest: r, Contents: true})
	var f *refusedEdit
	if errors.As(err, &f) {
		o, err = f.edit, f.error
	}
	return sandbox.EditResult{Count: o.Count, Line: o.Line, Digest: o.Digest, Path: o.Path, Before: o.Before, After: o.After}, err
}

func (c *client) Stat(ctx context.Context, r sandbox.StatRequest) (sandbox.FileInfo, error) {
	o, err := ask[httpapi.FileInfo](ctx, c, "POST", "/stat", r)
	return infoOf(o), err
}

func (c *client) List(ctx context.Context, r sandbox.ListRequest) (sandbox.ListResult, error) {
	o, err := ask[httpapi.ListResult](ctx, c, "POST", "/list", r)
	out := sandbox.ListResult{Entries: []sandbox.FileInfo{}, Truncated: o.Truncated}
	for _, e := range o.Entries {
		out.Entries = append(out.Entries, infoOf(e))
	}
	return out, err
}

func (c *client) Glob(ctx context.Context, r sandbox.GlobRequest) (sandbox.GlobResult, error) {
	return ask[sandbox.GlobResult](ctx, c, "POST", "/glob", r)
}

func (c *client) Grep(ctx context.Context, r sandbox.GrepRequest) (sandbox.GrepResult, error) {
	return ask[sandbox.GrepResult](ctx, c, "POST", "/grep", r)
}

func (c *client) Mount(ctx context.Context, r sandbox.MountRequest) (sandbox.MountResult, error) {
	return ask[sandbox.MountResult](ctx, c, "POST", "/mount", r)
}

func execOf(r sandbox.BashRequest) (httpapi.ExecRequest, error) {
	out := httpapi.ExecRequest{
		Command: r.Command, Dir: r.Dir, Env: r.Env, TimeoutMS: millis(r.Timeout), OpenStdin: r.OpenStdin, Separate: r.Separate, MaxOutput: r.MaxOutput, PTY: r.PTY,
	}
	if r.Stdin == nil {
		return out, nil
	}
	b, err := io.ReadAll(r.Stdin)
	out.Stdin = b
	return out, err
}

func resultOf(r *httpapi.ExecResult) (sandbox.BashResult, error) {
	out := sandbox.BashResult{
		Output: r.Output, Stdout: r.Stdout, Stderr: r.Stderr, Dropped: r.Dropped, Head: r.Head, DroppedErr: r.DroppedErr, HeadErr: r.HeadErr,
		ExitCode: r.ExitCode, Signal: r.Signal, Duration: time.Duration(r.DurationMS)*time.Millisecond + 1,
	}
	if r.Error != nil {
		return out, r.Error
	}
	return out, nil
}

func (c *client) Bash(ctx context.Context, r sandbox.BashRequest) (sandbox.BashResult, error) {
	in, err := execOf(r)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	if r.OnOutput == nil {
		o, err := ask[httpapi.ExecResult](ctx, c, "POST", "/exec", in)
		if err != nil {
			return sandbox.BashResult{}, err
		}
		return resultOf(&o)
	}
	res, err := c.do(ctx, "POST", "/exec/stream", in)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	defer res.Body.Close()
	var out sandbox.BashResult
	for lines := bufio.NewReader(res.Body); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return out, sandbox.Wrap("bash", "", err)
		}
		var e httpapi.ExecEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return out, err
		}
		if e.Result != nil {
			ended, err := resultOf(e.Result)
			ended.Output, ended.Stdout, ended.Stderr = out.Output, out.Stdout, out.Stderr
			return ended, err
		}
		o := sandbox.Output{Stream: sandbox.Stdout, Data: e.Data}
		switch {
		case e.Stream == "stderr":
			o.Stream = sandbox.Stderr
			out.Stderr = append(out.Stderr, e.Data...)
		case r.Separate:
			out.Stdout = append(out.Stdout, e.Data...)
		default:
			out.Output = append(out.Output, e.Data...)
		}
		r.OnOutput(o)
	}
}

func (c *client) Start(ctx context.Context, r sandbox.BashRequest) (sandbox.Process, error) {
	in, err := execOf(r)
	if err != nil {
		return nil, err
	}
	o, err := ask[httpapi.ProcessInfo](ctx, c, "POST", "/processes", in)
	if err != nil {
		return nil, err
	}
	return &process{c, o.ID}, nil
}

func (c *client) Process(id string) (sandbox.Process, error) {
	for _, p := range c.Processes() {
		if p.ID() == id {
			return p, nil
		}
	}
	return nil, sandbox.Errorf(sandbox.NotFound, "process", id, "no such process")
}

func (c *client) Processes() []sandbox.Process {
	list, err := ask[httpapi.ProcessList](context.Background(), c, "GET", "/processes", nil)
	if err != nil {
		return nil
	}
	var out []sandbox.Process
	for _, p := range list.Processes {
		out = append(out, &process{c, p.ID})
	}
	return out
}

func (c *client) Close() error { return c.end() }

// process is a background process over the API.
type process struct {
	c  *client
	id string
}

func (p *process) ID() string { return p.id }

func (p *process) post(ctx context.Context, what string, in any) error {
	_, err := ask[httpapi.Done](ctx, p.c, "POST", "/processes/"+p.id+"/"+what, in)
	return err
}

func (p *process) Poll(ctx context.Context, wait time.Duration) (sandbox.ProcessState, error) {
	return ask[sandbox.ProcessState](ctx, p.c, "POST", "/processes/"+p.id+"/poll", httpapi.PollRequest{WaitMS: min(wait, time.Minute).Milliseconds()})
}

func (p *process) Wait(ctx context.Context) (sandbox.BashResult, error) {
	o, err := ask[httpapi.ExecResult](ctx, p.c, "POST", "/processes/"+p.id+"/wait", nil)
	if err != nil {
		return sandbox.BashResult{}, err
	}
	return resultOf(&o)
}

func (p *process) Write(ctx context.Context, b []byte) error {
	return p.post(ctx, "stdin", httpapi.StdinRequest{Data: b})
}

func (p *process) CloseStdin() error {
	return p.post(context.Background(), "stdin", httpapi.StdinRequest{Close: true})
}

func (p *process) Signal(sig syscall.Signal) error {
	name := unix.SignalName(sig)
	if name == "" {
		name = strconv.Itoa(int(sig))
	}
	return p.post(context.Background(), "signal", httpapi.SignalRequest{Signal: name})
}

func (p *process) Resize(rows, cols uint16) error {
	return p.post(context.Background(), "resize", httpapi.ResizeRequest{Rows: rows, Cols: cols})
}

func (p *process) Kill() error { return p.post(context.Background(), "kill", nil) }

func (p *process) Release() error {
	_, err := ask[httpapi.Done](context.Background(), p.c, "DELETE", "/processes/"+p.id, nil)
	return err
}
