package files

import (
	"bytes"
	"errors"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/galleyfs/galley/sandbox"
)

// maxLiterals is how many literals a prefilter looks for at once. Each is one
// pass over the text at the speed of memchr, so few are faster than the
// regular expression and many are not.
const maxLiterals = 24

// A matcher finds the lines of a text that match. Lines are found by literals
// that every match contains, where the expression has such, and the
// regular expression then looks at those lines alone.
type matcher struct {
	re       *regexp.Regexp
	literals []literal
	// exact: a line that contains a literal matches, without a further look.
	exact bool
}

// newMatcher compiles the pattern of a request.
func newMatcher(r sandbox.GrepRequest) (*matcher, error) {
	pattern := r.Pattern
	if r.Literal {
		pattern = regexp.QuoteMeta(pattern)
	}
	flags := syntax.Perl &^ syntax.OneLine // ^ and $ are of a line
	if r.IgnoreCase {
		flags |= syntax.FoldCase
	}
	tree, err := syntax.Parse(pattern, flags)
	if err != nil {
		return nil, patternError(r.Pattern, err)
	}
	if hasNewline(tree) {
		e := sandbox.Errorf(sandbox.InvalidPattern, "grep", r.Pattern, "the pattern has a line end, and lines are searched one at a time")
		e.Offset = max(strings.IndexByte(pattern, '\n'), strings.Index(pattern, `\n`), 0)
		return nil, e
	}
	tree = withinLine(tree).Simplify()
	re, err := regexp.Compile(tree.String())
	if err != nil {
		return nil, patternError(r.Pattern, err)
	}
	m := &matcher{re: re}
	if lits := required(tree); len(lits) <= maxLiterals {
		m.literals = lits
	}
	m.exact = len(m.literals) == 1 && tree.Op == syntax.OpLiteral && m.literals[0].whole(tree)
	return m, nil
}

// patternError tells where a pattern does not parse.
func patternError(pattern string, err error) error {
	e := sandbox.Errorf(sandbox.InvalidPattern, "grep", pattern, "%s", err)
	e.Offset = 0
	var se *syntax.Error
	if errors.As(err, &se) {
		if i := strings.Index(pattern, se.Expr); i >= 0 {
			e.Offset = i
		}
		e.Message = se.Code.String() + " at offset " + itoa(e.Offset)
		if se.Expr != "" && len(se.Expr) < 200 {
			e.Message += ": " + se.Expr
		}
		e.Message += "; the syntax is RE2's (no look-around, no back-references)"
	}
	return e
}

// hasNewline reports whether a part of the expression is a line end, which no
// line has.
func hasNewline(re *syntax.Regexp) bool {
	if re.Op == syntax.OpLiteral {
		for _, r := range re.Rune {
			if r == '\n' {
				return true
			}
		}
	}
	for _, sub := range re.Sub {
		if hasNewline(sub) {
			return true
		}
	}
	return false
}

// withinLine keeps an expression from matching across the end of a line, so
// that many lines can be searched at once.
func withinLine(re *syntax.Regexp) *syntax.Regexp {
	switch re.Op {
	case syntax.OpAnyChar:
		re.Op = syntax.OpAnyCharNotNL
	case syntax.OpBeginText:
		re.Op = syntax.OpBeginLine
	case syntax.OpEndText:
		re.Op = syntax.OpEndLine
		re.Flags &^= syntax.WasDollar
	case syntax.OpCharClass:
		re.Rune = withoutNewline(re.Rune)
		if len(re.Rune) == 0 {
			re.Op = syntax.OpNoMatch
		}
	}
	for i, sub := range re.Sub {
		re.Sub[i] = withinLine(sub)
	}
	return re
}

// withoutNewline takes '\n' out of the ranges of a class.
func withoutNewline(ranges []rune) []rune {
	out := make([]rune, 0, len(ranges)+2)
	for i := 0; i+1 < len(ranges); i += 2 {
		lo, hi := ranges[i], ranges[i+1]
		if lo > '\n' || hi < '\n' {
			out = append(out, lo, hi)
			continue
		}
		if lo < '\n' {
			out = append(out, lo, '\n'-1)
		}
		if hi > '\n' {
			out = append(out, '\n'+1, hi)
		}
	}
	return out
}

// A literal is bytes that a match contains, in one case or in either.
type literal struct {
	text []byte
	fold bool // ASCII letters of either case
	rare int  // index of the byte that is looked for, with fold
}

// whole reports whether the literal is all of the expression tree.
func (l literal) whole(tree *syntax.Regexp) bool {
	return string(l.text) == string(tree.Rune) && !l.fold
}

// required are literals of which every match contains one; none where that
// cannot be said.
func required(re *syntax.Regexp) []literal {
	switch re.Op {
	case syntax.OpLiteral:
		return literalsOf(re)
	case syntax.OpCapture, syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpConcat:
		var best []literal
		for _, sub := range re.Sub {
			if lits := required(sub); better(lits, best) {
				best = lits
			}
		}
		return best
	case syntax.OpAlternate:
		var all []literal
		for _, sub := range re.Sub {
			lits := required(sub)
			if len(lits) == 0 {
				return nil
			}
			all = append(all, lits...)
		}
		return all
	case syntax.OpCharClass:
		return classLiterals(re.Rune)
	}
	return nil
}

