package overlay

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/hostfs"
)

type Tree struct{}
type Face struct{}
type Node struct{}
type Barrier struct{}
type Base struct{ Detached bool }
type Stats struct{ CopyUps uint64 }
type DirEntry struct {
	Name   string
	Ino    uint64
	Type   uint32
	Cookie uint64
}

func (b *Base) Close() error { return syscall.ENOSYS }

var _ unix.Statfs_t

func Open(cfg Config, stack Stack) (*Tree, error)                              { return nil, syscall.ENOSYS }
func (t *Tree) Close() error                                                   { return syscall.ENOSYS }
func (t *Tree) Name() string                                                   { return "" }
func (t *Tree) Stack() Stack                                                   { return Stack{} }
func (t *Tree) Sync() error                                                    { return syscall.ENOSYS }
func (t *Tree) Attach(n Notifier) *Face                                        { return nil }
func (t *Tree) View(s Stack) (*Face, error)                                    { return nil, syscall.ENOSYS }
func (t *Tree) Stats() Stats                                                   { return Stats{} }
func InitState(fs hostfs.FS, dir string, active LayerID) error                 { return syscall.ENOSYS }
func Quiesce(trees ...*Tree) *Barrier                                          { return nil }
func (b *Barrier) Seal(next LayerID) error                                     { return syscall.ENOSYS }
func (b *Barrier) Switch(i int, s Stack) error                                 { return syscall.ENOSYS }
func (b *Barrier) Release()                                                    {}
func (t *Tree) Prepare(next LayerID) error                                     { return syscall.ENOSYS }
func (t *Tree) Dirty() bool                                                    { return false }
func (t *Tree) Flatten(s Stack, to LayerID, drop func(path string) bool) error { return syscall.ENOSYS }
func OpenBase(fs hostfs.FS, path string) (*Base, error)                        { return nil, syscall.ENOSYS }
func (f *Face) Root() *Node                                                    { return nil }
func (f *Face) Detach()                                                        {}
func (f *Face) Forget(n *Node, count uint64)                                   {}
func (n *Node) ID() uint64                                                     { return 0 }
func (n *Node) Type() uint32                                                   { return 0 }
func (f *Face) Timeouts(n *Node) (entry, attr time.Duration)                   { return 0, 0 }
func (f *Face) Lookup(parent *Node, name string) (*Node, Attr, error) {
	return nil, Attr{}, syscall.ENOSYS
}
func (f *Face) Getattr(n *Node) (Attr, error)             { return Attr{}, syscall.ENOSYS }
func (f *Face) Setattr(n *Node, in SetAttr) (Attr, error) { return Attr{}, syscall.ENOSYS }
func (f *Face) Readlink(n *Node) (string, error)          { return "", syscall.ENOSYS }
func (f *Face) Mkdir(parent *Node, name string, mode uint32, c Caller) (*Node, Attr, error) {
	return nil, Attr{}, syscall.ENOSYS
}
func (f *Face) Mknod(parent *Node, name string, mode uint32, rdev uint64, c Caller) (*Node, Attr, error) {
	return nil, Attr{}, syscall.ENOSYS
}
func (f *Face) Create(parent *Node, name string, mode uint32, c Caller) (*Node, Attr, error) {
	return nil, Attr{}, syscall.ENOSYS
}
func (f *Face) Symlink(parent *Node, name, target string, c Caller) (*Node, Attr, error) {
	return nil, Attr{}, syscall.ENOSYS
}
func (f *Face) Tmpfile(parent *Node, mode uint32, c Caller) (*Node, Attr, error) {
	return nil, Attr{}, syscall.ENOSYS
}
func (f *Face) Link(n *Node, parent *Node, name string) (Attr, error) { return Attr{}, syscall.ENOSYS }
func (f *Face) Unlink(parent *Node, name string) error                { return syscall.ENOSYS }
func (f *Face) Rmdir(parent *Node, name string) error                 { return syscall.ENOSYS }
func (f *Face) Rename(oldp *Node, oldname string, newp *Node, newname string, flags uint32) error {
	return syscall.ENOSYS
}
func (f *Face) ReadDir(n *Node, cookie uint64, fn func(DirEntry) bool) error { return syscall.ENOSYS }
func (f *Face) Read(n *Node, p []byte, off int64) (int, error)               { return 0, syscall.ENOSYS }
func (f *Face) ReadFD(n *Node) (fd int, release func(), err error)           { return -1, nil, syscall.ENOSYS }
func (f *Face) Write(n *Node, p []byte, off int64) (int, error)              { return 0, syscall.ENOSYS }
func (f *Face) WriteKill(n *Node, p []byte, off int64) (int, error)          { return 0, syscall.ENOSYS }
func (f *Face) Append(n *Node, p []byte) (int, error)                        { return 0, syscall.ENOSYS }
func (f *Face) Fallocate(n *Node, mode uint32, off, size int64) error        { return syscall.ENOSYS }
func (f *Face) Seek(n *Node, off int64, whence int) (int64, error)           { return 0, syscall.ENOSYS }
func (f *Face) CopyRange(src *Node, srcOff int64, dst *Node, dstOff int64, size int64) (int64, error) {
	return 0, syscall.ENOSYS
}
func (f *Face) Fsync(n *Node, dataOnly bool) error                         { return syscall.ENOSYS }
func (f *Face) Getxattr(n *Node, attr string) ([]byte, error)              { return nil, syscall.ENOSYS }
func (f *Face) Listxattr(n *Node) ([]string, error)                        { return nil, syscall.ENOSYS }
func (f *Face) Setxattr(n *Node, attr string, val []byte, flags int) error { return syscall.ENOSYS }
func (f *Face) Removexattr(n *Node, attr string) error                     { return syscall.ENOSYS }
func (f *Face) Statfs() (unix.Statfs_t, error)                             { return unix.Statfs_t{}, syscall.ENOSYS }
func (f *Face) Path(n *Node) string                                        { return "" }
func (f *Face) Walk(path string) (*Node, Attr, error)                      { return nil, Attr{}, syscall.ENOSYS }
func (f *Face) Delta(fn func(Entry) error) error                           { return syscall.ENOSYS }
