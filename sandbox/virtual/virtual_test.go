package virtual_test

import (
	"testing"

	"github.com/galleyfs/galley/overlay"
	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
	"github.com/galleyfs/galley/sandbox/virtual"
)

// openOver opens a sandbox whose /workspace is a tree over a host directory, or
// over nothing.
func openOver(t testing.TB, base string, limits virtual.Limits) *virtual.Sandbox {
	t.Helper()
	state := t.TempDir()
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
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Harness{Kind: "virtual", Open: func(t *testing.T, base string) sandbox.Sandbox {
		return openOver(t, base, virtual.Limits{})
	}})
}
