package termsafe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// hostileNames generates names of every class that threatens a terminal or a
// parser, each alone and amid other text.
func hostileNames() []string {
	var seeds []string
	for c := 1; c < 0x20; c++ {
		seeds = append(seeds, string([]byte{byte(c)}))
	}
	for c := 0x7f; c < 0xa0; c++ { // DEL, C1 as characters
		seeds = append(seeds, string(rune(c)))
	}
	for c := 0x80; c < 0x100; c += 3 { // and as bare bytes
		seeds = append(seeds, string([]byte{byte(c)}))
	}
	for _, r := range []rune{0x202A, 0x202B, 0x202C, 0x202D, 0x202E, 0x2066, 0x2067, 0x2068, 0x2069, 0x200B, 0x200C,
		0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF, 0x00AD, 0x061C, 0x2028, 0x2029, 0x3164, 0xFFA0, 0xFE0F, 0xE0041,
		0xE0100, 0x115F, 0x2800, 0xE000, 0xFFFE, 0x10FFFF} {
		seeds = append(seeds, string(r))
	}
	seeds = append(seeds, "\x1b[1A\x1b[2K ok", "\x1b]52;c;cm0gLXJm\a", "\x1b]8;;http://x\x1b\\y", "\x9b31m", "a\r\nb", "\b\b\b",
		"-rf", "$(id)", "`id`", "<script>", "\"", "\\", "'", "=1+1", "| a |", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
		strings.Repeat("\x1b", 255), strings.Repeat("é", 127))
	var out []string
	for _, s := range seeds {
		out = append(out, s, "file"+s, s+".txt", "a"+s+"b"+s)
	}
	return out
}

// unsafe describes the first thing in s that must not reach a terminal.
func unsafe(s string, lines bool) error {
	if !utf8.ValidString(s) {
		return errors.New("invalid UTF-8")
	}
	for _, r := range s {
		if !Safe(r) && !(lines && (r == '\n' || r == '\t')) {
			return fmt.Errorf("character %U", r)
		}
	}
	return nil
}

func TestHostileNames(t *testing.T) {
	names := hostileNames()
	if len(names) < 500 {
		t.Fatalf("only %d names", len(names))
	}
	quoted := map[string]string{}
	for _, name := range names {
		q := Quote(name)
		if err := unsafe(q, false); err != nil || strings.ContainsFunc(q, func(r rune) bool { return r > 0x7e }) {
			t.Errorf("Quote(%q) = %q: %v", name, q, err)
		}
		if other, ok := quoted[q]; ok && other != name {
			t.Errorf("%q and %q are both shown as %s", other, name, q)
		}
		quoted[q] = name
		if err := unsafe(Escape(name), false); err != nil {
			t.Errorf("Escape(%q) = %q: %v", name, Escape(name), err)
		}
		var out bytes.Buffer
		w := NewWriter(&out)
		for i := range name { // every character cut into bytes
			_, _ = w.Write([]byte(name[i : i+1]))
		}
		_ = w.Flush()
		if err := unsafe(out.String(), true); err != nil {
			t.Errorf("Writer(%q) = %q: %v", name, out.String(), err)
		}
	}
}

