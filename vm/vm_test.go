package vm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckSaysWhatIsWrong(t *testing.T) {
	good := func() Config {
		return Config{CPUs: 1, Memory: 256 << 20, Agent: os.Stdin, Console: os.Stdout}
	}
	if c := good(); c.Check() != nil {
		t.Fatal(c.Check())
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no CPU":      {func(c *Config) { c.CPUs = 0 }, "0 CPUs: 1 to 64"},
		"many CPUs":   {func(c *Config) { c.CPUs = 65 }, "65 CPUs: 1 to 64"},
		"memory":      {func(c *Config) { c.Memory = 64 << 20 }, "64 MiB of memory are too little: the least is 128 MiB"},
		"accelerator": {func(c *Config) { c.Accel = "hvf" }, `accelerator "hvf"`},
		"newline":     {func(c *Config) { c.Cmdline = "quiet\npanic=1" }, "newline"},
		"no agent":    {func(c *Config) { c.Agent = nil }, "agent"},
		"no console":  {func(c *Config) { c.Console = nil }, "console"},
	} {
		t.Run(name, func(t *testing.T) {
			v := good()
			c.change(&v)
			if err := v.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check: %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	err := error(&Missing{What: "no QEMU", Fix: "apt install it", Err: unix.ENOENT})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v wraps neither", err)
	}
	if got, want := err.Error(), "no QEMU: no such file or directory; apt install it"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
