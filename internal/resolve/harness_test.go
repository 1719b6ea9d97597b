package resolve

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/harness"
)

// patient bounds what should take no time.
const patient = 20 * time.Second

func TestMain(m *testing.M) { harness.Main(m) }

var eventually = harness.Eventually

// server is a name server on 127.0.0.1, by UDP and TCP.
type server struct {
	addr string

	mu      sync.Mutex
	zone    []dns.RR
	asked   []string // "NAME TYPE "
	respond func(w dns.ResponseWriter, q *dns.Msg)
}

// serve starts a server for the records of a zone.
func serve(t testing.TB, zone ...string) *server {
	t.Helper()
	s := &server{}
	s.set(t, zone...)
	s.respond = s.answer
	var packets net.PacketConn
	var l net.Listener
	for range 100 { // until a port is free for both
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
	}
	if l == nil {
		t.Fatal("no port is free")
	}
	s.addr = packets.LocalAddr().String()
	for _, d := range []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: l, Handler: s}} {
		started, ended := make(chan struct{}), make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			d.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			d.Shutdown()
			<-ended
		})
	}
	return s
}

// set replaces the zone.
func (s *server) set(t testing.TB, zone ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone = nil
	for _, line := range zone {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		s.zone = append(s.zone, rr)
	}
}

// behave replaces how the server responds; nil is by its zone.
func (s *server) behave(f func(w dns.ResponseWriter, q *dns.Msg)) {
	if f == nil {
		f = s.answer
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.respond = f
}

// hold keeps responses back until release is called.
func (s *server) hold(t testing.TB) (release func()) {
	gate := make(chan struct{})
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		<-gate
		s.answer(w, q)
	})
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	return release
}

func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	s.asked = append(s.asked, q.Question[0].Name+" "+dns.TypeToString[q.Question[0].Qtype]+" ")
	f := s.respond
	s.mu.Unlock()
	f(w, q)
}

// queries returns how often a question came, of which this is the beginning.
func (s *server) queries(question string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, a := range s.asked {
		if strings.HasPrefix(a, question) {
			n++
		}
	}
	return n
}

// answer responds by the zone, and follows aliases in it.
func (s *server) answer(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(s.reply(q)) }

func (s *server) reply(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	s.mu.Lock()
	defer s.mu.Unlock()
	name, exists := q.Question[0].Name, false
	for i := 0; i < len(s.zone); i++ {
		h := s.zone[i].Header()
		if !strings.EqualFold(h.Name, name) {
			continue
		}
		exists = true
		if h.Rrtype == q.Question[0].Qtype {
			m.Answer = append(m.Answer, s.zone[i])
		} else if c, ok := s.zone[i].(*dns.CNAME); ok && len(m.Answer) < 20 {
			m.Answer = append(m.Answer, c)
			name, exists, i = c.Target, false, -1
		}
	}
	if !exists && len(m.Answer) == 0 {
		m.Rcode = dns.RcodeNameError
	}
	return m
}

// fails responds with a code for an error.
func fails(rcode int) func(w dns.ResponseWriter, q *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
}

func silence(dns.ResponseWriter, *dns.Msg) {}

// clock is moved by hand.
type clock struct{ now atomic.Int64 }

func (c *clock) forward(d time.Duration) { c.now.Add(int64(d)) }

// start returns a resolver that asks a server, and its clock.
func start(t testing.TB, o Options) (*Resolver, *clock) {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = patient
	}
	r, c := New(o), &clock{}
	now := func() time.Duration { return time.Duration(c.now.Load()) }
	r.addresses.now, r.services.now = now, now
	t.Cleanup(r.Close)
	return r, c
}

func lookup(t testing.TB, r *Resolver, name string) string {
	t.Helper()
	ips, err := r.Addresses(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return join(ips)
}

// cached returns what is at hand, or "none".
func cached(r *Resolver, name string) string {
	if a := r.addresses.find(r.addressKey(name)); a != nil && a.err == nil {
		return join(a.values)
	}
	return "none"
}

func join(ips []netip.Addr) string {
	var s []string
	for _, ip := range ips {
		s = append(s, ip.String())
	}
	return strings.Join(s, " ")
}

// list looks up services, in the form PRIORITY WEIGHT HOST:PORT.
func list(t testing.TB, r *Resolver, name string) ([]Service, []string) {
	t.Helper()
	services, err := r.Services(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, v := range services {
		s = append(s, fmt.Sprint(v.Priority, v.Weight, " ", v.Addr))
	}
	return services, s
}

func wantList(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("services %q, want %q", got, want)
	}
}

func want(t testing.TB, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
