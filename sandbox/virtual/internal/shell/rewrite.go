package shell

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// Names of the commands that the rewrite puts in. A script may call them; that
// does it no good.
const (
	markLoop  = "__galley_loop"   // an iteration
	markSize  = "__galley_size"   // an assignment to the variable that is named
	markRepl  = "__galley_repl"   // before ${x//a/b}: the length of b's text, x, and what b expands
	markTime  = "__galley_time"   // begin or end of time
	cmdPsub   = "__galley_psub"   // keeps its input and prints the path it can be read at
	cmdSame   = "__galley_same"   // -ef of [[
	cmdStatus = "__galley_status" // exits with its argument
	cmdExec   = "__galley_exec"   // a command, past functions
	cmdTool   = "__galley_tool"   // a command that is a builtin of bash
	cmdGuard  = "__galley_guard"  // a part of the script that runs in a goroutine of the interpreter's
	cmdTest   = "__galley_test"
	cmdWhich  = "__galley_which"
)

// maxExpansions is how many expansions one word may have, since each may be as
// long as a variable may.
const maxExpansions = 256

// maxBraces is how many words one brace expansion may make, and maxBraceText how
// many bytes of text that stands in the script.
const (
	maxBraces    = 1_000_000
	maxBraceText = 64 << 20
)

// prepared is a script that may be interpreted.
type prepared struct {
	*syntax.File
	changed bool
}

// rewriter changes a syntax tree in place.
type rewriter struct {
	run     *run
	err     error
	changed bool
	// apart are the statements that the interpreter runs in goroutines of
	// their own, the outer before the inner.
	apart []*syntax.Stmt
}

// parse parses and rewrites a script.
func (r *run) parse(text, name string) (*prepared, error) {
	if len(text) > r.limits.Script {
		return nil, limited("a script of %d bytes, and up to %d can be run; put data into files", len(text), r.limits.Script)
	}
	if n := nesting(text); n > r.limits.Nesting {
		return nil, limited("a script with blocks and brackets nested more than %d deep", r.limits.Nesting)
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), name)
	if err != nil {
		return nil, fmt.Errorf("syntax error: %w", err)
	}
	w := &rewriter{run: r}
	file.Stmts = w.list(file.Stmts)
	syntax.Walk(file, w.node)
	if w.err == nil {
		w.guard()
	}
	return &prepared{file, w.changed}, w.err
}

// opening are what makes the parser go one deeper. The count is of a text, not
// of a tree, and so too high rather than too low: closing brackets lower it
// only where they can belong to an open one.
var opening = regexp.MustCompile("[({`]|\\[\\[|\\$\\[|\\b(?:if|elif|while|until|for|case|do|then|else|select|time|coproc|function)\\b|! |&&|\\|\\|?|\\?|-[a-z] |[-+~!*]|[)}]|\\b(?:fi|done|esac)\\b")

// nesting is how deep the parser may have to go at most.
func nesting(text string) int {
	if len(text) < 1000 {
		return 0 // it cannot be deep enough to hurt
	}
	deepest, depth, row := 0, 0, 0
	last := -1
	for _, m := range opening.FindAllStringIndex(text, -1) {
		tok := text[m[0]:m[1]]
		switch tok {
		case ")", "}", "fi", "done", "esac":
			depth = max(depth-1, 0)
			row = 0
			continue
		}
		// Operators and prefixes nest only in a row: "! ! !", "a|b|c", "---".
		if strings.ContainsAny(tok[:1], "!&|?-+~*") {
			if strings.Contains(text[max(last, 0):m[0]], "\n") {
				row = 0
			}
			row++
		} else {
			depth++
		}
		last = m[1]
		deepest = max(deepest, depth+row)
	}
	return deepest
}

func (w *rewriter) fail(p syntax.Pos, format string, args ...any) bool {
	if w.err == nil {
		w.err = fmt.Errorf("line %d: %s", p.Line(), fmt.Sprintf(format, args...))
	}
	return false
}