// TestQuoteIsGits compares with git itself, on every byte a name can have.
func TestQuoteIsGits(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return out
	}
	git("init", "-q")
	want := map[string]bool{}
	for _, name := range hostileNames() {
		if strings.Contains(name, "/") || len(name) > 255 || name == "." || name == ".." {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		want[Quote(name)] = true
	}
	got := strings.Split(strings.TrimSuffix(string(git("ls-files", "--others")), "\n"), "\n")
	if len(got) != len(want) {
		t.Errorf("git lists %d names, there are %d", len(got), len(want))
	}
	for _, g := range got {
		if !want[g] {
			t.Errorf("git shows %s, and Quote does not", g)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain":            "plain",
		"Grüße, 世界":        "Grüße, 世界",
		"a\x1b[31mb":       `a\x1b[31mb`,
		"tab\tline\nend\r": `tab\tline\nend\r`,
		"x\u202ey":         `x\u202ey`,
		"x\U000e0041":      `x\U000e0041`,
		"\xff":             `\xff`,
		"\u009b":           `\x9b`,
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestWriterKeepsTextAndLines(t *testing.T) {
	const text = "Grüße\t世界 🙂\nsecond line\n"
	for cut := range len(text) {
		var out bytes.Buffer
		w := NewWriter(&out)
		for _, part := range []string{text[:cut], text[cut:]} {
			if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		if err := w.Flush(); err != nil || out.String() != text {
			t.Fatalf("cut at %d: %q, %v", cut, out.String(), err)
		}
	}
}

func TestPaletteOnlyForTerminals(t *testing.T) {
	env := func(kv map[string]string) func(string) string { return func(k string) string { return kv[k] } }
	xterm := env(map[string]string{"TERM": "xterm"})
	if NewPalette(&bytes.Buffer{}, xterm).Enabled() {
		t.Error("colours for a buffer")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if NewPalette(w, xterm).Enabled() {
		t.Error("colours for a pipe")
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	if !NewPalette(tty, xterm).Enabled() {
		t.Error("no colours for a terminal")
	}
	if NewPalette(tty, env(map[string]string{"TERM": "xterm", "NO_COLOR": "1"})).Enabled() {
		t.Error("colours in spite of NO_COLOR")
	}
	if NewPalette(tty, env(map[string]string{"TERM": "dumb"})).Enabled() {
		t.Error("colours on a dumb terminal")
	}
	if got := Always().Added("x"); got != "\x1b[32mx\x1b[m" {
		t.Errorf("Added = %q", got)
	}
	if got := (Palette{}).Added("x"); got != "x" {
		t.Errorf("Added without colours = %q", got)
	}
}

func FuzzWriter(f *testing.F) {
	for _, name := range hostileNames() {
		f.Add([]byte(name), len(name)/2)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		cut = min(max(cut, 0), len(data))
		var once, twice bytes.Buffer
		w := NewWriter(&once)
		_, _ = w.Write(data)
		_ = w.Flush()
		w = NewWriter(&twice)
		_, _ = w.Write(data[:cut])
		_, _ = w.Write(data[cut:])
		_ = w.Flush()
		if err := unsafe(once.String(), true); err != nil {
			t.Fatalf("%q: %v", once.String(), err)
		}
		if once.String() != twice.String() {
			t.Fatalf("cut at %d: %q, whole: %q", cut, twice.String(), once.String())
		}
		if err := unsafe(Quote(string(data)), false); err != nil {
			t.Fatalf("Quote: %v", err)
		}
		if s := Escape(string(data)); unsafe(s, false) != nil || Escape(s) != s {
			t.Fatalf("Escape = %q", s)
		}
	})
}

// JSON says the same with what acts on a terminal escaped, and is left alone
// without it.
func TestJSON(t *testing.T) {
	for _, v := range []any{
		"C1 \u009b2J \u009d52;c;ZXZpbA==\u009c", "DEL \x7f", "bidi \u202e \u2066", "zero\u200bwidth", "tag \U000e0041", "private \U0010ffff",
		map[string]any{"\u009b[31mkey": []any{"größe 漢字 é", 1.5, nil}, "<&>": "\x1b[2J\n"},
	} {
		var enc bytes.Buffer
		e := json.NewEncoder(&enc)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			t.Fatal(err)
		}
		got := JSON(enc.Bytes())
		for _, r := range string(got) {
			if !Safe(r) && r != '\n' {
				t.Errorf("%q has %U", got, r)
			}
		}
		var back any
		if err := json.Unmarshal(got, &back); err != nil || !reflect.DeepEqual(back, v) {
			t.Errorf("%q means %q, not %q: %v", got, back, v, err)
		}
	}
	if got := JSON([]byte("{\"größe\": \"漢字 é\"}\n")); string(got) != "{\"größe\": \"漢字 é\"}\n" {
		t.Errorf("%q", got)
	}
	if got := JSON([]byte("\"\xff\x9b\"")); string(got) != `"\ufffd\ufffd"` {
		t.Errorf("bytes that are not UTF-8: %q", got)
	}
}
