package overlaytest

import (
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay"
)

// Generator makes random operations that are likely to collide: few names,
// few levels, arguments that mostly name something that is there.
type Generator struct {
	rng *rand.Rand
	ref *Ref
	// Kinds are the operations to choose from, each as often as it is to
	// come up.
	Kinds []Kind
	// Xattrs are the names of attributes.
	Xattrs []string
	// MaxNodes is about how many names the tree may have.
	MaxNodes int
	// Snapshots is how many there are to choose from.
	Snapshots int
}

// The names: eight that collide, and some that a careless program handles
// wrongly. None is a name that overlayfs reserves.
var (
	commonNames = []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	oddNames    = []string{
		strings.Repeat("L", 255), strings.Repeat("é", 127) + "x", strings.Repeat("T", 256),
		"new\nline", "\xff\xfe", "...", " ", "-rf", "\x1b[31m", ".wh.a", ".wh..wh..opq", "index", "#12",
	}
)

const slots = 6

// NewGenerator makes a generator of operations on what ref holds at the time.
func NewGenerator(seed uint64, ref *Ref) *Generator {
	return &Generator{
		rng: rand.New(rand.NewPCG(seed, 0x9a11e7)), ref: ref, Kinds: FSKinds(),
		Xattrs: []string{"user.a", "user.b", "trusted.t"}, MaxNodes: 160,
	}
}

