package microvm_test

import (
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	w := debian(t)
	sandboxtest.Run(t, sandboxtest.Harness{
		Kind: "microvm",
		Open: func(t *testing.T, base string) sandbox.Sandbox { return open(t, w.options(t, w.session(t, base))) },
	})
}
