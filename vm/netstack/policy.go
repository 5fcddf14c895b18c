package netstack

import (
	"context"
	"fmt"
	"net/netip"
)

// Request is something that a guest wants of the network.
type Request struct {
	// Proto is "tcp", "udp" or "dns".
	Proto string `json:"proto"`
	// Dst is where it wants to connect or send to; for dns it is not valid.
	Dst netip.AddrPort `json:"dst"`
	// Name is the name that it asks for, for dns.
	Name string `json:"name,omitempty"`
}

// Decision is what becomes of a request.
type Decision struct {
	// Allow lets it through.
	Allow bool `json:"allow"`
	// Rule says which rule decided, for the log.
	Rule string `json:"rule"`
}

// Policy decides on requests. It may be asked from any goroutine, once for
// each TCP connection, UDP flow and DNS question, after [Reachable] has said
// nothing against the address. It may take its time until ctx ends: the guest
// waits.
type Policy interface {
	Decide(ctx context.Context, r Request) Decision
}

// PublicOnly lets a guest resolve every name and reach the public internet,
// and nothing of the host's own networks.
type PublicOnly struct{}

// Decide implements [Policy].
func (PublicOnly) Decide(_ context.Context, r Request) Decision {
	if r.Proto == "dns" || Public(r.Dst.Addr()) {
		return Decision{Allow: true, Rule: "public"}
	}
	return Decision{Rule: fmt.Sprintf("%s is no public address", r.Dst.Addr())}
}
