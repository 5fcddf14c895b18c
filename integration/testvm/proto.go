package testvm

import (
	"golang.org/x/sys/unix"
)

// Request is what the guest is told to do, one line of JSON each.
type Request struct {
	ID   uint64
	Op   string
	Path string   `json:",omitempty"`
	To   string   `json:",omitempty"` // of what has two paths
	Args []string `json:",omitempty"`
	Env  []string `json:",omitempty"`
	Root string   `json:",omitempty"` // of a program: it runs in there
	Data []byte   `json:",omitempty"`
	Off  int64    `json:",omitempty"`
	Size int      `json:",omitempty"`
	N    int      `json:",omitempty"` // handle, flags or mode
}

// Reply is what came of it.
type Reply struct {
	ID    uint64
	Err   string     `json:",omitempty"`
	Errno unix.Errno `json:",omitempty"`
	Data  []byte     `json:",omitempty"`
	Names []string   `json:",omitempty"`
	N     int        `json:",omitempty"` // handle, or exit status
	Stat  *Stat      `json:",omitempty"`
	Nanos int64      `json:",omitempty"` // how long it took, by the guest's clock
}

// Stat is what the guest sees of a file.
type Stat struct {
	Dev, Ino, Nlink uint64
	Mode, UID, GID  uint32
	Size, Blocks    int64
	Mtime           int64 // in nanoseconds
}
