package microvm_test

import (
	"os"
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
)

// TestConformance runs the suite in a real guest. It takes a minute or two under
// emulation, so that only root's turn runs all of it.
func TestConformance(t *testing.T) {
	w := debian(t)
	var groups []string
	if testing.Short() || os.Geteuid() != 0 {
		groups = []string{"info", "view", "process", "lacks", "mount"}
	}
	sandboxtest.Run(t, sandboxtest.Harness{
		Kind: "microvm", Groups: groups,
		Open: func(t *testing.T, base string) sandbox.Sandbox { return open(t, w.options(t, w.session(t, base))) },
	})
}
