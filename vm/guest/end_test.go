package guest

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

// A guest that takes nothing of what it is sent is given up when it is told to
// end a command, also while input is being sent to it.
func TestEndWithoutReader(t *testing.T) {
	defer func(d time.Duration) { endPatience = d }(endPatience)
	endPatience = 50 * time.Millisecond
	host, far := net.Pipe()
	defer far.Close()
	go func() {
		f := &frames{rw: far}
		if _, _, err := f.receive(); err == nil {
			_ = f.sendValue(frameStarted, started{PID: 1})
		}
	}()
	k, err := NewClient(func(context.Context) (net.Conn, error) { return host, nil }).Start(t.Context(), Exec{Line: "x"}, func(int, []byte) {})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := k.Write(t.Context(), make([]byte, maxData))
		wrote <- err
	}()
	// Some of it has come, so that the rest is on its way.
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		k.End()
		close(ended)
	}()
	patience := time.After(time.Minute)
	for what, c := range map[string]<-chan struct{}{"End": ended, "Gone": k.Gone()} {
		select {
		case <-c:
		case <-patience:
			_ = far.Close()
			t.Fatalf("%s: nothing within a minute", what)
		}
	}
	if err := <-wrote; !errors.Is(err, ErrGone) {
		t.Errorf("the input: %v", err)
	}
	if _, known, err := k.Status(); known || err == nil {
		t.Errorf("known %v, %v", known, err)
	}
}
