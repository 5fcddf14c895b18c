package netstack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// logged takes what is logged.
type logged struct {
	news news
	mu   sync.Mutex
	b    bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	defer l.news.tell()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

// process starts a network in its own process, with a guest on it.
func process(t *testing.T) (*guest, *Process, *logged) {
	t.Helper()
	out := &logged{}
	p, device, err := Start(Options{Log: slog.New(slog.NewTextHandler(out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	conn, err := net.FileConn(device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return newGuest(t, conn), p, out
}

func TestProcess(t *testing.T) {
	g, p, out := process(t)
	body, err := g.fetch(internetIP + ":80")
	if err != nil || body != page {
		t.Fatalf("the page is %q, %v", body, err)
	}
	// The host's resolvers were told.
	m := ask(t, g.dialUDP(GatewayIP.String()+":53"), false, 9, "web.example.")
	if len(m.Answers) != 1 || m.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("web.example is %v, %s", m.Answers, m.RCode)
	}
	if c, err := g.dial(privateIP + ":80"); err == nil {
		_ = c.Close()
		t.Error("connected to a private address")
	}
	for _, want := range [][]string{
		{"proto=tcp", "to=" + internetIP + ":80", "allow=true"},
		{"proto=dns", "name=web.example", "allow=true"},
		{"proto=tcp", "to=" + privateIP + ":80", "allow=false"},
	} {
		waitFor(t, fmt.Sprintf("line of the log with %v", want), &out.news, func() bool { return out.has(want...) })
	}

	go acceptAll(g.listen(3000), func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f, err := p.Forward(ctx, 3000, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", f.Host.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "knock")
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "knock" {
		t.Errorf("the guest's answer is %q, %v", b, err)
	}
	if _, err := p.Forward(ctx, 0x10000, 0); err == nil || !strings.Contains(err.Error(), "65536") {
		t.Errorf("forwarding port 65536: %v", err)
	}
	if err := p.Unforward(ctx, 3000); err != nil {
		t.Error(err)
	}
	if err := p.Unforward(ctx, 3000); err == nil {
		t.Error("ended a forward that was not there")
	}
}

// TestProcessIsConfined: it has no file system, no capability, a filter, and
// no other user's rights.
func TestProcessIsConfined(t *testing.T) {
	g, p, _ := process(t)
	// It gives everything up before it answers anybody.
	if !g.ping(GatewayIP, patience) {
		t.Fatal("no answer from the gateway")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("no %q in its status:\n%s", want, status)
		}
	}
	if os.Getuid() == 0 && bytes.Contains(status, []byte("Uid:\t0\t")) && strings.HasPrefix(idMap(t), "0 0 4294967295") {
		t.Error("it is root")
	}
}

func idMap(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// TestProcessEnds with the guest's device, and with Close.
func TestProcessEnds(t *testing.T) {
	g, p, _ := process(t)
	_ = g.conn.Close()
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatal("it goes on without a guest")
	}
	if _, err := p.Forward(context.Background(), 1, 0); err == nil {
		t.Error("a network that has ended takes orders")
	}
	_, q, _ := process(t)
	pid := q.PID()
	q.Close()
	if err := unix.Kill(pid, 0); err == nil {
		t.Error("it runs after Close")
	}
}

func TestResolversOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "[127.0.0.1:53]",
		"# none\nsearch example\n":     "[127.0.0.1:53]",
		"nameserver 9.9.9.9\n":         "[9.9.9.9:53]",
		"nameserver ::1\nnameserver x": "[[::1]:53]",
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n": "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53]",
	} {
		if got := fmt.Sprint(resolversOf([]byte(text))); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
