package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/review"
)

// reviewedFile keeps, in a session's directory, which snapshot each digest
// that was shown belongs to: a line each, "DIGEST SNAPSHOT". It is a
// convenience that lets a commit find what was reviewed while the session
// worked on. Nothing is believed because it stands there: a commit computes
// the digest again.
const reviewedFile = "reviewed"

// reviewedLimit bounds the file; the older half is dropped beyond it.
const reviewedLimit = 64 << 10

// remember notes the digest of a change set of the proof, or a part of it,
// that is shown. A failure costs convenience only.
func (e *env) remember(p *proof, shown *review.ChangeSet) {
	if shown.Empty() {
		return
	}
	if err := appendReviewed(p, shown.Digest()); err != nil {
		e.log.Debug("note the reviewed digest", "err", err)
	}
}

func appendReviewed(p *proof, digest review.Digest) error {
	path := filepath.Join(p.session.Dir(), reviewedFile)
	line := fmt.Sprintf("%s %d\n", digest, p.snapshot.Number)
	old, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if bytes.HasSuffix(old, []byte(line)) {
		return nil
	}
	if len(old) > reviewedLimit {
		if err := os.Remove(path); err != nil {
			return err
		}
		line = string(old[len(old)/2:]) + line
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// reviewedSnapshots are the snapshots at which a digest that begins with
// prefix was shown, the latest first.
func reviewedSnapshots(dir, prefix string) []overlay.LayerID {
	data, err := os.ReadFile(filepath.Join(dir, reviewedFile))
	if err != nil {
		return nil
	}
	var out []overlay.LayerID
	for line := range strings.Lines(string(data)) {
		digest, number, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(digest, prefix) {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err == nil {
			out = append([]overlay.LayerID{overlay.LayerID(n)}, out...)
		}
	}
	return out
}
