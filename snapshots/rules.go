package snapshots

import (
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/galleyfs/galley/overlay"
)

// Check tells which pattern, if any, does not parse.
func (r Rules) Check() error {
	for _, list := range [][]string{r.Hide, r.ReadOnly} {
		for _, p := range list {
			if trimPattern(p) == "" || !doublestar.ValidatePattern(trimPattern(p)) {
				return fmt.Errorf("pattern %q does not parse; patterns are like '**/.env', 'secrets/**' or '*.{key,pem}'", p)
			}
		}
	}
	return nil
}

// trimPattern takes away the slashes that only say "from the root" or "a
// directory".
func trimPattern(p string) string { return strings.Trim(p, "/") }

// compiled implements overlay.Rules.
type compiled struct {
	hide, readOnly []string
}

// Compile returns the engine's form of r, or nil where r has no pattern. r has
// been checked.
func (r Rules) Compile() overlay.Rules {
	if len(r.Hide) == 0 && len(r.ReadOnly) == 0 {
		return nil
	}
	c := new(compiled)
	for _, p := range r.Hide {
		c.hide = append(c.hide, trimPattern(p))
	}
	for _, p := range r.ReadOnly {
		c.readOnly = append(c.readOnly, trimPattern(p))
	}
	return c
}

// Hidden implements overlay.Rules.
func (c *compiled) Hidden(path string, _ bool) bool { return covers(c.hide, path) }

// ReadOnly implements overlay.Rules.
func (c *compiled) ReadOnly(path string, _ bool) bool { return covers(c.readOnly, path) }

// covers tells whether a pattern matches path or one of the directories that
// it lies in: what holds for a directory holds for all in it.
func covers(patterns []string, path string) bool {
	for _, p := range patterns {
		for i := 0; i <= len(path); i++ {
			if i < len(path) && path[i] != '/' {
				continue
			}
			if i > 0 && doublestar.MatchUnvalidated(p, path[:i]) {
				return true
			}
		}
	}
	return false
}
