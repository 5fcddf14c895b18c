package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// fetch gets a page through the guest.
func (g *guest) fetch(address string) (string, error) {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return g.dial(address) }}
	defer tr.CloseIdleConnections()
	c := http.Client{Transport: tr, Timeout: patience}
	resp, err := c.Get("http://web.example/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func TestGuestReachesTheInternet(t *testing.T) {
	g, _, told := inProcess(t, PublicOnly{})
	body, err := g.fetch(internetIP + ":80")
	if err != nil || body != page {
		t.Fatalf("the page is %q, %v", body, err)
	}
	if !told.find(func(r Request, d Decision) bool {
		return r.Proto == "tcp" && r.Dst.String() == internetIP+":80" && d.Allow
	}) {
		t.Error("the connection was not noted")
	}

	// Much data, both ways at once, whole; then each direction ends by itself.
	sent := make([]byte, 4<<20)
	_, _ = rand.Read(sent)
	c := g.mustDial(internetIP + ":7")
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Fatalf("echo of %d bytes: %d bytes, %v", len(sent), len(got), err)
	}

	u := g.dialUDP(internetIP + ":7")
	echoUDP(t, u, []byte("one packet"))
	echoUDP(t, u, bytes.Repeat([]byte("x"), 8000)) // in fragments

	if _, err := g.dial(internetIP + ":81"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that nobody listens on: %v, want a refused connection", err)
	}
}

// echoUDP sends a packet until it comes back: packets may be lost.
func echoUDP(t *testing.T, c *gonet.UDPConn, b []byte) {
	t.Helper()
	buf := make([]byte, 65536)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if k, err := c.Read(buf); err == nil && bytes.Equal(buf[:k], b) {
			return
		}
	}
	t.Fatalf("a packet of %d bytes did not come back", len(b))
}

// TestNothingOfTheHost: no policy reaches the host, loopback, link-local
// addresses or what lies in their place.
func TestNothingOfTheHost(t *testing.T) {
	ln, err := net.Listen("tcp4", ":8080") // on every address of the host
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go acceptAll(ln, func(c net.Conn) {
		t.Errorf("the guest reached the host at %s", c.LocalAddr())
		_ = c.Close()
	})
	pc, err := net.ListenPacket("udp4", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		if _, from, err := pc.ReadFrom(make([]byte, 16)); err == nil {
			t.Errorf("the guest reached the host from %s", from)
		}
	}()
	g, _, told := inProcess(t, allowAll{})
	for _, addr := range []string{
		hostIP, "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", "9.9.9.9", "9.9.8.77", "169.254.169.254", "169.254.1.1",
		"168.63.129.16", "240.0.0.1", GatewayIP.String(), "8.8.4.255",
	} {
		to := addr + ":8080"
		if addr == "169.254.169.254" {
			to = addr + ":80" // somebody does listen there
		}
		if addr == "127.0.0.1" || addr == "127.1.2.3" || addr == "0.0.0.0" {
			// The guest's own stack would not send these, and the network's
			// drops them as it should: made by hand, and done with when the
			// gateway has answered what came after.
			g.sendFrame(synFrame(netip.MustParseAddrPort(to)))
			if !g.ping(GatewayIP, patience) {
				t.Fatal("no answer from the gateway")
			}
			continue
		} else if c, err := g.dial(to); err == nil {
			t.Errorf("connected to %s", to)
			_ = c.Close()
		}
		if addr == GatewayIP.String() {
			continue // not a question of policy
		}
		waitFor(t, "a refusal of "+to, &told.news, func() bool {
			return told.find(func(r Request, d Decision) bool {
				return r.Proto == "tcp" && r.Dst.String() == to && !d.Allow && d.Rule != ""
			})
		})
		u := g.dialUDP(to)
		_, _ = u.Write([]byte("x"))
		waitFor(t, "a refusal of UDP to "+to, &told.news, func() bool {
			return told.find(func(r Request, d Decision) bool { return r.Proto == "udp" && r.Dst.String() == to && !d.Allow })
		})
	}
	if body, err := g.fetch(internetIP + ":80"); err != nil || body != page {
		t.Errorf("the internet, after all that: %q, %v", body, err)
	}
}

