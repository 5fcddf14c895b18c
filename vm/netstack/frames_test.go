package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// etherHeader is that of an IPv4 frame from the guest to the gateway.
func etherHeader() []byte {
	return append([]byte(string(gatewayMAC)+string(guestMAC)), 0x08, 0x00)
}

// packet makes an IPv4 packet of the guest.
func packet(proto byte, src, dst netip.Addr, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:4], uint16(20+len(payload)))
	s, d := src.As4(), dst.As4()
	copy(b[12:16], s[:])
	copy(b[16:20], d[:])
	binary.BigEndian.PutUint16(b[10:12], ^checksum.Checksum(b, 0))
	return append(b, payload...)
}

// synFrame opens a TCP connection to an address, whatever it is.
func synFrame(to netip.AddrPort) []byte {
	segment := header.TCP(make([]byte, header.TCPMinimumSize))
	segment.Encode(&header.TCPFields{
		SrcPort: 40000, DstPort: to.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	s, d := GuestIP.As4(), to.Addr().As4()
	sum := checksum.Checksum(s[:], 0)
	sum = checksum.Checksum(d[:], sum)
	sum = checksum.Checksum([]byte{0, protoTCP, 0, byte(len(segment))}, sum)
	segment.SetChecksum(^segment.CalculateChecksum(sum))
	return append(etherHeader(), packet(protoTCP, GuestIP, to.Addr(), segment)...)
}

// arpFrame asks who the gateway is.
func arpFrame() []byte {
	b := append([]byte(broadcastMAC+string(guestMAC)), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(b, string(guestMAC)...)
	g, w := GuestIP.As4(), GatewayIP.As4()
	b = append(b, g[:]...)
	b = append(b, make([]byte, 6)...)
	return append(b, w[:]...)
}

// dhcpFrame carries a message of a guest that has no address.
func dhcpFrame(message []byte) []byte {
	u := make([]byte, 8, 8+len(message))
	binary.BigEndian.PutUint16(u[0:2], dhcpClientPort)
	binary.BigEndian.PutUint16(u[2:4], dhcpServerPort)
	binary.BigEndian.PutUint16(u[4:6], uint16(8+len(message)))
	u = append(u, message...)
	frame := append([]byte(broadcastMAC+string(guestMAC)), 0x08, 0x00)
	return append(frame, packet(protoUDP, netip.IPv4Unspecified(), broadcastIP, u)...)
}

func TestAdmit(t *testing.T) {
	other := netip.MustParseAddr("192.168.127.9")
	web := netip.MustParseAddr(internetIP)
	with := func(head []byte, p []byte) []byte { return append(head, p...) }
	arp := arpFrame()
	spoofedARP := arpFrame()
	copy(spoofedARP[28:32], []byte{192, 168, 127, 9})
	short := with(etherHeader(), packet(protoTCP, GuestIP, web, nil))
	binary.BigEndian.PutUint16(short[16:18], 4000) // says that it is longer
	fromGateway := with(etherHeader(), packet(protoTCP, GuestIP, web, nil))
	copy(fromGateway[6:12], gatewayMAC)
	for _, k := range []struct {
		name  string
		frame []byte
		ok    bool
	}{
		{"TCP to the internet", with(etherHeader(), packet(protoTCP, GuestIP, web, make([]byte, 20))), true},
		{"UDP to the gateway", with(etherHeader(), packet(protoUDP, GuestIP, GatewayIP, make([]byte, 8))), true},
		{"echo to the gateway", with(etherHeader(), packet(protoICMP, GuestIP, GatewayIP, make([]byte, 8))), true},
		{"who is the gateway", arp, true},
		{"DHCP", dhcpFrame(make([]byte, 240)), true},
		{"echo to the internet", with(etherHeader(), packet(protoICMP, GuestIP, web, make([]byte, 8))), false},
		{"another's address", with(etherHeader(), packet(protoTCP, other, web, make([]byte, 20))), false},
		{"to itself", with(etherHeader(), packet(protoTCP, GuestIP, GuestIP, make([]byte, 20))), false},
		{"broadcast", with(etherHeader(), packet(protoUDP, GuestIP, broadcastIP, make([]byte, 8))), false},
		{"multicast", with(etherHeader(), packet(protoUDP, GuestIP, netip.MustParseAddr("224.0.0.251"), make([]byte, 8))), false},
		{"another protocol", with(etherHeader(), packet(47, GuestIP, web, make([]byte, 8))), false},
		{"cut off", short, false},
		{"from the gateway's device", fromGateway, false},
		{"ARP of another", spoofedARP, false},
		{"IPv6", append([]byte(string(gatewayMAC)+string(guestMAC)), 0x86, 0xdd, 0x60), false},
		{"nothing", nil, false},
	} {
		if got := admit(k.frame); got != k.ok {
			t.Errorf("%s: admitted is %v", k.name, got)
		}
	}
}

// FuzzFrames feeds what a hostile device could send to the reader, the filter
// and the stack. What is admitted comes from the guest and goes to nobody that
// the stack would speak for; nothing panics, and nothing is dialled.
func FuzzFrames(f *testing.F) {
	one := func(frames ...[]byte) []byte {
		var b bytes.Buffer
		for _, frame := range frames {
			_ = writeFrame(&b, [][]byte{frame})
		}
		return b.Bytes()
	}
	web := netip.MustParseAddrPort(internetIP + ":80")
	f.Add(one(arpFrame(), synFrame(web)))
	f.Add(one(dhcpFrame(make([]byte, 240))))
	f.Add(one(append(etherHeader(), packet(protoUDP, GuestIP, GatewayIP, append([]byte{0, 9, 0, 53, 0, 20, 0, 0}, make([]byte, 12)...))...)))
	f.Add(one(append(etherHeader(), packet(protoICMP, GuestIP, GatewayIP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})...)))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	n, err := New(refuseAll{}, func(Request, Decision) {})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(n.Close)
	f.Fuzz(func(t *testing.T, b []byte) {
		frames := newFrameReader(bytes.NewReader(b))
		for {
			frame, err := frames.next()
			if err != nil {
				break
			}
			if len(frame) > MTU+etherLen {
				t.Fatalf("a frame of %d bytes", len(frame))
			}
			if admit(frame) && binary.BigEndian.Uint16(frame[12:14]) == typeIPv4 {
				src, dst := addrOf(frame[26:30]), addrOf(frame[30:34])
				if src != GuestIP && !src.IsUnspecified() || dst == GuestIP || frame[23] == protoICMP && dst != GatewayIP {
					t.Fatalf("admitted protocol %d from %s to %s", frame[23], src, dst)
				}
			}
			n.inject(frame)
		}
		for pkt := n.link.Read(); pkt != nil; pkt = n.link.Read() {
			pkt.DecRef()
		}
		_ = dhcpReply(b)
		_ = n.resolve(b, "udp4")
		_ = answers(b, 0, dnsQuestion)
	})
}

// dnsQuestion is one that no input answers but by guessing.
var dnsQuestion = dnsmessage.Question{Name: dnsmessage.MustNewName("web.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
