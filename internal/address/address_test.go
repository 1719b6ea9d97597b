package address

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseTakesEveryFormOfTheGrammar(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Join([]string{label63, label63, label63, strings.Repeat("b", 61)}, ".")
	for _, tt := range []struct {
		in   string
		host string
		port uint16
		ip   string
	}{
		{"127.0.0.1:62863", "127.0.0.1", 62863, "127.0.0.1"},
		{"0.0.0.0:1", "0.0.0.0", 1, "0.0.0.0"}, // grammar; whether to go there is policy
		{"255.255.255.255:65535", "255.255.255.255", 65535, "255.255.255.255"},
		{"[::1]:80", "::1", 80, "::1"},
		{"[2001:DB8::1]:443", "2001:DB8::1", 443, "2001:db8::1"},
		{"[::ffff:127.0.0.1]:9", "::ffff:127.0.0.1", 9, "::ffff:127.0.0.1"},
		{"localhost:80", "localhost", 80, ""},
		{"Game-7.internal_net:4000", "Game-7.internal_net", 4000, ""},
		{"a:1", "a", 1, ""},
		{"1a:1", "1a", 1, ""},
		{"4.game:1", "4.game", 1, ""},
		{"_srv-.x:10000", "_srv-.x", 10000, ""},
		{"x.0xg:1", "x.0xg", 1, ""},
		{label63 + ":1", label63, 1, ""},
		{name253 + ":65535", name253, 65535, ""},
	} {
		a, err := Parse(tt.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.in, err)
			continue
		}
		var ip netip.Addr
		if tt.ip != "" {
			ip = netip.MustParseAddr(tt.ip)
		}
		if a.Scheme != "" || a.Host != tt.host || a.Port != tt.port || a.IP != ip {
			t.Errorf("Parse(%q) = %+v, want host %q, port %d, IP %v", tt.in, a, tt.host, tt.port, ip)
		}
		if a.String() != tt.in || a.HostPort() != tt.in {
			t.Errorf("Parse(%q) gives back %q and %q", tt.in, a.String(), a.HostPort())
		}
		for _, scheme := range schemes {
			in, want := scheme+"://"+tt.in, a
			want.Scheme = scheme
			got, err := Parse(in)
			if err != nil || got != want {
				t.Errorf("Parse(%q) = %+v, %v; want %+v", in, got, err, want)
			}
			if got.String() != in || got.HostPort() != tt.in {
				t.Errorf("Parse(%q) gives back %q and %q", in, got.String(), got.HostPort())
			}
		}
	}
}

