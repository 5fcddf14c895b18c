package fs

import (
	"fmt"
	"os"
	"testing"
)

// The test binary plays other processes too: a server must not run in the
// process that uses its mount. helperEnv names the part.
const helperEnv = "GALLEY_FS_TEST_HELPER"

func TestMain(m *testing.M) {
	helpers := map[string]func() error{
		"serve":      serveHelper,
		"nsmount":    nsMountHelper,
		"hold":       holdHelper,
		"fusermount": fusermountHelper,
	}
	if part := os.Getenv(helperEnv); part != "" {
		run := helpers[part]
		if run == nil {
			fmt.Fprintf(os.Stderr, "no helper %q\n", part)
			os.Exit(2)
		}
		if err := run(); err != nil {
			fmt.Fprintf(os.Stderr, "helper %s: %v\n", part, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
