package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// guestDial is how long a guest may take to accept a forwarded connection.
const guestDial = 10 * time.Second

// Forward is a port of the guest that stands on the host's loopback.
type Forward struct {
	// Guest is the guest's TCP port.
	Guest int `json:"guest"`
	// Host is where it stands on the host.
	Host netip.AddrPort `json:"host"`
}

type forward struct {
	Forward
	ln net.Listener
}

// Forward lets programs of the host reach a TCP port of the guest at a port of
// the host's loopback, 0 for any free one. A port that is forwarded already
// stays as it is.
func (n *Network) Forward(guest, host int) (Forward, error) {
	if guest < 1 || guest > 65535 || host < 0 || host > 65535 {
		return Forward{}, fmt.Errorf("port %d of the guest to %d: ports are 1 to 65535", guest, host)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if f := n.forwards[guest]; f != nil {
		if host == 0 || host == int(f.Host.Port()) {
			return f.Forward, nil
		}
		return Forward{}, fmt.Errorf("port %d of the guest is forwarded to %s already", guest, f.Host)
	}
	if len(n.forwards) >= maxForwards {
		return Forward{}, fmt.Errorf("%d ports are forwarded, which is the most", maxForwards)
	}
	if n.ctx.Err() != nil {
		return Forward{}, errors.New("the network has ended")
	}
	ln, err := net.Listen("tcp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(host)).String())
	if err != nil {
		return Forward{}, fmt.Errorf("forward port %d of the guest: %w", guest, err)
	}
	f := &forward{Forward{guest, ln.Addr().(*net.TCPAddr).AddrPort()}, ln}
	n.forwards[guest] = f
	go n.acceptForwarded(f)
	return f.Forward, nil
}

// Unforward ends a forward. Its connections go on.
func (n *Network) Unforward(guest int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.forwards[guest]
	if f == nil {
		return fmt.Errorf("port %d of the guest is not forwarded", guest)
	}
	delete(n.forwards, guest)
	return f.ln.Close()
}

// Forwards are those that there are, by the guest's port.
func (n *Network) Forwards() []Forward {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := []Forward{}
	for _, f := range n.forwards {
		out = append(out, f.Forward)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Guest < out[j].Guest })
	return out
}

func (n *Network) closeForwards() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for port, f := range n.forwards {
		_ = f.ln.Close()
		delete(n.forwards, port)
	}
}

func (n *Network) acceptForwarded(f *forward) {
	for {
		host, err := f.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-n.ctx.Done():
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, say
			}
			continue
		}
		go n.carryForwarded(f, host.(*net.TCPConn))
	}
}

// carryForwarded carries one connection of the host to the guest.
func (n *Network) carryForwarded(f *forward, host *net.TCPConn) {
	if !take(n.connections) {
		_ = host.Close()
		return
	}
	defer release(n.connections)
	ctx, cancel := context.WithTimeout(n.ctx, guestDial)
	defer cancel()
	to := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(GuestIP.As4()), Port: uint16(f.Guest)}
	from := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(GatewayIP.As4())}
	guest, err := gonet.DialTCPWithBind(ctx, n.stack, from, to, ipv4.ProtocolNumber)
	if err != nil {
		_ = host.Close()
		return
	}
	n.join(guest, host)
}
