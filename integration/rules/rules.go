// Package rules holds the rules of the house that a program can check: which
// package may import which, which calls are forbidden where, and a few habits
// of the source text. They are tests, and `make check` runs them.
package rules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
)

// module is the path of this module in go.mod.
const module = "github.com/galleyfs/galley"

// file is one Go source file of the module.
type file struct {
	path string // slash-separated, relative to the module's root
	test bool
	text string
	fset *token.FileSet
	ast  *ast.File
}

// in says whether the file lies in the directory dir or below it.
func (f *file) in(dir string) bool {
	return strings.HasPrefix(f.path, dir+"/")
}

// at names a position for a message.
func (f *file) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(p).Line)
}

// load parses every Go file below root.
func load(root fs.FS) ([]*file, error) {
	var files []*file
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		files = append(files, &file{
			path: path, test: strings.HasSuffix(path, "_test.go"),
			text: string(text), fset: fset, ast: tree,
		})
		return nil
	})
	return files, err
}

// imports gives the name under which a file knows each package it imports.
func (f *file) imports() map[string]string {
	names := make(map[string]string)
	for _, spec := range f.ast.Imports {
		path := strings.Trim(spec.Path.Value, `"`)
		name := path[strings.LastIndex(path, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = path
	}
	return names
}

// calls visits every use of a function of another package, with the function
// declaration that it stands in (nil at package level).
func (f *file) calls(visit func(pkg, name string, in *ast.FuncDecl, pos token.Pos)) {
	names := f.imports()
	for _, decl := range f.ast.Decls {
		in, _ := decl.(*ast.FuncDecl)
		ast.Inspect(decl, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if id, ok := sel.X.(*ast.Ident); ok && id.Obj == nil {
				if pkg, ok := names[id.Name]; ok {
					visit(pkg, sel.Sel.Name, in, sel.Pos())
				}
			}
			return true
		})
	}
}