// allowAll is the most permissive of policies.
type allowAll struct{}

func (allowAll) Decide(context.Context, Request) Decision { return Decision{Allow: true, Rule: "all"} }

func TestPolicyDecides(t *testing.T) {
	g, _, told := inProcess(t, PublicOnly{})
	if c, err := g.dial(privateIP + ":80"); err == nil {
		_ = c.Close()
		t.Error("connected to a private address under PublicOnly")
	}
	if !told.find(func(r Request, d Decision) bool {
		return r.Dst.String() == privateIP+":80" && !d.Allow && strings.Contains(d.Rule, "public")
	}) {
		t.Error("the refusal was not noted")
	}
	g2, _, _ := inProcess(t, allowAll{})
	if body, err := g2.fetch(privateIP + ":80"); err != nil || body != page {
		t.Errorf("a private address that a policy allows: %q, %v", body, err)
	}
}

func TestPing(t *testing.T) {
	g, _, _ := inProcess(t, allowAll{})
	if !g.ping(GatewayIP, patience) {
		t.Error("the gateway does not answer an echo request")
	}
	// Nobody may answer in the name of another.
	if g.ping(netip.MustParseAddr(internetIP), 500*time.Millisecond) {
		t.Error("something answers an echo request to the internet")
	}
}

// ask asks the gateway for the address of a name.
func ask(t *testing.T, c net.Conn, overTCP bool, id uint16, name string) dnsmessage.Message {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	query, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	var answer []byte
	if overTCP {
		if err := writeDNS(c, query); err != nil {
			t.Fatal(err)
		}
		if answer, err = readDNS(c, maxAnswer); err != nil {
			t.Fatal(err)
		}
	} else {
		buf := make([]byte, maxAnswer)
		for end := time.Now().Add(patience); answer == nil; {
			if time.Now().After(end) {
				t.Fatalf("no answer about %s", name)
			}
			_, _ = c.Write(query)
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if k, err := c.Read(buf); err == nil {
				answer = buf[:k]
			}
		}
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("answer about %s: %v", name, err)
	}
	if m.ID != id || !m.Response {
		t.Fatalf("answer %+v is not to query %d", m.Header, id)
	}
	return m
}

func TestNames(t *testing.T) {
	g, n, told := inProcess(t, PublicOnly{})
	u := g.dialUDP(GatewayIP.String() + ":53")
	c := g.mustDial(GatewayIP.String() + ":53")
	for _, k := range []struct {
		over string
		conn net.Conn
		tcp  bool
	}{{"udp", u, false}, {"tcp", c, true}} {
		m := ask(t, k.conn, k.tcp, 4711, "web.example.")
		if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte(net.ParseIP(internetIP).To4()) {
			t.Errorf("over %s web.example is %v", k.over, m.Answers)
		}
		if m = ask(t, k.conn, k.tcp, 4712, "nowhere.test."); m.RCode != dnsmessage.RCodeNameError {
			t.Errorf("over %s nowhere.test gives %s", k.over, m.RCode)
		}
	}
	if !told.find(func(r Request, d Decision) bool { return r.Proto == "dns" && r.Name == "web.example" && d.Allow }) {
		t.Error("the question was not noted")
	}
	// With nobody to ask, the guest hears so at once.
	n.SetResolvers(nil)
	if m := ask(t, u, false, 4713, "web.example."); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("with no resolver: %s", m.RCode)
	}
	// A resolver that is dead is passed over.
	n.SetResolvers([]netip.AddrPort{netip.MustParseAddrPort(internetIP + ":54"), netip.MustParseAddrPort(internetIP + ":53")})
	if m := ask(t, u, false, 4714, "web.example."); len(m.Answers) != 1 {
		t.Errorf("with one dead resolver: %s", m.RCode)
	}
	refusing, _, _ := inProcess(t, refuseAll{})
	if m := ask(t, refusing.dialUDP(GatewayIP.String()+":53"), false, 1, "web.example."); m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("a name that the policy refuses: %s", m.RCode)
	}
}

