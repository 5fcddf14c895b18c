package tools

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/keep"
)

// maxStored is how much of a command's output is stored in a file, head and
// tail, when it is more than a model is shown.
const maxStored = 64 << 20

type bashInput struct {
	Command    string `json:"command,omitempty" jsonschema:"what bash runs; nothing of an earlier call lives on but files"`
	Cwd        string `json:"cwd,omitempty" jsonschema:"where it runs (default: the working directory)"`
	Timeout    int    `json:"timeout,omitempty" jsonschema:"in seconds (default 120)"`
	Background bool   `json:"background,omitempty" jsonschema:"return at once; the result names the process"`
	Process    string `json:"process,omitempty" jsonschema:"instead of command: a background process to poll, or to do one of the following to"`
	Input      string `json:"input,omitempty" jsonschema:"with process: what to write to its standard input"`
	Signal     string `json:"signal,omitempty" jsonschema:"with process: a signal to send, such as INT; KILL ends all it started"`
	Wait       int    `json:"wait,omitempty" jsonschema:"with process: how many seconds to wait for output (up to 60)"`
}

type bashOutput struct {
	ExitCode  int    `json:"exit_code"`
	Signal    string `json:"signal,omitempty"`
	Output    string `json:"output"`
	Truncated bool   `json:"truncated"`
	File      string `json:"file,omitempty" jsonschema:"where the whole output is, for Read"`
	Process   string `json:"process,omitempty" jsonschema:"the id of a background process"`
	Running   bool   `json:"running"`
	TimedOut  bool   `json:"timed_out,omitempty"`
}

func callBash(ctx context.Context, s *Set, args json.RawMessage, progress Progress) (Result, error) {
	in, err := decode[bashInput]("Bash", args)
	if err != nil {
		return Result{}, err
	}
	sb, err := s.sandbox(ctx)
	if err != nil {
		return Result{}, err
	}
	switch {
	case in.Process != "" && (in.Command != "" || in.Background):
		return Result{}, sandbox.Errorf(sandbox.Invalid, "bash", "", "give either a command or a process")
	case in.Process != "":
		return s.talk(ctx, sb, in)
	case in.Timeout < 0 || time.Duration(in.Timeout) > sandbox.MaxTimeout/time.Second:
		return Result{}, sandbox.Errorf(sandbox.Invalid, "bash", "", "the timeout is %d; expected 1 to %d seconds", in.Timeout, sandbox.MaxTimeout/time.Second)
	}
	req := sandbox.BashRequest{Command: in.Command, Dir: in.Cwd, Timeout: time.Duration(in.Timeout) * time.Second}
	if in.Background {
		req.OpenStdin = true
		p, err := s.startProcess(ctx, sb, req)
		if err != nil {
			return Result{}, err
		}
		return Result{
			Text: fmt.Sprintf("Started %s in the background; Bash with process %q polls it", p.ID(), p.ID()),
			Data: &bashOutput{Process: p.ID(), Running: true},
		}, nil
	}
	return s.runCommand(ctx, sb, req, progress)
}

// runCommand runs a command to its end.
func (s *Set) runCommand(ctx context.Context, sb sandbox.Sandbox, req sandbox.BashRequest, progress Progress) (Result, error) {
	all := keep.New(maxStored)
	told := time.Now()
	out := s.redactor.Stream(func(b []byte) {
		_, _ = all.Write(b)
		if time.Since(told) > time.Second {
			told = time.Now()
			progress(lastLine(b))
		}
	})
	req.OnOutput = func(o sandbox.Output) { _, _ = out.Write(o.Data) }
	req.Env = s.environ(nil)
	follow(ctx, &req)
	r, err := sb.Bash(ctx, req)
	out.Close()
	switch sandbox.CodeOf(err) {
	case "", sandbox.Timeout, sandbox.Canceled:
	default:
		return Result{}, err
	}
	data := &bashOutput{ExitCode: r.ExitCode, Signal: r.Signal, TimedOut: sandbox.CodeOf(err) == sandbox.Timeout}
	data.Output, data.Truncated, data.File = s.digest(ctx, sb, all)
	text := data.Output
	add := func(line string) {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += line
	}
	switch {
	case data.TimedOut:
		timeout := req.Timeout
		if timeout == 0 {
			timeout = sandbox.BashTimeout
		}
		add(fmt.Sprintf("Command timed out after %d seconds", int(timeout.Seconds())))
		return Result{Text: text, Data: data, Failed: true, Code: sandbox.Timeout}, nil
	case err != nil:
		return Result{Text: text, Data: data}, err
	case r.ExitCode != 0:
		add(fmt.Sprintf("(exit code: %d)", r.ExitCode))
	case text == "":
		text = "(no output)"
	}
	return Result{Text: text, Data: data}, nil
}

