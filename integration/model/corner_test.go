package model

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/overlaytest"
)

// cornerBase makes the base of the corner cases: a few levels, a file that is
// large enough for a copy of its metadata alone, a hard link, a symbolic link.
func cornerBase(f overlaytest.FS) error {
	at := overlaytest.At
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	for _, d := range []string{"d", "d/e", "d/e/f", "o", "o/p", "empty"} {
		do(f.Mkdir(at(d), 0o755))
	}
	for i, name := range []string{"a", "b", "d/a", "d/b", "d/e/a", "d/e/f/a", "o/a", "o/p/a", "h"} {
		do(f.Create(0, at(name), 0o644))
		_, err := f.Write(at(name), fmt.Appendf(nil, "%d of %s", i, name), 0)
		do(err)
	}
	do(f.Create(0, at("big"), 0o644))
	_, err := f.Write(at("big"), []byte(strings.Repeat("large ", 20000)), 0)
	do(err)
	do(f.Link(at("h"), at("d/h")))
	do(f.Symlink("../a", at("d/l")))
	do(f.Setxattr(at("d"), "user.a", []byte("1"), 0))
	f.Release(0)
	return errors.Join(errs...)
}

// A corner is a program in a few words a line: an operation and its paths.
// "seal" begins another layer.
var corners = map[string]string{
	"whiteouts":                    "unlink a; rmdir empty; seal; create a; mkdir empty; seal; unlink a; rmdir empty",
	"opaque directory":             "unlink o/p/a; rmdir o/p; unlink o/a; rmdir o; mkdir o; create o/new; seal; mkdir o/p; create o/p/x",
	"opaque in a merged directory": "unlink d/e/f/a; rmdir d/e/f; mkdir d/e/f; seal; create d/e/f/y; seal; rename d g",
	"redirect":                     "rename d g; seal; write g/a; unlink g/b; seal; rename g/e x; seal; write x/f/a; rename x o/x",
	"redirect again":               "rename d g; rename g k; seal; rename k d; seal; rename d/e e; rename e d/e",
	"redirect into itself":         "rename d t; mkdir d; rename t d/t; seal; write d/t/a; rename d/t u",
	"redirect over what went":      "unlink o/p/a; rmdir o/p; unlink o/a; rmdir o; rename d o; seal; mkdir d; create d/a",
	"directories exchanged":        "exchange d o; seal; write d/a; write o/e/a; seal; exchange d/p o/e",
	"file for directory":           "exchange a d; seal; write a/a; seal; exchange a d",
	"metadata only":                "chmod big; seal; rename big d/large; seal; chown d/large; seal; write d/large",
	"metadata only, renamed":       "rename big g; seal; rename g k; seal; rename d x; rename k x/k; chmod x/k",
	"metadata below a redirect":    "rename big d/big; rename d g; seal; chmod g/big; seal; rename g/big big",
	"hard links":                   "write h; link h x; seal; write x; seal; unlink h; link x d/y; seal; rename d g",
	"hard link of large":           "chmod big; link big d/big; seal; chown d/big; seal; write big",
	"xattrs":                       "setxattr d; setxattr a; seal; setxattr d/a; rename d g; seal; setxattr g",
	"special files":                "fifo p; symlink s; mkdir m; fifo m/p; seal; rename p m/q; rename d/l l; unlink s; symlink s; seal; rename m n",
	"odd names":                    "create .wh.a; mkdir .wh..wh..opq; create #1; seal; rename .wh.a d/.wh.a; rename .wh..wh..opq e",
	"root":                         "chmod; setxattr; seal; create x; seal; unlink a",
	"times":                        "utimes d; utimes a; utimes o/p; seal; write d/a; utimes d; seal; chmod a; rename o q",
}

// corner parses a program.
func corner(s string) (ops []overlaytest.Op, err error) {
	kinds := map[string]overlaytest.Op{
		"unlink": {Kind: overlaytest.OpUnlink}, "rmdir": {Kind: overlaytest.OpRmdir}, "create": {Kind: overlaytest.OpCreate, Mode: 0o640},
		"mkdir": {Kind: overlaytest.OpMkdir, Mode: 0o750}, "rename": {Kind: overlaytest.OpRename}, "link": {Kind: overlaytest.OpLink},
		"exchange": {Kind: overlaytest.OpRename, Flags: unix.RENAME_EXCHANGE}, "write": {Kind: overlaytest.OpWrite, Off: 3, N: 9},
		"chmod": {Kind: overlaytest.OpChmod, Mode: 0o711}, "chown": {Kind: overlaytest.OpChown, UID: 7, GID: 8},
		"setxattr": {Kind: overlaytest.OpSetxattr, Name: "user.b", N: 5}, "fifo": {Kind: overlaytest.OpMknod, Mode: unix.S_IFIFO | 0o600},
		"symlink": {Kind: overlaytest.OpSymlink, Name: "d/a"}, "utimes": {Kind: overlaytest.OpUtimes, Time: overlay.Time{Sec: 1e9, Nsec: 5}},
		"seal": {Kind: overlaytest.OpSeal},
	}
	for i, line := range strings.Split(s+"; seal", "; ") {
		word := strings.Fields(line)
		o, ok := kinds[word[0]]
		if !ok {
			return nil, fmt.Errorf("%q: no such operation", line)
		}
		word = append(word, "", "")
		o.At, o.To, o.Seed = overlaytest.At(word[1]), overlaytest.At(word[2]), uint64(i)
		ops = append(ops, o)
	}
	return ops, nil
}

// TestLayersInTheKernel mounts the layers of hand-written programs with the
// kernel's overlayfs, after each seal: it shows the same tree.
func TestLayersInTheKernel(t *testing.T) {
	needRoot(t)
	dir := fastDir(t)
	for name, text := range corners {
		for _, cfg := range []overlay.Config{{NoWatch: true}, {NoWatch: true, UserXattr: true}} {
			t.Run(fmt.Sprintf("%s/user=%v", name, cfg.UserXattr), func(t *testing.T) {
				ops, err := corner(text)
				if err != nil {
					t.Fatal(err)
				}
				sub, err := runOn(dir, cfg, false, cornerBase, func(*overlaytest.Session) program { return list(ops) })
				if err != nil {
					t.Errorf("%v\nafter:\n%s", err, overlaytest.Format(sub))
				}
			})
		}
	}
}
