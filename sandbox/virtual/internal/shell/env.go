package shell

import (
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"mvdan.cc/sh/v3/expand"
)

// nowhere is a path that no system call is made for: the Go runtime refuses the
// NUL byte. The interpreter gets it where it would use a path on the host.
const nowhere = "/\x00"

// environ is the environment that a shell starts with. It also answers what
// the interpreter would otherwise ask the host for.
type environ struct {
	r    *run
	vars map[string]string
	// ready is set when the interpreter has been set up: only then is TMPDIR
	// what the script has. At set-up it takes TMPDIR for its own FIFOs, and
	// opens on the host whatever lies there under one of their names.
	ready atomic.Bool
}

func (r *run) environ(c shellCall) *environ {
	e := &environ{r: r, vars: map[string]string{}}
	for _, kv := range c.env {
		if name, val, ok := strings.Cut(kv, "="); ok {
			e.vars[name] = val
		}
	}
	return e
}

// Get implements [expand.Environ].
func (e *environ) Get(name string) expand.Variable {
	str := func(s string) expand.Variable { return expand.Variable{Set: true, Kind: expand.String, Str: s} }
	if user, ok := strings.CutPrefix(name, "HOME "); ok {
		// ~user: without an answer the interpreter reads the host's users.
		switch user {
		case "root":
			return str("/root")
		case userName:
			return str(e.r.script.Home)
		}
		return str("~" + user)
	}
	switch name {
	case "TMPDIR":
		if !e.ready.Load() {
			return str(nowhere)
		}
	case "HOME":
		if _, ok := e.vars[name]; !ok && !e.ready.Load() {
			return str("")
		}
	case "UID", "EUID":
		v := str(strconv.Itoa(e.r.script.UID))
		v.ReadOnly = true
		return v
	case "GID":
		return str(strconv.Itoa(e.r.script.UID))
	case "BASHPID":
		return str(strconv.FormatInt(e.r.pid, 10))
	case "SECONDS":
		return str(strconv.Itoa(int(time.Since(e.r.start).Seconds())))
	case "EPOCHSECONDS":
		return str(strconv.FormatInt(time.Now().Unix(), 10))
	case "EPOCHREALTIME":
		t := time.Now()
		return str(strconv.FormatInt(t.Unix(), 10) + "." + strconv.FormatInt(1_000_000+int64(t.Nanosecond()/1000), 10)[1:])
	}
	if s, ok := e.vars[name]; ok {
		v := str(s)
		v.Exported = true
		return v
	}
	if s, ok := fixed[name]; ok {
		return str(s)
	}
	return expand.Variable{}
}

// Each implements [expand.Environ].
func (e *environ) Each(fn func(name string, vr expand.Variable) bool) {
	for name := range e.vars {
		if !fn(name, e.Get(name)) {
			return
		}
	}
	for name := range fixed {
		if _, ok := e.vars[name]; !ok && !fn(name, e.Get(name)) {
			return
		}
	}
	// Subshells in the background are given copies of the variables.
	for _, name := range []string{"UID", "EUID", "BASHPID"} {
		if !fn(name, e.Get(name)) {
			return
		}
	}
}

// userName is who the script runs as.
const userName = "user"

// fixed are bash's own variables.
var fixed = map[string]string{
	"BASH":         "/bin/bash",
	"BASH_VERSION": "5.2.15(1)-release",
	"HOSTNAME":     "galley",
	"HOSTTYPE":     "x86_64",
	"MACHTYPE":     "x86_64-pc-linux-gnu",
	"OSTYPE":       "linux-gnu",
	"OPTERR":       "1",
	"PS4":          "+ ",
}

// exported is the environment that a command gets.
func exported(env expand.Environ, dir string) []string {
	vars := map[string]string{}
	var order []string
	for name, v := range env.Each {
		if _, seen := vars[name]; !seen {
			order = append(order, name)
		}
		if v.IsSet() && v.Exported && v.Kind == expand.String {
			vars[name] = name + "=" + v.String()
		} else {
			vars[name] = ""
		}
	}
	vars["PWD"] = "PWD=" + dir
	out := []string{vars["PWD"]}
	for _, name := range order {
		if kv := vars[name]; kv != "" && name != "PWD" {
			out = append(out, kv)
		}
	}
	return out
}
