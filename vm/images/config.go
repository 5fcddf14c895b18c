package images

import (
	"fmt"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Config is how an image wants to be run.
type Config struct {
	Env          []string          `json:"env,omitempty"` // KEY=VALUE
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"working_dir,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	StopSignal   string            `json:"stop_signal,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	OS           string            `json:"os"`
	Architecture string            `json:"architecture"`
	Variant      string            `json:"variant,omitempty"`
}

func configOf(c *v1.ConfigFile) Config {
	return Config{
		Env: c.Config.Env, User: c.Config.User, WorkingDir: c.Config.WorkingDir,
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, StopSignal: c.Config.StopSignal,
		ExposedPorts: sortedKeys(c.Config.ExposedPorts), Volumes: sortedKeys(c.Config.Volumes), Labels: c.Config.Labels,
		OS: c.OS, Architecture: c.Architecture, Variant: c.Variant,
	}
}

func sortedKeys(m map[string]struct{}) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Command is what to run: the image's entry point, followed by args or, where
// there are none, by the image's own arguments.
func (c Config) Command(args []string) ([]string, error) {
	if len(args) == 0 {
		args = c.Cmd
	}
	out := slices.Concat(c.Entrypoint, args)
	if len(out) == 0 || out[0] == "" {
		return nil, fmt.Errorf("%w; name one", ErrNoCommand)
	}
	return out, nil
}

// DefaultPath is the PATH where the image sets none, as in other tools.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environ is the image's environment with overrides: KEY=VALUE sets, KEY alone
// removes.
func (c Config) Environ(over ...string) []string {
	env := slices.Clone(c.Env)
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append([]string{"PATH=" + DefaultPath}, env...)
	}
	for _, o := range over {
		key, _, set := strings.Cut(o, "=")
		at := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		switch {
		case at >= 0 && set:
			env[at] = o
		case at >= 0:
			env = slices.Delete(env, at, at+1)
		case set:
			env = append(env, o)
		}
	}
	return env
}

// Dir is the directory to run in: over, below the image's own where it is not
// absolute, or the image's.
func (c Config) Dir(over string) string {
	if path.IsAbs(over) {
		return path.Clean(over)
	}
	return path.Join("/", c.WorkingDir, over)
}
