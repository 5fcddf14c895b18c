package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/galleyfs/galley/vm/guest"
)

// configureNetwork brings up loopback and, with n, the guest's one device.
func configureNetwork(n *guest.Network) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		if n == nil {
			return nil // a kernel without a network
		}
		return fmt.Errorf("the guest's network: %w", err)
	}
	defer unix.Close(s)
	if err := up(s, "lo"); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	if n == nil {
		return nil
	}
	dev, err := device()
	if err != nil {
		return err
	}
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil || !prefix.Addr().Is4() {
		return fmt.Errorf("the guest's address %q: expected one such as 192.168.127.2/24", n.Address)
	}
	gateway, err := netip.ParseAddr(n.Gateway)
	if err != nil || !gateway.Is4() {
		return fmt.Errorf("the gateway %q: expected an IPv4 address", n.Gateway)
	}
	mask := net.CIDRMask(prefix.Bits(), 32)
	if err := setAddress(s, dev, unix.SIOCSIFADDR, prefix.Addr().AsSlice()); err != nil {
		return fmt.Errorf("set the address of %s: %w", dev, err)
	}
	if err := setAddress(s, dev, unix.SIOCSIFNETMASK, mask); err != nil {
		return fmt.Errorf("set the network of %s: %w", dev, err)
	}
	if n.MTU > 0 {
		r, err := unix.NewIfreq(dev)
		if err != nil {
			return err
		}
		r.SetUint32(uint32(n.MTU))
		if err := unix.IoctlIfreq(s, unix.SIOCSIFMTU, r); err != nil {
			return fmt.Errorf("set the MTU of %s: %w", dev, err)
		}
	}
	if err := up(s, dev); err != nil {
		return err
	}
	if err := addGateway(s, gateway.As4()); err != nil {
		return fmt.Errorf("set the gateway %s: %w", gateway, err)
	}
	return nil
}

// device is the first device that is not loopback.
func device() (string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list network devices: %w", err)
	}
	for _, i := range list {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) > 0 {
			return i.Name, nil
		}
	}
	return "", guest.Failuref(guest.Unsupported, "the guest has no network device (its kernel may lack virtio-net)")
}

func up(s int, dev string) error {
	r, err := unix.NewIfreq(dev)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return fmt.Errorf("network device %s: %w", dev, err)
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("bring up %s: %w", dev, err)
	}
	return nil
}

func setAddress(s int, dev string, req uint, a []byte) error {
	r, err := unix.NewIfreq(dev)
	if err != nil {
		return err
	}
	if err := r.SetInet4Addr(a); err != nil {
		return err
	}
	return unix.IoctlIfreq(s, req, r)
}

// rtentry is the kernel's struct rtentry where pointers have 64 bits.
type rtentry struct {
	_       uint64
	dst     unix.RawSockaddrInet4
	gateway unix.RawSockaddrInet4
	mask    unix.RawSockaddrInet4
	flags   uint16
	_       [6]byte
	_       [48]byte
}

// rtfUp and rtfGateway are the kernel's RTF_UP and RTF_GATEWAY.
const (
	rtfUp      = 1
	rtfGateway = 2
)

// addGateway makes the gateway the way to everywhere else.
func addGateway(s int, gateway [4]byte) error {
	inet := unix.RawSockaddrInet4{Family: unix.AF_INET}
	r := rtentry{dst: inet, gateway: inet, mask: inet, flags: rtfUp | rtfGateway}
	r.gateway.Addr = gateway
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r)))
	if errno != 0 && errno != unix.EEXIST {
		return errno
	}
	return nil
}
