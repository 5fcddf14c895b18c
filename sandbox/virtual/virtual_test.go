package virtual_test

import (
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
	"github.com/galleyfs/galley/sandbox/virtual"
	"github.com/galleyfs/galley/sandbox/virtual/virtualtest"
)

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Harness{Kind: "virtual", Open: func(t *testing.T, base string) sandbox.Sandbox {
		return virtualtest.Open(t, base, virtual.Limits{})
	}})
}