// node rewrites what is directly beneath a node.
func (w *rewriter) node(n syntax.Node) bool {
	if w.err != nil {
		return false
	}
	switch n := n.(type) {
	case *syntax.Word:
		w.word(n)
	case *syntax.DblQuoted:
		n.Parts = w.parts(n.Parts)
	case *syntax.ParamExp:
		w.param(n)
	case *syntax.Redirect:
		w.redirect(n)
	case *syntax.Stmt:
		w.stmt(n)
	case *syntax.Block:
		n.Stmts = w.list(n.Stmts)
	case *syntax.Subshell:
		n.Stmts = w.list(n.Stmts)
	case *syntax.CmdSubst:
		n.Stmts = w.list(n.Stmts)
	case *syntax.IfClause:
		n.Cond, n.Then = w.list(n.Cond), w.list(n.Then)
	case *syntax.WhileClause:
		n.Cond = append([]*syntax.Stmt{w.mark(n.WhilePos, markLoop)}, w.list(n.Cond)...)
		n.Do = w.list(n.Do)
	case *syntax.ForClause:
		n.Do = append([]*syntax.Stmt{w.mark(n.DoPos, markLoop)}, w.list(n.Do)...)
		if _, ok := n.Loop.(*syntax.CStyleLoop); ok {
			// The interpreter ends such a loop after a command that failed.
			n.Do = append(n.Do, w.mark(n.DonePos, cmdStatus, "0"))
		}
	case *syntax.CaseItem:
		n.Stmts = w.list(n.Stmts)
	case *syntax.BinaryCmd:
		w.binary(n)
	case *syntax.TestClause:
		n.X = w.test(n.X)
	}
	return true
}

// mark is a statement that calls one of Galley's own commands.
func (w *rewriter) mark(pos syntax.Pos, args ...string) *syntax.Stmt {
	w.changed = true
	return &syntax.Stmt{Position: pos, Cmd: callOf(pos, args...)}
}

func callOf(pos syntax.Pos, args ...string) *syntax.CallExpr {
	call := &syntax.CallExpr{}
	for _, a := range args {
		call.Args = append(call.Args, literal(pos, a))
	}
	return call
}

func literal(pos syntax.Pos, s string) *syntax.Word {
	return &syntax.Word{Parts: []syntax.WordPart{&syntax.Lit{ValuePos: pos, ValueEnd: pos, Value: s}}}
}

// list puts a mark behind every assignment that may make a variable grow, and
// one before what replaces all of a pattern by something longer.
func (w *rewriter) list(stmts []*syntax.Stmt) []*syntax.Stmt {
	var out []*syntax.Stmt
	for _, s := range stmts {
		out = append(out, w.replacing(s)...)
		out = append(out, s)
		if names := growing(s); len(names) > 0 && !s.Negated {
			out = append(out, w.mark(s.Position, append([]string{markSize}, names...)...))
		}
	}
	return out
}

// replacing are the marks for the replacements in a statement: the outcome of
// one is as long as the product of what goes in.
func (w *rewriter) replacing(s *syntax.Stmt) []*syntax.Stmt {
	var out []*syntax.Stmt
	syntax.Walk(s, func(n syntax.Node) bool {
		p, ok := n.(*syntax.ParamExp)
		if !ok || p.Repl == nil || !p.Repl.All || p.Repl.With == nil || p.Param == nil || p.Excl {
			return true
		}
		text := 0
		var parts []syntax.WordPart
		syntax.Walk(p.Repl.With, func(n syntax.Node) bool {
			switch n := n.(type) {
			case *syntax.Lit:
				text += len(n.Value)
			case *syntax.CmdSubst:
				text += 1 << 20
				return false
			case *syntax.ParamExp:
				if n.Param != nil {
					parts = append(parts, plainParam(n))
				}
				return false
			}
			return true
		})
		m := w.mark(s.Position, markRepl, strconv.Itoa(text))
		call := m.Cmd.(*syntax.CallExpr)
		for _, part := range append([]syntax.WordPart{plainParam(p)}, parts...) {
			call.Args = append(call.Args, &syntax.Word{Parts: []syntax.WordPart{&syntax.DblQuoted{Left: s.Position, Right: s.Position, Parts: []syntax.WordPart{part}}}})
		}
		out = append(out, m)
		return true
	})
	return out
}

// plainParam is ${x-} for an expansion of x, whatever else that does to it.
func plainParam(p *syntax.ParamExp) *syntax.ParamExp {
	return &syntax.ParamExp{
		Dollar: p.Dollar, Rbrace: p.Rbrace, Param: &syntax.Lit{ValuePos: p.Param.ValuePos, ValueEnd: p.Param.ValueEnd, Value: p.Param.Value}, Index: p.Index,
		Exp: &syntax.Expansion{Op: syntax.DefaultUnset},
	}
}

// growing are the variables that a statement of nothing but assignments may
// make longer than what they were made of.
func growing(s *syntax.Stmt) []string {
	call, ok := s.Cmd.(*syntax.CallExpr)
	if !ok || len(call.Args) > 0 || s.Background {
		return nil
	}
	var names []string
	for _, a := range call.Assigns {
		if a.Name == nil || a.Value == nil {
			continue
		}
		expands := false
		syntax.Walk(a.Value, func(n syntax.Node) bool {
			switch n.(type) {
			case *syntax.ParamExp, *syntax.CmdSubst:
				expands = true
			}
			return !expands
		})
		if expands {
			names = append(names, a.Name.Value)
		}
	}
	return names
}

