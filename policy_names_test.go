package main

import (
	"context"
	"errors"
	"gateway/internal/flagvalue"
	"gateway/internal/policy"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/miekg/dns"
)

// No name leads where a literal may not: the policy judges what is dialed. A
// DNS server of the test says where names lead.

// nameServer answers for the domain "test". It counts what it is asked.
type nameServer struct {
	mu    sync.Mutex
	zone  map[string][]string // name in lower case → IP addresses, or "CNAME name"
	turns map[string][]string // name → the one address of each answer in turn; the last stays
}

// startNames serves a zone over UDP on addr until the test ends, and returns
// where.
func startNames(t testing.TB, addr string, s *nameServer) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, Handler: s, NotifyStartedFunc: func() { close(started) }}
	var serving sync.WaitGroup
	serving.Go(func() { server.ActivateAndServe() })
	<-started
	t.Cleanup(func() {
		server.Shutdown()
		serving.Wait()
	})
	return conn.LocalAddr().String()
}

// ServeDNS is dns.Handler's.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(query)
	q := query.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	found, known := s.lookUp(name, q.Qtype)
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	owner := q.Name
	for _, record := range found {
		if target, ok := strings.CutPrefix(record, "CNAME "); ok {
			reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header(owner, dns.TypeCNAME), Target: target + "."})
			owner = target + "."
			continue
		}
		switch ip := netip.MustParseAddr(record); {
		case ip.Is4() && q.Qtype == dns.TypeA:
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header(owner, dns.TypeA), A: ip.AsSlice()})
		case ip.Is6() && q.Qtype == dns.TypeAAAA:
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	w.WriteMsg(reply)
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET} // without a time to live
}

// lookUp returns what a name has, aliases followed.
func (s *nameServer) lookUp(name string, kind uint16) (found []string, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if turns := s.turns[name]; len(turns) > 0 {
		if kind == dns.TypeA && len(turns) > 1 {
			s.turns[name] = turns[1:]
		}
		return turns[:1], true
	}
	records, known := s.zone[name]
	for _, record := range records {
		found = append(found, record)
		if target, ok := strings.CutPrefix(record, "CNAME "); ok {
			more, _ := s.zone[target]
			found = append(found, more...)
		}
	}
	return found, known
}

// named is a name, where it leads, and what comes of a client that asks for
// it: as in try, or "served".
type named struct {
	name    string
	records []string
	want    string
}

// names all lead to 127.0.0.1 or where nobody may go.
var names = []named{
	{"allowed.test", []string{"127.0.0.1"}, "200"},
	{"unspecified.test", []string{"0.0.0.0"}, "502 denied"},
	{"unspecified6.test", []string{"::"}, "502 denied"},
	{"thisnetwork.test", []string{"0.1.2.3"}, "502 denied"},
	{"multicast.test", []string{"224.0.0.1", "239.1.2.3"}, "502 denied"},
	{"multicast6.test", []string{"ff02::1"}, "502 denied"},
	{"broadcast.test", []string{"255.255.255.255"}, "502 denied"},
	{"linklocal.test", []string{"169.254.0.1"}, "502 denied"},
	{"linklocal6.test", []string{"fe80::1"}, "502 denied"},
	{"metadata.test", []string{"169.254.169.254"}, "502 denied"},
	{"METADATA.Test", []string{"169.254.169.254"}, "502 denied"},
	{"alibaba.test", []string{"100.100.100.200"}, "502 denied"},
	{"aws6.test", []string{"fd00:ec2::254"}, "502 denied"},
	{"azure.test", []string{"168.63.129.16"}, "502 denied"},
	{"oracle.test", []string{"192.0.0.192"}, "502 denied"},
	{"mapped.test", []string{"::ffff:169.254.169.254"}, "502 denied"},
	{"mappedzero.test", []string{"::ffff:0.0.0.0"}, "502 denied"},
	{"nat64.test", []string{"64:ff9b::a9fe:a9fe"}, "502 denied"},
	{"6to4.test", []string{"2002:a9fe:a9fe::1"}, "502 denied"},
	{"several.test", []string{"169.254.169.254", "fd00:ec2::254", "0.0.0.0", "ff02::1", "fe80::1"}, "502 denied"},
	{"alias.test", []string{"CNAME metadata.test"}, "502 denied"},
	{"goodalias.test", []string{"CNAME allowed.test"}, "200"},
	// Of several addresses, the allowed ones are used.
	{"mixed.test", []string{"169.254.169.254", "127.0.0.1"}, "200"},
	{"mixed2.test", []string{"127.0.0.1", "0.0.0.0", "224.0.0.1"}, "200"},
	{"mixed6.test", []string{"fd00:ec2::254", "64:ff9b::a9fe:a9fe", "127.0.0.1"}, "200"},
	{"missing.test", nil, "502 unknown_host"},
}

