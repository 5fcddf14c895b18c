package netstack

import (
	"context"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// serveUDP gives each flow of the guest, from one of its ports to one place, a
// socket of the host, until nothing has come or gone for a while.
func (n *Network) serveUDP() error {
	f := udp.NewForwarder(n.stack, n.acceptUDP)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, f.HandlePacket)
	return nil
}

// acceptUDP takes the first packet of a flow. It is called on the goroutine
// that reads frames, and must not wait.
func (n *Network) acceptUDP(r *udp.ForwarderRequest) bool {
	dst := destination(r.ID())
	if !take(n.flows) {
		n.decided(Request{Proto: "udp", Dst: dst}, Decision{Rule: "too many flows"})
		return true
	}
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	if err != nil {
		release(n.flows)
		return true
	}
	guest := gonet.NewUDPConn(&wq, ep)
	go func() {
		defer release(n.flows)
		defer guest.Close()
		switch {
		case dst.Addr() != GatewayIP:
			n.carryUDP(guest, Request{Proto: "udp", Dst: dst})
		case dst.Port() == dnsPort:
			n.dnsOverUDP(guest)
		}
	}()
	return true
}

func (n *Network) carryUDP(guest *gonet.UDPConn, r Request) {
	if !n.decide(r) {
		return
	}
	host, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.Dst))
	if err != nil {
		return
	}
	defer host.Close()
	stop := context.AfterFunc(n.ctx, func() { _, _ = guest.Close(), host.Close() })
	defer stop()
	f := &flow{}
	f.touch()
	var both sync.WaitGroup
	both.Go(func() { f.carry(host, guest) })
	both.Go(func() { f.carry(guest, host) })
	both.Wait()
}

// flow knows when something last went over it, either way.
type flow struct {
	mu   sync.Mutex
	last time.Time
}

func (f *flow) touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = time.Now()
}

// idle is how long nothing has gone over it.
func (f *flow) idle() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.last)
}

// carry copies packets until the flow has been idle, or is closed. An error of
// one packet (a port that nobody listens on, one that is too long) loses it
// and no more.
func (f *flow) carry(dst, src net.Conn) {
	buf := make([]byte, 65536)
	for {
		_ = src.SetReadDeadline(time.Now().Add(udpIdle))
		k, err := src.Read(buf)
		if err != nil {
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() && f.idle() < udpIdle {
				continue
			}
			_, _ = dst.Close(), src.Close()
			return
		}
		f.touch()
		_, _ = dst.Write(buf[:k])
	}
}