func lastLine(b []byte) string {
	b = bytes.TrimRight(b, "\r\n")
	return clip(strings.ToValidUTF8(string(b[bytes.LastIndexByte(b, '\n')+1:]), "\ufffd"), 200)
}

// digest is the output as a model is shown it: all of it, or its head and its
// tail, with the whole in a file. Secrets have been struck from it.
func (s *Set) digest(ctx context.Context, sb sandbox.Sandbox, kept *keep.Buffer) (text string, cut bool, file string) {
	all, dropped, _ := kept.Take()
	if dropped == 0 && len(all) <= maxBytes && bytes.Count(all, []byte{'\n'}) <= maxLines {
		return strings.ToValidUTF8(string(all), "\ufffd"), false, ""
	}
	head, tail := ends(all)
	s.mu.Lock()
	s.output++
	file = fmt.Sprintf("%s/galley/output-%s-%d.txt", sb.Info().TempDir, s.id, s.output)
	s.mu.Unlock()
	where := "the whole output is in " + file + ", for Read to page"
	if dropped > 0 {
		where = fmt.Sprintf("its first and last %d MiB are in %s", maxStored>>21, file)
	}
	if _, err := sb.Write(context.WithoutCancel(ctx), sandbox.WriteRequest{Path: file, Content: all}); err != nil {
		where, file = "the whole could not be stored: "+err.Error(), ""
	}
	missing := all[len(head) : len(all)-len(tail)]
	text = fmt.Sprintf("%s\n(output truncated: %d lines, %d bytes left out here; %s)\n%s",
		bytes.TrimRight(head, "\n"), bytes.Count(missing, []byte{'\n'}), int64(len(missing))+dropped, where, tail)
	return strings.ToValidUTF8(text, "\ufffd"), true, file
}

// ends are the first and the last of long output: half the lines and half the
// bytes each, in whole lines where these are not too long.
func ends(all []byte) (head, tail []byte) {
	head = all[:min(len(all), maxBytes/2)]
	if i := nthLine(head, maxLines/2); i >= 0 {
		head = head[:i]
	} else if i := bytes.LastIndexByte(head, '\n'); i >= 0 {
		head = head[:i+1]
	}
	rest := all[len(head):]
	tail = rest[max(0, len(rest)-maxBytes/2):]
	if len(tail) < len(rest) {
		if i := bytes.IndexByte(tail, '\n'); i >= 0 && i < len(tail)-1 {
			tail = tail[i+1:]
		}
	}
	if over := bytes.Count(tail, []byte{'\n'}) - maxLines/2; over > 0 {
		tail = tail[nthLine(tail, over):]
	}
	return head, tail
}

// nthLine is the offset behind the n-th line end, -1 where there are fewer.
func nthLine(b []byte, n int) int {
	at := 0
	for range n {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return -1
		}
		at += i + 1
	}
	return at
}

// maxWait is how long a poll may wait.
const maxWait = time.Minute

// talk does to a background process what was asked, and polls it.
func (s *Set) talk(ctx context.Context, sb sandbox.Sandbox, in bashInput) (Result, error) {
	p, err := s.Process(ctx, in.Process)
	if err != nil {
		return Result{}, err
	}
	if in.Input != "" {
		if err := p.Write(ctx, []byte(in.Input)); err != nil {
			return Result{}, err
		}
	}
	if in.Signal != "" {
		if err := Signal(p, in.Signal); err != nil {
			return Result{}, err
		}
	}
	st, err := p.Poll(ctx, min(time.Duration(max(in.Wait, 0))*time.Second, maxWait))
	if err != nil {
		return Result{}, err
	}
	kept := keep.New(maxStored)
	_, _ = kept.Write(st.Output)
	out := &bashOutput{Process: p.ID(), Running: st.Running, ExitCode: st.ExitCode, Signal: st.Signal}
	out.Output, out.Truncated, out.File = s.digest(ctx, sb, kept)
	text := out.Output
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if st.Running {
		text += fmt.Sprintf("(%s is running)", p.ID())
	} else {
		text += fmt.Sprintf("(%s has ended, exit code: %d)", p.ID(), st.ExitCode)
	}
	return Result{Text: text, Data: out}, nil
}

// Signal sends a background process a signal by its name, such as INT; KILL ends
// all that it started.
func Signal(p sandbox.Process, name string) error {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	sig := unix.SignalNum(name)
	switch sig {
	case 0:
		return sandbox.Errorf(sandbox.Invalid, "bash", "", "%q is no signal; expected a name such as INT, TERM or KILL", name)
	case syscall.SIGKILL:
		return p.Kill()
	}
	return p.Signal(sig)
}
