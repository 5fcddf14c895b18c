package overlaytest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Kind is what an [Op] does.
type Kind uint8

// The operations of [FS], and then those of a session (see [Session]).
const (
	OpOpen Kind = iota
	OpRelease
	OpStat
	OpReadlink
	OpReadDir
	OpMkdir
	OpMknod
	OpCreate
	OpSymlink
	OpTmpfile
	OpLink
	OpUnlink
	OpRmdir
	OpRename
	OpChmod
	OpChown
	OpUtimes
	OpTruncate
	OpRead
	OpWrite
	OpWriteKill
	OpAppend
	OpFallocate
	OpSeek
	OpCopyRange
	OpFsync
	OpGetxattr
	OpListxattr
	OpSetxattr
	OpRemovexattr
	OpMapRead
	OpMapWrite
	lastFSOp = OpMapWrite
)

const (
	// OpSeal seals the active layer.
	OpSeal Kind = lastFSOp + 1 + iota
	// OpReopen closes the tree and opens it again.
	OpReopen
	// OpCrash opens the tree again without closing it, as after kill -9.
	OpCrash
	// OpRollback shows snapshot N of those taken.
	OpRollback
	// OpView compares a read-only view of snapshot N.
	OpView
	// OpFlatten merges all sealed layers into one.
	OpFlatten
	// OpHostWrite rewrites a base file on the host, in place.
	OpHostWrite
	// OpHostCreate makes a file in the base on the host.
	OpHostCreate
	// OpHostRemove removes a file from the base on the host.
	OpHostRemove
	// OpCheck compares everything.
	OpCheck
)

var kindNames = [...]string{
	OpOpen: "open", OpRelease: "release", OpStat: "stat", OpReadlink: "readlink",
	OpReadDir: "readdir", OpMkdir: "mkdir", OpMknod: "mknod", OpCreate: "create",
	OpSymlink: "symlink", OpTmpfile: "tmpfile", OpLink: "link", OpUnlink: "unlink",
	OpRmdir: "rmdir", OpRename: "rename", OpChmod: "chmod", OpChown: "chown",
	OpUtimes: "utimes", OpTruncate: "truncate", OpRead: "read", OpWrite: "write",
	OpWriteKill: "writekill", OpAppend: "append", OpFallocate: "fallocate", OpSeek: "seek",
	OpCopyRange: "copyrange", OpFsync: "fsync", OpGetxattr: "getxattr",
	OpListxattr: "listxattr", OpSetxattr: "setxattr", OpRemovexattr: "removexattr",
	OpMapRead: "mapread", OpMapWrite: "mapwrite",
	OpSeal: "seal", OpReopen: "reopen", OpCrash: "crash", OpRollback: "rollback",
	OpView: "view", OpFlatten: "flatten", OpHostWrite: "hostwrite",
	OpHostCreate: "hostcreate", OpHostRemove: "hostremove", OpCheck: "check",
}

// Op is one operation with its arguments; which fields count depends on Kind.
type Op struct {
	Kind    Kind
	At, To  Loc
	Slot    int
	Mode    uint32
	Flags   uint32
	UID     int
	GID     int
	Rdev    uint64
	Off     int64
	Off2    int64
	N       int64
	Seed    uint64 // of the bytes written
	Name    string // of an attribute; a symbolic link's target
	Time    overlay.Time
	Between []Op // run in the middle of a listing
}

func (l Loc) String() string {
	path := l.Path
	if len(path) > 60 {
		path = fmt.Sprintf("%s…(%d bytes)", path[:20], len(path))
	}
	if l.Slot == Root {
		return fmt.Sprintf("/%q", path)
	}
	return fmt.Sprintf("#%d/%q", l.Slot, path)
}