// refuseAll is the strictest of policies.
type refuseAll struct{}

func (refuseAll) Decide(context.Context, Request) Decision { return Decision{Rule: "nothing"} }

func TestForward(t *testing.T) {
	g, n, _ := inProcess(t, PublicOnly{})
	ln := g.listen(3000)
	go acceptAll(ln, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	f, err := n.Forward(3000, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Host.Addr().IsLoopback() || f.Guest != 3000 {
		t.Fatalf("forwarded %+v", f)
	}
	if again, err := n.Forward(3000, 0); err != nil || again != f {
		t.Errorf("forwarded again: %+v, %v", again, err)
	}
	c, err := net.DialTimeout("tcp4", f.Host.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "knock"); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "knock" {
		t.Fatalf("the guest's answer is %q, %v", b, err)
	}
	if got := n.Forwards(); len(got) != 1 || got[0] != f {
		t.Errorf("the forwards are %v", got)
	}
	if err := n.Unforward(3000); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp4", f.Host.String()); err == nil {
		_ = c.Close()
		t.Error("the port is still there")
	}
	for _, p := range [][2]int{{0, 0}, {65536, 0}, {80, -1}, {80, 65536}} {
		if _, err := n.Forward(p[0], p[1]); err == nil {
			t.Errorf("forwarded %v", p)
		}
	}
}

// TestBounds: beyond its limits a guest is refused, and can go on when it has
// let go of something.
func TestBounds(t *testing.T) {
	g, n, told := inProcess(t, PublicOnly{})
	for range maxConnections {
		n.connections <- struct{}{}
	}
	if c, err := g.dial(internetIP + ":80"); err == nil {
		_ = c.Close()
		t.Error("one connection too many was accepted")
	}
	if !told.find(func(r Request, d Decision) bool { return d.Rule == "too many connections" }) {
		t.Error("the refusal was not noted")
	}
	<-n.connections
	if body, err := g.fetch(internetIP + ":80"); err != nil || body != page {
		t.Errorf("with a free place: %q, %v", body, err)
	}
	for range maxQueries {
		n.queries <- struct{}{}
	}
	if m := ask(t, g.dialUDP(GatewayIP.String()+":53"), false, 1, "web.example."); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("one query too many: %s", m.RCode)
	}
	for range maxForwards {
		n.forwards[70000+len(n.forwards)] = &forward{ln: nopListener{}}
	}
	if _, err := n.Forward(80, 0); err == nil {
		t.Error("one forward too many was made")
	}
}

type nopListener struct{ net.Listener }

func (nopListener) Close() error { return nil }

// TestBrokenFrames: what is no frame of this guest is dropped; what cannot be
// a frame ends the network.
func TestBrokenFrames(t *testing.T) {
	g, _, _ := inProcess(t, PublicOnly{})
	long := append(etherHeader(), make([]byte, 9000)...)
	for _, frame := range [][]byte{{}, {1}, make([]byte, 13), etherHeader(), long} {
		g.sendFrame(frame)
	}
	if !g.ping(GatewayIP, patience) {
		t.Fatal("the network does not go on after frames that it must drop")
	}
	a, b := connected(t)
	n, err := New(PublicOnly{}, func(Request, Decision) {})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(a) }()
	_, _ = b.Write(binary.BigEndian.AppendUint32(nil, 1<<31))
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "2147483648 bytes") {
			t.Errorf("a frame of 2 GiB ends it with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("a frame of 2 GiB does not end it")
	}
	_ = b.Close()
}

// TestAGuestThatTakesNothing does not hold the stack up: its frames are
// dropped, and the network can be closed.
func TestAGuestThatTakesNothing(t *testing.T) {
	a, b := connected(t)
	defer b.Close()
	n, err := New(PublicOnly{}, func(Request, Decision) {})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(a) }()
	arp := arpFrame()
	for range 20000 {
		if err := writeFrame(b, [][]byte{arp}); err != nil {
			t.Fatal(err)
		}
	}
	n.Close()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the network cannot be closed")
	}
}

