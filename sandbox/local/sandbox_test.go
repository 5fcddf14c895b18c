package local_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/galleyfs/galley/sandbox"
	"github.com/galleyfs/galley/sandbox/local"
	"github.com/galleyfs/galley/sandbox/owner"
	"github.com/galleyfs/galley/sandbox/sandboxtest"
	"github.com/galleyfs/galley/snapshots"
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
	sess := newSession(t, base)
	t.Cleanup(func() { waitNoOwner(t, sess) })
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

// waitNoOwner waits until the session's owner has ended.
func waitNoOwner(t *testing.T, sess *snapshots.Session) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		c, err := owner.Dial(context.Background(), sess)
		if errors.Is(err, owner.ErrNoOwner) {
			return
		}
		if err == nil {
			_ = c.Close()
		}
	}
	t.Error("the session's owner does not end")
}

func TestConformance(t *testing.T) {
	sandboxtest.Run(t, sandboxtest.Harness{
		Kind: "local",
		Open: func(t *testing.T, base string) sandbox.Sandbox { return openSandbox(t, base) },
	})
}
