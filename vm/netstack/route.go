package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notOurs says why addr belongs to this host, or has no way to it; nil if it is
// another host. The kernel's own routing table is asked, each time: it knows
// every address of the host and every range that is delivered locally, as they
// are now.
func notOurs(addr netip.Addr) error {
	kind, err := routeKind(addr)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("the host has no route to %s", addr)
	case err != nil:
		return fmt.Errorf("ask for the route to %s: %w", addr, err)
	case kind == unix.RTN_LOCAL:
		return fmt.Errorf("%s is an address of the host itself", addr)
	case kind != unix.RTN_UNICAST:
		return fmt.Errorf("%s is no address of one other host", addr)
	}
	return nil
}

// routeKind is the type of the route that the kernel would take to addr
// (rtnetlink(7), RTM_GETROUTE).
func routeKind(addr netip.Addr) (uint8, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	timeout := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return 0, err
	}
	const attrLen = unix.SizeofRtAttr + 4
	msg := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg+attrLen)
	head := (*unix.NlMsghdr)(unsafe.Pointer(&msg[0]))
	head.Len, head.Type, head.Flags, head.Seq = uint32(len(msg)), unix.RTM_GETROUTE, unix.NLM_F_REQUEST, 1
	route := (*unix.RtMsg)(unsafe.Pointer(&msg[unix.SizeofNlMsghdr]))
	route.Family, route.Dst_len = unix.AF_INET, 32
	attr := msg[unix.SizeofNlMsghdr+unix.SizeofRtMsg:]
	binary.NativeEndian.PutUint16(attr[0:], attrLen)
	binary.NativeEndian.PutUint16(attr[2:], unix.RTA_DST)
	ip := addr.As4()
	copy(attr[4:], ip[:])
	if err := unix.Sendto(s, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 8192)
	k, _, err := unix.Recvfrom(s, buf, 0)
	if err != nil {
		return 0, err
	}
	if k < unix.SizeofNlMsghdr+4 {
		return 0, unix.EPROTO
	}
	switch binary.NativeEndian.Uint16(buf[4:6]) {
	case unix.NLMSG_ERROR:
		errno := -int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:]))
		if errno == 0 {
			return 0, unix.EPROTO
		}
		return 0, unix.Errno(errno)
	case unix.RTM_NEWROUTE:
		if k < unix.SizeofNlMsghdr+unix.SizeofRtMsg {
			return 0, unix.EPROTO
		}
		return (*unix.RtMsg)(unsafe.Pointer(&buf[unix.SizeofNlMsghdr])).Type, nil
	}
	return 0, unix.EPROTO
}
