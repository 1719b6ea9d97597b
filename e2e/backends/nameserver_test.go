package backends

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"gateway/internal/harness"
)

// A DNS server of the tests' own.

// zone is what a DNS server says.
type zone struct {
	mu      sync.Mutex
	records []dns.RR
	fails   bool           // whatever it is asked
	silent  bool           // it says nothing
	gate    chan struct{}  // not nil: it answers once this is closed
	drops   []string       // the questions that get no answer, as in asked
	asked   map[string]int // by type and name: "SRV game.test"
}

// say replaces what the server says, in the form of zone files.
func (z *zone) say(t testing.TB, records ...string) {
	t.Helper()
	var all []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	z.change(func() { z.records = all })
}

func (z *zone) change(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

// times returns how often the server was asked for a type and name, or for
// anything.
func (z *zone) times(what string) (n int) {
	z.change(func() {
		for question, times := range z.asked {
			if question == what || what == "" {
				n += times
			}
		}
	})
	return n
}

// ServeDNS is dns.Handler's.
func (z *zone) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	q := query.Question[0]
	reply := new(dns.Msg)
	reply.SetReply(query)
	reply.Rcode = dns.RcodeNameError
	z.mu.Lock()
	if z.asked == nil {
		z.asked = make(map[string]int)
	}
	question := dns.TypeToString[q.Qtype] + " " + strings.TrimSuffix(strings.ToLower(q.Name), ".")
	z.asked[question]++
	for _, rr := range z.records {
		if strings.EqualFold(rr.Header().Name, q.Name) {
			reply.Rcode = dns.RcodeSuccess
			if rr.Header().Rrtype == q.Qtype {
				reply.Answer = append(reply.Answer, rr)
			}
		}
	}
	if z.fails {
		reply.Rcode, reply.Answer = dns.RcodeServerFailure, nil
	}
	silent, gate := z.silent || slices.Contains(z.drops, question), z.gate
	z.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if !silent {
		w.WriteMsg(reply)
	}
}

// serve has a server speak for the zone until stop is called, or the test ends.
func (z *zone) serve(t testing.TB, addr string) (stop func()) {
	t.Helper()
	var conn net.PacketConn
	harness.Eventually(t, "the port is free", func() (ok bool) {
		var err error
		conn, err = net.ListenPacket("udp", addr)
		return err == nil
	})
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, Handler: z, NotifyStartedFunc: func() { close(started) }}
	var serving sync.WaitGroup
	serving.Go(func() { server.ActivateAndServe() })
	<-started
	var once sync.Once
	stop = func() {
		once.Do(func() {
			server.Shutdown()
			serving.Wait()
		})
	}
	t.Cleanup(stop)
	return stop
}

// start serves a zone on an address of its own.
func (z *zone) start(t testing.TB) (addr string) {
	t.Helper()
	addr = harness.ClosedPort(t)
	z.serve(t, addr)
	return addr
}
