package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

const guestMAC = tcpip.LinkAddress("\x5a\x94\xef\xe4\x0c\xee")

// guest is a machine with a TCP/IP stack at the end of a network's device.
type guest struct {
	t     *testing.T
	conn  net.Conn
	stack *stack.Stack
	link  *channel.Endpoint

	mu sync.Mutex // frames are written whole
}

// newGuest is a guest on the connection conn.
func newGuest(t *testing.T, conn net.Conn) *guest {
	t.Helper()
	g := &guest{t: t, conn: conn, link: channel.New(1024, MTU, guestMAC)}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	address := tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(GuestIP.As4()), PrefixLen: PrefixBits},
	}
	for _, err := range []tcpip.Error{
		g.stack.CreateNIC(nic, ethernet.New(g.link)),
		g.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: address.AddressWithPrefix.Subnet(), NIC: nic},
		{Destination: header.IPv4EmptySubnet, NIC: nic, Gateway: tcpip.AddrFrom4(GatewayIP.As4())},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			pkt := g.link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			var frame []byte
			for _, s := range pkt.AsSlices() {
				frame = append(frame, s...)
			}
			pkt.DecRef()
			g.sendFrame(frame)
		}
	})
	running.Go(func() {
		frames := newFrameReader(conn)
		for {
			frame, err := frames.next()
			if err != nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
			g.link.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
		running.Wait()
		g.stack.Close()
	})
	return g
}

func (g *guest) sendFrame(frame []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = writeFrame(g.conn, [][]byte{frame})
}

func full(addr netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(addr.Addr().As4()), Port: addr.Port()}
}

// dial opens a TCP connection from the guest.
func (g *guest) dial(to string) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, full(netip.MustParseAddrPort(to)), ipv4.ProtocolNumber)
}

// mustDial is dial, where it must succeed.
func (g *guest) mustDial(to string) *gonet.TCPConn {
	g.t.Helper()
	c, err := g.dial(to)
	if err != nil {
		g.t.Fatalf("connect to %s: %v", to, err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// dialUDP makes a UDP socket in the guest that talks to one place.
func (g *guest) dialUDP(to string) *gonet.UDPConn {
	g.t.Helper()
	raddr := full(netip.MustParseAddrPort(to))
	c, err := gonet.DialUDP(g.stack, nil, &raddr, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// ping sends echo requests until one is answered; false if none is in time.
func (g *guest) ping(to netip.Addr, within time.Duration) bool {
	var wq waiter.Queue
	ep, err := g.stack.NewEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, &wq)
	if err != nil {
		g.t.Fatal(err)
	}
	c := gonet.NewUDPConn(&wq, ep)
	defer c.Close()
	if err := ep.Connect(full(netip.AddrPortFrom(to, 0))); err != nil {
		g.t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	request := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+8))
	request.SetType(header.ICMPv4Echo)
	if _, err := c.Write(request); err != nil {
		g.t.Fatal(err)
	}
	_, rerr := c.Read(make([]byte, 256))
	return rerr == nil
}

// listen accepts TCP connections in the guest.
func (g *guest) listen(port int) net.Listener {
	g.t.Helper()
	ln, err := gonet.ListenTCP(g.stack, full(netip.AddrPortFrom(GuestIP, uint16(port))), ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// news wakes those who wait for something to be told.
type news struct {
	mu   sync.Mutex
	next chan struct{} // closed by tell
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}

// after is closed once more has been told than when it was asked for.
func (n *news) after() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

// waitFor waits until what n tells of makes ok true.
func waitFor(t *testing.T, what string, n *news, ok func() bool) {
	t.Helper()
	end := time.After(patience)
	for {
		more := n.after()
		if ok() {
			return
		}
		select {
		case <-more:
		case <-end:
			t.Fatalf("no %s", what)
		}
	}
}

// noted are the decisions of a network.
type noted struct {
	news news
	mu   sync.Mutex
	list []report
}

func (n *noted) decided(r Request, d Decision) {
	defer n.news.tell()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, report{Request: &r, Decision: &d})
}

// find is a decision that match says is the one.
func (n *noted) find(match func(Request, Decision) bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.list {
		if match(*r.Request, *r.Decision) {
			return true
		}
	}
	return false
}

// inProcess is a network in this process, with a guest on it.
func inProcess(t *testing.T, p Policy) (*guest, *Network, *noted) {
	t.Helper()
	told := &noted{}
	n, err := New(p, told.decided)
	if err != nil {
		t.Fatal(err)
	}
	n.SetResolvers([]netip.AddrPort{netip.MustParseAddrPort(internetIP + ":53")})
	a, b := connected(t)
	done := make(chan error, 1)
	go func() { done <- n.Run(a) }()
	g := newGuest(t, b)
	t.Cleanup(func() {
		n.Close()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the network goes on after it was closed")
		}
	})
	return g, n, told
}

// connected is a pair of connected stream sockets.
func connected(t *testing.T) (a, b net.Conn) {
	t.Helper()
	x, y, err := pair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	defer y.Close()
	if a, err = net.FileConn(x); err == nil {
		b, err = net.FileConn(y)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}
