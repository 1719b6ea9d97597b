package handshake

import "testing"

func TestOtherProtocolsAreKnownByTheirBeginning(t *testing.T) {
	for b, want := range map[string]Foreign{
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n": ProxyHeader,
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c": ProxyHeader,
		"\x16\x03\x01\x02\x00\x01":               TLSHello,
		"\x16\x03\x03":                           TLSHello,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":       HTTP2,
		"SSH-2.0-OpenSSH_9.2p1\r\n":              SSH,
		"":                                       "",
		"PROXY":                                  "",
		"\x16\x03":                               "",
		"\x16\x03\x00\x00":                       TLSHello, // a length too, which nobody asks then
		"U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=\n":   "",
		"GET / HTTP/1.1\r\n":                               "",
		"\r\n\r\n\x00\r\nquit\n":                           "",
		"ssh-2.0":                                          "",
		"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..a.b.c\n": "",
	} {
		if got := SniffForeign([]byte(b)); got != want {
			t.Errorf("%q: %q, want %q", b, got, want)
		}
	}
}
