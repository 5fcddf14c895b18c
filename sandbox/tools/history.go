package tools

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/galleyfs/galley/sandbox"
)

// history is the session's, or why there is none.
func (s *Set) history(op string) (History, error) {
	if s.opt.History == nil {
		return nil, sandbox.Errorf(sandbox.NotSupported, op, "", "this sandbox has no session, so that it has no history")
	}
	return s.opt.History, nil
}

type diffInput struct {
	Paths   []string `json:"paths,omitempty" jsonschema:"only these files and directories"`
	Summary bool     `json:"summary,omitempty" jsonschema:"one line for each file, without content"`
}

type diffOutput struct {
	Diff string `json:"diff"`
}

func callDiff(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[diffInput]("Diff", args)
	if err != nil {
		return Result{}, err
	}
	h, err := s.history("diff")
	if err != nil {
		return Result{}, err
	}
	d, err := h.Diff(ctx, in.Paths, in.Summary)
	if err != nil {
		return Result{}, err
	}
	d = clipLines(s.redactor.String(strings.ToValidUTF8(d, "\ufffd")))
	text := d
	if text == "" {
		text = "(nothing changed)"
	}
	return Result{Text: text, Data: &diffOutput{d}}, nil
}

type logInput struct {
	Limit int `json:"limit,omitempty" jsonschema:"how many points (default 20)"`
}

type logOutput struct {
	Points []Point `json:"points"`
}

func callLog(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[logInput]("Log", args)
	if err != nil {
		return Result{}, err
	}
	h, err := s.history("log")
	if err != nil {
		return Result{}, err
	}
	if in.Limit <= 0 {
		in.Limit = 20
	}
	points, err := h.Log(ctx, min(in.Limit, 1000))
	if err != nil {
		return Result{}, err
	}
	var b strings.Builder
	for _, p := range points {
		b.WriteString(p.line() + "\n")
	}
	if len(points) == 0 {
		b.WriteString("(no history yet)")
	}
	return Result{Text: b.String(), Data: &logOutput{append([]Point{}, points...)}}, nil
}

// line is a point for the model.
func (p Point) line() string {
	out := fmt.Sprintf("%d  %s  %s", p.Number, p.Time.UTC().Format("15:04:05"), p.What)
	if p.Name != "" {
		out += " [" + p.Name + "]"
	}
	if len(p.Paths) > 0 {
		out += "  " + strings.Join(p.Paths, " ")
	}
	if more := p.Changed - len(p.Paths); more > 0 {
		out += fmt.Sprintf(" … %d more", more)
	}
	return out
}

type snapshotInput struct {
	Name string `json:"name,omitempty" jsonschema:"what to call it, for Rollback"`
}

func callSnapshot(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[snapshotInput]("Snapshot", args)
	if err != nil {
		return Result{}, err
	}
	h, err := s.history("snapshot")
	if err != nil {
		return Result{}, err
	}
	p, err := h.Snapshot(ctx, in.Name)
	if err != nil {
		return Result{}, err
	}
	return Result{Text: fmt.Sprintf("Snapshot %d %s", p.Number, p.Name), Data: &p}, nil
}

type rollbackInput struct {
	To string `json:"to" jsonschema:"the number or name of a point that Log lists; 0 is before any change"`
}

type rollbackOutput struct {
	Now    Point `json:"now"`
	Before Point `json:"before"`
}

func callRollback(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[rollbackInput]("Rollback", args)
	if err != nil {
		return Result{}, err
	}
	h, err := s.history("rollback")
	if err != nil {
		return Result{}, err
	}
	now, before, err := h.Rollback(ctx, in.To)
	if err != nil {
		return Result{}, err
	}
	return Result{
		Text: fmt.Sprintf("The files are as they were at %s. Rollback to %d undoes this. Read files again before editing them.", in.To, before.Number),
		Data: &rollbackOutput{now, before},
	}, nil
}

type reviewInput struct {
	Message string `json:"message,omitempty" jsonschema:"what the person should know"`
}

func callReview(ctx context.Context, s *Set, args json.RawMessage, _ Progress) (Result, error) {
	in, err := decode[reviewInput]("RequestReview", args)
	if err != nil {
		return Result{}, err
	}
	h, err := s.history("request review")
	if err != nil {
		return Result{}, err
	}
	r, err := h.RequestReview(ctx, in.Message)
	if err != nil {
		return Result{}, err
	}
	return Result{
		Text: fmt.Sprintf("Review requested: %s (%s). A person looks at it with %s; only a person can commit it.", r.Summary, r.Digest, r.Command),
		Data: &r,
	}, nil
}
