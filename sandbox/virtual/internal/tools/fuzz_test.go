package tools

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
)

// FuzzRegex: what the translation accepts, the regexp package takes, and the
// parts that both have mean the same.
func FuzzRegex(f *testing.F) {
	for _, p := range []string{"a*", "^a\\|b$", "[]a]", "[^]]", "\\(a\\)*", "a\\{1,2\\}", "[[:alpha:]_]", "(a|b)+?", "{", "a{,3}", "\\", "[", "a**", "*a", "\\b\\w\\>", "^*", "[a-\\]", "x\\+"} {
		f.Add(p, true)
		f.Add(p, false)
	}
	f.Fuzz(func(t *testing.T, pat string, extended bool) {
		if len(pat) > 1000 {
			return
		}
		re, err := Regex(pat, extended, false)
		if err != nil {
			return
		}
		_ = re.MatchString("aAbB1_ .*[]")
		if regexp.QuoteMeta(pat) == pat && !strings.ContainsAny(pat, "\\") && !re.MatchString(pat) {
			t.Errorf("%q does not match itself: %s", pat, re)
		}
	})
}

// FuzzSed: a script is refused or ends.
func FuzzSed(f *testing.F) {
	for _, s := range []string{"s/a/b/g", "1,3d", "/a/,/b/{p;d}", "y/ab/cd/", ":a;N;$!ba;s/\\n/,/g", "$!N;P;D", "a\\\nx", "s/\\(a\\)/\\1\\U&/2pw x", "0~3!p", "2q5", "r f", "b", "t;T;b x", "}", "s,a,\\,,", "x;G;h;H"} {
		f.Add(s, "a\nb\nc")
	}
	f.Fuzz(func(t *testing.T, script, input string) {
		if len(script) > 1000 || len(input) > 1000 || strings.ContainsAny(script, "rwRW") {
			return // files are not what this is about, and there is no view
		}
		var out, errOut bytes.Buffer
		c := &Call{Ctx: context.Background(), Name: "sed", Args: []string{"-e", script}, Stdin: strings.NewReader(input), Stdout: &limitedBuffer{b: &out}, Stderr: &errOut, MaxInput: 1 << 16}
		if st := Run(sed, c); st == 70 {
			t.Fatalf("%q: %s", script, errOut.String())
		}
	})
}

// limitedBuffer breaks like a pipe when it has enough.
type limitedBuffer struct{ b *bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if l.b.Len() > 1<<20 {
		return 0, errStop
	}
	return l.b.Write(p)
}
