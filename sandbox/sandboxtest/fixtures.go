package sandboxtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fixtures are the files of the base, by path; "->x" is a link to x.
var fixtures = map[string]string{
	"text.txt":              "one\ntwo\nthree\nfour\nfive\n",
	"nofinal.txt":           "first\nlast",
	"empty.txt":             "",
	"crlf.txt":              "one\r\ntwo\r\nthree\r\n",
	"latin1.txt":            "caf\xe9 one\ncaf\xe9 two\n",
	"utf8.txt":              "héllo wörld\n日本語\n",
	"binary.bin":            "PNG\x00\x01\x02needle\x00",
	"long.txt":              strings.Repeat("x", 5000) + "needle" + strings.Repeat("y", 5000) + "\nshort needle\n",
	"dir/a.go":              "package a\n\nfunc Needle() {}\n",
	"dir/b.go":              "package b\n\n// needle here\nfunc other() {}\n",
	"dir/b.txt":             "needle in text\n",
	"dir/.hidden":           "needle hidden\n",
	"dir/sub/deep.go":       "package deep // needle\n",
	"dir/sub/more/x.md":     "# needle\n",
	"dir-x/y.go":            "package y\n",
	"sp ace/na me.txt":      "spaces\n",
	"[br]/{c}.txt":          "brackets\n",
	"-dash":                 "dash\n",
	"link":                  "->text.txt",
	"dirlink":               "->dir",
	"dead":                  "->nowhere",
	"loop":                  "->loop",
	"dir/up":                "->../text.txt",
	"chain1":                "->chain2",
	"chain2":                "->dir/up",
	"abroad":                "->../../../../../../../../../../../../galley-no-such-file",
	"proc":                  "->/proc/self/root/galley-no-such-file",
	"ignored/.gitignore":    "*.log\n/build/\n!keep.log\n",
	"ignored/a.log":         "needle\n",
	"ignored/keep.log":      "needle\n",
	"ignored/a.txt":         "needle\n",
	"ignored/build/out.txt": "needle\n",
	"ignored/sub/build/in":  "needle\n",
	"ignored/.git/config":   "needle\n",
	"exec.sh":               "#!/bin/sh\necho ran\n",
}

// plantFixtures makes the base.
func plantFixtures(t *testing.T, base string) {
	t.Helper()
	for name, content := range fixtures {
		p := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"exec.sh": 0o755, "dir/b.txt": 0o600} {
		if err := os.Chmod(filepath.Join(base, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(base, "emptydir"), 0o755); err != nil {
		t.Fatal(err)
	}
}
