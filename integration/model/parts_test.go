package model

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// partEnv names the part that a process of the test binary plays, partArg
// configures it. A part takes requests from its stdin and answers on its
// stdout, until stdin ends.
const (
	partEnv = "GALLEY_MODEL_TEST_PART"
	partArg = "GALLEY_MODEL_TEST_ARG"
)

var parts = map[string]func() error{"work": work, "serve": serve}

// part is a process that plays a part.
type part struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *gob.Encoder
	dec *gob.Decoder
}

func start(name string, arg any) (*part, error) {
	js, err := json.Marshal(arg)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	// The race detector would hold up the end of each process for a second.
	cmd.Env = append(os.Environ(), partEnv+"="+name, partArg+"="+string(js), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Stderr = os.Stderr
	p := &part{cmd: cmd}
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.enc, p.dec = gob.NewEncoder(p.in), gob.NewDecoder(out)
	return p, cmd.Start()
}

// stop ends the process and tells how it ended.
func (p *part) stop() error {
	if p == nil || p.cmd.ProcessState != nil {
		return nil
	}
	_ = p.in.Close()
	timer := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	return p.cmd.Wait()
}

func (p *part) do(o overlaytest.Op) (r overlaytest.Result, err error) {
	if err := p.enc.Encode(o); err != nil {
		return r, err
	}
	return r, p.dec.Decode(&r)
}

// work runs operations in a directory.
func work() error {
	var dir string
	if err := json.Unmarshal([]byte(os.Getenv(partArg)), &dir); err != nil {
		return err
	}
	d, err := overlaytest.OpenDir(dir)
	if err != nil {
		return err
	}
	dec, enc := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var o overlaytest.Op
		if err := dec.Decode(&o); err != nil {
			return errors.Join(d.Close(), noEOF(err))
		}
		if err := enc.Encode(overlaytest.Exec(d, o)); err != nil {
			return err
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// serveArg is what the server is told.
type serveArg struct {
	Base, State, Dir string
	Stack            overlay.Stack
}

// request makes layer Next the active one, above Stack or, where that is nil,
// by a seal.
type request struct {
	Stack *overlay.Stack
	Next  overlay.LayerID
}

type answer struct {
	Err   string
	Stack overlay.Stack
}

// serve mounts a tree and serves the mount.
func serve() error {
	var arg serveArg
	if err := json.Unmarshal([]byte(os.Getenv(partArg)), &arg); err != nil {
		return err
	}
	base, err := overlay.OpenBase(nil, arg.Base)
	if err != nil {
		return err
	}
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: arg.State, Base: base}, arg.Stack)
	if err != nil {
		return err
	}
	dev, err := fs.OpenMount(arg.Dir, fs.MountOptions{})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	srv, err := fs.Serve(dev, fs.Live(tree), fs.Options{Logger: log})
	if err != nil {
		return err
	}
	dec, enc := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var r request
		if err := dec.Decode(&r); err != nil {
			return errors.Join(srv.Close(), tree.Close(), noEOF(err))
		}
		var a answer
		if err := cut(tree, r); err != nil {
			a.Err = err.Error()
		}
		a.Stack = tree.Stack()
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

// cut seals or switches, and returns when all faces know.
func cut(tree *overlay.Tree, r request) error {
	if r.Next == 0 {
		return nil // only whether the server is up
	}
	if err := tree.Prepare(r.Next); err != nil {
		return err
	}
	if r.Stack != nil {
		if err := tree.Load(*r.Stack); err != nil {
			return err
		}
	}
	b := overlay.Quiesce(tree)
	var err error
	if r.Stack == nil {
		err = b.Seal(r.Next)
	} else {
		err = b.Switch(0, overlay.Stack{Sealed: r.Stack.Sealed, Active: r.Next}, nil)
	}
	b.Release()
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if err := tree.Flush(ctx); err != nil {
		return fmt.Errorf("tell the faces: %w", err)
	}
	return nil
}
