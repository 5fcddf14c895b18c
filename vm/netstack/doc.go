// Package netstack is the network of a guest that was started with one: a TCP/IP stack
// in a process of its own, which takes ethernet frames from the
// machine's descriptor and opens ordinary sockets on the host for what the
// guest asks, if it may have it.
//
// The guest is hostile and the frames are its own, so:
//
//   - the process has no file system, is nobody on the host, and cannot execute
//     anything (vm/jail); all it has is the host's network;
//   - it opens no connection to the host itself, on loopback or any address
//     of its own, nor to link-local addresses, where clouds keep their metadata
//     service: see [Reachable]. No policy can allow them;
//   - everything else is decided by a [Policy], and each decision is logged;
//   - frames, connections, flows, queries, buffers and log lines are bounded.
//
// What the guest sees is an IPv4 network of two: itself, at [GuestIP], and the
// gateway at [GatewayIP], which answers echo requests, DHCP and DNS. DNS queries
// go to the resolvers of the host. TCP and UDP go out through the host's own
// addresses. There is no IPv6.
//
// A frame is preceded by its length, 32 bits, big endian, as QEMU's
// `-netdev stream` and libkrun's unixstream devices have it.
package netstack
