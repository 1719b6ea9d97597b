package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/layer"
)

func TestAddressesComeIPv4FirstThenAsAnswered(t *testing.T) {
	s := serve(t, "a.test. 60 AAAA ::2", "a.test. 60 A 127.0.0.9", "a.test. 60 A 127.0.0.1", "a.test. 60 AAAA ::1",
		"six.test. 60 AAAA ::1", "mapped.test. 60 AAAA ::ffff:127.0.0.1", "mapped.test. 60 A 127.0.0.1")
	r, _ := start(t, Options{Server: s.addr})
	want(t, "both families", lookup(t, r, "a.test"), "127.0.0.9 127.0.0.1 ::2 ::1")
	want(t, "IPv6", lookup(t, r, "six.test"), "::1")
	want(t, "the same in two forms", lookup(t, r, "mapped.test"), "127.0.0.1")
	want(t, "questions", s.queries("a.test. "), 2)
}

func TestErrorsAreInTheWordsOfNet(t *testing.T) {
	for _, tt := range []struct {
		name    string
		respond func(dns.ResponseWriter, *dns.Msg)
		want    net.DNSError
	}{
		{"NXDOMAIN", fails(dns.RcodeNameError), net.DNSError{IsNotFound: true}},
		{"no data", fails(dns.RcodeSuccess), net.DNSError{IsNotFound: true}},
		{"SERVFAIL", fails(dns.RcodeServerFailure), net.DNSError{IsTemporary: true}},
		{"REFUSED", fails(dns.RcodeRefused), net.DNSError{IsTemporary: true}},
		{"NOTIMP", fails(dns.RcodeNotImplemented), net.DNSError{IsTemporary: true}},
		{"FORMERR", fails(dns.RcodeFormatError), net.DNSError{IsTemporary: true}},
		{"silence", silence, net.DNSError{IsTemporary: true, IsTimeout: true}},
		{"garbage", func(w dns.ResponseWriter, _ *dns.Msg) { w.Write([]byte("garbage, and quite a lot of it")) },
			net.DNSError{IsTemporary: true, IsTimeout: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t)
			s.behave(tt.respond)
			o := Options{Server: s.addr}
			if tt.want.IsTimeout {
				o.Timeout = 200 * time.Millisecond
			}
			r, _ := start(t, o)
			_, one := r.Addresses(t.Context(), "a.test")
			_, two := r.Services(t.Context(), "_g._tcp.test")
			for name, err := range map[string]error{"a.test": one, "_g._tcp.test": two} {
				var e *net.DNSError
				if !errors.As(err, &e) || e.Name != name || e.Err == "" || e.IsNotFound != tt.want.IsNotFound ||
					e.IsTimeout != tt.want.IsTimeout || e.IsTemporary != tt.want.IsTemporary {
					t.Errorf("%s: %+v, want %+v", name, err, tt.want)
				}
			}
		})
	}
}

func TestAServerThatIsNotThereIsAnErrorAtOnce(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, _ := start(t, Options{Server: l.LocalAddr().String()})
	l.Close()
	_, err = r.Addresses(t.Context(), "a.test")
	var e *net.DNSError
	if !errors.As(err, &e) || e.IsTimeout || e.IsNotFound || !e.IsTemporary {
		t.Errorf("%+v", err)
	}
}

func TestAServerIsAnAddressOrANameAndAPort(t *testing.T) {
	for _, server := range []string{"127.0.0.1:53", "[::1]:8600", "[fe80::1%eth0]:53", "dns.test:65535", "DNS-1.test.:1"} {
		if err := CheckServer(server); err != nil {
			t.Errorf("%s: %v", server, err)
		}
	}
	for _, server := range []string{
		"", ":", ":53", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:00", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:+53",
		"127.0.0.1:domain", "127.0.0.1:53:53", "::1:53", "[::1]", "[::1]:0", "127.1:53", "a..test:53", "a b:53", "udp://127.0.0.1:53",
		"224.0.0.251:5353", "[ff02::fb]:5353", "127.0.0.1:53\n", "127.0.0.1:5 3",
	} {
		err := CheckServer(server)
		if err == nil || !strings.Contains(err.Error(), strconv.Quote(server)) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", server, err)
		}
		if server == "" {
			continue // the system
		}
		r, _ := start(t, Options{Server: server})
		_, lookup := r.Addresses(t.Context(), "a.test")
		var e *net.DNSError
		if !errors.As(lookup, &e) || e.IsNotFound || e.Err != err.Error() {
			t.Errorf("%q: a lookup fails with %v", server, lookup)
		}
	}
}

