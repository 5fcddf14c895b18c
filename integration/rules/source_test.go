package rules

import (
	"go/ast"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"
)

func sources(t *testing.T) []*file {
	t.Helper()
	files, err := load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 {
		t.Fatalf("only %d Go files found", len(files))
	}
	return files
}

// byPath are functions that follow a path from the process's root or working
// directory, and with it any symbolic link that stands in the way. Names that
// come out of a layer must never reach them.
var byPath = map[string]*regexp.Regexp{
	"os": regexp.MustCompile(`^(Open|OpenFile|Create|ReadFile|WriteFile|Mkdir|MkdirAll|Remove|RemoveAll|Rename|` +
		`Stat|Lstat|Link|Symlink|Readlink|Chmod|Chown|Lchown|Chtimes|Truncate|ReadDir|MkdirTemp|CreateTemp|` +
		`DirFS|CopyFS|Chdir|OpenRoot|OpenInRoot)$`),
	"path/filepath": regexp.MustCompile(`^(Walk|WalkDir|Glob|EvalSymlinks)$`),
	"io/ioutil":     regexp.MustCompile(`.`),
	"golang.org/x/sys/unix": regexp.MustCompile(`^(Open|Creat|Stat|Lstat|Access|Chdir|Chmod|Chown|Lchown|Link|Symlink|Readlink|` +
		`Mkdir|Mknod|Mkfifo|Rename|Rmdir|Unlink|Truncate|Utime|Utimes|UtimesNano|Lutimes|Statfs|` +
		`Getxattr|Lgetxattr|Setxattr|Lsetxattr|Listxattr|Llistxattr|Removexattr|Lremovexattr)$`),
	"syscall": regexp.MustCompile(`^(Open|Creat|Stat|Lstat|Access|Chdir|Chmod|Chown|Lchown|Link|Symlink|Readlink|` +
		`Mkdir|Mknod|Mkfifo|Rename|Rmdir|Unlink|Truncate|Utime|Utimes|UtimesNano|Statfs|` +
		`Getxattr|Setxattr|Listxattr|Removexattr)$`),
}

// Host calls of the engine and of the committer are relative to a directory
// descriptor (overlay/hostfs makes them, and is the one place that may open a
// root by its path).
func TestHostCallsAreRelative(t *testing.T) {
	for _, f := range sources(t) {
		watched := f.in("overlay") && !f.in("overlay/hostfs") && !f.in("overlay/overlaytest") || f.in("review/commit")
		if !watched || f.test {
			continue
		}
		f.calls(func(pkg, name string, _ *ast.FuncDecl, pos token.Pos) {
			if re := byPath[pkg]; re != nil && re.MatchString(name) {
				t.Errorf("%s: %s.%s follows a path; use hostfs, relative to a directory descriptor", f.at(pos), pkg, name)
			}
		})
	}
}

// A test may wait for an event in a helper that polls it with a deadline,
// named wait…, poll… or eventually…; anything else that sleeps is a guess.
func TestNoSleepInTests(t *testing.T) {
	helper := regexp.MustCompile(`(?i)^(wait|poll|eventually)`)
	for _, f := range sources(t) {
		if !f.test {
			continue
		}
		f.calls(func(pkg, name string, in *ast.FuncDecl, pos token.Pos) {
			if pkg != "time" || name != "Sleep" {
				return
			}
			if in == nil || !helper.MatchString(in.Name.Name) {
				t.Errorf("%s: time.Sleep in a test; wait for the event itself", f.at(pos))
			}
		})
	}
}

func TestSkipsNameTheirReason(t *testing.T) {
	for _, f := range sources(t) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch name := sel.Sel.Name; {
			case name == "SkipNow", (name == "Skip" || name == "Skipf") && f.test && len(call.Args) == 0:
				t.Errorf("%s: %s without a reason", f.at(call.Pos()), name)
			}
			return true
		})
	}
}

// A file that no longer fits in a reader's head is two files.
func TestFilesAreSmall(t *testing.T) {
	const limit = 700
	for _, f := range sources(t) {
		if n := strings.Count(f.text, "\n"); n > limit {
			t.Errorf("%s has %d lines, more than %d", f.path, n, limit)
		}
	}
}

func TestNoUnfinishedBusiness(t *testing.T) {
	mark := regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)
	for _, f := range sources(t) {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if mark.MatchString(c.Text) {
					t.Errorf("%s: %s", f.at(c.Pos()), c.Text)
				}
			}
		}
	}
}

// Every exported name of a library package says what it is.
func TestExportedNamesAreDocumented(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || f.ast.Name.Name == "main" {
			continue
		}
		end := 0 // line on which the declaration before ends
		for _, decl := range f.ast.Decls {
			// A run of one-line functions shares the comment of the first.
			_, isFunc := decl.(*ast.FuncDecl)
			shares := isFunc && f.fset.Position(decl.Pos()).Line == end+1
			end = f.fset.Position(decl.End()).Line
			if shares {
				continue
			}
			// A double repeats the methods of what it stands for.
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv != nil && strings.HasSuffix(f.ast.Name.Name, "test") {
				continue
			}
			for _, u := range undocumented(decl) {
				t.Errorf("%s: %s has no doc comment", f.at(u.Pos()), u.Name)
			}
		}
	}
}

// undocumented lists the exported names that decl declares without a comment.
// The comment of a group stands for all names in it.
func undocumented(decl ast.Decl) []*ast.Ident {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !wellKnown[d.Name.Name] {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		if d.Doc != nil {
			return nil
		}
		var names []*ast.Ident
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Doc == nil && s.Name.IsExported() {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				if s.Doc != nil || s.Comment != nil {
					continue
				}
				for _, n := range s.Names {
					if n.IsExported() {
						names = append(names, n)
					}
				}
			}
		}
		return names
	}
	return nil
}

// wellKnown are methods whose meaning is fixed by the interface they are for.
var wellKnown = map[string]bool{
	"Error": true, "Unwrap": true, "Is": true, "String": true,
	"Len": true, "Less": true, "Swap": true,
	"MarshalJSON": true, "UnmarshalJSON": true, "MarshalText": true, "UnmarshalText": true,
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}
