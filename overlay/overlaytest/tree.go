package overlaytest

import (
	"testing"

	"github.com/galleyfs/galley/overlay"
)

// OpenTree opens a tree over the host directory base, or over nothing where
// that is "", until the test ends. Its state directory, which it returns too, is
// the test's.
func OpenTree(t testing.TB, base string) (tree *overlay.Tree, state string) {
	t.Helper()
	state = t.TempDir()
	if err := overlay.InitState(nil, state, 1); err != nil {
		t.Fatal(err)
	}
	cfg := overlay.Config{Name: "workspace", StateDir: state}
	if base != "" {
		b, err := overlay.OpenBase(nil, base)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Base = b
	}
	tree, err := overlay.Open(cfg, overlay.Stack{Active: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree, state
}
