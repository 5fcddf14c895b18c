package overlay_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	unix.Umask(0) // modes are to arrive as they are given
	os.Exit(m.Run())
}
