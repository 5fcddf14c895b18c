package review

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// session is a base and an overlay on it, used in process.
type session struct {
	t    *testing.T
	dir  string
	base string
	tree *overlay.Tree
	face *overlay.Face
	next overlay.LayerID
	fs   hostfs.FS // nil: the host
}

// newSession makes a session over a base that fill makes.
func newSession(t *testing.T, fill func(base string)) *session {
	t.Helper()
	s := &session{t: t, dir: t.TempDir(), next: 2}
	s.base = filepath.Join(s.dir, "base")
	s.must(os.Mkdir(s.base, 0o755))
	s.must(os.Mkdir(filepath.Join(s.dir, "state"), 0o700))
	if fill != nil {
		fill(s.base)
	}
	s.must(overlay.InitState(nil, filepath.Join(s.dir, "state"), 1))
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *session) open() {
	s.t.Helper()
	base, err := overlay.OpenBase(s.fs, s.base)
	s.must(err)
	stack := overlay.Stack{Active: s.next - 1}
	if s.next > 2 {
		stack.Sealed = []overlay.Range{{From: 1, To: s.next - 2}}
	}
	s.tree, err = overlay.Open(overlay.Config{Name: "workspace", StateDir: filepath.Join(s.dir, "state"), Base: base, FS: s.fs}, stack)
	s.must(err)
	s.face = s.tree.Attach(nil)
}

func (s *session) close() {
	if s.tree == nil {
		return
	}
	s.face.Detach()
	if err := s.tree.Close(); err != nil {
		s.t.Errorf("close the tree: %v", err)
	}
	s.tree = nil
}

func (s *session) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// seal seals the active layer.
func (s *session) seal() {
	s.t.Helper()
	s.must(s.tree.Prepare(s.next))
	b := overlay.Quiesce(s.tree)
	err := b.Seal(s.next)
	b.Release()
	s.must(err)
	s.next++
}

