package review

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// snapshotDir lists a directory of the host as git sees it: mode, and content
// or target, by path; directories end in a slash.
func snapshotDir(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			out[rel+"/"] = "directory"
		case mode&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			out[rel] = "link " + target
			return err
		case mode.IsRegular():
			b, err := os.ReadFile(p)
			out[rel] = fmt.Sprintf("file %v %q", mode&0o100 != 0, b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// snapshotView lists a view in the same form.
func (s *session) snapshotView() map[string]string {
	s.t.Helper()
	out := map[string]string{}
	v := FaceView(s.face)
	var walk func(dir string)
	walk = func(dir string) {
		var names []string
		s.must(v.List(dir, func(name string, _ uint32) bool { names = append(names, name); return true }))
		for _, name := range names {
			p := join(dir, name)
			n, a, err := s.face.Walk(p)
			s.must(err)
			switch {
			case a.IsDir():
				out[p+"/"] = "directory"
				walk(p)
			case a.IsSymlink():
				target, err := s.face.Readlink(n)
				s.must(err)
				out[p] = "link " + target
			case a.IsRegular():
				b := make([]byte, a.Size)
				got, err := s.face.Read(n, b, 0)
				s.must(err)
				out[p] = fmt.Sprintf("file %v %q", a.Mode&0o100 != 0, b[:got])
			}
			s.face.Forget(n, 1)
		}
	}
	walk("")
	return out
}

// generator makes random trees and random work on them.
type generator struct {
	*rand.Rand
	s *session
	// dotGit lets the name .git occur, into which git takes no patch.
	dotGit bool
}

var oddNames = []string{"a", "b", "c", "dir", "sub", "with space", "tab\there", "new\nline", "quote\"d", "back\\slash", "grüße",
	"\xff\xfe", "\x1b[31mred", "-rf", "a.txt", "trailing ", "é", "x\u202ey", "'single'", "{brace}"}

func (g *generator) name() string {
	if g.dotGit && g.IntN(12) == 0 {
		return ".git"
	}
	return oddNames[g.IntN(len(oddNames))]
}

func (g *generator) content() string {
	switch g.IntN(8) {
	case 0:
		return ""
	case 1:
		b := make([]byte, g.IntN(2000))
		for i := range b {
			b[i] = byte(g.Uint32())
		}
		return string(b)
	case 2:
		return "no newline at the end"
	}
	var b strings.Builder
	for range g.IntN(60) {
		fmt.Fprintf(&b, "line %d\n", g.IntN(15))
	}
	if g.IntN(4) == 0 {
		b.WriteString("last")
	}
	return b.String()
}

// edit changes a few lines of a text.
func (g *generator) edit(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for range 1 + g.IntN(3) {
		i := g.IntN(len(lines))
		switch g.IntN(3) {
		case 0:
			lines[i] = "changed\n"
		case 1:
			lines = slices.Insert(lines, i, "inserted\n")
		case 2:
			if len(lines) > 1 {
				lines = slices.Delete(lines, i, i+1)
			}
		}
	}
	return strings.Join(lines, "")
}

func (g *generator) fill(dir string, depth int) {
	for range 2 + g.IntN(5) {
		p := filepath.Join(dir, g.name())
		if _, err := os.Lstat(p); err == nil {
			continue
		}
		var err error
		switch n := g.IntN(10); {
		case n < 4 && depth < 3:
			if err = os.Mkdir(p, 0o755); err == nil {
				g.fill(p, depth+1)
			}
		case n == 4:
			err = os.Symlink(g.name(), p)
		default:
			mode := os.FileMode(0o644)
			if g.IntN(4) == 0 {
				mode = 0o755
			}
			if err = os.WriteFile(p, []byte(g.content()), mode); err == nil {
				err = os.Chmod(p, mode)
			}
		}
		if err != nil {
			g.s.t.Fatal(err)
		}
	}
}

// paths lists what the view has; directories end in a slash.
func (g *generator) paths() []string {
	var out []string
	for p := range g.s.snapshotView() {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// step does one random thing in the session.
func (g *generator) step() {
	all := g.paths()
	pick := func() string {
		if len(all) == 0 {
			return ""
		}
		return all[g.IntN(len(all))]
	}
	dirs := []string{""}
	for _, p := range all {
		if strings.HasSuffix(p, "/") {
			dirs = append(dirs, strings.TrimSuffix(p, "/"))
		}
	}
	fresh := join(dirs[g.IntN(len(dirs))], g.name())
	exists := slices.Contains(all, fresh) || slices.Contains(all, fresh+"/")
	victim := pick()
	isDir := strings.HasSuffix(victim, "/")
	path := strings.TrimSuffix(victim, "/")
	switch n := g.IntN(12); {
	case n < 2 && !exists:
		g.s.write(fresh, g.content())
	case n == 2 && !exists:
		g.s.mkdir(fresh)
	case n == 3 && !exists:
		g.s.symlink(g.name(), fresh)
	case path == "":
	case n < 6 && !isDir:
		if old := g.s.snapshotView()[path]; strings.HasPrefix(old, "file") {
			c, _, err := g.s.face.Walk(path)
			g.s.must(err)
			a, err := g.s.face.Getattr(c)
			g.s.must(err)
			b := make([]byte, a.Size)
			_, err = g.s.face.Read(c, b, 0)
			g.s.must(err)
			g.s.face.Forget(c, 1)
			g.s.write(path, g.edit(string(b)))
		}
	case n == 6 && !isDir:
		if n, a, err := g.s.face.Walk(path); err == nil {
			g.s.face.Forget(n, 1)
			if a.IsRegular() {
				g.s.chmod(path, []uint32{0o644, 0o755}[g.IntN(2)])
			}
		}
	case n < 9:
		g.s.remove(path)
	case !exists && !within(fresh, path):
		g.s.rename(path, fresh)
	case exists && !isDir && slices.Contains(all, fresh):
		g.s.rename(path, fresh)
	case isDir && slices.Contains(all, fresh+"/") && !within(fresh, path) && !within(path, fresh):
		empty := !slices.ContainsFunc(all, func(p string) bool { return len(p) > len(fresh)+1 && within(p, fresh) })
		if empty {
			g.s.rename(path, fresh)
		}
	}
}

// TestPatchGivesTheTree lets git apply the patch to a copy of the base and
// compares with the session's tree, in random sessions.
func TestPatchGivesTheTree(t *testing.T) {
	cases := 200
	if testing.Short() {
		cases = 30
	}
	for seed := range cases {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := &generator{Rand: rand.New(rand.NewPCG(uint64(seed), 7)), dotGit: seed%4 == 0}
			s := newSession(t, func(base string) { g.s = &session{t: t}; g.fill(base, 0) })
			g.s = s
			for i := range 1 + g.IntN(15) {
				if i%6 == 5 {
					s.seal()
				}
				g.step()
			}
			checkPatch(t, s)
		})
	}
}

// checkPatch compares what git makes of the base and the patch with the view.
func checkPatch(t *testing.T, s *session) {
	t.Helper()
	cs := s.compute()
	var patch bytes.Buffer
	left, err := WritePatch(context.Background(), &patch, cs, PatchOptions{})
	if err != nil {
		t.Fatalf("WritePatch: %v\n%s", err, strings.Join(list(cs), "\n"))
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", s.base, dir).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if bytes.Contains(patch.Bytes(), []byte("diff --git")) && !bytes.HasPrefix(patch.Bytes(), []byte("# ")) {
		git(t, dir, patch.Bytes(), "apply", "--whitespace=nowarn")
	}
	got, want := snapshotDir(t, dir), s.snapshotView()
	listed := map[string]bool{}
	for _, u := range left {
		listed[u.Path] = true
	}
	for p := range merged(got, want) {
		if got[p] == want[p] {
			continue
		}
		if gitRefuses(&fileDiff{new: &side{path: strings.TrimSuffix(p, "/")}}) || throughRefused(cs, p) {
			continue // into .git
		}
		if trimmed := strings.TrimSuffix(p, "/"); trimmed != p && listedBelow(listed, trimmed) {
			continue // an empty directory
		}
		t.Errorf("%q: git makes %.200s, the session has %.200s", p, got[p], want[p])
	}
	if t.Failed() {
		t.Logf("changes:\n%s\nleft: %v\npatch:\n%s", strings.Join(list(cs), "\n"), left, patch.String())
	}
}

func merged(a, b map[string]string) map[string]bool {
	out := map[string]bool{}
	for p := range a {
		out[p] = true
	}
	for p := range b {
		out[p] = true
	}
	return out
}

// listedBelow reports whether a directory, or one in it, was listed as left out.
func listedBelow(listed map[string]bool, dir string) bool {
	for p := range listed {
		if within(p, dir) {
			return true
		}
	}
	return false
}

// throughRefused reports whether p took part in a rename from or to a path
// that git refuses, which it then refuses as a whole.
func throughRefused(cs *ChangeSet, p string) bool {
	files, _, err := filesOf(context.Background(), cs.trees[0], cs.Changes)
	if err != nil {
		return false
	}
	for _, f := range files {
		if gitRefuses(f) && (f.path() == p || f.old != nil && f.old.path == p || strings.HasPrefix(f.path(), p) || f.old != nil && strings.HasPrefix(f.old.path, p)) {
			return true
		}
	}
	return false
}

func TestPatchOfLargeFiles(t *testing.T) {
	// Above inMemory, so that the parts in common are found by reading, and
	// one of them so different that it is replaced as a whole.
	var big, other strings.Builder
	for i := range 500_000 {
		fmt.Fprintf(&big, "this is line %d\n", i)
		fmt.Fprintf(&other, "entirely different %d\n", i)
	}
	text := big.String()
	middle := strings.Index(text, "this is line 250000\n")
	for name, now := range map[string]string{
		"append":          text + "one more\n",
		"append no end":   text + "one more",
		"prepend":         "first\n" + text,
		"middle":          text[:middle] + "inserted\n" + text[middle:],
		"middle cut":      text[:middle] + text[middle+len("this is line 250000\n"):],
		"both ends":       "first\n" + text[:len(text)-20],
		"truncated":       text[:middle+3],
		"empty":           "",
		"replaced":        other.String(),
		"replaced within": text[:100] + other.String() + text[len(text)-100:],
		"binary":          text[:middle] + "\x00" + text[middle:],
		"binary at start": "\x00" + text,
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, files(t, map[string]string{"big": text}))
			s.write("big", now)
			checkPatch(t, s)
		})
	}
}

