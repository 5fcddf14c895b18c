// Package virtualtest opens virtual sandboxes for tests.
package virtualtest

import (
	"testing"

	"github.com/galleyfs/galley/overlay/overlaytest"
	"github.com/galleyfs/galley/sandbox/virtual"
)

// Open opens a sandbox whose /workspace is a tree over the host directory base,
// or over nothing where that is "", until the test ends.
func Open(t testing.TB, base string, limits virtual.Limits) *virtual.Sandbox {
	t.Helper()
	tree, state := overlaytest.OpenTree(t, base)
	s, err := virtual.New(virtual.Config{
		Trees: []virtual.Tree{{Path: "/workspace", Tree: tree}}, Scratch: t.TempDir(), Limits: limits,
		Forbidden: []string{state},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
