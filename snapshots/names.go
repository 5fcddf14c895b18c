package snapshots

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	idLen       = 8
	maxName     = 64
	maxTreeName = 32
)

// newID is short, so that the path of a control socket fits sun_path, and has
// 40 random bits, so that it is not met twice; who makes a directory of it
// finds out for certain.
func newID() string {
	var b [idLen * 5 / 8]byte
	rand.Read(b[:]) // never fails, as crypto/rand documents
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

func validID(id string) bool {
	if len(id) != idLen {
		return false
	}
	return strings.IndexFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '2' && r <= '7')
	}) < 0
}

// validTreeName: a tree's name is a directory's name and a key of JSON.
func validTreeName(s string) bool {
	if s == "" || len(s) > maxTreeName {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}) < 0
}

// plainName tells whether s is shown harmlessly and typed without quoting.
func plainName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_':
		case (r == '-' || r == '.') && i > 0:
		default:
			return false
		}
	}
	return true
}

func checkName(s string) error {
	if plainName(s) {
		return nil
	}
	return fmt.Errorf("session name %q: %w: letters, digits, '_', '-' and '.', at most %d, the first no '-' or '.'",
		s, ErrBadName, maxName)
}

// checkSnapshotName is checkName without the names that read as numbers.
func checkSnapshotName(s string) error {
	if _, err := strconv.ParseUint(s, 10, 64); err == nil {
		return fmt.Errorf("snapshot name %q: %w: a number alone stands for the snapshot's number", s, ErrBadName)
	}
	if plainName(s) {
		return nil
	}
	return fmt.Errorf("snapshot name %q: %w: letters, digits, '_', '-' and '.', at most %d, the first no '-' or '.'",
		s, ErrBadName, maxName)
}

// nameFor makes a session's name from the directory it is on.
func nameFor(base string) string {
	var b strings.Builder
	for _, r := range filepath.Base(base) {
		if s := b.String() + string(r); plainName(s) && len(s) <= maxName-8 {
			b.WriteRune(r)
		}
	}
	if b.Len() == 0 {
		return "session"
	}
	return b.String()
}

// takenBy tells which names the sessions have.
func takenBy(sessions []Info) func(name string) bool {
	return func(name string) bool {
		return slices.ContainsFunc(sessions, func(i Info) bool { return i.Name == name })
	}
}

// freeName is want, or want with the first number that makes it free.
func freeName(want string, taken func(string) bool) string {
	if !taken(want) {
		return want
	}
	for i := 2; ; i++ {
		if n := want + "-" + strconv.Itoa(i); !taken(n) {
			return n
		}
	}
}

// nearest is the candidate with the smallest edit distance to s, or "" where
// none is near enough to have been meant.
func nearest(s string, candidates []string) string {
	best, bestDist := "", max(2, len(s)/3)+1
	for _, c := range candidates {
		if d := editDistance(s, c); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions and replacements of bytes that
// make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// TreeName makes a valid, unused name of a tree from a directory's, and takes
// it.
func TreeName(dir string, taken map[string]bool) string {
	keep := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return -1
	}
	stem := strings.Map(keep, filepath.Base(dir))
	if stem == "" {
		stem = "tree"
	}
	stem = stem[:min(len(stem), 28)]
	name := stem
	for i := 2; taken[name]; i++ {
		name = fmt.Sprintf("%s-%d", stem, i)
	}
	taken[name] = true
	return name
}
