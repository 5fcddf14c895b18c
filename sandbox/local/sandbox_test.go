package local_test

import (
	"testing"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
	"github.com/galleyfs/galley/snapshots"
	"github.com/galleyfs/galley/snapshots/snapshotstest"
)

// newSession makes a session on base in a store of its own.
func newSession(t *testing.T, base string) *snapshots.Session {
	t.Helper()
	st, err := snapshots.OpenStore(t.TempDir(), snapshots.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	sess, err := st.Create(t.Context(), snapshots.Spec{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	return sess
}

func openSandbox(t *testing.T, base string) *local.Sandbox {
	t.Helper()
	return openIn(t, newSession(t, base))
}

// run runs a command that must end with status 0, and returns its output.
func run(t *testing.T, sb *local.Sandbox, command string) string {
	t.Helper()
	r, err := sb.Bash(t.Context(), sandbox.BashRequest{Command: command})
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("%s: status %d, %v\n%s", command, r.ExitCode, err, r.Output)
	}
	return string(r.Output)
}

func openIn(t *testing.T, sess *snapshots.Session) *local.Sandbox {
	t.Helper()
	t.Cleanup(func() { snapshotstest.WaitIdle(t, sess.Dir()) })
	sb, err := local.Open(t.Context(), local.Options{Session: sess})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Close(); err != nil {
			t.Error(err)
		}
	})
	return sb
}

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Harness{
		Kind: "local",
		Open: func(t *testing.T, base string) sandbox.Sandbox { return openSandbox(t, base) },
	})
}