// String is the operation for a person who repeats it.
func (o Op) String() string {
	var args []string
	add := func(format string, a ...any) { args = append(args, fmt.Sprintf(format, a...)) }
	if o.Kind <= lastFSOp && o.Kind != OpRelease {
		add("%v", o.At)
	}
	switch o.Kind {
	case OpOpen, OpRelease:
		add("#%d", o.Slot)
	case OpCreate, OpTmpfile:
		add("#%d", o.Slot)
		add("%#o", o.Mode)
	case OpMkdir, OpChmod:
		add("%#o", o.Mode)
	case OpMknod:
		add("%#o", o.Mode)
		add("%#x", o.Rdev)
	case OpSymlink:
		add("%q", o.Name)
	case OpLink:
		add("%v", o.To)
	case OpRename:
		add("%v", o.To)
		add("flags %d", o.Flags)
	case OpChown:
		add("%d:%d", o.UID, o.GID)
	case OpUtimes:
		add("%d.%09d", o.Time.Sec, o.Time.Nsec)
	case OpTruncate:
		add("%d", o.N)
	case OpRead, OpWrite, OpWriteKill, OpAppend, OpMapRead, OpMapWrite:
		add("off %d", o.Off)
		add("%d bytes", o.N)
		if o.Kind != OpRead && o.Kind != OpMapRead {
			add("seed %d", o.Seed)
		}
	case OpFallocate:
		add("mode %#x", o.Mode)
		add("off %d", o.Off)
		add("%d bytes", o.N)
	case OpSeek:
		add("off %d", o.Off)
		add("whence %d", o.Flags)
	case OpCopyRange:
		add("off %d", o.Off)
		add("%v", o.To)
		add("off %d", o.Off2)
		add("%d bytes", o.N)
	case OpGetxattr, OpRemovexattr:
		add("%s", o.Name)
	case OpSetxattr:
		add("%s", o.Name)
		add("%d bytes", o.N)
		add("seed %d", o.Seed)
		add("flags %d", o.Flags)
	case OpReadDir:
		if o.N > 0 {
			add("batch %d", o.N)
			for _, b := range o.Between {
				add("%v", b)
			}
		}
	case OpRollback, OpView, OpFlatten:
		add("%d", o.N)
	case OpHostWrite, OpHostCreate, OpHostRemove:
		add("%v", o.At)
		add("%d bytes", o.N)
		add("seed %d", o.Seed)
	}
	return kindNames[o.Kind] + "(" + strings.Join(args, ", ") + ")"
}

// Format writes one operation a line.
func Format(ops []Op) string {
	var b strings.Builder
	for i, o := range ops {
		fmt.Fprintf(&b, "%4d %v\n", i, o)
	}
	return b.String()
}

// content is n bytes that depend on the seed alone; few of them are zero.
func content(seed uint64, n int64) []byte {
	p := make([]byte, n, n+8)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:i+8:i+8], x)
	}
	return p
}

// Result is what an operation answered.
type Result struct {
	Err   syscall.Errno
	N     int64
	Data  []byte
	Names []string
	Stat  Stat
}

// Exec runs one operation of [FS].
func Exec(fs FS, o Op) Result {
	var r Result
	var err error
	switch o.Kind {
	case OpOpen:
		err = fs.Open(o.Slot, o.At)
	case OpRelease:
		fs.Release(o.Slot)
	case OpStat:
		r.Stat, err = fs.Stat(o.At)
	case OpReadlink:
		var s string
		s, err = fs.Readlink(o.At)
		r.Data = []byte(s)
	case OpReadDir:
		var d []Dirent
		between := func() {
			for _, b := range o.Between {
				Exec(fs, b)
			}
			o.Between = nil
		}
		d, err = fs.ReadDir(o.At, int(o.N), between)
		for _, e := range d {
			r.Names = append(r.Names, fmt.Sprintf("%s %o", e.Name, e.Type))
		}
	case OpMkdir:
		err = fs.Mkdir(o.At, o.Mode)
	case OpMknod:
		err = fs.Mknod(o.At, o.Mode, o.Rdev)
	case OpCreate:
		err = fs.Create(o.Slot, o.At, o.Mode)
	case OpSymlink:
		err = fs.Symlink(o.Name, o.At)
	case OpTmpfile:
		err = fs.Tmpfile(o.Slot, o.At, o.Mode)
	case OpLink:
		err = fs.Link(o.At, o.To)
	case OpUnlink:
		err = fs.Unlink(o.At)
	case OpRmdir:
		err = fs.Rmdir(o.At)
	case OpRename:
		err = fs.Rename(o.At, o.To, o.Flags)
	default:
		return execData(fs, o)
	}
	r.Err = errno(err)
	return r
}

