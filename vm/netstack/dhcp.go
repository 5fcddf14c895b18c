package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68

	dhcpFixed = 236 // bytes before the magic number (RFC 2131)
	dhcpMagic = "\x63\x82\x53\x63"
	dhcpLease = 24 * time.Hour

	dhcpDiscover, dhcpOffer, dhcpRequest, dhcpAck, dhcpNak = 1, 2, 3, 5, 6
)

// serveDHCP gives a guest that asks the one address there is. Galley's own
// agent does not ask: it is told.
func (n *Network) serveDHCP() error {
	var wq waiter.Queue
	ep, err := n.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		return failure("DHCP", err)
	}
	ep.SocketOptions().SetBroadcast(true)
	if err := ep.Bind(tcpip.FullAddress{NIC: nic, Port: dhcpServerPort}); err != nil {
		ep.Close()
		return failure("DHCP", err)
	}
	c := gonet.NewUDPConn(&wq, ep)
	go func() {
		defer c.Close()
		buf := make([]byte, MTU)
		for n.ctx.Err() == nil {
			k, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := dhcpReply(buf[:k]); reply != nil {
				to := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(broadcastIP.As4()), Port: dhcpClientPort}
				_, _ = ep.Write(bytes.NewReader(reply), tcpip.WriteOptions{To: &to})
			}
		}
	}()
	return nil
}

// dhcpReply answers one message, nil if it needs no answer.
func dhcpReply(b []byte) []byte {
	if len(b) < dhcpFixed+len(dhcpMagic) || b[0] != 1 || b[1] != 1 || b[2] != 6 || string(b[dhcpFixed:dhcpFixed+4]) != dhcpMagic {
		return nil
	}
	options, err := dhcpOptions(b[dhcpFixed+4:])
	if err != nil || len(options[53]) != 1 {
		return nil
	}
	guest, gateway := GuestIP.As4(), GatewayIP.As4()
	var kind byte
	switch options[53][0] {
	case dhcpDiscover:
		kind = dhcpOffer
	case dhcpRequest:
		kind = dhcpAck
		wanted := options[50]
		if len(wanted) == 0 {
			wanted = b[12:16] // it renews what it has
		}
		if !bytes.Equal(wanted, guest[:]) {
			kind = dhcpNak
		}
	default:
		return nil
	}
	out := make([]byte, dhcpFixed, 300)
	out[0], out[1], out[2] = 2, 1, 6
	copy(out[4:8], b[4:8])     // transaction
	copy(out[10:12], b[10:12]) // flags
	if kind != dhcpNak {
		copy(out[16:20], guest[:])
	}
	copy(out[20:24], gateway[:])
	copy(out[28:44], b[28:44]) // the client's hardware address
	out = append(out, dhcpMagic...)
	option := func(code byte, v ...byte) { out = append(append(out, code, byte(len(v))), v...) }
	option(53, kind)
	option(54, gateway[:]...)
	if kind != dhcpNak {
		option(51, binary.BigEndian.AppendUint32(nil, uint32(dhcpLease/time.Second))...)
		option(1, 255, 255, 255, 0)
		option(3, gateway[:]...)
		option(6, gateway[:]...)
		option(26, binary.BigEndian.AppendUint16(nil, MTU)...)
	}
	return append(out, 255)
}

// dhcpOptions reads the options of a message.
func dhcpOptions(b []byte) (map[byte][]byte, error) {
	out := map[byte][]byte{}
	for len(b) > 0 {
		switch code := b[0]; code {
		case 0:
			b = b[1:]
		case 255:
			return out, nil
		default:
			if len(b) < 2 || len(b) < 2+int(b[1]) {
				return nil, fmt.Errorf("DHCP option %d is cut off", code)
			}
			out[code] = b[2 : 2+int(b[1])]
			b = b[2+int(b[1]):]
		}
	}
	return out, nil
}