func TestWhatIsNoNameIsNotAsked(t *testing.T) {
	s := serve(t)
	r, _ := start(t, Options{Server: s.addr})
	for _, name := range []string{
		"", ".", "..", "a..test", ".a", "127.0.0.1", "::1", "[::1]", "1", "a.1", "a b", "a:1", "a/b", "tcp://a", "é.test",
		`a\.test`, "a\x00", "*.test", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a",
	} {
		if ips, err := r.Addresses(t.Context(), name); !isNotFound(err) {
			t.Errorf("%q: %v, %v", name, ips, err)
		}
		if list, err := r.Services(t.Context(), name); !isNotFound(err) {
			t.Errorf("%q: %v, %v", name, list, err)
		}
	}
	want(t, "questions", s.queries(""), 0)
	want(t, "entries", len(r.addresses.answers)+len(r.services.answers), 0)
}

func TestLocalhostIsNotAsked(t *testing.T) {
	s := serve(t, "localhost. 60 A 127.0.0.9")
	r, _ := start(t, Options{Server: s.addr})
	want(t, "localhost", lookup(t, r, "LocalHost"), "127.0.0.1 ::1")
	want(t, "below", lookup(t, r, "game.localhost."), "127.0.0.1 ::1")
	want(t, "questions", s.queries(""), 0)
}

func TestWithoutAServerTheSystemFindsAddresses(t *testing.T) {
	s := serve(t, "a.test. 3600 A 127.0.0.1", "_g._tcp.test. 60 SRV 1 1 1 a.test.")
	system := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.addr)
	}}
	r, clock := start(t, Options{System: system})
	r.client.servers = func() ([]string, error) { return []string{s.addr}, nil }
	want(t, "fully qualified", lookup(t, r, "a.test."), "127.0.0.1")
	want(t, "without a dot", lookup(t, r, "A.test"), "127.0.0.1")
	_, services := list(t, r, "_g._tcp.test")
	wantList(t, services, "1 1 a.test:1")
	if _, err := r.Addresses(t.Context(), "b.test."); !isNotFound(err) {
		t.Error(err)
	}
	clock.forward(systemTTL - 1)
	s.behave(fails(dns.RcodeServerFailure))
	want(t, "cached", cached(r, "a.test."), "127.0.0.1")
	clock.forward(1)
	want(t, "expired", cached(r, "a.test"), "none")
	want(t, "while the server is down", lookup(t, r, "a.test."), "127.0.0.1")
}

func TestADatagramThatIsNoResponseIsIgnored(t *testing.T) {
	forge := func(change func(m *dns.Msg)) func(*dns.Msg) []byte {
		return func(q *dns.Msg) []byte {
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR(q.Question[0].Name + " 60 A 127.6.6.6")
			m.Answer = append(m.Answer, rr)
			change(m)
			packet, err := m.Pack()
			if err != nil {
				panic(err)
			}
			return packet
		}
	}
	good := forge(func(*dns.Msg) {})
	for name, packet := range map[string]func(q *dns.Msg) []byte{
		"another id":       forge(func(m *dns.Msg) { m.Id++ }),
		"a question":       forge(func(m *dns.Msg) { m.Response = false }),
		"another name":     forge(func(m *dns.Msg) { m.Question[0].Name = "b.test." }),
		"another type":     forge(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX }),
		"another class":    forge(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"another opcode":   forge(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		"no question":      forge(func(m *dns.Msg) { m.Question = nil }),
		"two questions":    forge(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"nothing":          func(*dns.Msg) []byte { return nil },
		"half a header":    func(q *dns.Msg) []byte { return good(q)[:6] },
		"half a record":    func(q *dns.Msg) []byte { p := good(q); return p[:len(p)-3] },
		"a loop of labels": func(q *dns.Msg) []byte { return append(good(q)[:12], 0xc0, 12, 0, 1, 0, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, "a.test. 60 A 127.0.0.1")
			s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
				w.Write(packet(q))
				s.answer(w, q)
			})
			r, _ := start(t, Options{Server: s.addr})
			want(t, "the address", lookup(t, r, "a.test"), "127.0.0.1")
		})
	}
}

func TestATruncatedAnswerIsAskedForByTCP(t *testing.T) {
	zone := []string{}
	for i := range 100 {
		zone = append(zone, fmt.Sprintf("_g._tcp.test. 60 SRV 1 1 %d a-rather-long-name-of-a-server-%d.test.", i+1, i))
	}
	for name, shorten := range map[string]func(*dns.Msg) []byte{
		"between records": func(m *dns.Msg) []byte { m.Truncate(udpSize); p, _ := m.Pack(); return p },
		"within a record": func(m *dns.Msg) []byte { m.Truncated = true; p, _ := m.Pack(); return p[:500] },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, zone...)
			s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
				m := s.reply(q)
				if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
					if o := q.IsEdns0(); o == nil || o.UDPSize() != udpSize {
						t.Errorf("EDNS0: %v", o)
					}
					w.Write(shorten(m))
					return
				}
				w.WriteMsg(m)
			})
			r, _ := start(t, Options{Server: s.addr})
			services, _ := list(t, r, "_g._tcp.test")
			want(t, "services", len(services), 100)
			want(t, "questions", s.queries(""), 2)
		})
	}
}

