package guestfs

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/fs"
	"github.com/galleyfs/galley/fs/virtiofs"
	"github.com/galleyfs/galley/integration/testvm"
	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// TestSuddenDeath: a guest that is killed in the middle of its work leaves the
// tree whole: it seals, is closed and opened again, and has what was written.
func TestSuddenDeath(t *testing.T) {
	m, err := boot()
	must(t, err)
	defer m.end()
	state, base := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(base, "base"), []byte("base"), 0o644))
	must(t, overlay.InitState(hostfs.OS, state, 1))
	open := func(stack overlay.Stack) *overlay.Tree {
		b, err := overlay.OpenBase(hostfs.OS, base)
		must(t, err)
		tree, err := overlay.Open(overlay.Config{Name: "w", StateDir: state, Base: b}, stack)
		must(t, err)
		return tree
	}
	tree := open(overlay.Stack{Active: 1})
	must(t, m.export.Add("w", fs.Live(tree), virtiofs.TreeOptions{}))
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := m.vm.Call(ctx, testvm.Request{Op: "bench", Path: "/export/w", Args: []string{"create"}, N: 100_000, Size: 3000})
		ended <- err
	}()
	within(t, "files of the guest", func() bool { return m.export.Stats("w")["CREATE"] > 200 })
	m.vm.Kill()
	if err := <-ended; err == nil {
		t.Fatal("the guest was done before it was killed")
	}
	select {
	case <-m.server.Done():
	case <-time.After(callTimeout):
		t.Fatal("the device goes on without its guest")
	}
	must(t, m.server.Err())
	if n := m.export.Known("w"); n != 0 {
		t.Errorf("%d nodes are known to a dead guest", n)
	}
	must(t, m.export.Remove("w"))
	must(t, tree.Prepare(2))
	b := overlay.Quiesce(tree)
	err = b.Seal(2)
	b.Release()
	must(t, err)
	must(t, tree.Close())
	tree = open(overlay.Stack{Sealed: []overlay.Range{{From: 1, To: 1}}, Active: 2})
	face := tree.Attach(nil)
	count := 0
	must(t, face.Delta(func(e overlay.Entry) error {
		if e.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
			count++
			if e.Attr.Size != 0 && e.Attr.Size != 3000 {
				t.Errorf("%s has %d bytes", e.Path, e.Attr.Size)
			}
		}
		return nil
	}))
	if count < 200 {
		t.Errorf("%d files are left", count)
	}
	face.Detach()
	must(t, tree.Close())
}

// TestPrograms runs git and SQLite in the guest, whose programs come from the
// host over virtio-fs as well.
func TestPrograms(t *testing.T) {
	m := guest(t)
	s := m.newShare(t, "work", nil)
	tools, err := overlay.OpenBase(hostfs.OS, "/")
	must(t, err)
	state := t.TempDir()
	must(t, overlay.InitState(hostfs.OS, state, 1))
	tree, err := overlay.Open(overlay.Config{Name: "tools", StateDir: state, Base: tools, ReadOnly: true, NoWatch: true}, overlay.Stack{})
	must(t, err)
	defer func() { must(t, tree.Close()) }()
	must(t, m.export.Add("tools", fs.Live(tree), virtiofs.TreeOptions{ReadOnly: true}))
	defer func() { must(t, m.export.Remove("tools")) }()
	s.do(testvm.Request{Op: "stat"})
	mount := func(what, at, kind string, flags int) {
		_, err := m.call(t, testvm.Request{Op: "mount", To: what, Path: "/export/tools" + at, Args: []string{kind, ""}, N: flags})
		must(t, err)
	}
	mount(s.dir, "/mnt", "", unix.MS_BIND)
	mount("/dev", "/dev", "", unix.MS_BIND)
	mount("tmpfs", "/tmp", "tmpfs", 0)
	mount("proc", "/proc", "proc", 0)
	script := `set -e
cd /mnt
git init -q repo && cd repo
git config user.email a@example.org && git config user.name A
for i in 1 2 3 4 5 6 7 8 9 10; do echo "$i" > "f$i"; done
git add . && git commit -qm one
echo changed >> f3 && git mv f4 g4 && git commit -qam two
git checkout -q -b other HEAD~1 && echo other > f5 && git commit -qam three
git merge -q --no-edit master 2>/dev/null || git merge -q --no-edit main
git gc -q && git fsck --strict 2>/dev/null && test -z "$(git status --porcelain)"
git log --oneline | wc -l
cd /mnt
for mode in delete wal; do
	sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a integer primary key, b text);
		begin; with recursive n(i) as (select 1 union all select i+1 from n where i<2000) insert into t select i, hex(randomblob(50)) from n; commit;
		delete from t where a % 3 = 0; vacuum; pragma integrity_check; select count(*) from t;"
done
mkdir many && for i in $(seq 50); do echo $i > many/$i; done
tar cf many.tar many && rm -r many && tar xf many.tar --warning=no-timestamp && cat many/* | sort -n | tail -1
`
	got, err := m.call(t, testvm.Request{Op: "run", Root: "/export/tools", Path: "/mnt", Args: []string{"/bin/sh", "-c", script}})
	must(t, err)
	const want = "4\ndelete\nok\n1334\nwal\nok\n1334\n50\n"
	if got.N != 0 || string(got.Data) != want {
		t.Errorf("status %d, want %q:\n%s", got.N, want, got.Data)
	}
	if head, err := s.hostRead("repo/.git/HEAD"); err != nil || head != "ref: refs/heads/other\n" {
		t.Errorf("the host reads HEAD: %q, %v", head, err)
	}
	// Mounts in the guest end with what they are in.
	for _, at := range []string{"/mnt", "/dev", "/tmp", "/proc"} {
		_, err := m.call(t, testvm.Request{Op: "unmount", Path: "/export/tools" + at})
		must(t, err)
	}
}
