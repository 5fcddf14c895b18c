package rules

import (
	"go/ast"
	"os"
	"regexp"
	"strings"
	"testing"
)

// testName is a test, benchmark or fuzz target as documents name it.
var testName = regexp.MustCompile(`\b(Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*\b`)

// TestDocumentsNameTestsThatExist: a table that says which test proves what is
// worth something only as long as the tests are there, in the package named
// before them.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range sources(t) {
		if !f.test {
			continue
		}
		dir := f.path[:max(0, strings.LastIndexByte(f.path, '/'))]
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				have[dir+" "+fn.Name.Name] = true
			}
		}
	}
	pkg := regexp.MustCompile("`([a-z/]+)`")
	named := 0
	for _, line := range strings.Split(string(text), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		for _, part := range strings.Split(cells[3], ";") {
			dir := ""
			if m := pkg.FindStringSubmatch(part); m != nil {
				dir = m[1]
			}
			for _, name := range testName.FindAllString(part, -1) {
				named++
				if !have[dir+" "+name] {
					t.Errorf("ARCHITECTURE.md names %s of %q, which is not there", name, dir)
				}
			}
		}
	}
	if named < 14 {
		t.Errorf("only %d tests are named; each of the fourteen points needs one", named)
	}
}
