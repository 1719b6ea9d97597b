package main

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/layer"
)

// asked is what rules.request makes of a client's bytes.
type asked struct {
	addr   string
	early  string
	err    error
	form   handshake.Form
	client netip.AddrPort
	header int
}

func askRules(t testing.TB, f *rules, s *session, received []byte) asked {
	req, err := f.request(t.Context(), s, received)
	return asked{req.route.String(), string(req.early), err, s.form, s.client, s.header}
}

var thePeer = netip.MustParseAddrPort("127.0.0.1:1")

// checkRequest sees that the pieces in which a request comes make no
// difference, and that there is always room for more of an incomplete one.
func checkRequest(t testing.TB, f *rules, in []byte, forward, secure bool) asked {
	t.Helper()
	var to *address.Route
	if forward {
		route := parseRoute(t, "127.0.0.1:2")
		to = &route
	}
	begin := func() *session {
		s := f.arrival(thePeer, to)
		if secure {
			s.secure, s.proxied = true, false
		}
		return &s
	}
	whole := askRules(t, f, begin(), bytes.Clone(in))
	s := begin()
	for n := range len(in) + 1 {
		got := askRules(t, f, s, bytes.Clone(in[:n]))
		if got.err == handshake.ErrIncomplete {
			if n >= f.requestMax() {
				t.Fatalf("%q is incomplete, but there is no room for more", in[:n])
			}
			continue
		}
		if got.err == nil {
			got.early += string(in[n:])
		}
		if isForeign(whole.err) && statusOf(got.err) == statusOf(whole.err) {
			return whole // its first bytes are told the same, and the log learns less
		}
		if got != whole {
			t.Fatalf("%q is %+v, but %q is %+v", in[:n], got, in, whole)
		}
		return whole
	}
	if whole.err != handshake.ErrIncomplete {
		t.Fatalf("%q is incomplete byte by byte, but at once %+v", in, whole)
	}
	return whole
}

// isForeign tells whether a client is refused for speaking another protocol.
func isForeign(err error) bool {
	for _, by := range errForeign {
		for _, why := range by {
			if err == why {
				return true
			}
		}
	}
	return false
}

func testRules(handshakeMax int, withTLS, proxied bool) *rules {
	f := &rules{
		opener:       opener{keys: newKeyring([][]byte{[]byte(testSecret)}, []kdf{kdfMD5, kdfSHA256})},
		handshakeMax: handshakeMax,
	}
	if withTLS {
		f.tls = new(tls.Config)
	}
	if proxied {
		f.trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	return f
}

func TestARequestIsTheSameInEachPiece(t *testing.T) {
	t.Parallel()
	const backend = "127.0.0.1:4000"
	line := sealedTo(t, backend)
	headers := []string{
		"", unknownHeader, localHeader,
		proxyHeader(t, 1, believed, public), proxyHeader(t, 2, believed, public),
		"PROXY TCP4 192.0.2.9\r\n",
	}
	requests := []string{"", "\n", "\x00", "\x00\x00\x00\x00", "\xff\x04\x00\x00", "OPTIONS", "CONNECT",
		"GET / HTTP/1.1\r\n", "\x16\x03\x01\x02\x00", "\x16\x03\x00\x00", "\x16\x03\x00\x01",
		goldenLine + "\n", sealed(t, "http://"+backend)}
	for _, v := range tongues() {
		requests = append(requests, v.ask(line)+v.say, v.wrong, v.half)
	}
	for _, request := range requests {
		for _, header := range headers {
			for _, max := range []int{1, 2, len(line), 1024} {
				for _, flags := range []struct{ tls, proxied, secure, forward bool }{
					{}, {tls: true}, {proxied: true}, {tls: true, proxied: true},
					{tls: true, secure: true}, {forward: true}, {proxied: true, forward: true},
				} {
					f := testRules(max, flags.tls, flags.proxied)
					in := request
					if flags.proxied {
						in = header + in
					}
					checkRequest(t, f, []byte(in), flags.forward, flags.secure)
				}
			}
		}
	}
	got := checkRequest(t, testRules(1024, true, true), []byte(headers[3]+line+"\nhello"), false, false)
	if got.err != nil || got.addr != backend || got.early != "hello" || got.form != handshake.Line || got.client.String() != believed {
		t.Errorf("%+v", got)
	}
}

func FuzzRequest(f *testing.F) {
	line := sealedTo(f, "127.0.0.1:4000")
	for _, header := range []string{"", unknownHeader, localHeader, proxyHeader(f, 1, believed, public), proxyHeader(f, 2, believed, public)} {
		for _, v := range tongues() {
			f.Add([]byte(header+v.ask(line)+v.say), uint16(100), uint8(len(header)))
			f.Add([]byte(header+v.wrong), uint16(1024), uint8(len(header)))
		}
	}
	f.Add([]byte("OPTIONS"), uint16(1), uint8(0))
	f.Add([]byte("\x16\x03\x01\x02\x00\x01"), uint16(1), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, limit uint16, flags uint8) {
		if limit == 0 || len(in) > 1<<10 {
			t.Skip()
		}
		fe := testRules(int(limit), flags&1 != 0, flags&6 != 0)
		checkRequest(t, fe, in, flags&8 != 0, flags&16 != 0)
	})
}

func TestALinkLocalProxyIsTrustedWithoutItsZone(t *testing.T) {
	f := &rules{trusted: []netip.Prefix{netip.MustParsePrefix("fe80::/10")}}
	peer := &net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 1, Zone: "eth0"}
	if s := f.arrival(layer.AddrPort(peer), nil); !s.proxied {
		t.Errorf("%v is not trusted", peer)
	}
}
