package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// What one guest may have at a time. Beyond these it is refused, and its
// programs see a refused connection or a lost packet.
const (
	maxConnections = 256 // TCP, both ways
	maxFlows       = 256 // UDP
	maxQueries     = 64  // DNS
	maxForwards    = 64
	maxQueued      = 1024 // frames that wait for the guest to take them
	// maxBuffer is what a connection may hold in each direction.
	maxBuffer = 512 << 10

	dialTimeout = 30 * time.Second
	udpIdle     = 60 * time.Second
)

const nic = 1

// Network is one guest's network, while [Network.Run] runs.
type Network struct {
	policy    Policy
	decided   func(Request, Decision)
	resolvers atomic.Pointer[[]netip.AddrPort]

	stack *stack.Stack
	link  *channel.Endpoint

	ctx    context.Context
	cancel context.CancelFunc

	connections, flows, queries chan struct{} // one token for each that is under way

	mu       sync.Mutex
	forwards map[int]*forward // by the guest's port
}

// New makes the network of one guest. decided is told each decision; it may be
// called from any goroutine, and must not wait.
func New(policy Policy, decided func(Request, Decision)) (*Network, error) {
	n := &Network{
		policy: policy, decided: decided,
		connections: make(chan struct{}, maxConnections),
		flows:       make(chan struct{}, maxFlows),
		queries:     make(chan struct{}, maxQueries),
		forwards:    map[int]*forward{},
	}
	// Otherwise a guest could fill the log with packets that are dropped.
	log.SetLevel(log.Warning)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.SetResolvers(nil)
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := n.setUp(); err != nil {
		n.cancel()
		return nil, fmt.Errorf("set the guest's network up: %w", err)
	}
	return n, nil
}

func (n *Network) setUp() error {
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 128 << 10, Max: maxBuffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 128 << 10, Max: maxBuffer}
	sack := tcpip.TCPSACKEnabled(true)
	n.link = channel.New(maxQueued, MTU, gatewayMAC)
	if err := errors.Join(
		failure("receive buffers", n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &rcv)),
		failure("send buffers", n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &snd)),
		failure("selective acknowledgements", n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)),
		failure("network device", n.stack.CreateNIC(nic, ethernet.New(n.link))),
	); err != nil {
		return err
	}
	address := tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(GatewayIP.As4()), PrefixLen: PrefixBits,
		},
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	return errors.Join(
		failure("address", n.stack.AddProtocolAddress(nic, address, stack.AddressProperties{})),
		// Every address of the internet is this stack's, as far as the
		// guest can tell.
		failure("promiscuous mode", n.stack.SetPromiscuousMode(nic, true)),
		failure("spoofing", n.stack.SetSpoofing(nic, true)),
		n.serveTCP(), n.serveUDP(), n.serveDHCP(),
	)
}

// failure makes an error of one of the stack's.
func failure(what string, err tcpip.Error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", what, err)
}

// Run carries frames between the guest's device and the stack until conn ends
// or fails, or the network is closed.
func (n *Network) Run(conn net.Conn) error {
	defer n.Close()
	stop := context.AfterFunc(n.ctx, func() { _ = conn.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- n.send(conn) }()
	err := n.receive(conn)
	n.cancel()
	if serr := <-sent; serr != nil {
		return fmt.Errorf("send to the guest: %w", serr)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("receive from the guest: %w", err)
}

func (n *Network) receive(r io.Reader) error {
	frames := newFrameReader(r)
	for {
		frame, err := frames.next()
		if err != nil {
			return err
		}
		n.inject(frame)
	}
}

// inject hands a frame of the guest to the stack, which keeps a copy.
func (n *Network) inject(frame []byte) {
	if !admit(frame) {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	n.link.InjectInbound(0, pkt)
}

// send writes to the guest what the stack has for it.
func (n *Network) send(w io.Writer) error {
	for {
		pkt := n.link.ReadContext(n.ctx)
		if pkt == nil {
			return nil
		}
		err := writeFrame(w, pkt.AsSlices())
		pkt.DecRef()
		if err != nil && n.ctx.Err() == nil {
			n.cancel()
			return err
		}
	}
}

// Close ends everything that the guest has.
func (n *Network) Close() {
	n.cancel()
	n.closeForwards()
	n.link.Close()
	n.stack.Close()
}

// SetResolvers says who answers the guest's DNS queries, in their order.
func (n *Network) SetResolvers(list []netip.AddrPort) { n.resolvers.Store(&list) }

// decide asks the policy about r, after what no policy can allow, and notes
// the answer.
func (n *Network) decide(r Request) bool {
	d := n.judge(r)
	n.decided(r, d)
	return d.Allow
}

func (n *Network) judge(r Request) Decision {
	if r.Proto != "dns" {
		if err := Reachable(r.Dst.Addr()); err != nil {
			return Decision{Rule: err.Error()}
		}
		if err := notOurs(r.Dst.Addr()); err != nil {
			return Decision{Rule: err.Error()}
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	return n.policy.Decide(ctx, r)
}

// take takes a token; without one left, the guest has too many already.
func take(tokens chan struct{}) bool {
	select {
	case tokens <- struct{}{}:
		return true
	default:
		return false
	}
}

func release(tokens chan struct{}) { <-tokens }

// destination is where the guest's end of id wants to be connected to.
func destination(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}
