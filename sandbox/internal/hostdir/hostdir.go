// Package hostdir checks the directories of the host that are to be shown in a
// sandbox: what a Mount may ask for, the same in each.
package hostdir

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/internal/files"
)

// Check refuses what cannot be mounted and returns the directory of the host
// with its links resolved. Home is Galley's own state.
func Check(r sandbox.MountRequest, home string) (string, error) {
	for _, p := range []string{r.Host, r.Path} {
		if err := files.CheckPath("mount", p); err != nil {
			return "", err
		}
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return "", sandbox.Errorf(sandbox.Invalid, "mount", p, "expected the absolute path of a directory below /, without \".\", \"..\" or a slash at its end")
		}
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if Beneath(r.Path, own) {
			return "", sandbox.Errorf(sandbox.Permission, "mount", r.Path, "nothing is mounted in %s", own)
		}
	}
	real := Real(r.Host)
	info, err := os.Stat(real)
	if err != nil {
		return "", sandbox.Wrap("mount", r.Host, err)
	}
	if !info.IsDir() {
		return "", sandbox.Errorf(sandbox.NotDirectory, "mount", r.Host, "it is not a directory of the host")
	}
	home = Real(home)
	if Beneath(real, home) || Beneath(home, real) {
		return "", sandbox.Errorf(sandbox.Permission, "mount", r.Host, "it is, or contains, Galley's own state")
	}
	return real, nil
}

// Beneath reports whether p is dir or lies in it.
func Beneath(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// Real resolves the symbolic links of an absolute path as far as it exists.
func Real(p string) string {
	// Of a path that does not exist, its nearest parent does.
	dir, rest := path.Clean(p), ""
	for {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return path.Join(real, rest)
		}
		dir, rest = path.Dir(dir), path.Join(path.Base(dir), rest)
	}
}
