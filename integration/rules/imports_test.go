package rules

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// floor says how high a top-level folder stands: a package imports only from
// folders below its own, or from its own. cmd -> sandbox, review -> snapshots,
// vm, fs -> overlay; vm, whose images are what sessions stand on, uses snapshots;
// integration tests may use all of them but cmd.
var floor = map[string]int{
	"overlay":     1,
	"snapshots":   2,
	"vm":          3,
	"fs":          2,
	"sandbox":     4,
	"review":      4,
	"cmd":         5,
	"integration": 5,
}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
	CgoFiles   []string
}

// list runs `go list` on the packages of this module.
func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,CgoFiles", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 3 {
		t.Fatalf("go list found only %d packages", len(pkgs))
	}
	return pkgs
}

// folder is the top-level folder of a package of this module, or "".
func folder(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

func TestImportDirection(t *testing.T) {
	for _, p := range list(t) {
		from := folder(p.ImportPath)
		if floor[from] == 0 {
			t.Errorf("%s: the folder %q is not known to this test; say in floor where it stands", p.ImportPath, from)
			continue
		}
		for _, imp := range p.Imports {
			to := folder(imp)
			if to == "" || to == from {
				continue
			}
			if floor[to] >= floor[from] {
				t.Errorf("%s imports %s: %s may import only what stands below it", p.ImportPath, imp, from)
			}
		}
	}
}

// The engine knows no face: it must stay usable in process, with no FUSE.
func TestEngineKnowsNoFUSE(t *testing.T) {
	for _, p := range list(t) {
		if folder(p.ImportPath) != "overlay" {
			continue
		}
		for _, dep := range p.Deps {
			if strings.Contains(dep, "/go-fuse/") || dep == "net/http" {
				t.Errorf("%s depends on %s", p.ImportPath, dep)
			}
		}
	}
}

func TestNoCgoOutsideVM(t *testing.T) {
	for _, p := range list(t) {
		if folder(p.ImportPath) != "vm" && len(p.CgoFiles) > 0 {
			t.Errorf("%s has cgo files %v; only vm may", p.ImportPath, p.CgoFiles)
		}
	}
}
