package backends

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/harness"
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

// takeTurns has the answers for a name be these addresses, one after the other.
func (s *nameServer) takeTurns(name string, turns []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns[name] = turns
}

// turnsOf returns the answers that are left.
func (s *nameServer) turnsOf(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turns[name]
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

// inNamedNetwork runs a test in a network of its own, with a gateway on loops and
// then one on goroutines, which ask a server for names.
func inNamedNetwork(t *testing.T, s *nameServer, flags []string, test func(t *testing.T, n *network, p *harness.Process)) {
	t.Helper()
	inNetwork(t, func(t *testing.T, n *network) {
		startNames(t, "127.0.0.1:53", s)
		useNames(t, "127.0.0.1")
		for _, way := range []string{"-loops=0", "-loops=-1"} {
			p := harness.Start(t, append([]string{way}, flags...)...)
			test(t, n, p)
			if p.Runs() {
				p.End(t) // it would ask for names anew
			}
		}
	})
}

// dialed returns where connections have been begun since the last call, but for those
// of clients to the gateway.
func (n *network) dialed(t testing.TB, gateway string, clients ...string) (to []string) {
	t.Helper()
	for s, numbers := range n.seen(t) {
		if s.isClients(gateway, clients) {
			continue
		}
		for range numbers {
			to = append(to, s.to.String())
		}
	}
	slices.Sort(to)
	return to
}

func TestNoNameLeadsWhereTheGatewayMayNotGo(t *testing.T) {
	t.Parallel()
	inNamedNetwork(t, zoneOf(names), nil, func(t *testing.T, n *network, p *harness.Process) {
		backend := harness.StartEcho(t)
		for _, name := range names {
			status, reason, _ := strings.Cut(name.want, " ")
			answer, client := ask(p.Addr, harness.Line(name.name+":"+harness.PortOf(backend)))
			if answer != status {
				t.Errorf("%s: answered %q, want %s", name.name, answer, status)
			}
			var want []string
			if name.want == isServed {
				want = []string{backend}
			} else if line := p.Log.WaitClient(t, "refused", client); line["reason"] != reason || harness.Status(line) != status {
				t.Errorf("%s: logged %v, want %s", name.name, line, name.want)
			}
			if got := n.dialed(t, p.Addr, client); !slices.Equal(got, want) {
				t.Errorf("%s: dialed %v, want %v", name.name, got, want)
			}
		}
		p.End(t)
		denied := 0.0
		for _, name := range names {
			if name.want == isDenied {
				denied++
			}
		}
		if got := p.Log.WaitLine(t, "stopped", 1)["denied"]; got != denied {
			t.Errorf("%v denied, want %v", got, denied)
		}
	})
}

func TestNoNameLeadsBackToTheGateway(t *testing.T) {
	t.Parallel()
	self := []named{{"self.test", []string{"127.0.0.1"}, ""}, {"mapped.test", []string{"::ffff:127.0.0.1"}, ""},
		{"nat64.test", []string{"64:ff9b::7f00:1"}, ""}, {"zero.test", []string{"0.0.0.0", "::"}, ""}}
	inNamedNetwork(t, zoneOf(self), nil, func(t *testing.T, n *network, p *harness.Process) {
		for _, name := range self {
			answer, client := ask(p.Addr, harness.Line(name.name+":"+harness.PortOf(p.Addr)))
			if line := p.Log.WaitClient(t, "refused", client); answer != "502" || line["reason"] != "denied" {
				t.Errorf("%s: answered %q, logged %v", name.name, answer, line)
			}
			if got := n.dialed(t, p.Addr, client); len(got) > 0 {
				t.Errorf("%s: dialed %v", name.name, got)
			}
		}
	})
}

func TestRulesHoldForNames(t *testing.T) {
	t.Parallel()
	all := []named{{"one.test", []string{"127.0.0.1"}, "200"}, {"two.test", []string{"127.0.0.2"}, "502"}, {"both.test", []string{"127.0.0.2", "127.0.0.1"}, "200"}}
	inNamedNetwork(t, zoneOf(all), []string{"-allow=127.0.0.0/8", "-deny=127.0.0.2"}, func(t *testing.T, n *network, p *harness.Process) {
		backend := harness.StartEcho(t)
		for _, name := range all {
			answer, client := ask(p.Addr, harness.Line(name.name+":"+harness.PortOf(backend)))
			var want []string
			if name.want == isServed {
				want = []string{backend}
			}
			if got := n.dialed(t, p.Addr, client); answer != name.want || !slices.Equal(got, want) {
				t.Errorf("%s: answered %q, dialed %v; want %s, %v", name.name, answer, got, name.want, want)
			}
		}
	})
}

// Who owns a name may answer differently each time (DNS rebinding). Each
// connection is judged by the answer that it is made with, which is kept for a second
// at least.
func TestANameThatChangesIsJudgedEachTime(t *testing.T) {
	t.Parallel()
	s := zoneOf(nil)
	inNamedNetwork(t, s, []string{"-resolver=127.0.0.1:53"}, func(t *testing.T, n *network, p *harness.Process) {
		backend := harness.StartEcho(t)
		for _, ip := range []string{"127.0.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "127.0.0.1"} {
			s.takeTurns("rebind.test", []string{ip})
			want := isServed
			if ip != "127.0.0.1" {
				want = "502"
			}
			var clients []string
			served := 0
			harness.Eventually(t, "the new answer is used", func() bool {
				answer, client := ask(p.Addr, harness.Line("rebind.test:"+harness.PortOf(backend)))
				clients = append(clients, client)
				if answer == isServed {
					served++
				}
				time.Sleep(20 * time.Millisecond)
				return answer == want
			})
			if got := n.dialed(t, p.Addr, clients...); !slices.Equal(got, slices.Repeat([]string{backend}, served)) {
				t.Errorf("on the way to %s, dialed %v; want %s for each of the %d that were served", ip, got, backend, served)
			}
		}
	})
}

// A name is looked up once for a connection, and what was judged is what is
// dialed.
func TestNoAnswerIsAskedForBetweenTheJudgementAndTheDial(t *testing.T) {
	t.Parallel()
	s := zoneOf(nil)
	// The system would be asked twice, if it were slow, and a lost datagram sent again.
	flags := []string{"-resolver=127.0.0.1:53", "-resolver-timeout=" + harness.Patience.String()}
	inNamedNetwork(t, s, flags, func(t *testing.T, n *network, p *harness.Process) {
		s.takeTurns("rebind.test", []string{"127.0.0.1", "169.254.169.254"})
		c := harness.OpenTunnel(t, p.Addr, "rebind.test:"+harness.PortOf(harness.StartEcho(t)))
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
		if left := s.turnsOf("rebind.test"); len(left) != 1 {
			t.Errorf("answers left: %v", left)
		}
	})
}

func TestThePolicyJudgesWhereServicesLead(t *testing.T) {
	t.Parallel()
	inNetwork(t, func(t *testing.T, n *network) {
		for _, way := range []string{"-loops=0", "-loops=-1"} {
			all := startTargets(t, "ab")
			a, b := all[0], all[1]
			z := &zone{}
			p := harness.Start(t, way, "-resolver="+z.start(t), "-deny=127.0.0.0/8:"+harness.PortOf(a.addr))
			metadata := []string{game + ". 1 IN SRV 0 1 80 metadata.test.", "metadata.test. 1 IN A 169.254.169.254"}
			z.say(t, slices.Concat(metadata, srv(1, 1, a), srv(2, 1, b))...)
			n.seen(t) // what was before is no matter
			for range 3 {
				answer, client := ask(p.Addr, harness.Line("srv:"+game))
				if got := n.dialed(t, p.Addr, client); answer != "200b" || !slices.Equal(got, []string{b.addr}) {
					t.Errorf("a player got %q, and the gateway dialed %v; want 200b, %s alone", answer, got, b.addr)
				}
			}
			z.say(t, slices.Concat(metadata, srv(1, 1, a), srv(2, 1, b)[1:])...)
			harness.Eventually(t, "all that is left is denied", func() bool {
				answer, client := ask(p.Addr, harness.Line("srv:"+game))
				if answer == "200b" {
					return false // by the records of before
				}
				if line := p.Log.WaitClient(t, "refused", client); answer != "502" || line["reason"] != "denied" {
					t.Fatalf("a player got %q, logged: %v", answer, line)
				}
				return true
			})
			if n := a.accepted.Load(); n > 0 {
				t.Errorf("%d connects to what is denied", n)
			}
			p.End(t)
		}
	})
}