func execData(fs FS, o Op) Result {
	var r Result
	var n int
	var err error
	switch o.Kind {
	case OpChmod:
		err = fs.Chmod(o.At, o.Mode)
	case OpChown:
		err = fs.Chown(o.At, o.UID, o.GID)
	case OpUtimes:
		err = fs.Utimes(o.At, o.Time)
	case OpTruncate:
		err = fs.Truncate(o.At, o.N)
	case OpRead:
		p := make([]byte, o.N)
		n, err = fs.Read(o.At, p, o.Off)
		r.Data, r.N = p[:n], int64(n)
	case OpWrite:
		n, err = fs.Write(o.At, content(o.Seed, o.N), o.Off)
		r.N = int64(n)
	case OpMapRead:
		p := make([]byte, o.N)
		n, err = fs.MapRead(o.At, p, o.Off)
		r.Data, r.N = p[:n], int64(n)
	case OpMapWrite:
		n, err = fs.MapWrite(o.At, content(o.Seed, o.N), o.Off)
		r.N = int64(n)
	case OpWriteKill:
		n, err = fs.WriteKill(o.At, content(o.Seed, o.N), o.Off)
		r.N = int64(n)
	case OpAppend:
		n, err = fs.Append(o.At, content(o.Seed, o.N))
		r.N = int64(n)
	case OpFallocate:
		err = fs.Fallocate(o.At, o.Mode, o.Off, o.N)
	case OpSeek:
		r.N, err = fs.Seek(o.At, o.Off, int(o.Flags))
	case OpCopyRange:
		r.N, err = fs.CopyRange(o.At, o.Off, o.To, o.Off2, o.N)
	case OpFsync:
		err = fs.Fsync(o.At)
	case OpGetxattr:
		r.Data, err = fs.Getxattr(o.At, o.Name)
	case OpListxattr:
		r.Names, err = fs.Listxattr(o.At)
	case OpSetxattr:
		err = fs.Setxattr(o.At, o.Name, content(o.Seed, o.N), int(o.Flags))
	case OpRemovexattr:
		err = fs.Removexattr(o.At, o.Name)
	default:
		panic(fmt.Sprintf("%v is no operation of a file system", o))
	}
	r.Err = errno(err)
	return r
}

// Step runs o on the reference and on fs, and tells how their answers differ.
func Step(ref *Ref, fs FS, o Op) error {
	return StepBy(ref, o, func(o Op) Result { return Exec(fs, o) })
}

// StepBy is Step for a file system that another process drives: run has it do
// one operation.
func StepBy(ref *Ref, o Op, run func(Op) Result) error {
	if ref.removedDir(o) {
		return nil
	}
	before, during := refNames(ref, o)
	want := Exec(ref, o)
	got := run(o)
	if o.Kind == OpSeek {
		return ref.checkSeek(o, got)
	}
	if isData(o.Kind) && want.Err != 0 && !ref.onFiles(o) {
		// What a caller without a descriptor is answered for something
		// that is no regular file is nobody's rule but that it fails.
		if got.Err == 0 {
			return fmt.Errorf("%v: done, want %v", o, want.Err)
		}
		return nil
	}
	if o.Kind == OpTmpfile && want.Err == syscall.ENOENT && got.Err != want.Err {
		// A directory that was removed: ext4 answers EPERM, tmpfs makes the
		// file.
		if got.Err == 0 {
			run(Op{Kind: OpRelease, Slot: o.Slot})
			ref.Release(o.Slot)
		}
		return nil
	}
	if want.Err != 0 && got.Err == syscall.ENAMETOOLONG && (o.At.tooLong() || o.To.tooLong()) {
		return nil // which of two faults is found first is nobody's rule
	}
	if got.Err != want.Err {
		return fmt.Errorf("%v: got %s, want %s", o, errnoName(got.Err), errnoName(want.Err))
	}
	if want.Err != 0 {
		return nil
	}
	switch {
	case o.Kind == OpStat:
		return diffStat(o.At.String(), want.Stat, got.Stat, stamp{})
	case o.Kind == OpReadDir && len(o.Between) > 0:
		after, _ := refNames(ref, o)
		return checkListing(o, got.Names, before, after, during)
	case got.N != want.N:
		return fmt.Errorf("%v: got %d, want %d", o, got.N, want.N)
	case !bytes.Equal(got.Data, want.Data):
		return fmt.Errorf("%v: got %s, want %s", o, short(got.Data), short(want.Data))
	case !slices.Equal(got.Names, want.Names):
		return fmt.Errorf("%v: got %q, want %q", o, got.Names, want.Names)
	}
	return nil
}

