package owner

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/galleyfs/galley/vm/netstack"
	"github.com/galleyfs/galley/vm/netstack/netstacktest"
)

// TestMachineWithANetwork runs TestGuestNetwork in a small internet of its own.
func TestMachineWithANetwork(t *testing.T) {
	cmd := netstacktest.Command("-test.run=^TestGuestNetwork$", "-test.v")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestGuestNetwork")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestGuestNetwork: a real guest reaches the internet, by name too, and nothing
// of the host; the host reaches a port of the guest that is forwarded; each
// decision is in the owner's log.
func TestGuestNetwork(t *testing.T) {
	if !netstacktest.Inside() {
		return // TestMachineWithANetwork runs it
	}
	host, err := net.Listen("tcp4", ":8080")
	check(t, err)
	defer host.Close()
	go func() {
		for {
			c, err := host.Accept()
			if err != nil {
				return
			}
			t.Errorf("the guest reached the host at %s", c.LocalAddr())
			_ = c.Close()
		}
	}()
	sess := guestSession(t)
	base := sess.Trees()[0].Base
	for _, name := range []string{"wget", "nc", "ping", "ip"} {
		check(t, os.Symlink("busybox", filepath.Join(base, "bin", name)))
	}
	c := ensure(t, sess, "test")
	r := machineOf(t)
	r.Net = true
	st, err := c.StartVM(t.Context(), r)
	check(t, err)
	if !st.Net {
		t.Errorf("the status is %+v", st)
	}
	if got := inGuest(t, c, "ping -c 1 -W 30 "+netstack.GatewayIP.String()+" >/dev/null && echo answered"); got != "answered\n" {
		t.Errorf("the gateway: %q; %s", got, inGuest(t, c, "ip addr; ip route"))
	}
	if got := inGuest(t, c, "wget -q -O - http://web.example/"); got != netstacktest.Page {
		t.Errorf("by name: %q", got)
	}
	if got := inGuest(t, c, "wget -q -O - http://"+netstacktest.InternetIP+"/"); got != netstacktest.Page {
		t.Errorf("by address: %q", got)
	}
	for _, to := range []string{netstacktest.HostIP + ":8080", "9.9.9.9:8080", "169.254.169.254", netstacktest.PrivateIP, netstack.GatewayIP.String() + ":8080"} {
		if got := inGuest(t, c, "wget -q -O - http://"+to+"/ 2>/dev/null || echo refused"); got != "refused\n" {
			t.Errorf("%s: %q", to, got)
		}
	}
	log, err := os.ReadFile(filepath.Join(sess.Dir(), LogFile))
	check(t, err)
	for _, want := range []string{"name=web.example", "to=" + netstacktest.InternetIP + ":80", "to=9.9.9.9:8080"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the owner's log has no %q:\n%s", want, log)
		}
	}

	f, err := c.ForwardVM(t.Context(), VMForward{Guest: 3000})
	if err != nil {
		log, _ = os.ReadFile(filepath.Join(sess.Dir(), LogFile))
		t.Fatalf("%v\n%s", err, log)
	}
	done := make(chan string, 1)
	go func() { done <- inGuest(t, c, "echo welcome | nc -l -p 3000") }()
	var got []byte
	for end := time.Now().Add(deadline); len(got) == 0 && time.Now().Before(end); {
		// Until the guest's program listens, the connection ends at once.
		conn, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.Host)))
		check(t, err)
		_ = conn.SetDeadline(time.Now().Add(deadline))
		_, _ = io.WriteString(conn, "knock\n")
		_ = conn.(*net.TCPConn).CloseWrite()
		got, _ = io.ReadAll(conn)
		_ = conn.Close()
	}
	if string(got) != "welcome\n" {
		t.Errorf("over the forwarded port: %q", got)
	}
	if in := <-done; in != "knock\n" {
		t.Errorf("the guest was told %q", in)
	}
	if _, err := c.ForwardVM(t.Context(), VMForward{Guest: 3000, Off: true}); err != nil {
		t.Error(err)
	}
}
