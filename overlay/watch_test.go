package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Closing a tree while its base changes ends: the watcher, which takes the
// admission lock for each event, is not waited for under that lock.
func TestCloseWhileTheBaseChanges(t *testing.T) {
	for round := range 20 {
		tr, f, dir := newTestTree(t, map[string]string{"d/x": "1"})
		n, _, err := f.Walk("d/x") // looks up, so that the directories are watched
		if err != nil {
			t.Fatal(err)
		}
		f.Forget(n, 1)
		f.Detach()
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				p := filepath.Join(dir, "base", "d", fmt.Sprint(i%4))
				_ = os.WriteFile(p, nil, 0o644)
				_ = os.Remove(p)
			}
		}()
		closed := make(chan error, 1)
		go func() { closed <- tr.Close() }()
		select {
		case err = <-closed:
		case <-time.After(20 * time.Second):
			t.Fatalf("round %d: Close did not return", round)
		}
		close(stop)
		<-stopped
		if err != nil {
			t.Fatal(err)
		}
	}
}
