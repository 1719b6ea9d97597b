package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/layer"
)

const (
	// udpSize is the largest datagram that is asked for. Larger ones may be
	// fragmented on the way, which loses and forges them easily (DNS flag day
	// 2020; RFC 9715).
	udpSize = 1232
	// rounds is how often a server is asked that stays silent.
	rounds = 2
	// maxServers is how many name servers of a file are asked, as by libc
	// (resolv.conf(5), MAXNS).
	maxServers = 3
)

// client asks name servers. Its methods are safe for concurrent use.
type client struct {
	servers func() ([]string, error) // HOST:PORT of at least one
	first   atomic.Uint32            // the index of the server to begin with: the last that answered
}

// query asks one question, until a server says that there is or that there is
// not what was asked for. ctx must have a deadline. Every error is a
// *net.DNSError.
func (c *client) query(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	servers, err := c.servers()
	if err != nil {
		return nil, &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: name, IsTemporary: true}
	}
	first, order := int(c.first.Load()), make([]int, len(servers))
	for i := range order {
		order[i] = (first + i) % len(servers)
	}
	// A question that was asked again stays open: a server that is slow, time and
	// again, would else never be in time.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make(chan reply, rounds*len(order))
	open := 0
	for round := range rounds {
		var silent []int
		for i, s := range order {
			left := len(order)*(rounds-round) - i // tries, at most
			go func() {
				m, err := ask(ctx, servers[s], name, qtype)
				replies <- reply{s, m, err}
			}()
			open++
			next := time.NewTimer(share(ctx, left))
			for waiting := true; waiting; {
				select {
				case <-next.C:
					silent, waiting = append(silent, s), false
				case r := <-replies:
					open--
					if err = r.err; err == nil {
						next.Stop()
						c.first.Store(uint32(r.server))
						return r.m, nil
					}
					// Another's that is late, or what was asked for now.
					if waiting = r.server != s; waiting {
						silent = slices.DeleteFunc(silent, func(s int) bool { return s == r.server })
					} else if layer.IsTimeout(err) {
						silent = append(silent, s)
					}
				}
			}
			next.Stop()
		}
		order = silent // who has refused will refuse at once again
	}
	for ; open > 0; open-- {
		r := <-replies
		if r.err == nil {
			c.first.Store(uint32(r.server))
			return r.m, nil
		}
		err = r.err
	}
	return nil, err
}

// reply is what came of one question to a server.
type reply struct {
	server int
	m      *dns.Msg
	err    error
}

// share returns an equal share of the time that is left for so many tries.
func share(ctx context.Context, tries int) time.Duration {
	deadline, _ := ctx.Deadline()
	return time.Until(deadline) / time.Duration(tries)
}

// ask asks one server.
func ask(ctx context.Context, server, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype) // with a random id
	q.SetEdns0(udpSize, false)
	m, err := exchange(ctx, "udp", server, q)
	if err == nil && m.Truncated {
		m, err = exchange(ctx, "tcp", server, q)
	}
	if err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		err = fmt.Errorf("server misbehaving: %s", dns.RcodeToString[m.Rcode])
	}
	if err != nil {
		return nil, &net.DNSError{
			UnwrapErr:   err,
			Err:         err.Error(),
			Name:        strings.TrimSuffix(name, "."),
			Server:      server,
			IsTimeout:   layer.IsTimeout(err),
			IsTemporary: true,
		}
	}
	return m, nil
}

// exchange sends a question from a port of its own and waits for the response.
// The socket is connected, so that the kernel drops what others send, and tells
// when nobody listens there.
func exchange(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	c := dns.Conn{Conn: conn, UDPSize: udpSize}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		packet, err := c.ReadMsgHeader(nil)
		if err != nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		m := new(dns.Msg)
		if err == nil {
			err = m.Unpack(packet) // what comes before a fault is in m
		}
		if responds(m, q) && (err == nil || m.Truncated && network == "udp") {
			return m, nil
		}
		if network == "tcp" {
			return nil, errors.New("server misbehaving: cannot read its response")
		}
		// Garbage or a forgery, maybe. The right response may still come.
	}
}

// responds tells whether m is a response to the question q.
func responds(m, q *dns.Msg) bool {
	return m.Response && m.Id == q.Id && m.Opcode == q.Opcode && len(m.Question) == 1 &&
		m.Question[0].Qtype == q.Question[0].Qtype &&
		m.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(m.Question[0].Name, q.Question[0].Name)
}

// systemServers returns the name servers in a file in the form of
// resolv.conf(5). It is read for each question, since it may change, and
// questions are few.
func systemServers(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	servers := nameServers(f)
	if len(servers) == 0 {
		return nil, fmt.Errorf("no name server in %s", file)
	}
	return servers, nil
}

func nameServers(r io.Reader) []string {
	cfg, err := dns.ClientConfigFromReader(r)
	if err != nil {
		return nil
	}
	var servers []string
	for _, s := range cfg.Servers {
		ip, err := netip.ParseAddr(s)
		if err == nil && len(servers) < maxServers {
			servers = append(servers, netip.AddrPortFrom(ip, 53).String())
		}
	}
	return servers
}