// guard has the statements of goroutines run by a command of Galley's own, which
// hands them to the interpreter as text: a panic of the interpreter is then
// caught there, where it would else end the whole program.
func (w *rewriter) guard() {
	for i := len(w.apart) - 1; i >= 0; i-- {
		s := w.apart[i]
		background := s.Background
		s.Background = false
		var b strings.Builder
		if err := syntax.NewPrinter().Print(&b, s); err != nil {
			w.fail(s.Position, "%v", err)
			return
		}
		*s = syntax.Stmt{Position: s.Position, Background: background, Semicolon: s.Semicolon, Cmd: callOf(s.Position, cmdGuard, w.run.guarded(b.String()))}
		w.changed = true
	}
}

func (w *rewriter) stmt(s *syntax.Stmt) {
	if s.Background {
		w.apart = append(w.apart, s)
	}
	if t, ok := s.Cmd.(*syntax.TimeClause); ok {
		// The interpreter reports to the standard output.
		form := "bash"
		if t.PosixFormat {
			form = "posix"
		}
		stmts := []*syntax.Stmt{w.mark(t.Time, markTime, "begin")}
		if t.Stmt != nil {
			stmts = append(stmts, t.Stmt)
		}
		stmts = append(stmts, w.mark(t.Time, markTime, form))
		s.Cmd = &syntax.Block{Lbrace: t.Time, Rbrace: s.End(), Stmts: stmts}
	}
}

// lastpipe are the commands that change their shell; at the end of a pipeline
// that is a shell of their own, which the interpreter does not make.
var lastpipe = map[string]bool{
	"read": true, "cd": true, "mapfile": true, "readarray": true, "set": true, "shift": true, "eval": true, "source": true, ".": true,
	"exit": true, "return": true, "unset": true, "getopts": true, "exec": true, "printf": true, "pushd": true, "popd": true, "shopt": true, "trap": true,
}

func (w *rewriter) binary(n *syntax.BinaryCmd) {
	switch n.Op {
	case syntax.Pipe, syntax.PipeAll:
		if !n.X.Background {
			w.apart = append(w.apart, n.X)
		}
		if call, ok := n.Y.Cmd.(*syntax.CallExpr); ok && (len(call.Args) == 0 || !lastpipe[call.Args[0].Lit()]) && len(call.Args) > 0 {
			// A function may change its shell, too: only what is no function
			// could be left alone, which is not known here.
			if lit := call.Args[0].Lit(); lit != "" && knownTool(lit) {
				return
			}
		}
		if _, ok := n.Y.Cmd.(*syntax.BinaryCmd); ok {
			return // a pipeline goes on
		}
		w.changed = true
		y := n.Y
		n.Y = &syntax.Stmt{Position: y.Pos(), Cmd: &syntax.Subshell{Lparen: y.Pos(), Rparen: y.End(), Stmts: w.list([]*syntax.Stmt{y})}}
	case syntax.AndStmt, syntax.OrStmt:
		for _, s := range []**syntax.Stmt{&n.X, &n.Y} {
			if len(growing(*s)) > 0 && !(*s).Negated {
				y := *s
				*s = &syntax.Stmt{Position: y.Pos(), Cmd: &syntax.Block{Lbrace: y.Pos(), Rbrace: y.End(), Stmts: []*syntax.Stmt{y}}}
			}
		}
	}
}

func (w *rewriter) redirect(n *syntax.Redirect) {
	switch n.Op {
	case syntax.RdrClob:
		n.Op = syntax.RdrOut
		w.changed = true
	case syntax.DplOut:
		if n.N == nil && n.Word != nil {
			if lit := n.Word.Lit(); lit == "" || lit != "-" && strings.Trim(lit, "0123456789") != "" {
				n.Op = syntax.RdrAll
				w.changed = true
			}
		}
	}
}

func (w *rewriter) param(p *syntax.ParamExp) {
	if p.Param == nil {
		return
	}
	switch p.Param.Value {
	case "$":
		p.Param.Value = "BASHPID"
	case "PPID":
		p.Param.Value = "BASHPID"
	default:
		return
	}
	if p.Short {
		p.Short = false
		p.Rbrace = p.Param.ValueEnd
	}
	w.changed = true
}

func (w *rewriter) word(n *syntax.Word) {
	expansions, words := 0, 1.0
	for _, p := range n.Parts {
		switch p := p.(type) {
		case *syntax.ParamExp, *syntax.CmdSubst:
			expansions++
		case *syntax.DblQuoted:
			for _, q := range p.Parts {
				if _, ok := q.(*syntax.Lit); !ok {
					expansions++
				}
			}
		case *syntax.Lit:
			words *= braces(p.Value)
		}
	}
	if expansions > maxExpansions {
		w.fail(n.Pos(), "a word with %d expansions, and up to %d are possible in the virtual sandbox", expansions, maxExpansions)
	}
	if text := len(wordText(n)); words > maxBraces || words > 1 && words*float64(text) > maxBraceText {
		w.fail(n.Pos(), "a brace expansion of more than %d words, which the virtual sandbox does not do", maxBraces)
	}
	n.Parts = w.parts(n.Parts)
}

