// Package keep holds the output of a command as far as it is kept: its head
// and its tail.
package keep

// Buffer keeps the first half of its limit and the last. The zero value keeps
// nothing; it is for one goroutine at a time.
type Buffer struct {
	limit   int
	head    []byte
	tail    []byte // a ring once it is full
	start   int    // where the tail's first byte is
	dropped int64
}

// New makes a buffer of that many bytes.
func New(limit int) *Buffer { return &Buffer{limit: limit} }

// Write takes more output. It never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	n := len(p)
	headSize := b.limit / 2
	if len(b.head) < headSize {
		k := min(len(p), headSize-len(b.head))
		b.head = append(b.head, p[:k]...)
		p = p[k:]
	}
	size := b.limit - headSize
	if over := len(p) - size; over > 0 {
		b.dropped += int64(len(b.tail) + over)
		b.tail, b.start = append(b.tail[:0], p[over:]...), 0
		return n, nil
	}
	if room := size - len(b.tail); room > 0 {
		k := min(len(p), room)
		b.tail = append(b.tail, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(b.tail[b.start:], p)
		b.dropped += int64(k)
		b.start = (b.start + k) % size
		p = p[k:]
	}
	return n, nil
}

// Take returns what is kept, how much is missing, and after how many bytes.
func (b *Buffer) Take() (out []byte, dropped int64, head int) {
	out = make([]byte, 0, len(b.head)+len(b.tail))
	out = append(out, b.head...)
	out = append(out, b.tail[b.start:]...)
	out = append(out, b.tail[:b.start]...)
	if b.dropped > 0 {
		head = len(b.head)
	}
	return out, b.dropped, head
}

// Reset forgets everything.
func (b *Buffer) Reset() { b.head, b.tail, b.start, b.dropped = nil, nil, 0, 0 }

// Len is how much is kept.
func (b *Buffer) Len() int { return len(b.head) + len(b.tail) }