// classLiterals are the members of a small class of ASCII characters, such as
// what an alternation was factored to.
func classLiterals(ranges []rune) []literal {
	var out []literal
	for i := 0; i+1 < len(ranges); i += 2 {
		for r := ranges[i]; r <= ranges[i+1]; r++ {
			if r >= 0x80 || len(out) == 4 {
				return nil
			}
			out = append(out, literal{text: []byte{byte(r)}})
		}
	}
	return out
}

// better reports whether the literals a are the better filter: the shortest of
// them counts.
func better(a, b []literal) bool {
	return len(a) > 0 && (len(b) == 0 || shortest(a) > shortest(b))
}

func shortest(lits []literal) int {
	n := len(lits[0].text)
	for _, l := range lits {
		n = min(n, len(l.text))
	}
	return n
}

// literalsOf is the literal of a node. Of one that ignores case it is the
// longest part whose letters have no other forms than their two ASCII ones.
func literalsOf(re *syntax.Regexp) []literal {
	if slices.Contains(re.Rune, utf8.RuneError) {
		return nil // which stands for any byte that is not UTF-8
	}
	if re.Flags&syntax.FoldCase == 0 {
		return []literal{{text: []byte(string(re.Rune))}}
	}
	var best, cur []byte
	for _, r := range append(re.Rune[:len(re.Rune):len(re.Rune)], -1) {
		if r >= 0 && r < 0x80 && plainFold(r) {
			cur = append(cur, byte(unicode.ToLower(r)))
			continue
		}
		if len(cur) > len(best) {
			best = cur
		}
		cur = nil
	}
	if len(best) == 0 {
		return nil
	}
	l := literal{text: best, fold: true}
	for i, c := range best {
		if rarity[c] > rarity[best[l.rare]] {
			l.rare = i
		}
	}
	return []literal{l}
}

// plainFold reports whether r has only ASCII forms: "k" is also the Kelvin
// sign, and "s" the long s.
func plainFold(r rune) bool {
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		if f >= 0x80 {
			return false
		}
	}
	return true
}

// rarity ranks bytes by how seldom they are in source text.
var rarity = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i, c := range []byte(" etanoirsldcupmfhgbyvw_.,()kx=:;-\"'/jqz") {
		t[c] = byte(i)
	}
	return t
}()

// index is the offset of the literal in b, or -1.
func (l literal) index(b []byte) int {
	if !l.fold {
		return bytes.Index(b, l.text)
	}
	c := l.text[l.rare]
	low := cursor{c: c}
	up := cursor{c: upper(c)}
	if up.c == c {
		up.done = true
	}
	for at := l.rare; at < len(b); {
		i := low.next(b, at)
		if j := up.next(b, at); i < 0 || j >= 0 && j < i {
			i = j
		}
		if i < 0 {
			return -1
		}
		if start := i - l.rare; start+len(l.text) <= len(b) && equalFold(b[start:start+len(l.text)], l.text) {
			return start
		}
		at = i + 1
	}
	return -1
}

// cursor finds one byte again and again, without looking at any place twice.
type cursor struct {
	c    byte
	at   int // of the byte found last
	have bool
	done bool
}

func (k *cursor) next(b []byte, from int) int {
	if k.done {
		return -1
	}
	if k.have && k.at >= from {
		return k.at
	}
	i := bytes.IndexByte(b[from:], k.c)
	if i < 0 {
		k.done = true
		return -1
	}
	k.at, k.have = from+i, true
	return k.at
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

// equalFold compares with low, which is lower case, ignoring the case of ASCII.
func equalFold(b, low []byte) bool {
	for i, c := range b {
		if c != low[i] && c != upper(low[i]) {
			return false
		}
	}
	return true
}

// finder goes through one text. Where several literals are looked for, it
// remembers where each comes next.
type finder struct {
	m    *matcher
	b    []byte
	next []int // per literal: where it is, -1 nowhere further on, -2 unknown
}

func (m *matcher) find(b []byte) *finder {
	f := &finder{m: m, b: b, next: make([]int, len(m.literals))}
	for i := range f.next {
		f.next[i] = -2
	}
	return f
}

// line is the first line that matches at or after from, the start of a line:
// its bounds and where in b the match begins. ok is false where there is none.
func (f *finder) line(from int) (start, end, at int, ok bool) {
	for from < len(f.b) {
		at = f.candidate(from)
		if at < 0 {
			return 0, 0, 0, false
		}
		start = from + bytes.LastIndexByte(f.b[from:at], '\n') + 1
		end = len(f.b)
		if i := bytes.IndexByte(f.b[at:], '\n'); i >= 0 {
			end = at + i
		}
		if f.m.exact {
			return start, end, at, true
		}
		if loc := f.m.re.FindIndex(f.b[start:end]); loc != nil {
			return start, end, start + loc[0], true
		}
		from = end + 1
	}
	return 0, 0, 0, false
}

// candidate is an offset in the next line that may match, or -1.
func (f *finder) candidate(from int) int {
	if len(f.m.literals) == 0 {
		loc := f.m.re.FindIndex(f.b[from:])
		if loc == nil {
			return -1
		}
		return min(from+loc[0], len(f.b)-1)
	}
	best := -1
	for i, l := range f.m.literals {
		if f.next[i] == -2 || f.next[i] >= 0 && f.next[i] < from {
			if f.next[i] = l.index(f.b[from:]); f.next[i] >= 0 {
				f.next[i] += from
			}
		}
		if n := f.next[i]; n >= 0 && (best < 0 || n < best) {
			best = n
		}
	}
	return best
}
