package krun

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/galleyfs/galley/vm/jail"
	"github.com/galleyfs/galley/vm/jail/jailtest"
)

func TestMain(m *testing.M) {
	jail.Init()
	if len(os.Args) == 2 && os.Args[0] == programPath && os.Args[1] == "escape" {
		escape()
	}
	Init()
	code := m.Run()
	for _, f := range atEnd {
		f()
	}
	os.Exit(code)
}

var atEnd []func()

const patience = 60 * time.Second

// escape is the program of a machine that has fallen to its guest.
func escape() {
	err := jail.Filter(jail.Machine)
	var o jailtest.Outside
	if err == nil {
		err = json.NewDecoder(os.NewFile(fdSetup, "world")).Decode(&o)
	}
	if err == nil {
		err = jailtest.Report(os.NewFile(fdState, "report"), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "escape:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// libraries are the real libkrun and libkrunfw: those of GALLEY_TEST_LIBKRUN,
// which scripts/test.sh fills, or those that npm fetches now, by the hashes of the
// lock file.
var libraries = sync.OnceValues(func() (string, error) {
	dir := os.Getenv("GALLEY_TEST_LIBKRUN")
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "galley-libkrun-"); err != nil {
			return "", err
		}
		atEnd = append(atEnd, func() { _ = os.RemoveAll(dir) })
		if err := os.CopyFS(dir, os.DirFS("testdata/libkrun")); err != nil {
			return "", err
		}
		cmd := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("npm ci: %w\n%s", err, out)
		}
		if err := arrange(dir); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "libkrun.so.1.17.4"), nil
})

// arrange puts the libraries of the packages into dir, as scripts/lib.sh does.
func arrange(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, "node_modules/*/*/lib/libkrun*.so.*.*"))
	if err != nil || len(found) != 2 {
		return errors.Join(err, fmt.Errorf("the packages have the libraries %v; expected libkrun and libkrunfw", found))
	}
	for _, f := range found {
		if err := os.Rename(f, filepath.Join(dir, filepath.Base(f))); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(dir, "node_modules"))
}

// real is the path of the real libkrun.
func real(t *testing.T) string {
	t.Helper()
	path, err := libraries()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
