package overlaytest

import "time"

// Shrink finds a shorter program that still fails, by leaving out ever smaller
// parts of it (delta debugging), until nothing can be left out or the time is
// up. fails must be repeatable.
func Shrink(ops []Op, limit time.Duration, fails func([]Op) bool) []Op {
	deadline := time.Now().Add(limit)
	for size := max(1, len(ops)/2); ; size = max(1, size/2) {
		removed := false
		for at := 0; at < len(ops); {
			if time.Now().After(deadline) {
				return ops
			}
			end := min(at+size, len(ops))
			less := append(append([]Op{}, ops[:at]...), ops[end:]...)
			if fails(less) {
				ops, removed = less, true
				continue
			}
			at = end
		}
		if size == 1 && !removed {
			return ops
		}
	}
}
