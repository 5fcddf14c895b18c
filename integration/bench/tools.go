package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/virtual"
	"github.com/galleyfs/galley/snapshots"
)

// toolsChapter measures what an agent's tools take.
var toolsChapter = chapter{
	name:  "tools",
	title: fixed(fmt.Sprintf("Tools: searching %d files, small calls, and many at once", toolFiles)),
	about: fixed(`Wall time, medians. The same search is made by Debian's ripgrep (` + "`rg -uu -n`" + `) natively on the same tree, in turn with
Galley's, which is asked over ` + "`galley serve`" + `; "first" is in a session that has looked at nothing yet. Small calls go through
` + "`galley mcp`" + ` on its standard streams, as a client makes them; the engine's own time is that of the same in one process,
with the checkpoint that follows a change.`),
	measure: toolRows,
}

const (
	toolFiles  = 20000
	toolRounds = 9
	smallCalls = 200
	atOnce     = 100
)

// searches are the three kinds of patterns.
var searches = []struct {
	name, pattern string
	fold          bool
}{
	{"a literal", "Needle_in_haystack", false},
	{"an alternation", "Needle_in_haystack|AlternativeWord|OtherWord", false},
	{"a case-insensitive word", "needle_in_haystack", true},
}

func toolRows(b *bench, w who, dir string, add func(figure)) error {
	project := dir + "/tools"
	if err := b.makeSource(w, project); err != nil {
		return err
	}
	for _, kind := range []string{"local", "virtual"} {
		if err := searchRows(b, w, kind, project, add); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
	}
	if err := callRows(b, w, project, add); err != nil {
		return err
	}
	return crowdRows(b, w, project, add)
}

// makeSource makes files of source-like text, a hundred in a directory; some
// have what the searches look for.
func (b *bench) makeSource(w who, dir string) error {
	return b.must(w, "/", fmt.Sprintf(`mkdir -p %s && cd %s && awk -v n=%d 'BEGIN {
		srand(1)
		words = split("return if else for while import package func type struct error nil string int bool context range var const map chan", word, " ")
		for (i = 0; i < n; i++) {
			d = "pkg" int(i / 2000) "/sub" int(i / 100)
			if (i %% 100 == 0) system("mkdir -p " d)
			f = d "/file" (i %% 100) ".go"
			lines = 20 + int(rand() * 100)
			for (l = 0; l < lines; l++) {
				text = ""
				for (k = 3 + int(rand() * 6); k > 0; k--) text = text " " word[1 + int(rand() * words)]
				print text > f
			}
			if (i %% 200 == 7) print "the Needle_in_haystack stands here" > f
			if (i %% 200 == 9) print "another AlternativeWord and OtherWord" > f
			close(f)
		}
	}'`, dir, dir, toolFiles))
}

// server is a galley serve.
type server struct {
	cmd  *exec.Cmd
	http *http.Client
}

func (b *bench) serve(w who, project string, args ...string) (*server, error) {
	cmd := b.command(w, project, append([]string{b.galley, "serve"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	socket, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(err, cmd.Wait())
	}
	socket = strings.TrimSpace(socket)
	return &server{cmd, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: atOnce,
	}}}, nil
}

func (s *server) close() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	return s.cmd.Wait()
}

// call makes a request and returns how long it took.
func (s *server) call(path string, in, out any) (time.Duration, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	res, err := s.http.Post("http://galley/v1"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	took := time.Since(start)
	if err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", path, text)
	}
	return took, json.Unmarshal(text, out)
}

func searchRows(b *bench, w who, kind, project string, add func(figure)) error {
	s, err := b.serve(w, project, "--sandbox", kind, "--new")
	if err != nil {
		return err
	}
	defer s.close()
	// The sandbox starts with the first call.
	var info sandbox.FileInfo
	if _, err := s.call("/exec", sandbox.BashRequest{Command: "true"}, &info); err != nil {
		return err
	}
	for i, q := range searches {
		rg := "rg -uu -n -e '" + q.pattern + "' . > /dev/null"
		if q.fold {
			rg = strings.Replace(rg, "-n", "-n -i", 1)
		}
		req := sandbox.GrepRequest{Pattern: q.pattern, IgnoreCase: q.fold, Limit: sandbox.MaxGrep}
		var native, ours []time.Duration
		var first time.Duration
		for round := range toolRounds + 1 {
			n, err := b.times(w, project, 1, "", rg)
			if err != nil {
				return err
			}
			var r sandbox.GrepResult
			g, err := s.call("/grep", req, &r)
			if err != nil {
				return err
			}
			if r.Searched != toolFiles || r.Count < toolFiles/200 {
				return fmt.Errorf("a search of %d files found %d lines", r.Searched, r.Count)
			}
			if round == 0 {
				first = g
				continue
			}
			native, ours = append(native, n), append(ours, g)
		}
		n, g := median(native), median(ours)
		ratio := float64(g) / float64(n)
		f := figure{
			name: fmt.Sprintf("Grep of %s, %s sandbox", q.name, kind), goal: "≤ 2 × rg", reached: ratio <= 2,
			got: fmt.Sprintf("%s, %.2f × rg's %s", showTime(g), ratio, showTime(n)),
		}
		add(f)
		if i == 0 {
			ratio = float64(first) / float64(n)
			add(figure{
				name: fmt.Sprintf("the first Grep of a session, %s sandbox", kind), goal: "≤ 2 × rg", reached: ratio <= 2,
				got: fmt.Sprintf("%s, %.2f × rg", showTime(first), ratio),
			})
		}
	}
	return nil
}

