package fs

import (
	"sync"
	"sync/atomic"
	"time"
)

// What each entry of a listing is costs a look at the base, which a program that
// only wants names (find, a completion, a glob) does not need; without it,
// everything that looks at the entries pays a LOOKUP for each, three times as
// much. So a listing tells it of directories, which most programs go into, and of
// the rest only while programs are seen to look at what they have listed.
const (
	// plainDirs is in how many directories, of those listed plainly last, a
	// look at an entry is noticed.
	plainDirs = 32
	// plainMost is how many entries of one directory are listed plainly: a
	// program that lists a large one may look at all of them afterwards.
	plainMost = 1024
	// fullFor is how long listings tell all after such a look.
	fullFor = 2 * time.Second
)

// lister decides how much listings tell.
type lister struct {
	now func() time.Time
	// plain is set while recent holds a directory.
	plain atomic.Bool

	mu     sync.Mutex
	recent [plainDirs]plainDir // protected by mu
	next   int                 // protected by mu
	full   time.Time           // protected by mu: until then, all is told
}

func newLister() *lister { return &lister{now: time.Now} }

// plainDir is a directory that was listed plainly, by its node id.
type plainDir struct {
	id      uint64
	entries int
}

// plainly reports how many of the next entries of a listing that goes on at off
// are to be told by name alone.
func (l *lister) plainly(id, off uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now().Before(l.full) {
		return 0
	}
	for i := range l.recent {
		if d := &l.recent[i]; d.id == id {
			if off == 0 {
				d.entries = 0
			}
			return plainMost - d.entries
		}
	}
	if off != 0 {
		return 0 // it began otherwise
	}
	l.recent[l.next] = plainDir{id: id}
	l.next = (l.next + 1) % plainDirs
	l.plain.Store(true)
	return plainMost
}

// listed notes that n entries of a directory were told by name alone.
func (l *lister) listed(id uint64, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.recent {
		if d := &l.recent[i]; d.id == id {
			d.entries += n
		}
	}
}

// looked notes that something in a directory that is no directory itself was
// looked up.
func (l *lister) looked(id uint64) {
	if !l.plain.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.recent {
		if l.recent[i].id == id {
			l.full = l.now().Add(fullFor)
			l.recent = [plainDirs]plainDir{}
			l.plain.Store(false)
			return
		}
	}
}
