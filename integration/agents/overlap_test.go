package agents

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/galleyfs/galley/sandbox/events"
	"github.com/galleyfs/galley/snapshots"
)

// changesOf are the changes that the events of calls list, by path, with whose
// they were: the calls that are named, or "?" where that is unknown.
func changesOf(list []events.Event) map[string]string {
	out := map[string]string{}
	for _, e := range list {
		for _, c := range e.Changes {
			switch {
			case len(c.By) > 0:
				out[c.Path] = strings.Join(c.By, "+")
			case len(e.Others) > 0:
				out[c.Path] = "?"
			default:
				out[c.Path] = e.Tool
			}
		}
	}
	return out
}

// TestOverlappingCalls: where calls overlap, each change is put to the call
// whose process made it, in the events and in the history.
func TestOverlappingCalls(t *testing.T) {
	p := newProject(t)
	s, ctx := connect(t, p, nil)
	callTool(ctx, t, s, "Bash", m{"command": "echo alone > alone; mkfifo ready"})
	var running sync.WaitGroup
	running.Go(func() {
		// A process that leaves its parents behind is still of the call.
		cmd := "echo 2 > from-2; (setsid sh -c 'echo 2 > from-2-setsid' &); until [ -e from-2-setsid ]; do sleep 0.02; done; " +
			"touch up; echo up > ready; until [ -e go ]; do sleep 0.02; done; echo 2 > after; echo 2 >> both"
		if text, r := callTool(ctx, t, s, "Bash", m{"command": cmd}); r.IsError {
			t.Error(text)
		}
	})
	callTool(ctx, t, s, "Bash", m{"command": "read x < ready"})
	callTool(ctx, t, s, "Bash", m{"command": "echo 3 > from-3; echo 3 > both"})
	callTool(ctx, t, s, "Write", m{"path": "written", "content": "x"})
	callTool(ctx, t, s, "Write", m{"path": "go", "content": ""})
	running.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	got := changesOf(readEvents(t, p))
	calls := map[string]string{} // without their numbers
	for _, path := range slices.Sorted(maps.Keys(got)) {
		name, _, _ := strings.Cut(got[path], " ")
		calls[path] = name
	}
	two, three := got["from-2"], got["from-3"]
	if !strings.HasPrefix(two, "Bash #") || got["from-2-setsid"] != two || got["up"] != two {
		t.Errorf("what the long command did is put to %v", got)
	}
	if !strings.HasPrefix(three, "Bash #") || three == two || got["alone"] != "Bash" {
		t.Errorf("what the short ones did is put to %v", got)
	}
	if calls["written"] != "Write" || calls["go"] != "Write" || got["after"] != "Bash" && got["after"] != two {
		t.Errorf("the rest is put to %v", got)
	}
	byHistory := map[string]string{}
	for _, snap := range history(t, p) {
		for _, c := range snap.Changes {
			if len(c.By) > 0 {
				byHistory[string(c.Path)] = strings.Join(c.By, "+")
			}
		}
	}
	if byHistory["from-2"] != two || byHistory["from-3"] != three {
		t.Errorf("the history puts it to %v", byHistory)
	}
}

// history is the history of the project's session.
func history(t *testing.T, p project) []snapshots.Snapshot {
	t.Helper()
	st, err := snapshots.OpenStore(p.home, snapshots.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	list, err := st.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	sess, err := st.Find(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	h, err := sess.History()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestChangesBetweenCalls: what was changed while no call ran is a checkpoint
// of its own, before the next one.
func TestChangesBetweenCalls(t *testing.T) {
	p := newProject(t)
	s, ctx := connect(t, p, nil)
	callTool(ctx, t, s, "Bash", m{"command": "echo 1 > first"})
	if out, code := p.galley(t, "tool", "Bash", "--json", `{"command":"true"}`); code != 0 {
		t.Fatal(out)
	}
	name := sessionName(t, p)
	dir := filepath.Join(t.TempDir(), "at")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, code := p.galley(t, "mount", name, dir); code != 0 {
		t.Fatalf("galley mount: %d, %s", code, out)
	}
	write := exec.Command("sh", "-c", "echo x > outside") // this process must not touch the mount
	write.Dir = "/"
	write.Args[2] = "echo x > " + dir + "/outside"
	if out, err := write.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	callTool(ctx, t, s, "Bash", m{"command": "echo 2 > second"})
	if out, code := p.galley(t, "unmount", dir); code != 0 {
		t.Fatalf("galley unmount: %d, %s", code, out)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	var got []string
	for _, snap := range history(t, p) {
		for _, c := range snap.Changes {
			got = append(got, string(snap.Cause.Kind)+" "+string(c.Path))
		}
	}
	if want := []string{"tool first", "before outside", "tool second"}; !slices.Equal(got, want) {
		t.Errorf("history %v, want %v", got, want)
	}
}

func sessionName(t *testing.T, p project) string {
	t.Helper()
	st, err := snapshots.OpenStore(p.home, snapshots.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	list, err := st.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	return list[0].Name
}