// zoneOf is what a server has to say of names.
func zoneOf(all []named) *nameServer {
	s := &nameServer{zone: make(map[string][]string), turns: make(map[string][]string)}
	for _, n := range all {
		if n.records != nil {
			s.zone[strings.ToLower(n.name)] = n.records
		}
	}
	return s
}

// asking returns a resolver that asks a server.
func asking(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", server)
	}}
}

// dials notes where a gateway connects to by name, and lets it reach nothing
// but 127.0.0.1.
type dials struct {
	mu sync.Mutex
	to []string
}

func (d *dials) control(_, to string, _ syscall.RawConn) error {
	d.mu.Lock()
	d.to = append(d.to, to)
	d.mu.Unlock()
	if !strings.HasPrefix(to, "127.0.0.1:") {
		return errors.New("not in a test")
	}
	return nil
}

// taken returns the dials since the last call.
func (d *dials) taken() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	to := d.to
	d.to = nil
	return to
}

// onNames runs a test with a gateway that asks a server for names, on loops
// and on goroutines.
func onNames(t *testing.T, s *nameServer, configure func(*Config), test func(t *testing.T, g *testGateway, d *dials)) {
	for _, loops := range []int{0, -1} {
		t.Run(map[int]string{0: "loops", -1: "goroutines"}[loops], func(t *testing.T) {
			server := startNames(t, "127.0.0.1:0", s)
			d := &dials{}
			g := startConfigured(t, func(cfg *Config) {
				cfg.Loops = loops
				if configure != nil {
					configure(cfg)
				}
			}, func(g *Gateway) {
				g.dialer.resolver = asking(server)
				g.dialer.base.Control = d.control
			})
			test(t, g, d)
		})
	}
}

func TestNoNameLeadsWhereTheGatewayMayNotGo(t *testing.T) {
	onNames(t, zoneOf(names), nil, func(t *testing.T, g *testGateway, d *dials) {
		backend := startEcho(t)
		wantDenied := 0
		for i, n := range names {
			c := connect(t, g.addr)
			send(t, c, sealed(t, n.name+":"+portOf(backend)))
			c.CloseWrite()
			status, reason, _ := strings.Cut(n.want, " ")
			expectAll(t, c, status)
			got := d.taken()
			if n.want == "200" {
				if !slices.Equal(got, []string{backend}) {
					t.Errorf("%s: dialed %v, want %s alone", n.name, got, backend)
				}
				continue
			}
			if len(got) > 0 {
				t.Errorf("%s: dialed %v", n.name, got)
			}
			refused := 0
			for _, m := range names[:i+1] {
				if m.want != "200" {
					refused++
				}
			}
			if line := g.log.waitLine(t, "refused", refused); line["reason"] != reason || line["status"] != status {
				t.Errorf("%s: logged %v, want %s", n.name, line, n.want)
			}
			if reason == "denied" {
				wantDenied++
			}
		}
		if got := int(g.ledger.denied.Load()); got != wantDenied {
			t.Errorf("%d denied, want %d", got, wantDenied)
		}
	})
}

