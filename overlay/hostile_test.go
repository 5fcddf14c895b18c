package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// secret is what stands outside of every tree: nothing that somebody writes
// into a state directory or a layer may lead there.
const secret = "what is outside of the tree"

// hostileDir makes a base, a state directory and a place outside of both.
func hostileDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"base/d/e", "base/lower", "state", "outside"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for name, text := range map[string]string{"base/a": "one", "base/d/b": "two", "base/d/e/c": "three", "outside/secret": secret} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return dir
}

// exercise does with a view what a program might, and fails if it meets what is
// outside or changes it. Errors are what a damaged view may answer.
func exercise(t *testing.T, tr *Tree, dir string) {
	t.Helper()
	f := tr.Attach(nil)
	defer f.Detach()
	left := 300
	var visit func(n *Node, depth int)
	visit = func(n *Node, depth int) {
		var names []string
		_ = f.ReadDir(n, 0, func(e DirEntry) bool { names = append(names, e.Name); return len(names) < 50 })
		for _, name := range append(names, "a", "d", "secret", "outside") {
			if left--; left < 0 {
				return
			}
			m, a, err := f.Lookup(n, name)
			if err != nil {
				continue
			}
			_, _ = f.Listxattr(m)
			switch {
			case a.IsDir() && depth < 12:
				visit(m, depth+1)
			case a.IsSymlink():
				_, _ = f.Readlink(m)
			case a.IsRegular():
				buf := make([]byte, 64)
				k, _ := f.Read(m, buf, 0)
				if bytes.Contains(buf[:k], []byte(secret[:8])) {
					t.Errorf("a view shows the file outside of its tree under %q", name)
				}
				_, _ = f.Write(m, []byte("W"), 0)
			}
			f.Forget(m, 1)
		}
	}
	visit(f.Root(), 0)
	if m, _, err := f.Create(f.Root(), "made", 0o644, self()); err == nil {
		_, _ = f.Write(m, []byte("x"), 0)
		f.Forget(m, 1)
	}
	_ = f.Rename(f.Root(), "d", f.Root(), "moved", 0)
	_ = f.Unlink(f.Root(), "a")
	_ = f.Delta(func(Entry) error { return nil })
	got, err := os.ReadFile(filepath.Join(dir, "outside", "secret"))
	if string(got) != secret {
		t.Errorf("outside of the tree now: %q, %v", got, err)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "outside")); len(entries) != 1 {
		t.Errorf("outside of the tree now: %v", entries)
	}
}

// openHostile opens a state directory that somebody has been at. An error has
// to say what is wrong; a panic fails the test by itself.
func openHostile(t *testing.T, dir string, s Stack) (*Tree, error) {
	t.Helper()
	base, err := OpenBase(nil, filepath.Join(dir, "base"))
	must(t, err)
	tr, err := Open(Config{Name: "workspace", StateDir: filepath.Join(dir, "state"), Base: base, NoWatch: true}, s)
	if err != nil && (len(err.Error()) < 10 || len(err.Error()) > 2000) {
		t.Errorf("the error is %d bytes long: %.200q", len(err.Error()), err.Error())
	}
	return tr, err
}

// record makes frames with the right checksums of lines "kind payload", so that
// a fuzzer gets past those.
func framed(payloads []byte) []byte {
	var e encoder
	for _, p := range bytes.Split(payloads, []byte{'\n'}) {
		if len(p) == 0 {
			continue
		}
		at := e.begin(frameKind(p[0]))
		e.b = append(e.b, p[1:]...)
		e.end(at)
	}
	return e.b
}

