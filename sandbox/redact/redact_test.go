package redact_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/galleyfs/galley/sandbox/redact"
)

func TestStrings(t *testing.T) {
	r := redact.New(map[string]string{"A": "abca", "LONG": "abcabcX", "PEM": "first line\nsecond line\nx", "SHORT": "ab"})
	for in, want := range map[string]string{
		"abca":                       "[REDACTED:A]",
		"abcabcX":                    "[REDACTED:LONG]",
		"abcabcY":                    "[REDACTED:A]bcY",
		"ab":                         "ab",
		"- second line":              "- [REDACTED:PEM]",
		"first line\nsecond line\nx": "[REDACTED:PEM]",
	} {
		if got := r.String(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		// The same in every division into pieces.
		for size := 1; size <= len(in); size++ {
			var out strings.Builder
			s := r.Stream(func(b []byte) { out.Write(b) })
			for i := 0; i < len(in); i += size {
				_, _ = s.Write([]byte(in[i:min(i+size, len(in))]))
			}
			s.Close()
			if out.String() != want {
				t.Errorf("%q in pieces of %d: %q, want %q", in, size, out.String(), want)
			}
		}
	}
}

func TestValues(t *testing.T) {
	type inner struct {
		Text  []byte
		Raw   json.RawMessage
		inner string
	}
	type outer struct {
		Name string
		List []any
		Map  map[string]*inner
		None *inner
	}
	r := redact.New(map[string]string{"T": `s"cret`})
	in := outer{`a s"cret b`, []any{`s"cret`, 1, nil}, map[string]*inner{`s"cret`: {[]byte(`s"cret`), json.RawMessage(`{"a":"s\"cret"}`), "kept"}}, nil}
	want := outer{"a [REDACTED:T] b", []any{"[REDACTED:T]", 1, nil}, map[string]*inner{"[REDACTED:T]": {[]byte("[REDACTED:T]"), json.RawMessage(`{"a":"[REDACTED:T]"}`), "kept"}}, nil}
	if diff := cmp.Diff(want, r.Value(in), cmp.AllowUnexported(inner{})); diff != "" {
		t.Error(diff)
	}
	if in.Name != `a s"cret b` {
		t.Error("the original was changed")
	}
	err := r.Error(&fs.PathError{Op: "open", Path: `s"cret`, Err: fs.ErrNotExist})
	if strings.Contains(err.Error(), "cret") || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	var none *redact.Redactor
	if none.String("x") != "x" || none.Value(3) != 3 || !none.Empty() {
		t.Error("no redactor redacts")
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range [][2]string{{"1A", "value"}, {"", "value"}, {"A B", "value"}, {"A", "abc"}, {"A", "ab\x00cd"}} {
		if redact.Check(bad[0], bad[1]) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if err := redact.Check("A_1", "abcd"); err != nil {
		t.Error(err)
	}
}

func FuzzStream(f *testing.F) {
	f.Add("abcaabcabcX", "abca", "abcabcX", uint8(3))
	f.Fuzz(func(t *testing.T, text, a, b string, size uint8) {
		r := redact.New(map[string]string{"A": a, "B": b})
		var out strings.Builder
		s := r.Stream(func(p []byte) { out.Write(p) })
		step := int(size%16) + 1
		for i := 0; i < len(text); i += step {
			_, _ = s.Write([]byte(text[i:min(i+step, len(text))]))
		}
		s.Close()
		if want := r.String(text); out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	})
}
