package files

import (
	"sync"
	"time"

	"github.com/galleyfs/galley/sandbox"
)

// maxNotes bounds what is remembered of reads; the oldest goes first, and with
// it the protection of that file from a stale edit.
const maxNotes = 10_000

// note is what a client last saw of a file.
type note struct {
	digest string
	stamp  stamp
}

// stamp tells two states of a file apart without reading it. Two writes within
// one tick of the file system's clock may have the same.
type stamp struct {
	ino  uint64
	size int64
	time time.Time
}

func stampOf(i sandbox.FileInfo) stamp { return stamp{i.Ino, i.Size, i.ModTime.UTC()} }

type noteKey struct{ client, path string }

// notes remember what each client last saw of each file.
type notes struct {
	mu    sync.Mutex
	seen  map[noteKey]note
	order []noteKey
}

func (n *notes) put(client, path string, seen note) {
	if client == "" {
		return
	}
	k := noteKey{client, path}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil {
		n.seen = make(map[noteKey]note)
	}
	if _, ok := n.seen[k]; !ok {
		if len(n.order) >= maxNotes {
			delete(n.seen, n.order[0])
			n.order = n.order[1:]
		}
		n.order = append(n.order, k)
	}
	n.seen[k] = seen
}

func (n *notes) get(client, path string) (note, bool) {
	if client == "" {
		return note{}, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	seen, ok := n.seen[noteKey{client, path}]
	return seen, ok
}

// checkStale refuses a change of a file that now has the given digest.
func (o *Ops) checkStale(op, shown, real, client, want, digest string) error {
	if want != "" && want != digest {
		have := digest
		if have == "" {
			have = "no file"
		}
		return sandbox.Errorf(sandbox.Stale, op, shown, "the file is not the one that was expected: it has %s and not %s; read it again", have, want)
	}
	if seen, ok := o.notes.get(client, real); ok && seen.digest != "" && seen.digest != digest {
		return sandbox.Errorf(sandbox.Stale, op, shown, "the file changed since it was last read; read it again")
	}
	return nil
}