// FuzzRecord opens sessions whose record is any bytes.
func FuzzRecord(f *testing.F) {
	var good encoder
	good.header(1, "user.overlay.")
	good.entry(rootID, "a", 0)
	good.entry(rootID, "new", firstOwnIno)
	good.inode(firstOwnIno + 4)
	f.Add(good.b, false)
	f.Add([]byte("H\x01\x01\ruser.overlay.\nE\x01\x01a\x00\nE\x01\x03../\x02"), true)
	f.Add([]byte("H\x01\x01\x00\nN\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), true)
	f.Add([]byte("H\x02\x01\x00"), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, record []byte, frames bool) {
		if len(record) > 1<<16 {
			t.Skip("needs no larger records") // the limits are far above, and cost only time
		}
		dir := hostileDir(t)
		must(t, InitState(nil, filepath.Join(dir, "state"), 1))
		if frames {
			record = framed(record)
		}
		for _, file := range []string{"layers/1/record", "index"} {
			must(t, os.WriteFile(filepath.Join(dir, "state", file), record, 0o600))
			tr, err := openHostile(t, dir, Stack{Active: 1})
			if err != nil {
				continue
			}
			exercise(t, tr, dir)
			_ = tr.Close()
		}
	})
}

// FuzzLayer merges directories that somebody else made: each line of the input
// is one entry, "kind path text".
func FuzzLayer(f *testing.F) {
	f.Add("d d\nr d ../../outside")
	f.Add("d x\nr x /../outside\nd y\nr y /d/e")
	f.Add("l d ../outside\nf d/secret no")
	f.Add("f a new\nm a\nr a ../outside/secret")
	f.Add("d o\no o\nf o/x 1\nw d")
	f.Add("d d\nd d/e\nr d/e /d\nr d /d/e")
	f.Add("f deep\nr deep " + strings.Repeat("/d/e/..", 200))
	f.Add("l lower /\nd lower2\nr lower2 /lower")
	f.Fuzz(func(t *testing.T, script string) {
		if len(script) > 4096 {
			t.Skip("needs no larger layers")
		}
		dir := hostileDir(t)
		for _, d := range []string{"upper", "work", "mid"} {
			must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
		}
		for i, line := range strings.Split(script, "\n") {
			layer := []string{"upper", "mid"}[i%2]
			hostileEntry(filepath.Join(dir, layer), line)
			if i%3 == 0 {
				hostileEntry(filepath.Join(dir, "upper"), line)
			}
		}
		tr, err := OpenDirs(Dirs{Lower: []string{filepath.Join(dir, "mid"), filepath.Join(dir, "base")},
			Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), UserXattr: true}, nil)
		if err != nil {
			return
		}
		exercise(t, tr, dir)
		_ = tr.Close()
	})
}

// hostileEntry makes one entry of a layer, if that is possible at all.
func hostileEntry(layer, line string) {
	kind, rest, _ := strings.Cut(line, " ")
	path, text, _ := strings.Cut(rest, " ")
	if path == "" || strings.ContainsRune(path, 0) || !filepath.IsLocal(path) {
		return
	}
	at := filepath.Join(layer, path)
	// The entry itself stays in the layer: what lies behind a link does not.
	if real, err := filepath.EvalSymlinks(filepath.Dir(at)); err != nil || real != filepath.Dir(at) && !strings.HasPrefix(real+"/", layer+"/") {
		return
	}
	switch kind {
	case "f":
		_ = os.WriteFile(at, []byte(text), 0o644)
	case "d":
		_ = os.Mkdir(at, 0o755)
	case "l":
		_ = os.Symlink(text, at)
	case "w":
		_ = unix.Mknod(at, unix.S_IFCHR, 0)
	case "r":
		_ = unix.Lsetxattr(at, "user.overlay.redirect", []byte(text), 0)
	case "o":
		_ = unix.Lsetxattr(at, "user.overlay.opaque", []byte("y"), 0)
	case "m":
		_ = unix.Lsetxattr(at, "user.overlay.metacopy", nil, 0)
	}
}

