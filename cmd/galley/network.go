package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/snapshots"
)

// network is what a command in a session can reach, until network policies
// exist: the local sandbox has the host's network, the virtual one none, a
// machine none or, with --net, the public internet.
type network string

const (
	hostNetwork   network = "host"
	noNetwork     network = "none"
	publicNetwork network = "public"
)

func machineNetwork(net bool) network {
	if net {
		return publicNetwork
	}
	return noNetwork
}

// sandboxKind is a sandbox as --sandbox names it.
type sandboxKind string

const (
	inLocal   sandboxKind = "local"
	inVirtual sandboxKind = "virtual"
	inMachine sandboxKind = "microvm"
)

// sandboxFile keeps, in a session's directory, which sandbox it was last used
// with; a session that has none was used with the local one. It is shown to
// people and scripts, and nothing else depends on it.
const sandboxFile = "sandbox"

// noteSandbox keeps that the session is used with a sandbox. A failure costs a
// line of galley status.
func noteSandbox(sess *snapshots.Session, kind sandboxKind, log *slog.Logger) {
	if lastSandbox(sess) == kind {
		return
	}
	path := filepath.Join(sess.Dir(), sandboxFile)
	if err := os.WriteFile(path, []byte(kind+"\n"), 0o600); err != nil {
		log.Debug("note the sandbox", "err", err)
	}
}

func lastSandbox(sess *snapshots.Session) sandboxKind {
	b, err := os.ReadFile(filepath.Join(sess.Dir(), sandboxFile))
	if err != nil {
		return inLocal
	}
	return sandboxKind(strings.TrimSpace(string(b)))
}

// lastNetwork is the network of the sandbox that the session was last used with.
func lastNetwork(sess *snapshots.Session) network {
	switch lastSandbox(sess) {
	case inVirtual:
		return noNetwork
	case inMachine:
		if r, err := owner.LastVM(sess); err == nil {
			return machineNetwork(r.Net)
		}
	}
	return hostNetwork
}

// networkLine says a network to a person. Running tells that it is that of a
// machine which runs.
func networkLine(n network, used sandboxKind, running bool) string {
	switch {
	case n == hostNetwork:
		return "the host's"
	case n == publicNetwork && running:
		return "the public internet, through a network of Galley's own; nothing of this host"
	case n == publicNetwork:
		return "the public internet (its machine, which has ended, was started with --net); nothing of this host"
	case running:
		return "none (its machine was started without --net)"
	case used == inVirtual:
		return "none (it was last used with --sandbox virtual)"
	}
	return "none (its machine, which has ended, was started without --net)"
}
