package local_test

import (
	"errors"
	"os"
)

func runProbes(name string) error { return errors.New("none") }

func inside(args []string) error {
	for _, kv := range os.Environ() {
		if _, err := os.Stdout.WriteString(kv + "\x00"); err != nil {
			return err
		}
	}
	return nil
}
