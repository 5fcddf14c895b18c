package fs

import (
	"math"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/overlay/hostfs"
)

// newRaw is a face without a kernel: requests are what a test, or a hostile
// guest, makes of them.
func newRaw(t testing.TB) *rawFS {
	t.Helper()
	base, err := overlay.OpenBase(hostfs.OS, newBase(t))
	must(t, err)
	state := t.TempDir()
	must(t, overlay.InitState(hostfs.OS, state, 1))
	tree, err := overlay.Open(overlay.Config{Name: "workspace", StateDir: state, Base: base}, overlay.Stack{Active: 1})
	must(t, err)
	r := &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), stale: newStaler(), dev: &device{fd: -1, shut: true}}
	r.face = tree.Attach(r)
	r.nodes = newTable(r.face.Root())
	t.Cleanup(func() {
		r.face.Detach()
		must(t, tree.Close())
	})
	return r
}

func header(id uint64) fuse.InHeader { return fuse.InHeader{NodeId: id} }

func (r *rawFS) lookupID(t testing.TB, parent uint64, name string) uint64 {
	t.Helper()
	h := header(parent)
	var out fuse.EntryOut
	if st := r.Lookup(nil, &h, name, &out); st != fuse.OK || out.NodeId == 0 {
		t.Fatalf("lookup %s: %v", name, st)
	}
	return out.NodeId
}

// nameOps are all requests with a name in a directory.
func (r *rawFS) nameOps(parent uint64, name string, file uint64) map[string]fuse.Status {
	h := header(parent)
	var e fuse.EntryOut
	var c fuse.CreateOut
	return map[string]fuse.Status{
		"lookup":      r.Lookup(nil, &h, name, &e),
		"mknod":       r.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG | 0o644}, name, &e),
		"mkdir":       r.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, name, &e),
		"symlink":     r.Symlink(nil, &h, "target", name, &e),
		"create":      r.Create(nil, &fuse.CreateIn{InHeader: h, Mode: 0o644}, name, &c),
		"link":        r.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: file}, name, &e),
		"unlink":      r.Unlink(nil, &h, name),
		"rmdir":       r.Rmdir(nil, &h, name),
		"rename from": r.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: rootID}, name, "fine"),
		"rename to":   r.Rename(nil, &fuse.RenameIn{InHeader: header(rootID), Newdir: parent}, "a.txt", name),
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	r := newRaw(t)
	file := r.lookupID(t, rootID, "a.txt")
	for _, name := range []string{"", ".", "..", "/", "a/b", "../etc", "x\x00y"} {
		for op, st := range r.nameOps(rootID, name, file) {
			if st != fuse.EINVAL {
				t.Errorf("%s %q: %v, want EINVAL", op, name, st)
			}
		}
	}
	for op, st := range r.nameOps(rootID, strings.Repeat("n", maxName+1), file) {
		if st != errNameTooLong {
			t.Errorf("%s of 256 bytes: %v, want ENAMETOOLONG", op, st)
		}
	}
}

func TestUnknownNodesAreStale(t *testing.T) {
	r := newRaw(t)
	file := r.lookupID(t, rootID, "a.txt")
	for _, id := range []uint64{0, 2_000_000, math.MaxUint64} {
		got := r.nameOps(id, "name", file)
		h := header(id)
		var attr fuse.AttrOut
		var c fuse.CreateOut
		var seek fuse.LseekOut
		var e fuse.EntryOut
		list := fuse.NewDirEntryList(make([]byte, 4096), 0)
		got["getattr"] = r.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, &attr)
		got["setattr"] = r.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h}}, &attr)
		_, got["readlink"] = r.Readlink(nil, &h)
		_, got["read"] = r.Read(nil, &fuse.ReadIn{InHeader: h, Size: 10}, make([]byte, 10))
		_, got["write"] = r.Write(nil, &fuse.WriteIn{InHeader: h, Size: 1}, []byte("x"))
		got["lseek"] = r.Lseek(nil, &fuse.LseekIn{InHeader: h, Whence: unix.SEEK_DATA}, &seek)
		got["fallocate"] = r.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Length: 1})
		_, got["copy from"] = r.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, NodeIdOut: file, Len: 1})
		_, got["copy to"] = r.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: header(file), NodeIdOut: id, Len: 1})
		got["fsync"] = r.Fsync(nil, &fuse.FsyncIn{InHeader: h})
		got["fsyncdir"] = r.FsyncDir(nil, &fuse.FsyncIn{InHeader: h})
		got["readdir"] = r.ReadDir(nil, &fuse.ReadIn{InHeader: h, Size: 4096}, list)
		got["readdirplus"] = r.ReadDirPlus(nil, &fuse.ReadIn{InHeader: h, Size: 4096}, list)
		_, got["getxattr"] = r.GetXAttr(nil, &h, "user.x", nil)
		_, got["listxattr"] = r.ListXAttr(nil, &h, nil)
		got["setxattr"] = r.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h}, "user.x", nil)
		got["removexattr"] = r.RemoveXAttr(nil, &h, "user.x")
		got["tmpfile"] = r.Tmpfile(nil, &fuse.CreateIn{InHeader: h}, &c)
		got["link of"] = r.Link(nil, &fuse.LinkIn{InHeader: header(rootID), Oldnodeid: id}, "l", &e)
		for op, st := range got {
			if st != errStale {
				t.Errorf("%s of node %d: %v, want ESTALE", op, id, st)
			}
		}
	}
}