// wordText is the text of a word that stands in the script.
func wordText(n *syntax.Word) string {
	var b strings.Builder
	syntax.Walk(n, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.Lit:
			b.WriteString(n.Value)
		case *syntax.SglQuoted:
			b.WriteString(n.Value)
		}
		return true
	})
	return b.String()
}

var sequence = regexp.MustCompile(`\{(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?([0-9]+))?\}`)

// braces is how many words a text may become by brace expansion, at most.
func braces(s string) float64 {
	if !strings.Contains(s, "{") {
		return 1
	}
	n := 1.0
	for _, m := range sequence.FindAllStringSubmatch(s, -1) {
		a, _ := strconv.ParseFloat(m[1], 64)
		b, _ := strconv.ParseFloat(m[2], 64)
		step, _ := strconv.ParseFloat(m[3], 64)
		n *= math.Abs(a-b)/max(step, 1) + 1
	}
	for _, part := range strings.SplitAfter(s, "}") {
		if i := strings.Index(part, "{"); i >= 0 {
			n *= float64(strings.Count(part[i:], ",") + 1)
		}
	}
	return n
}

// parts replaces process substitutions and $LINENO.
func (w *rewriter) parts(parts []syntax.WordPart) []syntax.WordPart {
	for i, p := range parts {
		switch p := p.(type) {
		case *syntax.ParamExp:
			if p.Param != nil && p.Param.Value == "LINENO" && !p.Length && !p.Excl && p.Index == nil && p.Exp == nil && p.Repl == nil && p.Slice == nil {
				w.changed = true
				parts[i] = &syntax.Lit{ValuePos: p.Pos(), ValueEnd: p.End(), Value: strconv.Itoa(int(p.Pos().Line()))}
			}
		case *syntax.ProcSubst:
			if p.Op != syntax.CmdIn {
				w.fail(p.Pos(), "process substitution >(…) is not possible in the virtual sandbox: use a pipe or a file")
				return parts
			}
			w.changed = true
			if len(p.Stmts) == 0 {
				parts[i] = &syntax.Lit{ValuePos: p.Pos(), ValueEnd: p.End(), Value: "/dev/null"}
				continue
			}
			block := &syntax.Stmt{Position: p.Pos(), Cmd: &syntax.Subshell{Lparen: p.Pos(), Rparen: p.End(), Stmts: p.Stmts}}
			keep := &syntax.Stmt{Position: p.End(), Cmd: callOf(p.End(), cmdPsub)}
			pipe := &syntax.Stmt{Position: p.Pos(), Cmd: &syntax.BinaryCmd{OpPos: p.End(), Op: syntax.Pipe, X: block, Y: keep}}
			parts[i] = &syntax.CmdSubst{Left: p.Pos(), Right: p.End(), Stmts: []*syntax.Stmt{pipe}}
		}
	}
	return parts
}

// test replaces the file tests that ask the host.
func (w *rewriter) test(x syntax.TestExpr) syntax.TestExpr {
	switch x := x.(type) {
	case *syntax.ParenTest:
		x.X = w.test(x.X)
	case *syntax.UnaryTest:
		switch x.Op {
		case syntax.TsUsrOwn, syntax.TsGrpOwn:
			x.Op = syntax.TsExists
			w.changed = true
		}
		x.X = w.test(x.X)
	case *syntax.BinaryTest:
		x.X, x.Y = w.test(x.X), w.test(x.Y)
		if x.Op == syntax.TsDevIno {
			a, aok := x.X.(*syntax.Word)
			b, bok := x.Y.(*syntax.Word)
			if !aok || !bok {
				return x
			}
			w.changed = true
			call := callOf(x.Pos(), cmdSame)
			for _, word := range []*syntax.Word{a, b} {
				call.Args = append(call.Args, &syntax.Word{Parts: []syntax.WordPart{&syntax.DblQuoted{Left: word.Pos(), Right: word.End(), Parts: word.Parts}}})
			}
			subst := &syntax.CmdSubst{Left: x.Pos(), Right: x.End(), Stmts: []*syntax.Stmt{{Position: x.Pos(), Cmd: call}}}
			return &syntax.UnaryTest{OpPos: x.Pos(), Op: syntax.TsNempStr, X: &syntax.Word{Parts: []syntax.WordPart{subst}}}
		}
	}
	return x
}