// callRows measures Read, Write and Edit through the tool server.
func callRows(b *bench, w who, project string, add func(figure)) error {
	own, err := engineTimes(project)
	if err != nil {
		return err
	}
	ctx := context.Background()
	cmd := b.command(w, project, b.galley, "mcp", "--new")
	s, err := mcp.NewClient(&mcp.Implementation{Name: "bench", Version: "1"}, nil).Connect(ctx, &mcp.CommandTransport{Command: cmd, TerminateDuration: time.Minute}, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	call := func(name string, args map[string]any) (time.Duration, error) {
		start := time.Now()
		r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: args})
		took := time.Since(start)
		if err == nil && r.IsError {
			err = fmt.Errorf("%s: %v", name, r.Content)
		}
		return took, err
	}
	for _, name := range []string{"Write", "Read", "Edit"} {
		var all []time.Duration
		for i := range smallCalls + 1 {
			took, err := call(name, smallArgs(name, i))
			if err != nil {
				return err
			}
			if i > 0 {
				all = append(all, took)
			}
		}
		got := median(all) - own[name]
		add(within(name+" of a small file through `galley mcp`", got, time.Millisecond, fmt.Sprintf(" more than the engine's own %s", showTime(own[name]))))
	}
	return nil
}

// smallArgs are the arguments of the i-th call: each Edit finds what the one
// before it left.
func smallArgs(name string, i int) map[string]any {
	switch name {
	case "Write":
		return map[string]any{"path": "small.txt", "content": fmt.Sprintf("line %d\nvalue 0\n", i)}
	case "Edit":
		return map[string]any{"path": "small.txt", "old": fmt.Sprintf("value %d\n", i), "new": fmt.Sprintf("value %d\n", i+1)}
	}
	return map[string]any{"path": "small.txt"}
}

// engineTimes are those of the same calls on the engine in this process, of
// one that changes something with its checkpoint.
func engineTimes(project string) (map[string]time.Duration, error) {
	state, err := os.MkdirTemp(filepath.Dir(project), "engine-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(state)
	store, err := snapshots.OpenStore(state, snapshots.StoreOptions{})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	ctx := context.Background()
	sess, err := store.Create(ctx, snapshots.Spec{Base: project})
	if err != nil {
		return nil, err
	}
	live, err := sess.Open(ctx, snapshots.OpenOptions{})
	if err != nil {
		return nil, err
	}
	defer live.Close()
	sb, err := virtual.New(virtual.Config{Trees: []virtual.Tree{{Path: "/w", Tree: live.Tree(snapshots.Workspace)}}})
	if err != nil {
		return nil, err
	}
	defer sb.Close()
	out := map[string]time.Duration{}
	for _, name := range []string{"Write", "Read", "Edit"} {
		var all []time.Duration
		for i := range smallCalls + 1 {
			args := smallArgs(name, i)
			text := func(key string) []byte { return []byte(args[key].(string)) }
			start := time.Now()
			switch name {
			case "Write":
				_, err = sb.Write(ctx, sandbox.WriteRequest{Path: "small.txt", Content: text("content")})
			case "Read":
				_, err = sb.Read(ctx, sandbox.ReadRequest{Path: "small.txt"})
			case "Edit":
				_, err = sb.Edit(ctx, sandbox.EditRequest{Path: "small.txt", Old: text("old"), New: text("new")})
			}
			if err == nil && name != "Read" {
				_, err = live.Seal(ctx, snapshots.SealOptions{Cause: snapshots.Cause{Kind: snapshots.CauseTool, Text: name}})
			}
			if err != nil {
				return nil, err
			}
			all = append(all, time.Since(start))
		}
		out[name] = median(all[1:])
	}
	return out, nil
}

// crowdRows makes many calls at once: none waits for another to end.
func crowdRows(b *bench, w who, project string, add func(figure)) error {
	s, err := b.serve(w, project, "--new")
	if err != nil {
		return err
	}
	defer s.close()
	var r struct {
		ExitCode int `json:"exit_code"`
	}
	one, err := s.call("/exec", sandbox.BashRequest{Command: "sleep 2"}, &r)
	if err != nil {
		return err
	}
	var crowd sync.WaitGroup
	errs := make([]error, atOnce)
	start := time.Now()
	for i := range atOnce {
		crowd.Go(func() {
			var r struct {
				ExitCode int `json:"exit_code"`
			}
			_, errs[i] = s.call("/exec", sandbox.BashRequest{Command: "sleep 2"}, &r)
		})
	}
	// They are under way; a call on files goes past them.
	var reads []time.Duration
	for time.Since(start) < 2*time.Second {
		var out map[string]any
		took, err := s.call("/read", sandbox.ReadRequest{Path: "pkg0/sub0/file0.go"}, &out)
		if err != nil {
			return err
		}
		reads = append(reads, took)
	}
	crowd.Wait()
	all := time.Since(start)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	add(within(fmt.Sprintf("%d calls of `sleep 2` at once", atOnce), all, 3*one, fmt.Sprintf(", one takes %s", showTime(one))))
	add(figure{name: "a Read meanwhile", got: showTime(median(reads))})
	return nil
}