// removedDir reports whether o is about the attributes of a directory that was
// removed and is still held. Those that it had can be asked for ([FS.Stat]);
// changing them, of what nobody can find, is not worth keeping it for.
func (r *Ref) removedDir(o Op) bool {
	switch o.Kind {
	case OpChmod, OpChown, OpUtimes, OpGetxattr, OpListxattr, OpSetxattr, OpRemovexattr:
		n, err := r.find(o.At)
		return err == nil && n.isDir() && n.gone()
	}
	return false
}

// refNames lists the directory of a listing operation. during are the names
// that operations in between concern.
func refNames(ref *Ref, o Op) (names []string, during map[string]bool) {
	if o.Kind != OpReadDir || len(o.Between) == 0 {
		return nil, nil
	}
	d, _ := ref.ReadDir(o.At, 0, nil)
	for _, e := range d {
		names = append(names, fmt.Sprintf("%s %o", e.Name, e.Type))
	}
	during = map[string]bool{}
	for _, b := range o.Between {
		for _, l := range []Loc{b.At, b.To} {
			_, name := l.split()
			during[name] = true
		}
	}
	return names, during
}

// checkListing applies POSIX's rule of readdir: what is there all the time is
// returned once; what comes or goes meanwhile, once or not at all.
func checkListing(o Op, got, before, after []string, during map[string]bool) error {
	count := map[string]int{}
	for _, e := range got {
		count[e]++
		name := e[:strings.LastIndexByte(e, ' ')]
		if count[e] > 1 && !during[name] {
			return fmt.Errorf("%v: %q is returned twice", o, e)
		}
		if !slices.Contains(before, e) && !slices.Contains(after, e) && !during[name] {
			return fmt.Errorf("%v: %q was never there", o, e)
		}
	}
	for _, e := range before {
		if count[e] == 0 && slices.Contains(after, e) && !during[e[:strings.LastIndexByte(e, ' ')]] {
			return fmt.Errorf("%v: %q was there all the time and is not returned", o, e)
		}
	}
	return nil
}

func (l Loc) tooLong() bool {
	_, name := l.split()
	return len(name) > nameMax
}

// onFiles reports whether the operands of o are regular files.
func (r *Ref) onFiles(o Op) bool {
	ats := []Loc{o.At}
	if o.Kind == OpCopyRange {
		ats = append(ats, o.To)
	}
	for _, at := range ats {
		if n, err := r.find(at); err == nil && !n.isReg() {
			return false
		}
	}
	return true
}

func isData(k Kind) bool {
	return k >= OpTruncate && k <= OpCopyRange || k == OpMapRead || k == OpMapWrite
}

func errnoName(e syscall.Errno) string {
	if e == 0 {
		return "success"
	}
	return unix.ErrnoName(e)
}

func short(p []byte) string {
	if len(p) <= 48 {
		return fmt.Sprintf("%q", p)
	}
	return fmt.Sprintf("%q…(%d bytes)", p[:48], len(p))
}

// checkSeek holds an answer to what any file system may say: a hole reads as
// zeros, data lies where it was said to be.
func (r *Ref) checkSeek(o Op, got Result) error {
	n, err := r.regular(o.At)
	if err != nil {
		if got.Err == 0 {
			return fmt.Errorf("%v: got %d, want %w", o, got.N, err)
		}
		return nil
	}
	size := int64(len(n.data))
	fail := func(format string, a ...any) error {
		return fmt.Errorf("%v on a file of %d bytes: %w", o, size, fmt.Errorf(format, a...))
	}
	switch {
	case got.Err == syscall.ENXIO && o.Off >= size:
		return nil
	case got.Err == syscall.ENXIO && o.Flags == unix.SEEK_DATA:
		if zeros(n.data[o.Off:]) {
			return nil
		}
		return fail("got ENXIO, but there is data")
	case got.Err != 0:
		return fail("got %w", got.Err)
	case o.Off >= size:
		return fail("got %d, want ENXIO", got.N)
	case got.N < o.Off || got.N > size || got.N == size && o.Flags == unix.SEEK_DATA:
		return fail("got %d", got.N)
	case o.Flags == unix.SEEK_DATA && !zeros(n.data[o.Off:got.N]):
		return fail("got %d, but there is data before", got.N)
	}
	return nil
}

func zeros(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

var errDiff = errors.New("views differ")