func TestDHCP(t *testing.T) {
	guestIP := GuestIP.As4()
	message := func(kind byte, wanted []byte) []byte {
		b := make([]byte, dhcpFixed)
		b[0], b[1], b[2] = 1, 1, 6
		copy(b[4:8], "abcd")
		copy(b[28:34], guestMAC)
		b = append(append(b, dhcpMagic...), 53, 1, kind)
		if wanted != nil {
			b = append(append(b, 50, byte(len(wanted))), wanted...)
		}
		return append(b, 255)
	}
	for _, k := range []struct {
		name   string
		in     []byte
		answer byte
	}{
		{"discover", message(dhcpDiscover, nil), dhcpOffer},
		{"request", message(dhcpRequest, guestIP[:]), dhcpAck},
		{"request of another address", message(dhcpRequest, []byte{10, 0, 0, 1}), dhcpNak},
	} {
		out := dhcpReply(k.in)
		if len(out) < dhcpFixed+4 {
			t.Errorf("%s: no answer", k.name)
			continue
		}
		options, err := dhcpOptions(out[dhcpFixed+4:])
		if err != nil || options[53][0] != k.answer || string(out[4:8]) != "abcd" || string(out[28:34]) != string(guestMAC) {
			t.Errorf("%s: options %v, %v", k.name, options, err)
		}
		if k.answer != dhcpNak && (!bytes.Equal(out[16:20], guestIP[:]) || !bytes.Equal(options[1], []byte{255, 255, 255, 0})) {
			t.Errorf("%s: gives %v", k.name, out[16:20])
		}
	}
	// On the wire, from a guest that has no address yet.
	a, b := connected(t)
	n, err := New(PublicOnly{}, func(Request, Decision) {})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = n.Run(a) }()
	defer n.Close()
	if err := writeFrame(b, [][]byte{dhcpFrame(message(dhcpDiscover, nil))}); err != nil {
		t.Fatal(err)
	}
	_ = b.SetReadDeadline(time.Now().Add(patience))
	frame, err := newFrameReader(b).next()
	if err != nil {
		t.Fatal(err)
	}
	if string(frame[:6]) != broadcastMAC || addrOf(frame[30:34]) != broadcastIP || binary.BigEndian.Uint16(frame[36:38]) != dhcpClientPort {
		t.Errorf("the offer is the frame %x", frame[:42])
	}
}

func TestAddresses(t *testing.T) {
	for addr, public := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "10.1.2.3": false, "172.16.0.1": false, "172.32.0.1": true, "192.168.1.1": false,
		"100.64.0.1": false, "100.128.0.1": true, "127.0.0.1": false, "169.254.169.254": false, "224.0.0.1": false,
		"240.0.0.1": false, "255.255.255.255": false, "0.0.0.0": false, "192.0.0.192": false, "198.18.0.1": false,
		"::1": false, "::ffff:127.0.0.1": false, "::ffff:8.8.8.8": true, "fe80::1": false,
	} {
		if got := Public(netip.MustParseAddr(addr)); got != public {
			t.Errorf("Public(%s) = %v", addr, got)
		}
	}
	for addr, ok := range map[string]bool{
		"8.8.8.8": true, "10.1.2.3": true, "127.0.0.1": false, "127.255.255.255": false, "0.0.0.0": false, "0.1.2.3": false,
		"169.254.169.254": false, "224.0.0.251": false, "255.255.255.255": false, "250.1.1.1": false, "168.63.129.16": false,
		"2001:db8::1": false, "::ffff:127.0.0.1": false, "::1": false,
	} {
		if err := Reachable(netip.MustParseAddr(addr)); (err == nil) != ok {
			t.Errorf("Reachable(%s) = %v", addr, err)
		}
	}
}