func TestNoNameLeadsBackToTheGateway(t *testing.T) {
	self := []named{{"self.test", []string{"127.0.0.1"}, ""}, {"mapped.test", []string{"::ffff:127.0.0.1"}, ""},
		{"nat64.test", []string{"64:ff9b::7f00:1"}, ""}, {"zero.test", []string{"0.0.0.0", "::"}, ""}}
	onNames(t, zoneOf(self), nil, func(t *testing.T, g *testGateway, d *dials) {
		for i, n := range self {
			c := connect(t, g.addr)
			send(t, c, sealed(t, n.name+":"+portOf(g.addr)))
			expectAll(t, c, "502")
			if line := g.log.waitLine(t, "refused", i+1); line["reason"] != "denied" {
				t.Errorf("%s: %v", n.name, line)
			}
		}
		if got := d.taken(); len(got) > 0 {
			t.Errorf("dialed %v", got)
		}
	})
}

func TestRulesHoldForNames(t *testing.T) {
	all := []named{{"one.test", []string{"127.0.0.1"}, ""}, {"two.test", []string{"127.0.0.2"}, ""}, {"both.test", []string{"127.0.0.2", "127.0.0.1"}, ""}}
	configure := func(cfg *Config) {
		if err := flagvalue.Sum(&cfg.Allow, policy.ParseRule, "").Set("127.0.0.0/8"); err != nil {
			t.Fatal(err)
		}
		if err := flagvalue.Sum(&cfg.Deny, policy.ParseRule, "").Set("127.0.0.2"); err != nil {
			t.Fatal(err)
		}
	}
	onNames(t, zoneOf(all), configure, func(t *testing.T, g *testGateway, d *dials) {
		backend := startEcho(t)
		for name, want := range map[string]string{"one.test": "200", "two.test": "502", "both.test": "200"} {
			c := connect(t, g.addr)
			send(t, c, sealed(t, name+":"+portOf(backend)))
			c.CloseWrite()
			expectAll(t, c, want)
		}
		if got := d.taken(); !slices.Equal(got, []string{backend, backend}) {
			t.Errorf("dialed %v", got)
		}
	})
}

// Who owns a name may answer differently each time (DNS rebinding). Each
// connection is judged by the answer that it is made with.
func TestANameThatChangesIsJudgedEachTime(t *testing.T) {
	for _, turns := range [][]string{
		{"127.0.0.1", "169.254.169.254", "127.0.0.1"},
		{"169.254.169.254", "127.0.0.1"},
		{"127.0.0.1", "127.0.0.1", "0.0.0.0"},
	} {
		t.Run(strings.Join(turns, " "), func(t *testing.T) {
			s := zoneOf(nil)
			onNames(t, s, nil, func(t *testing.T, g *testGateway, d *dials) {
				s.mu.Lock()
				s.turns["rebind.test"] = turns
				s.mu.Unlock()
				backend := startEcho(t)
				for _, ip := range turns {
					want, dialed := "200", 1
					if ip != "127.0.0.1" {
						want, dialed = "502", 0
					}
					c := connect(t, g.addr)
					send(t, c, sealed(t, "rebind.test:"+portOf(backend)))
					c.CloseWrite()
					expectAll(t, c, want)
					if got := d.taken(); len(got) != dialed {
						t.Errorf("%s: dialed %v", ip, got)
					}
				}
			})
		})
	}
}

// A name is looked up once for a connection, and what was judged is what is
// dialed.
func TestNoAnswerIsAskedForBetweenTheJudgementAndTheDial(t *testing.T) {
	s := zoneOf(nil)
	onNames(t, s, nil, func(t *testing.T, g *testGateway, d *dials) {
		s.mu.Lock()
		s.turns["rebind.test"] = []string{"127.0.0.1", "169.254.169.254"}
		s.mu.Unlock()
		c := openTunnel(t, g.addr, "rebind.test:"+portOf(startEcho(t)))
		send(t, c, "hello")
		c.CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if left := s.turns["rebind.test"]; len(left) != 1 {
			t.Errorf("answers left: %v", left)
		}
	})
}