func TestForgottenTooOften(t *testing.T) {
	r := newRaw(t)
	id := r.lookupID(t, rootID, "a.txt")
	r.lookupID(t, rootID, "a.txt")
	r.Forget(id, 1)
	if r.nodes.get(id) == nil {
		t.Fatal("forgotten after one of two")
	}
	r.Forget(id, math.MaxUint64)
	r.Forget(id, 1)
	r.Forget(rootID, math.MaxUint64)
	if r.nodes.get(id) != nil || r.nodes.len() != 0 {
		t.Error("not forgotten")
	}
	if again := r.lookupID(t, rootID, "a.txt"); r.nodes.get(again) == nil {
		t.Error("not found again")
	}
}

func TestWrongKindsAndRanges(t *testing.T) {
	r := newRaw(t)
	file := r.lookupID(t, rootID, "a.txt")
	dir := r.lookupID(t, rootID, "dir")
	var seek fuse.LseekOut
	var e fuse.EntryOut
	read := func(id, off uint64, size uint32) fuse.Status {
		_, st := r.Read(nil, &fuse.ReadIn{InHeader: header(id), Offset: off, Size: size}, make([]byte, 16))
		return st
	}
	write := func(id, off uint64) fuse.Status {
		_, st := r.Write(nil, &fuse.WriteIn{InHeader: header(id), Offset: off, Size: 1}, []byte("x"))
		return st
	}
	list := func(id, off uint64) fuse.Status {
		return r.ReadDir(nil, &fuse.ReadIn{InHeader: header(id), Offset: off, Size: 4096}, fuse.NewDirEntryList(make([]byte, 4096), off))
	}
	fh, rh := header(file), header(rootID)
	_, linkOfFile := r.Readlink(nil, &fh)
	for op, c := range map[string]struct{ got, want fuse.Status }{
		"read a directory":         {read(dir, 0, 10), fuse.EISDIR},
		"read beyond all files":    {read(file, math.MaxUint64, 10), fuse.EINVAL},
		"read over the largest":    {read(file, math.MaxInt64, 10), fuse.EINVAL},
		"write a directory":        {write(dir, 0), fuse.EISDIR},
		"write beyond all files":   {write(file, math.MaxUint64), fuse.EINVAL},
		"list a file":              {list(file, 0), fuse.ENOTDIR},
		"list from a wild cookie":  {list(dir, math.MaxUint64), fuse.EINVAL},
		"readlink of a file":       {linkOfFile, fuse.EINVAL},
		"seek SEEK_SET":            {r.Lseek(nil, &fuse.LseekIn{InHeader: fh, Whence: unix.SEEK_SET}, &seek), fuse.EINVAL},
		"fallocate too far":        {r.Fallocate(nil, &fuse.FallocateIn{InHeader: fh, Offset: math.MaxInt64, Length: 2}), errTooBig},
		"rename with odd flags":    {r.Rename(nil, &fuse.RenameIn{InHeader: rh, Newdir: rootID, Flags: 1 << 9}, "a.txt", "z"), fuse.EINVAL},
		"rename with both flags":   {r.Rename(nil, &fuse.RenameIn{InHeader: rh, Newdir: rootID, Flags: 3}, "a.txt", "z"), fuse.EINVAL},
		"an empty symlink":         {r.Symlink(nil, &rh, "", "l", &e), fuse.ENOENT},
		"a symlink of PATH_MAX":    {r.Symlink(nil, &rh, strings.Repeat("x", unix.PathMax), "l", &e), errNameTooLong},
		"setxattr, size too large": {r.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: fh, Size: 5}, "user.x", []byte("x")), fuse.EINVAL},
		"setxattr, no name":        {r.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: fh}, "", nil), fuse.ERANGE},
		"setxattr of 1 MiB":        {r.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: fh, Size: 1 << 20}, "user.x", make([]byte, 1<<20)), fuse.Status(syscall.E2BIG)},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", op, c.got, c.want)
		}
	}
}

func TestListingContinuesAtAnyEntry(t *testing.T) {
	r := newRaw(t)
	want := []string{".", "..", "a.txt", "b.txt", "dir"}
	seen := map[string]bool{}
	for off := uint64(0); ; {
		// Room for one or two names at a time.
		list := fuse.NewDirEntryList(make([]byte, 64), off)
		if st := r.ReadDir(nil, &fuse.ReadIn{InHeader: header(rootID), Offset: off, Size: 64}, list); st != fuse.OK {
			t.Fatal(st)
		}
		entries, err := fuse.ParseDirEntries(list.Bytes())
		must(t, err)
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			if seen[e.Name] {
				t.Fatalf("%s is listed twice", e.Name)
			}
			seen[e.Name] = true
			off = e.Off
		}
	}
	for _, name := range want {
		if !seen[name] {
			t.Errorf("%s is not listed", name)
		}
	}
	if len(seen) != len(want) {
		t.Errorf("got %v", seen)
	}
}
