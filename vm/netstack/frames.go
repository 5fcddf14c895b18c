package netstack

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
)

const (
	// maxFrame is the longest frame that ends nothing: a guest may set its
	// device to send more than [MTU], and then only loses what it sends.
	maxFrame = 65536 + etherLen
	etherLen = 14

	typeIPv4 = 0x0800
	typeARP  = 0x0806

	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

// frameReader reads frames, each after its length.
type frameReader struct {
	r   *bufio.Reader
	buf []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 256<<10), buf: make([]byte, MTU+etherLen)}
}

// next returns the next frame, which is valid until the call after. One that
// is longer than the device's packets is passed over; one that is longer than
// any device's is an error, because what follows it cannot be found.
func (f *frameReader) next() ([]byte, error) {
	for {
		var head [4]byte
		if _, err := io.ReadFull(f.r, head[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return nil, fmt.Errorf("a frame of %d bytes: the guest's device is broken or lies", n)
		}
		if int(n) > len(f.buf) {
			if _, err := f.r.Discard(int(n)); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := io.ReadFull(f.r, f.buf[:n]); err != nil {
			return nil, err
		}
		return f.buf[:n], nil
	}
}

// writeFrame writes one frame, in pieces, after its length.
func writeFrame(w io.Writer, pieces [][]byte) error {
	n := 0
	for _, p := range pieces {
		n += len(p)
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(n))
	bufs := append(net.Buffers{head[:]}, pieces...)
	_, err := bufs.WriteTo(w)
	return err
}

var (
	broadcastMAC = "\xff\xff\xff\xff\xff\xff"
	broadcastIP  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// admit says whether a frame of the guest goes into the stack. The stack is
// promiscuous, so that the guest can send to any address of the internet; what
// is stopped here is what it would otherwise answer in the name of others, and
// what claims to come from another than the guest.
func admit(frame []byte) bool {
	if len(frame) < etherLen {
		return false
	}
	dst, src := string(frame[0:6]), string(frame[6:12])
	if dst != string(gatewayMAC) && dst != broadcastMAC || src == string(gatewayMAC) || frame[6]&1 != 0 {
		return false
	}
	body := frame[etherLen:]
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case typeARP:
		return admitARP(body)
	case typeIPv4:
		return admitIPv4(body, dst == broadcastMAC)
	}
	return false
}

// admitARP lets through what asks for the gateway, and answers.
func admitARP(b []byte) bool {
	if len(b) < 28 || string(b[:6]) != "\x00\x01\x08\x00\x06\x04" {
		return false
	}
	op := binary.BigEndian.Uint16(b[6:8])
	sender, target := addrOf(b[14:18]), addrOf(b[24:28])
	return (op == 1 || op == 2) && sender == GuestIP && target == GatewayIP
}

func admitIPv4(b []byte, broadcast bool) bool {
	if len(b) < 20 || b[0]>>4 != 4 {
		return false
	}
	head := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:4]))
	if head < 20 || total < head || total > len(b) {
		return false
	}
	src, dst, payload := addrOf(b[12:16]), addrOf(b[16:20]), b[head:total]
	fragment := binary.BigEndian.Uint16(b[6:8]) & 0x1fff
	if b[9] == protoUDP && fragment == 0 && len(payload) >= 8 && binary.BigEndian.Uint16(payload[2:4]) == dhcpServerPort {
		return (dst == broadcastIP || dst == GatewayIP) && (src == GuestIP || src.IsUnspecified())
	}
	if broadcast || src != GuestIP || dst == GuestIP || dst == broadcastIP || dst.IsMulticast() {
		return false
	}
	switch b[9] {
	case protoTCP, protoUDP:
		return true
	case protoICMP:
		return dst == GatewayIP
	}
	return false
}

func addrOf(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