// TestRegions compares many small texts with the limit lowered, so that every
// way of finding a region is taken, and lets git apply the result.
func TestRegions(t *testing.T) {
	g := &generator{Rand: rand.New(rand.NewPCG(1, 2))}
	for i := range 300 {
		var old strings.Builder
		for range g.IntN(40) {
			fmt.Fprintf(&old, "line %d\n", g.IntN(9))
		}
		a := old.String() + []string{"", "end"}[g.IntN(2)]
		b := g.edit(a)
		if a == b || a == "" || b == "" {
			continue
		}
		for _, limit := range []int64{0, 40, 150, 1 << 20} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte(a), 0o644); err != nil {
				t.Fatal(err)
			}
			ca, cb := bytesContent(a), bytesContent(b)
			ob, err := inspect(context.Background(), ca)
			if err != nil {
				t.Fatal(err)
			}
			nb, err := inspect(context.Background(), cb)
			if err != nil {
				t.Fatal(err)
			}
			td := &textDiff{ctx: context.Background(), old: ca, new: cb, ob: ob, nb: nb, limit: limit}
			var patch bytes.Buffer
			patch.WriteString("diff --git a/f b/f\n--- a/f\n+++ b/f\n")
			if err := td.write(&patch); err != nil {
				t.Fatal(err)
			}
			git(t, dir, patch.Bytes(), "apply", "--whitespace=nowarn")
			if got, _ := os.ReadFile(filepath.Join(dir, "f")); string(got) != b {
				t.Fatalf("case %d, limit %d:\nfrom %q\nto   %q\ngot  %q\n%s", i, limit, a, b, got, patch.String())
			}
			added, deleted, err := td.count()
			if err != nil {
				t.Fatal(err)
			}
			plus, minus := strings.Count(patch.String(), "\n+")-1, strings.Count(patch.String(), "\n-")-1
			if added != plus || deleted != minus {
				t.Fatalf("case %d, limit %d: count says +%d -%d, the patch has +%d -%d", i, limit, added, deleted, plus, minus)
			}
		}
	}
}

func TestWhatAPatchCannotCarry(t *testing.T) {
	s := newSession(t, files(t, map[string]string{"a": "x", "keep/f": "1", "gone/": ""}))
	s.mkdir("empty")
	s.mknod("fifo", unix.S_IFIFO|0o600)
	s.write("private", "y")
	s.chmod("private", 0o600)
	s.chmod("a", 0o640)
	s.setxattr("a", "user.k", "v")
	s.link("private", "twin")
	s.remove("keep/f")
	s.remove("gone")
	cs := s.compute()
	left, err := WritePatch(context.Background(), &bytes.Buffer{}, cs, PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range left {
		got = append(got, u.String())
	}
	slices.Sort(got)
	want := []string{
		"a: extended attributes",
		"a: mode 0640, was 0644",
		"empty: an empty directory",
		"fifo: a fifo with mode 0600",
		"gone: an empty directory is deleted",
		"keep: an empty directory",
		"private: mode 0600",
		"twin: a hard link to private",
		"twin: mode 0600",
	}
	if !slices.Equal(got, want) {
		t.Errorf("left out\n got %q\nwant %q", got, want)
	}
}