// marked sets one of the marks of layers, in whichever namespace this user has.
func marked(name, mark, value string) func(string) error {
	return func(state string) error {
		for _, ns := range []string{"trusted.", "user."} {
			err := unix.Lsetxattr(filepath.Join(state, "layers/1/tree", name), ns+"overlay."+mark, []byte(value), 0)
			if err == unix.EPERM {
				continue // a device takes none of an ordinary user's
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// TestTamperedState: what a person may do to a state directory by hand gets an
// error that names the place, or a view that still keeps to its tree.
func TestTamperedState(t *testing.T) {
	for name, c := range map[string]struct {
		tamper func(state string) error
		want   error  // nil: it opens
		says   string // part of the message
	}{
		"record cut off": {func(s string) error { return os.Truncate(s+"/layers/1/record", 3) }, ErrCorrupt, "layer 1"},
		"record damaged in the middle": {func(s string) error {
			b, err := os.ReadFile(s + "/layers/1/record")
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 0xff
			return os.WriteFile(s+"/layers/1/record", b, 0o600)
		}, ErrCorrupt, "layer 1"},
		"record of a newer format": {func(s string) error {
			return os.WriteFile(s+"/layers/1/record", framed([]byte("H\x09\x01\x00")), 0o600)
		}, ErrFormat, "layer 1"},
		"record is a directory": {func(s string) error {
			return errors.Join(os.Remove(s+"/layers/1/record"), os.Mkdir(s+"/layers/1/record", 0o755))
		}, unix.EINVAL, "layer 1"},
		"record is a link out": {func(s string) error {
			return errors.Join(os.Remove(s+"/layers/1/record"), os.Symlink("../../../outside/secret", s+"/layers/1/record"))
		}, unix.ELOOP, "layer 1"},
		"layer is gone":   {func(s string) error { return os.RemoveAll(s + "/layers/1") }, unix.ENOENT, "layer 1"},
		"layers are gone": {func(s string) error { return os.RemoveAll(s + "/layers") }, unix.ENOENT, "layers"},
		"scratch is gone": {func(s string) error { return os.RemoveAll(s + "/scratch") }, unix.ENOENT, "scratch"},
		"scratch is a file": {func(s string) error {
			return errors.Join(os.RemoveAll(s+"/scratch"), os.WriteFile(s+"/scratch", nil, 0o600))
		}, unix.ENOTDIR, "scratch"},
		"index is noise":      {func(s string) error { return os.WriteFile(s+"/index", []byte(strings.Repeat("noise", 99)), 0o600) }, nil, ""},
		"index is a link out": {func(s string) error { _ = os.Remove(s + "/index"); return os.Symlink("../outside/secret", s+"/index") }, unix.ELOOP, "index"},
		"tree is a link out": {func(s string) error {
			return errors.Join(os.RemoveAll(s+"/layers/1/tree"), os.Symlink("../../../outside", s+"/layers/1/tree"))
		}, nil, ""},
		"a directory became a link out": {func(s string) error {
			return errors.Join(os.RemoveAll(s+"/layers/1/tree/d"), os.Symlink("../../../../outside", s+"/layers/1/tree/d"))
		}, nil, ""},
		"a file became a link out": {func(s string) error {
			return errors.Join(os.Remove(s+"/layers/1/tree/d/b"), os.Symlink("../../../../../outside/secret", s+"/layers/1/tree/d/b"))
		}, nil, ""},
		"a payload is gone":      {func(s string) error { return os.Remove(s + "/layers/1/tree/d/b") }, nil, ""},
		"the record is empty":    {func(s string) error { return os.Truncate(s+"/layers/1/record", 0) }, ErrCorrupt, "layer 1"},
		"the record is endless":  {func(s string) error { return os.Truncate(s+"/layers/1/record", 5<<30) }, unix.EFBIG, "layer 1"},
		"a redirect leads up":    {marked("d", "redirect", "../../outside"), nil, ""},
		"a redirect is absolute": {marked("d", "redirect", "/../outside"), nil, ""},
		"a redirect is huge":     {marked("d", "redirect", "/"+strings.Repeat("x/", 700)), nil, ""},
		"a whiteout is marked":   {marked("a", "whiteout", "y"), nil, ""},
		"a copy has no content":  {marked("d/b", "metacopy", ""), nil, ""},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			dir := hostileDir(t)
			must(t, InitState(nil, filepath.Join(dir, "state"), 1))
			tr, err := openHostile(t, dir, Stack{Active: 1})
			must(t, err)
			f := tr.Attach(nil)
			n, _ := walk(t, f, "d/b")
			_, err = f.Write(n, []byte("TWO"), 0)
			must(t, err)
			f.Forget(n, 1)
			must(t, f.Rename(f.Root(), "a", f.Root(), "a2", 0))
			sealTo(t, tr, 2)
			closeTree(t, tr, f)
			if name != "index is noise" && name != "index is a link out" {
				// Without the cache the records are read.
				must(t, os.Remove(filepath.Join(dir, "state", "index")))
			}
			must(t, c.tamper(filepath.Join(dir, "state")))
			tr, err = openHostile(t, dir, Stack{Sealed: []Range{{1, 1}}, Active: 2})
			if err == nil {
				defer tr.Close()
				if c.want != nil {
					t.Errorf("it opened; want %v", c.want)
				}
				exercise(t, tr, dir)
				return
			}
			if c.want == nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v; want %v, naming %q", err, c.want, c.says)
			}
		})
	}
}

// TestTamperedActiveLayer: a layer that was not closed is compared with its
// tree. What somebody put there meanwhile is taken as it is, or is an error.
func TestTamperedActiveLayer(t *testing.T) {
	tree := func(s string) string { return filepath.Join(s, "layers/1/tree") }
	for name, c := range map[string]struct {
		tamper func(state string) error
		want   error
	}{
		"redirect up":       {marked("new", "redirect", "../outside"), ErrCorrupt},
		"redirect absolute": {marked("new", "redirect", "/../../outside"), ErrCorrupt},
		"redirect huge":     {marked("new", "redirect", "/"+strings.Repeat("x/", 700)), nil},
		"redirect empty":    {marked("new", "redirect", ""), nil},
		"metacopy of none":  {marked("own", "metacopy", ""), ErrCorrupt},
		"opaque nonsense":   {marked("new", "opaque", strings.Repeat("z", 1000)), nil},
		"link for a directory": {func(s string) error {
			return errors.Join(os.RemoveAll(tree(s)+"/d"), os.Symlink("../../../../outside", tree(s)+"/d"))
		}, nil},
		"link for a file": {func(s string) error {
			return errors.Join(os.Remove(tree(s)+"/d/b"), os.Symlink("../../../../../outside/secret", tree(s)+"/d/b"))
		}, nil},
		"link for the tree": {func(s string) error {
			return errors.Join(os.RemoveAll(tree(s)), os.Symlink("../../../outside", tree(s)))
		}, ErrCorrupt},
		"pipe for a file": {func(s string) error {
			return errors.Join(os.Remove(tree(s)+"/d/b"), unix.Mkfifo(tree(s)+"/d/b", 0o644))
		}, nil},
		"nothing left":    {func(s string) error { return errors.Join(os.RemoveAll(tree(s)), os.Mkdir(tree(s), 0o755)) }, nil},
		"link in scratch": {func(s string) error { return os.Symlink("../../outside", s+"/scratch/t1") }, nil},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			dir := hostileDir(t)
			state := filepath.Join(dir, "state")
			must(t, InitState(nil, state, 1))
			tr, err := openHostile(t, dir, Stack{Active: 1})
			must(t, err)
			f := tr.Attach(nil)
			n, _ := walk(t, f, "d/b")
			_, err = f.Write(n, []byte("TWO"), 0)
			must(t, err)
			f.Forget(n, 1)
			closeTree(t, tr, f)
			must(t, os.Mkdir(tree(state)+"/new", 0o755))
			must(t, os.WriteFile(tree(state)+"/own", []byte("o"), 0o644))
			must(t, os.WriteFile(state+"/dirty", nil, 0o600))
			must(t, c.tamper(state))
			tr, err = openHostile(t, dir, Stack{Active: 1})
			if !errors.Is(err, c.want) {
				t.Errorf("open: %v, want %v", err, c.want)
			}
			if err == nil {
				exercise(t, tr, dir)
				must(t, tr.Close())
			}
		})
	}
}

// TestBadBases: what cannot be a base is refused with its path.
func TestBadBases(t *testing.T) {
	dir := hostileDir(t)
	for path, want := range map[string]error{
		dir + "/none":           unix.ENOENT,
		dir + "/outside/secret": unix.ENOTDIR,
	} {
		b, err := OpenBase(nil, path)
		if err == nil {
			_ = b.Close()
		}
		if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), path) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}
