package overlay_test

import (
	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/overlay/overlaytest"
)

func op(kind overlaytest.Kind, path string) overlaytest.Op {
	return overlaytest.Op{Kind: kind, At: overlaytest.At(path), Slot: 1, Mode: 0o755, N: 8, Seed: 3, Name: "user.a"}
}

func to(kind overlaytest.Kind, from, path string, flags uint32) overlaytest.Op {
	o := op(kind, from)
	o.To, o.Flags = overlaytest.At(path), flags
	return o
}

func held(kind overlaytest.Kind, target string) overlaytest.Op {
	o := op(kind, "")
	o.At.Slot, o.To = 1, overlaytest.At(target)
	return o
}

func ops(list ...overlaytest.Op) []overlaytest.Op { return list }

func fifo(path string) overlaytest.Op {
	o := op(overlaytest.OpMknod, path)
	o.Mode |= unix.S_IFIFO
	return o
}

func chown(path string) overlaytest.Op {
	o := op(overlaytest.OpChown, path)
	o.UID, o.GID = -1, -1
	return o
}

var seal = overlaytest.Op{Kind: overlaytest.OpSeal}

// faultCases are the operations that change something, each where it takes
// another way.
var faultCases = []faultCase{
	{name: "write", op: op(overlaytest.OpWrite, "f")},
	{name: "write again", setup: ops(op(overlaytest.OpWrite, "f")), op: op(overlaytest.OpAppend, "f")},
	{name: "write after seal", setup: ops(op(overlaytest.OpWrite, "f"), seal), op: op(overlaytest.OpAppend, "f")},
	{name: "write deep", op: op(overlaytest.OpWrite, "d/sub/z")},
	{name: "write one of two names", op: op(overlaytest.OpWrite, "two/h1")},
	{name: "meet the other name", setup: ops(op(overlaytest.OpWrite, "two/h1")), op: op(overlaytest.OpStat, "two/h2")},
	{name: "truncate", op: op(overlaytest.OpTruncate, "big")},
	{name: "fallocate", op: overlaytest.Op{Kind: overlaytest.OpFallocate, At: overlaytest.At("f"), N: 9000}},
	{name: "copy range", op: to(overlaytest.OpCopyRange, "g", "f", 0)},
	{name: "chmod small", op: op(overlaytest.OpChmod, "f")},
	{name: "chmod large", op: op(overlaytest.OpChmod, "big")},
	{name: "fill", setup: ops(op(overlaytest.OpChmod, "big")), op: op(overlaytest.OpWrite, "big")},
	{name: "chmod large twice", setup: ops(op(overlaytest.OpChmod, "big"), seal), op: chown("big")},
	{name: "chmod directory", op: op(overlaytest.OpChmod, "d")},
	{name: "chown", op: chown("f")},
	{name: "utimes", op: op(overlaytest.OpUtimes, "d/x")},
	{name: "set xattr", op: op(overlaytest.OpSetxattr, "f")},
	{name: "set xattr of directory", op: op(overlaytest.OpSetxattr, "d")},
	{name: "remove xattr", setup: ops(op(overlaytest.OpSetxattr, "f"), seal), op: op(overlaytest.OpRemovexattr, "f")},
	{name: "unlink", op: op(overlaytest.OpUnlink, "f")},
	{name: "unlink deep", op: op(overlaytest.OpUnlink, "d/sub/z")},
	{name: "unlink changed", setup: ops(op(overlaytest.OpWrite, "f")), op: op(overlaytest.OpUnlink, "f")},
	{name: "unlink new", setup: ops(op(overlaytest.OpCreate, "n"), op(overlaytest.OpRelease, "")), op: op(overlaytest.OpUnlink, "n")},
	{name: "unlink held", setup: ops(op(overlaytest.OpWrite, "f"), op(overlaytest.OpOpen, "f")), op: op(overlaytest.OpUnlink, "f")},
	{name: "unlink new held", setup: ops(op(overlaytest.OpCreate, "n")), op: op(overlaytest.OpUnlink, "n")},
	{name: "unlink one of two names", op: op(overlaytest.OpUnlink, "two/h1")},
	{name: "unlink link", op: op(overlaytest.OpUnlink, "ln")},
	{name: "rmdir", op: op(overlaytest.OpRmdir, "e")},
	{name: "rmdir emptied", setup: ops(op(overlaytest.OpUnlink, "two/h1"), op(overlaytest.OpUnlink, "two/h2")), op: op(overlaytest.OpRmdir, "two")},
	{name: "rmdir new", setup: ops(op(overlaytest.OpMkdir, "n")), op: op(overlaytest.OpRmdir, "n")},
	{name: "create", op: op(overlaytest.OpCreate, "d/n")},
	{name: "create over whiteout", setup: ops(op(overlaytest.OpUnlink, "f")), op: op(overlaytest.OpCreate, "f")},
	{name: "mkdir", op: op(overlaytest.OpMkdir, "d/n")},
	{name: "mkdir over whiteout", setup: ops(op(overlaytest.OpRmdir, "e")), op: op(overlaytest.OpMkdir, "e")},
	{name: "mkdir over sealed whiteout", setup: ops(op(overlaytest.OpRmdir, "e"), seal), op: op(overlaytest.OpMkdir, "e")},
	{name: "symlink", op: op(overlaytest.OpSymlink, "d/n")},
	{name: "symlink over whiteout", setup: ops(op(overlaytest.OpUnlink, "f")), op: op(overlaytest.OpSymlink, "f")},
	{name: "mknod", op: fifo("d/n")},
	{name: "link", op: to(overlaytest.OpLink, "f", "d/n", 0)},
	{name: "link over whiteout", setup: ops(op(overlaytest.OpUnlink, "g")), op: to(overlaytest.OpLink, "f", "g", 0)},
	{name: "link unnamed", setup: ops(op(overlaytest.OpTmpfile, "")), op: held(overlaytest.OpLink, "n")},
	{name: "rename", op: to(overlaytest.OpRename, "f", "d/n", 0)},
	{name: "rename over", op: to(overlaytest.OpRename, "f", "g", 0)},
	{name: "rename over changed", setup: ops(op(overlaytest.OpWrite, "g"), op(overlaytest.OpOpen, "g")), op: to(overlaytest.OpRename, "f", "g", 0)},
	{name: "rename over whiteout", setup: ops(op(overlaytest.OpUnlink, "g")), op: to(overlaytest.OpRename, "f", "g", 0)},
	{name: "rename large", op: to(overlaytest.OpRename, "big", "n", 0)},
	{name: "rename new", setup: ops(op(overlaytest.OpCreate, "n"), op(overlaytest.OpRelease, "")), op: to(overlaytest.OpRename, "n", "m", 0)},
	{name: "rename directory", op: to(overlaytest.OpRename, "d", "n", 0)},
	{name: "rename changed directory", setup: ops(op(overlaytest.OpWrite, "d/x")), op: to(overlaytest.OpRename, "d", "n", 0)},
	{name: "exchange changed directories", setup: ops(op(overlaytest.OpWrite, "d/x"), op(overlaytest.OpUnlink, "two/h1")), op: to(overlaytest.OpRename, "d", "two", unix.RENAME_EXCHANGE)},
	{name: "rename directory again", setup: ops(to(overlaytest.OpRename, "d", "n", 0), seal), op: to(overlaytest.OpRename, "n", "m", 0)},
	{name: "rename directory over empty", op: to(overlaytest.OpRename, "d", "e", 0)},
	{
		name: "rename directory over emptied", setup: ops(op(overlaytest.OpUnlink, "two/h1"), op(overlaytest.OpUnlink, "two/h2")),
		op: to(overlaytest.OpRename, "d", "two", 0),
	},
	{name: "rename directory over whiteout", setup: ops(op(overlaytest.OpRmdir, "e")), op: to(overlaytest.OpRename, "d", "e", 0)},
	{name: "rename new directory into old", setup: ops(op(overlaytest.OpMkdir, "n")), op: to(overlaytest.OpRename, "n", "d/n", 0)},
	{name: "exchange files", op: to(overlaytest.OpRename, "f", "d/x", unix.RENAME_EXCHANGE)},
	{name: "exchange directories", op: to(overlaytest.OpRename, "d", "two", unix.RENAME_EXCHANGE)},
	{name: "exchange file and directory", op: to(overlaytest.OpRename, "f", "d/sub", unix.RENAME_EXCHANGE)},
	{name: "fsync", setup: ops(op(overlaytest.OpWrite, "d/x")), op: op(overlaytest.OpFsync, "d/x")},
	{name: "seal", setup: ops(op(overlaytest.OpWrite, "f"), to(overlaytest.OpRename, "d", "n", 0)), do: (*faulted).seal},
	{
		name: "merge", do: (*faulted).merge,
		setup: ops(op(overlaytest.OpWrite, "f"), to(overlaytest.OpRename, "d", "n", 0), seal, op(overlaytest.OpUnlink, "g"), op(overlaytest.OpChmod, "big"), op(overlaytest.OpWrite, "two/h1")),
	},
}