// FSKinds are the operations of [FS] in a mixture that keeps a tree moving.
func FSKinds() []Kind {
	weight := map[Kind]int{
		OpOpen: 5, OpRelease: 3, OpStat: 4, OpReadlink: 2, OpReadDir: 4, OpMkdir: 8, OpMknod: 2,
		OpCreate: 10, OpSymlink: 4, OpTmpfile: 1, OpLink: 6, OpUnlink: 8, OpRmdir: 5, OpRename: 18,
		OpChmod: 4, OpChown: 3, OpUtimes: 3, OpTruncate: 4, OpRead: 6, OpWrite: 12, OpWriteKill: 2,
		OpAppend: 4, OpFallocate: 3, OpSeek: 2, OpCopyRange: 3, OpFsync: 1, OpGetxattr: 2,
		OpListxattr: 1, OpSetxattr: 4, OpRemovexattr: 2, OpMapRead: 1, OpMapWrite: 2,
	}
	var kinds []Kind
	for k := OpOpen; k <= lastFSOp; k++ {
		for range weight[k] {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

func pick[T any](g *Generator, s []T) T { return s[g.rng.IntN(len(s))] }

func (g *Generator) chance(percent int) bool { return g.rng.IntN(100) < percent }

func (g *Generator) name() string {
	if g.chance(4) {
		return pick(g, oddNames)
	}
	return pick(g, commonNames)
}

// start is where a location begins: the root, or sometimes a slot that holds
// what want likes.
func (g *Generator) start(want func(*node) bool) (Loc, *node) {
	if g.chance(20) {
		slot := g.rng.IntN(slots)
		if n := g.ref.slots[slot]; n != nil && want(n) {
			return Loc{slot, ""}, n
		}
	}
	return At(""), g.ref.root
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

func anyNode(*node) bool { return true }

// existing is the location of a node that want likes, if one is soon found,
// and of something else otherwise.
func (g *Generator) existing(want func(*node) bool) Loc {
	var last Loc
	for range 6 {
		at, n := g.start(want)
		for depth := 0; n.isDir() && len(n.ents) > 0 && depth < 6; depth++ {
			if want(n) && g.chance(25) {
				break
			}
			names := make([]string, 0, len(n.ents))
			for name := range n.ents {
				names = append(names, name)
			}
			slices.Sort(names)
			name := pick(g, names)
			at.Path, n = join(at.Path, name), n.ents[name]
		}
		if last = at; want(n) {
			return at
		}
	}
	return last
}

// target is where something is to be made or removed: mostly in a directory
// that is there and not too deep.
func (g *Generator) target() Loc {
	at := g.existing((*node).isDir)
	if strings.Count(at.Path, "/") >= 3 {
		at.Path = at.Path[:strings.LastIndexByte(at.Path, '/')]
	}
	at.Path = join(at.Path, g.name())
	return at
}

// named is like existing, for operations that need a name.
func (g *Generator) named(want func(*node) bool) Loc {
	if at := g.existing(want); at.Path != "" && !g.chance(5) {
		return at
	}
	return g.target()
}

func (g *Generator) size() int64 {
	switch {
	case g.chance(3):
		return g.rng.Int64N(200 << 10)
	case g.chance(20):
		return g.rng.Int64N(10000)
	case g.chance(5):
		return 0
	}
	return g.rng.Int64N(300)
}

// off is sometimes where pages and blocks begin.
func (g *Generator) off() int64 {
	if g.chance(20) {
		return g.rng.Int64N(4) * 4096
	}
	return g.size()
}

var modes = []uint32{0o644, 0o755, 0o600, 0o4755, 0o2755, 0o6711, 0o2644, 0o1777, 0o444, 0}

// Next makes an operation.
func (g *Generator) Next() Op {
	kind := pick(g, g.Kinds)
	if g.ref.Count() > g.MaxNodes && (kind == OpCreate || kind == OpMkdir || kind == OpLink || kind == OpMknod || kind == OpSymlink) {
		kind = pick(g, []Kind{OpUnlink, OpUnlink, OpRmdir, OpRename})
	}
	o := Op{Kind: kind, Slot: g.rng.IntN(slots), Seed: g.rng.Uint64N(1 << 20)}
	g.fill(&o)
	return o
}

func (g *Generator) fill(o *Op) {
	notDir := func(n *node) bool { return !n.isDir() }
	switch o.Kind {
	case OpRelease:
	case OpOpen:
		o.At = g.named(anyNode)
	case OpStat, OpListxattr, OpFsync:
		o.At = g.existing(anyNode)
		if g.chance(20) {
			o.At = g.target()
		}
	case OpReadlink:
		o.At = g.existing(func(n *node) bool { return n.kind() == unix.S_IFLNK })
	case OpReadDir:
		o.At = g.existing((*node).isDir)
		g.fillListing(o)
	case OpMkdir:
		o.At, o.Mode = g.target(), pick(g, modes)&0o1777
		if g.chance(10) {
			o.Mode |= 0o1000
		}
	case OpMknod:
		o.At = g.target()
		g.fillNode(o)
	case OpCreate:
		o.At, o.Mode = g.target(), pick(g, modes)
	case OpSymlink:
		o.At, o.Name = g.target(), pick(g, []string{"a", "../b", "/etc/passwd", "a/b/c", "..", strings.Repeat("x", 1000), "\xff\n"})
	case OpTmpfile:
		o.At, o.Mode = g.existing((*node).isDir), 0o644
	case OpLink:
		o.At, o.To = g.existing(notDir), g.target()
		if g.chance(5) {
			o.At = g.existing(anyNode)
		}
	case OpUnlink:
		o.At = g.named(notDir)
	case OpRmdir:
		o.At = g.named(func(n *node) bool { return n.isDir() && len(n.ents) == 0 })
	case OpRename:
		o.At, o.To = g.named(anyNode), g.target()
		if g.chance(30) {
			o.To = g.named(anyNode)
		}
		o.Flags = pick(g, []uint32{0, 0, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE})
	default:
		g.fillData(o)
	}
}

// fillListing puts changes of the directory in the middle of its listing.
func (g *Generator) fillListing(o *Op) {
	if !g.chance(50) {
		return
	}
	o.N = int64(1 + g.rng.IntN(4))
	for range 1 + g.rng.IntN(3) {
		b := Op{Kind: pick(g, []Kind{OpMkdir, OpUnlink, OpRmdir, OpSymlink, OpRename}), Name: "x", Mode: 0o755}
		b.At = Loc{o.At.Slot, join(o.At.Path, g.name())}
		b.To = Loc{o.At.Slot, join(o.At.Path, g.name())}
		o.Between = append(o.Between, b)
	}
}

func (g *Generator) fillNode(o *Op) {
	o.Mode = pick(g, []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFREG}) | 0o640
	if t := o.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		// 0:0 as a character device is a whiteout, which no view can hold.
		o.Rdev = unix.Mkdev(uint32(1+g.rng.IntN(300)), uint32(g.rng.IntN(300)))
	}
}

func (g *Generator) fillData(o *Op) {
	switch o.Kind {
	case OpChmod:
		o.At, o.Mode = g.existing(anyNode), pick(g, modes)
	case OpChown:
		ids := []int{-1, 0, 0, 1, 1000, 65534}
		o.At, o.UID, o.GID = g.existing(anyNode), pick(g, ids), pick(g, ids)
	case OpUtimes:
		o.At = g.existing(anyNode)
		o.Time = overlay.Time{Sec: g.rng.Int64N(2e9), Nsec: uint32(g.rng.IntN(1e9))}
	case OpGetxattr, OpSetxattr, OpRemovexattr:
		o.At, o.Name = g.existing(anyNode), pick(g, g.Xattrs)
		o.N = g.rng.Int64N(100)
		o.Flags = pick(g, []uint32{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE})
	case OpCopyRange:
		o.At, o.To = g.existing((*node).isReg), g.existing((*node).isReg)
		o.Off, o.Off2, o.N = g.off(), g.off(), g.size()
	case OpFallocate:
		o.At, o.Off, o.N = g.existing((*node).isReg), g.off(), 1+g.size()
		o.Mode = pick(g, []uint32{
			0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		})
	case OpSeek:
		o.At, o.Off = g.existing((*node).isReg), g.off()
		o.Flags = pick(g, []uint32{unix.SEEK_DATA, unix.SEEK_HOLE})
	default: // truncate, read, write, append
		o.At, o.Off, o.N = g.existing((*node).isReg), g.off(), g.size()
		if g.chance(3) {
			o.At = g.existing(anyNode)
		}
	}
}