// input seals the session and gives its sealed view.
func (s *session) input() TreeInput {
	s.t.Helper()
	s.seal()
	face, err := s.tree.View(overlay.Stack{Sealed: []overlay.Range{{From: 1, To: s.next - 2}}})
	s.must(err)
	s.t.Cleanup(func() {
		if s.tree != nil {
			face.Detach()
		}
	})
	fd, err := unix.Open(s.base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	s.must(err)
	s.t.Cleanup(func() { unix.Close(fd) })
	return TreeInput{Name: "workspace", View: FaceView(face), FS: hostfs.OS, BaseFD: fd}
}

// compute is the change set of all that the session did.
func (s *session) compute() *ChangeSet {
	s.t.Helper()
	cs, err := Compute(context.Background(), []TreeInput{s.input()}, Options{})
	s.must(err)
	return cs
}

// parent opens the directory of a path of the view.
func (s *session) parent(path string) (*overlay.Node, string) {
	s.t.Helper()
	n, _, err := s.face.Walk(parentOf(path))
	if err != nil {
		s.t.Fatalf("walk to %q: %v", parentOf(path), err)
	}
	return n, baseName(path)
}

func (s *session) caller() overlay.Caller {
	return overlay.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

// write makes or overwrites a file.
func (s *session) write(path, content string) {
	s.t.Helper()
	p, name := s.parent(path)
	defer s.face.Forget(p, 1)
	n, _, err := s.face.Lookup(p, name)
	if err != nil {
		n, _, err = s.face.Create(p, name, 0o644, s.caller())
	}
	if err != nil {
		s.t.Fatalf("open %q: %v", path, err)
	}
	defer s.face.Forget(n, 1)
	zero := int64(0)
	_, err = s.face.Setattr(n, overlay.SetAttr{Size: &zero})
	s.must(err)
	if content != "" {
		_, err = s.face.Write(n, []byte(content), 0)
		s.must(err)
	}
}

func (s *session) mkdir(path string) {
	s.t.Helper()
	p, name := s.parent(path)
	defer s.face.Forget(p, 1)
	n, _, err := s.face.Mkdir(p, name, 0o755, s.caller())
	s.must(err)
	s.face.Forget(n, 1)
}

func (s *session) symlink(target, path string) {
	s.t.Helper()
	p, name := s.parent(path)
	defer s.face.Forget(p, 1)
	n, _, err := s.face.Symlink(p, name, target, s.caller())
	s.must(err)
	s.face.Forget(n, 1)
}

func (s *session) mknod(path string, mode uint32) {
	s.t.Helper()
	p, name := s.parent(path)
	defer s.face.Forget(p, 1)
	n, _, err := s.face.Mknod(p, name, mode, 0, s.caller())
	s.must(err)
	s.face.Forget(n, 1)
}

func (s *session) link(old, path string) {
	s.t.Helper()
	n, _, err := s.face.Walk(old)
	s.must(err)
	defer s.face.Forget(n, 1)
	p, name := s.parent(path)
	defer s.face.Forget(p, 1)
	_, err = s.face.Link(n, p, name)
	s.must(err)
}

func (s *session) chmod(path string, mode uint32) {
	s.t.Helper()
	n, _, err := s.face.Walk(path)
	s.must(err)
	defer s.face.Forget(n, 1)
	_, err = s.face.Setattr(n, overlay.SetAttr{Mode: &mode})
	s.must(err)
}

func (s *session) setxattr(path, name, value string) {
	s.t.Helper()
	n, _, err := s.face.Walk(path)
	s.must(err)
	defer s.face.Forget(n, 1)
	s.must(s.face.Setxattr(n, name, []byte(value), 0))
}

func (s *session) rename(from, to string) {
	s.t.Helper()
	fp, fn := s.parent(from)
	defer s.face.Forget(fp, 1)
	tp, tn := s.parent(to)
	defer s.face.Forget(tp, 1)
	if err := s.face.Rename(fp, fn, tp, tn, 0); err != nil {
		s.t.Fatalf("rename %q to %q: %v", from, to, err)
	}
}

func (s *session) exchange(a, b string) {
	s.t.Helper()
	ap, an := s.parent(a)
	defer s.face.Forget(ap, 1)
	bp, bn := s.parent(b)
	defer s.face.Forget(bp, 1)
	s.must(s.face.Rename(ap, an, bp, bn, unix.RENAME_EXCHANGE))
}

// remove removes a file or a whole directory, one entry after the other.
func (s *session) remove(path string) {
	s.t.Helper()
	p, name := s.parent(path)
	defer s.face.Forget(p, 1)
	n, a, err := s.face.Lookup(p, name)
	if err != nil {
		s.t.Fatalf("look up %q: %v", path, err)
	}
	var names []string
	if a.IsDir() {
		s.must(s.face.ReadDir(n, 0, func(e overlay.DirEntry) bool { names = append(names, e.Name); return true }))
	}
	s.face.Forget(n, 1)
	for _, sub := range names {
		s.remove(join(path, sub))
	}
	if a.IsDir() {
		err = s.face.Rmdir(p, name)
	} else {
		err = s.face.Unlink(p, name)
	}
	if err != nil {
		s.t.Fatalf("remove %q: %v", path, err)
	}
}

// files makes a base of files with the given contents; a name that ends in a
// slash is a directory, a content that begins with "-> " a symbolic link.
func files(t *testing.T, content map[string]string) func(string) {
	return func(base string) {
		t.Helper()
		for name, c := range content {
			p := filepath.Join(base, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			switch {
			case strings.HasSuffix(name, "/"):
				err = os.MkdirAll(p, 0o755)
			case strings.HasPrefix(c, "-> "):
				err = os.Symlink(c[3:], p)
			default:
				err = os.WriteFile(p, []byte(c), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// git runs git, the oracle, in dir, with an empty repository that lies elsewhere
// and no configuration but its own.
func git(t *testing.T, dir string, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_DIR="+emptyRepo(t), "GIT_WORK_TREE="+dir,
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t")
	if stdin != nil {
		cmd.Stdin = strings.NewReader(string(stdin))
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s\ninput:\n%s", args, err, out, stdin)
	}
	return out
}

// repo is made by the first test that needs it; TestMain removes it.
var repo struct {
	sync.Once
	dir string
	err error
}

func emptyRepo(t *testing.T) string {
	t.Helper()
	repo.Do(func() {
		if repo.dir, repo.err = os.MkdirTemp("", "review-git"); repo.err == nil {
			repo.err = exec.Command("git", "init", "-q", "--bare", repo.dir).Run()
		}
	})
	if repo.err != nil {
		t.Fatalf("git init: %v", repo.err)
	}
	return repo.dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if repo.dir != "" {
		_ = os.RemoveAll(repo.dir)
	}
	os.Exit(code)
}
