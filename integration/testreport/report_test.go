package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	passLine = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
	failLine = `{"Action":"fail","Package":"p","Test":"TestB"}` + "\n"
	skipPair = `{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:9: no /dev/kvm\n"}` + "\n" +
		`{"Action":"output","Package":"p","Test":"TestC","Output":"--- SKIP: TestC (0.00s)\n"}` + "\n" +
		`{"Action":"skip","Package":"p","Test":"TestC"}` + "\n"
	pkgFail   = `{"Action":"fail","Package":"p"}` + "\n"
	buildFail = `{"ImportPath":"p","Action":"build-fail"}` + "\n"
)

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		in      string
		allow   string // content of the allow file; "" is no file
		want    bool
		contain string
	}{
		"pass":              {in: passLine, want: true, contain: "1 passed, 0 failed, 0 skipped"},
		"fail":              {in: passLine + failLine, want: false, contain: "FAILED  p TestB"},
		"build fails":       {in: passLine + buildFail, want: false, contain: "FAILED  p\n"},
		"fails once":        {in: passLine + failLine + pkgFail, want: false, contain: "1 passed, 1 failed"},
		"nothing ran":       {in: "", want: false, contain: "NO TEST PASSED"},
		"skip, any reason":  {in: passLine + skipPair, want: true, contain: "skipped  p TestC: c_test.go:9: no /dev/kvm"},
		"skip, allowed":     {in: passLine + skipPair, allow: "# machines\n\nno /dev/kvm\n", want: true, contain: "1 skipped"},
		"skip, not allowed": {in: passLine + skipPair, allow: "needs root\n", want: false, contain: "SKIPPED WITHOUT NEED  p TestC"},
		"not JSON":          {in: "go: no such module\n" + passLine, want: true, contain: "go: no such module"},
	} {
		t.Run(name, func(t *testing.T) {
			file := ""
			if c.allow != "" {
				file = filepath.Join(t.TempDir(), "allow")
				if err := os.WriteFile(file, []byte(c.allow), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var out strings.Builder
			got, err := run(strings.NewReader(c.in), &out, "lane", file)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want || !strings.Contains(out.String(), c.contain) {
				t.Errorf("verdict %v, want %v; output:\n%s\nwant it to contain %q", got, c.want, out.String(), c.contain)
			}
		})
	}
}

func TestAllowFileThatDoesNotParse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "allow")
	if err := os.WriteFile(file, []byte("fine\n(\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := run(strings.NewReader(passLine), &strings.Builder{}, "lane", file)
	if err == nil || !strings.Contains(err.Error(), "allow:2:") {
		t.Fatalf("error %v, want one that names the file and line 2", err)
	}
}
