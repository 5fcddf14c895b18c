package netstack

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// serveTCP answers each connection that the guest opens: it is accepted once
// the host's own connection to the place stands, and refused if that is.
func (n *Network) serveTCP() error {
	f := tcp.NewForwarder(n.stack, 0, maxConnections, n.acceptTCP)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, f.HandlePacket)
	return nil
}

func (n *Network) acceptTCP(r *tcp.ForwarderRequest) {
	dst := destination(r.ID())
	if !take(n.connections) {
		n.decided(Request{Proto: "tcp", Dst: dst}, Decision{Rule: "too many connections"})
		r.Complete(true)
		return
	}
	defer release(n.connections)
	if dst.Addr() == GatewayIP {
		n.gatewayTCP(r, dst.Port())
		return
	}
	if !n.decide(Request{Proto: "tcp", Dst: dst}) {
		r.Complete(true)
		return
	}
	host, err := n.dialTCP(dst.String())
	if err != nil {
		r.Complete(true)
		return
	}
	guest, ok := acceptGuest(r)
	if !ok {
		_ = host.Close()
		return
	}
	n.join(guest, host)
}

// acceptGuest completes the guest's handshake.
func acceptGuest(r *tcp.ForwarderRequest) (*gonet.TCPConn, bool) {
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	if err != nil {
		r.Complete(true)
		return nil, false
	}
	r.Complete(false)
	ep.SocketOptions().SetKeepAlive(true)
	return gonet.NewTCPConn(&wq, ep), true
}

func (n *Network) dialTCP(address string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: 60 * time.Second, FallbackDelay: -1}
	c, err := d.DialContext(ctx, "tcp4", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// halfCloser is a connection whose directions end one by one.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join copies both ways until both have ended, or either has failed, or the
// network is closed.
func (n *Network) join(a, b halfCloser) {
	stop := context.AfterFunc(n.ctx, func() { _, _ = a.Close(), b.Close() })
	defer stop()
	var both sync.WaitGroup
	carry := func(dst, src halfCloser) {
		if _, err := io.Copy(dst, src); err != nil {
			_, _ = a.Close(), b.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	both.Go(func() { carry(a, b) })
	both.Go(func() { carry(b, a) })
	both.Wait()
	_, _ = a.Close(), b.Close()
}