func TestParseRefusesWhatResolversAndNetDialWouldRepair(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	for in, want := range map[string]error{
		"":                                ErrPort,
		"host":                            ErrPort,
		"host:":                           ErrPort,
		":80":                             ErrName,
		":":                               ErrPort,
		"h:0":                             ErrPort,
		"h:00":                            ErrPort,
		"h:080":                           ErrPort,
		"h:+1":                            ErrPort,
		"h:-1":                            ErrPort,
		"h: 1":                            ErrPort,
		"h:1 ":                            ErrPort,
		"h:1\n":                           ErrPort,
		"h:1\x00":                         ErrPort,
		"h:http":                          ErrPort,
		"h:0x50":                          ErrPort,
		"h:65536":                         ErrPort,
		"h:99999":                         ErrPort,
		"h:100000":                        ErrPort,
		"h:18446744073709551617":          ErrPort,
		"h:٣":                             ErrPort,
		" h:1":                            ErrName,
		"h\x00:1":                         ErrName,
		"h h:1":                           ErrName,
		"h.:1":                            ErrName,
		".h:1":                            ErrName,
		"h..h:1":                          ErrName,
		"häuser:1":                        ErrName,
		"a/b:1":                           ErrName,
		"user@host:1":                     ErrName,
		"http://":                         ErrPort,
		"http://host":                     ErrPort,
		"http://host:1/":                  ErrPort,
		"http://host:1/path":              ErrPort,
		"http://host:1?a=b":               ErrPort,
		"http://host:1 ":                  ErrPort,
		"tcp://:1":                        ErrName,
		"tcp://127.1:1":                   ErrIPv4,
		"tcp://[::1%1]:1":                 ErrIPv6,
		"tcp://tcp://host:1":              ErrName,
		"http:///host:1":                  ErrName,
		"http:/host:1":                    ErrName,
		"http:host:1":                     ErrName,
		"http//host:1":                    ErrName,
		"https://host:1":                  ErrScheme,
		"HTTP://host:1":                   ErrScheme,
		"Tcp://host:1":                    ErrScheme,
		"udp://host:1":                    ErrScheme,
		"://host:1":                       ErrScheme,
		" tcp://host:1":                   ErrScheme,
		"tcp ://host:1":                   ErrScheme,
		"host:1://host:1":                 ErrScheme,
		"tcp://user@host:1":               ErrName,
		"::1:80":                          ErrBare,
		"fe80::1%eth0:80":                 ErrName,
		"a,b:1":                           ErrName,
		label63 + "a:1":                   ErrName,
		strings.Repeat("a.", 127):         ErrPort,
		strings.Repeat("a.", 127) + "a:1": ErrName,
		"127.1:80":                        ErrIPv4,
		"2130706433:80":                   ErrIPv4,
		"0x7f000001:80":                   ErrIPv4,
		"0x7f.1:80":                       ErrIPv4,
		"0X7F.0.0.0x1:80":                 ErrIPv4,
		"0x:80":                           ErrIPv4,
		"127.0.0.01:80":                   ErrIPv4,
		"127.0.0.256:80":                  ErrIPv4,
		"127.0.0.0.1:80":                  ErrIPv4,
		"game.7:80":                       ErrIPv4,
		"[]:80":                           ErrIPv6,
		"[::1:80":                         ErrIPv6,
		"[:80":                            ErrIPv6,
		"[127.0.0.1]:80":                  ErrIPv6,
		"[localhost]:80":                  ErrIPv6,
		"[fe80::1%eth0]:80":               ErrIPv6,
		"[::1]]:80":                       ErrIPv6,
		"[[::1]]:80":                      ErrIPv6,
		"[::1]x:80":                       ErrIPv6,
		"[ ::1]:80":                       ErrIPv6,
		"x[::1]:80":                       ErrName,
		"[::1]80":                         ErrPort,
		"::ffff:127.0.0.1:80":             ErrBare,
	} {
		if a, err := Parse(in); !errors.Is(err, want) {
			t.Errorf("Parse(%q) = %+v, %v; want %v", in, a, err, want)
		}
	}
}

func FuzzWhatParsesIsCanonicalAndSafeToDial(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:62863", "[::1]:80", "localhost:1", "127.1:80", "h:065", ":80", "[fe80::1%1]:80",
		"0x7f.1:1", "a.b-c_d.e:65535", "[::ffff:1.2.3.4]:5", "h:\x00", "é:1", "..:1",
		"tcp://127.0.0.1:1", "http://[::1]:80", "https://h:1", "tcp://h:1/", "http://http://h:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			if a != (Address{}) {
				t.Fatalf("Parse(%q) failed but returned %+v", s, a)
			}
			return
		}
		if a.String() != s {
			t.Fatalf("Parse(%q).String() = %q: two spellings of one address", s, a.String())
		}
		hostPort := s
		if a.Scheme != "" {
			hostPort = strings.TrimPrefix(s, a.Scheme+"://")
		}
		if a.HostPort() != hostPort || a.Scheme != "" && !slices.Contains(schemes[:], a.Scheme) {
			t.Fatalf("Parse(%q) = %+v, without its scheme %q", s, a, a.HostPort())
		}
		host, port, err := net.SplitHostPort(hostPort)
		if err != nil || host != a.Host || port != strconv.Itoa(int(a.Port)) || a.Port == 0 {
			t.Fatalf("Parse(%q) = %+v, but net.SplitHostPort says %q %q %v", s, a, host, port, err)
		}
		if ip, err := netip.ParseAddr(host); err == nil != a.IP.IsValid() || ip != a.IP {
			t.Fatalf("Parse(%q).IP = %v, netip says %v, %v", s, a.IP, ip, err)
		}
		if len(host) > maxName || strings.ContainsAny(host, " %/@,\x00\r\n") {
			t.Fatalf("Parse(%q) let through host %q", s, host)
		}
	})
}
