package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	dnsPort = 53
	// maxQuery is far above what a question can be, and maxAnswer what one
	// over UDP may be (EDNS).
	maxQuery  = 4096
	maxAnswer = 65535

	dnsTry  = 4 * time.Second  // for one resolver
	dnsIdle = 10 * time.Second // between the queries of one flow or connection
)

// dnsOverUDP answers the queries of one flow.
func (n *Network) dnsOverUDP(guest *gonet.UDPConn) {
	stop := context.AfterFunc(n.ctx, func() { _ = guest.Close() })
	defer stop()
	buf := make([]byte, maxQuery)
	for {
		_ = guest.SetReadDeadline(time.Now().Add(dnsIdle))
		k, err := guest.Read(buf)
		if err != nil {
			return
		}
		if answer := n.resolve(buf[:k], "udp4"); answer != nil {
			_, _ = guest.Write(answer)
		}
	}
}

// gatewayTCP takes connections to the gateway itself, which are for DNS or
// refused.
func (n *Network) gatewayTCP(r *tcp.ForwarderRequest, port uint16) {
	if port != dnsPort {
		r.Complete(true)
		return
	}
	guest, ok := acceptGuest(r)
	if !ok {
		return
	}
	defer guest.Close()
	stop := context.AfterFunc(n.ctx, func() { _ = guest.Close() })
	defer stop()
	for {
		_ = guest.SetDeadline(time.Now().Add(dnsIdle))
		query, err := readDNS(guest, maxQuery)
		if err != nil {
			return
		}
		answer := n.resolve(query, "tcp4")
		if answer == nil || writeDNS(guest, answer) != nil {
			return
		}
	}
}

// readDNS reads a message of DNS over TCP, which comes after its length.
func readDNS(r io.Reader, most int) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	k := int(binary.BigEndian.Uint16(head[:]))
	if k > most {
		return nil, errors.New("DNS message too long")
	}
	b := make([]byte, k)
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeDNS(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// resolve answers one query of the guest, nil if it is none. It is decided on
// by its name and goes to the host's resolvers, one after the other, under
// a number of its own: what comes back is for the guest only if it answers it.
func (n *Network) resolve(query []byte, network string) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil || head.OpCode != 0 {
		return refusal(head, nil, dnsmessage.RCodeFormatError)
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return refusal(head, &q, dnsmessage.RCodeFormatError)
	}
	if !take(n.queries) {
		return refusal(head, &q, dnsmessage.RCodeServerFailure)
	}
	defer release(n.queries)
	if !n.decide(Request{Proto: "dns", Name: strings.TrimSuffix(q.Name.String(), ".")}) {
		return refusal(head, &q, dnsmessage.RCodeRefused)
	}
	for _, resolver := range *n.resolvers.Load() {
		if answer := n.ask(query, q, resolver, network); answer != nil {
			binary.BigEndian.PutUint16(answer, head.ID)
			return answer
		}
		if n.ctx.Err() != nil {
			return nil
		}
	}
	return refusal(head, &q, dnsmessage.RCodeServerFailure)
}

// ask sends the query to one resolver and waits for its answer.
func (n *Network) ask(query []byte, q dnsmessage.Question, resolver netip.AddrPort, network string) []byte {
	ctx, cancel := context.WithTimeout(n.ctx, dnsTry)
	defer cancel()
	if !resolver.Addr().Is4() {
		network = strings.TrimSuffix(network, "4")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, resolver.String())
	if err != nil {
		return nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(dnsTry))
	out := append([]byte(nil), query...)
	id := uint16(rand.Uint32())
	binary.BigEndian.PutUint16(out, id)
	if strings.HasPrefix(network, "tcp") {
		if writeDNS(c, out) != nil {
			return nil
		}
		answer, err := readDNS(c, maxAnswer)
		if err != nil || !answers(answer, id, q) {
			return nil
		}
		return answer
	}
	if _, err := c.Write(out); err != nil {
		return nil
	}
	buf := make([]byte, maxAnswer)
	for {
		k, err := c.Read(buf)
		if err != nil {
			return nil
		}
		if answers(buf[:k], id, q) {
			return buf[:k]
		}
	}
}

// answers says whether b is an answer to the question q that was asked as id.
func answers(b []byte, id uint16, q dnsmessage.Question) bool {
	var p dnsmessage.Parser
	head, err := p.Start(b)
	if err != nil || !head.Response || head.ID != id {
		return false
	}
	got, err := p.Question()
	if err != nil {
		// Some servers leave the question out of an error.
		return errors.Is(err, dnsmessage.ErrSectionDone) && head.RCode != dnsmessage.RCodeSuccess
	}
	return got.Type == q.Type && got.Class == q.Class && strings.EqualFold(got.Name.String(), q.Name.String())
}

// refusal answers a query with nothing but a code.
func refusal(head dnsmessage.Header, q *dnsmessage.Question, code dnsmessage.RCode) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: head.ID, Response: true, OpCode: head.OpCode, RecursionDesired: head.RecursionDesired,
		RecursionAvailable: true, RCode: code,
	})
	if q != nil && b.StartQuestions() == nil {
		_ = b.Question(*q)
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}
