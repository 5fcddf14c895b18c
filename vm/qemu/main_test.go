package qemu

import (
	"fmt"
	"os"
	"testing"

	"github.com/galleyfs/galley/vm/jail"
)

// testDir holds what all tests share.
var testDir string

func TestMain(m *testing.M) {
	jail.Init()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if testDir, err = os.MkdirTemp("", "galley-qemu-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(testDir)
	return m.Run()
}