func TestGarbageByTCPIsAFailure(t *testing.T) {
	s := serve(t)
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			w.WriteMsg(m)
			return
		}
		w.Write([]byte("garbage"))
	})
	r, _ := start(t, Options{Server: s.addr})
	if list, err := r.Services(t.Context(), "_g._tcp.test"); err == nil || layer.IsTimeout(err) || isNotFound(err) {
		t.Errorf("%v, %v", list, err)
	}
}

func TestALostDatagramIsSentAgain(t *testing.T) {
	s := serve(t, "a.test. 60 SRV 1 1 1 b.test.")
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		if s.queries("a.test. SRV ") > 1 {
			s.answer(w, q)
		}
	})
	r, _ := start(t, Options{Server: s.addr, Timeout: 2 * time.Second})
	list(t, r, "a.test")
}

// Each question is asked again in a half of the time.
func TestAServerThatIsSlowEachTimeIsWaitedFor(t *testing.T) {
	const timeout = 2 * time.Second
	s := serve(t, "slow.test. 60 A 10.0.0.7")
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(timeout * 6 / 10) // the server's pace
		s.answer(w, q)
	})
	r, _ := start(t, Options{Server: s.addr, Timeout: timeout})
	want(t, "addresses", lookup(t, r, "slow.test"), "10.0.0.7")
}

func TestTheNextServerIsAsked(t *testing.T) {
	for name, respond := range map[string]func(dns.ResponseWriter, *dns.Msg){
		"SERVFAIL": fails(dns.RcodeServerFailure), "REFUSED": fails(dns.RcodeRefused), "silence": silence,
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := serve(t), serve(t, "a.test. 60 SRV 1 1 1 b.test.", "b.test. 60 SRV 1 1 1 b.test.")
			bad.behave(respond)
			r, _ := start(t, Options{Timeout: 3 * time.Second})
			r.client.servers = func() ([]string, error) { return []string{bad.addr, good.addr}, nil }
			list(t, r, "a.test")
			list(t, r, "b.test")
			want(t, "questions to the first", bad.queries(""), 1)
			want(t, "questions to the second", good.queries(""), 2)
			good.behave(respond)
			bad.behave(nil)
			if _, err := r.Services(t.Context(), "c.test"); !isNotFound(err) {
				t.Error("the first is not asked again:", err)
			}
		})
	}
}

func TestTheServersOfTheSystem(t *testing.T) {
	for text, servers := range map[string]string{
		"nameserver 127.0.0.1":                                                               "127.0.0.1:53",
		"# nameserver 1.1.1.1\nnameserver\t::1 # here\n":                                     "[::1]:53",
		"nameserver fe80::1%eth0\nsearch a b\noptions foo":                                   "[fe80::1%eth0]:53",
		"nameserver a.test\nnameserver 127.0.0.2 127.0.0.3":                                  "127.0.0.2:53",
		"nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4": "10.0.0.1:53 10.0.0.2:53 10.0.0.3:53",
		"": "", "nameserver\n": "",
	} {
		file := t.TempDir() + "/resolv.conf"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := systemServers(file)
		if strings.Join(got, " ") != servers || (err == nil) != (servers != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, servers)
		}
	}
	r, _ := start(t, Options{})
	r.client.servers = func() ([]string, error) { return systemServers(t.TempDir() + "/none") }
	_, err := r.Services(t.Context(), "a.test")
	var e *net.DNSError
	if !errors.As(err, &e) || !errors.Is(err, os.ErrNotExist) || e.IsNotFound {
		t.Errorf("no file: %v", err)
	}
}

func FuzzServersAreAddresses(f *testing.F) {
	f.Add("nameserver 127.0.0.1\nnameserver ::1\noptions ndots:5 timeout:x attempts:\nsearch\ndomain")
	f.Add("nameserver fe80::1%[\n")
	f.Fuzz(func(t *testing.T, text string) {
		servers := nameServers(strings.NewReader(text))
		if len(servers) > maxServers {
			t.Fatalf("%d servers", len(servers))
		}
		for _, s := range servers {
			if a, err := netip.ParseAddrPort(s); err != nil || a.Port() != 53 {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
}
