package netstack

import (
	"fmt"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// The guest's network, the same for every guest: no two of them share one.
var (
	// GuestIP is the guest's address.
	GuestIP = netip.AddrFrom4([4]byte{192, 168, 127, 2})
	// GatewayIP is the address of this stack: gateway, resolver, DHCP server.
	GatewayIP = netip.AddrFrom4([4]byte{192, 168, 127, 1})
)

const (
	// PrefixBits is the length of the network's prefix.
	PrefixBits = 24
	// MTU is the largest packet.
	MTU = 1500
	// gatewayMAC is the stack's own hardware address: locally administered.
	gatewayMAC = tcpip.LinkAddress("\x5a\x94\xef\xe4\x0c\xdd")
)

// CmdlineParameter tells a guest's agent, on the kernel's command line, how to
// set its network up: galley.net=ADDRESS/PREFIX,GATEWAY,RESOLVER.
func CmdlineParameter() string {
	return fmt.Sprintf("galley.net=%s/%d,%s,%s", GuestIP, PrefixBits, GatewayIP, GatewayIP)
}

// special are the ranges that are not the public internet and not covered by
// netip's own predicates (RFC 6890 and its successors).
var special = func() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8",          // this network
		"100.64.0.0/10",      // carrier-grade NAT; some clouds' metadata is here
		"192.0.0.0/24",       // IETF assignments; Oracle's metadata
		"192.0.2.0/24",       // documentation
		"192.88.99.0/24",     // 6to4 relays
		"198.18.0.0/15",      // benchmarks
		"198.51.100.0/24",    // documentation
		"203.0.113.0/24",     // documentation
		"240.0.0.0/4",        // reserved, and broadcast
		"168.63.129.16/32",   // Azure's host, from every machine there
		"169.254.0.0/16",     // link-local: metadata of most clouds
		"255.255.255.255/32", // broadcast
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}()

// Reachable says why no guest may ever reach addr, whatever a policy says; nil
// if one may.
func Reachable(addr netip.Addr) error {
	addr = addr.Unmap()
	switch {
	case !addr.Is4():
		return fmt.Errorf("%s is no IPv4 address", addr)
	case addr.IsLoopback():
		return fmt.Errorf("%s is the host's loopback", addr)
	case addr.IsUnspecified(), netip.MustParsePrefix("0.0.0.0/8").Contains(addr):
		return fmt.Errorf("%s is the host itself", addr)
	case addr.IsLinkLocalUnicast():
		return fmt.Errorf("%s is link-local, where clouds keep their metadata", addr)
	case addr.IsMulticast(), netip.MustParsePrefix("240.0.0.0/4").Contains(addr):
		return fmt.Errorf("%s is no address of one host", addr)
	case netip.MustParsePrefix("168.63.129.16/32").Contains(addr):
		return fmt.Errorf("%s is the host of a cloud's machine", addr)
	}
	return nil
}

// Public says whether addr is an address of the public internet.
func Public(addr netip.Addr) bool {
	addr = addr.Unmap()
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, p := range special {
		if p.Contains(addr) {
			return false
		}
	}
	return true
}
