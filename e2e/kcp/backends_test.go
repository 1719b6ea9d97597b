package kcp

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/harness"
)

// What a tunnel brings together: clients of any kind and backends that speak KCP.

func TestAnythingBringsEverythingToEverything(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	tcp, kcp := harness.StartEcho(t), startKCPBackend(t, kcpCode{}, kcpEcho)
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		t.Run(way, func(t *testing.T) {
			g := startKCP(t, way, "-listen=127.0.0.1:0=forward:"+kcp)
			for _, test := range []struct {
				name string
				open func(t *testing.T) net.Conn
			}{
				{"KCP to TCP", func(t *testing.T) net.Conn { return openKCP(t, g.kcp, tcp) }},
				{"KCP to KCP", func(t *testing.T) net.Conn { return openKCP(t, g.kcp, kcp) }},
				{"TCP to KCP", func(t *testing.T) net.Conn { return harness.OpenTunnel(t, g.Addr, kcp) }},
				{"TCP to KCP by name", func(t *testing.T) net.Conn {
					return harness.OpenTunnel(t, g.Addr, strings.Replace(kcp, "127.0.0.1", "localhost", 1))
				}},
				{"forwarded TCP to KCP", func(t *testing.T) net.Conn {
					return harness.Connect(t, g.Log.Lines("listening")[1]["addr"].(string))
				}},
			} {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					c := test.open(t)
					harness.Echo(t, c, "hello")
					echoByHash(t, c, size)
				})
			}
		})
	}
}

func TestAWebSocketReachesAKCPBackend(t *testing.T) {
	t.Parallel()
	backend := startKCPBackend(t, kcpCode{}, kcpEcho)
	g := startKCP(t)
	c, _, err := websocket.Dial(t.Context(), "ws://"+g.Addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, say := range []struct{ text, answer string }{
		{harness.Sealed(backend), "200"}, {"hello", "hello"},
	} {
		if err := c.Write(t.Context(), websocket.MessageText, []byte(say.text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); string(got) != say.answer {
			t.Fatalf("read %q, %v; want %q", got, err, say.answer)
		}
	}
}

func TestWhatComesEarlyReachesAKCPBackendFirst(t *testing.T) {
	t.Parallel()
	backend := startKCPBackend(t, kcpCode{}, kcpEcho)
	g := startKCP(t)
	for _, c := range []net.Conn{harness.Connect(t, g.Addr), dialKCP(t, g.kcp, kcpCode{})} {
		harness.Send(t, c, harness.Line(backend)+"early ")
		harness.Send(t, c, "late")
		harness.Expect(t, c, "200early late")
	}
}

// A backend that is the first to speak learns of the session by the dial.
func TestAKCPBackendMaySpeakFirst(t *testing.T) {
	t.Parallel()
	backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
		io.WriteString(s, "welcome")
		kcpEcho(s)
	})
	g := startKCP(t)
	for _, c := range []net.Conn{harness.OpenTunnel(t, g.Addr, backend), openKCP(t, g.kcp, backend)} {
		harness.Expect(t, c, "welcome")
		harness.Echo(t, c, "hello")
	}
}

func TestBackendsHearOfKCPClientsByThePROXYHeader(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ version, listen string }{
		{"v1", "127.0.0.1:0"}, {"v2", "127.0.0.1:0"}, {"v1", ":0"}, {"v1", "0.0.0.0:0"},
	} {
		t.Run(test.version+" "+test.listen, func(t *testing.T) {
			backends := []string{harness.StartEcho(t), startKCPBackend(t, kcpCode{}, kcpEcho)}
			g := startKCP(t, "-send-proxy="+test.version, "-kcp="+test.listen)
			for _, backend := range backends {
				s := dialKCP(t, g.kcp, kcpCode{})
				harness.Send(t, s, harness.Line(backend)+"hello")
				harness.Expect(t, s, "200")
				from, to := harness.AddrPort(s.LocalAddr()).Port(), netip.MustParseAddrPort(g.kcp).Port()
				toIP := "127.0.0.1"
				if test.listen != "127.0.0.1:0" {
					toIP = "0.0.0.0"
				}
				if test.version == "v1" {
					harness.Expect(t, s, fmt.Sprintf("PROXY TCP4 127.0.0.1 %s %d %d\r\nhello", toIP, from, to))
					continue
				}
				head := make([]byte, 28)
				if _, err := io.ReadFull(s, head); err != nil {
					t.Fatal(err)
				}
				want := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11"), head[14], head[15], 127, 0, 0, 1, 127, 0, 0, 1,
					byte(from>>8), byte(from), byte(to>>8), byte(to))
				if !bytes.Equal(head, want) {
					t.Errorf("%s: the header is %x, want %x", backend, head, want)
				}
			}
		})
	}
}

func TestThePolicyHoldsForKCPBackends(t *testing.T) {
	t.Parallel()
	heard := make(chan struct{}, 100)
	backend := startKCPBackend(t, kcpCode{}, func(*kcpgo.UDPSession) { heard <- struct{}{} })
	denied := []string{"-deny=127.0.0.0/8"}
	for _, test := range []struct {
		name    string
		flags   []string
		backend func(g *kcpGateway) string
	}{
		{"denied", denied, func(*kcpGateway) string { return backend }},
		{"denied by name", denied, func(*kcpGateway) string { return strings.Replace(backend, "127.0.0.1", "localhost", 1) }},
		{"the gateway's own port of KCP", nil, func(g *kcpGateway) string { return "kcp://" + g.kcp }},
		{"the gateway's own port of TCP", nil, func(g *kcpGateway) string { return "kcp://" + g.Addr }},
		{"metadata", nil, func(*kcpGateway) string { return "kcp://169.254.169.254:80" }},
		{"multicast", nil, func(*kcpGateway) string { return "kcp://224.0.0.1:4000" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := startKCP(t, test.flags...)
			line := harness.Line(test.backend(g))
			for i, c := range []net.Conn{harness.Connect(t, g.Addr), dialKCP(t, g.kcp, kcpCode{})} {
				harness.Send(t, c, line)
				harness.Expect(t, c, "502")
				if got := g.Log.WaitLine(t, "refused", i+1); got["reason"] != "denied" {
					t.Errorf("logged as %v", got)
				}
			}
		})
	}
	if len(heard) > 0 {
		t.Error("a backend that is denied was sent something")
	}
}

// The key is kcptun's derivation of its default passphrase.
var kcptunKey = []byte("\x25\xd7\xd7\xbd\x51\x05\x07\x42\xd8\xd7\x91\xf2\xb6\x53\xc6\xc8\xb2\x36\x6b\x7e\x25\xa1\x24\xcf\x7a\x2e\x12\xea\xf4\xff\xa4\x44")

func TestBothEndsMustAgreeOnTheKeyAndTheShards(t *testing.T) {
	t.Parallel()
	var (
		plain    = kcpCode{}
		aes      = kcpCode{key: kcptunKey}
		wrong    = kcpCode{key: bytes.Repeat([]byte{1}, 32)}
		shards   = kcpCode{data: 10, parity: 3}
		together = kcpCode{kcptunKey, 10, 3}
	)
	set := func(key string, data, parity int) []string {
		flags := []string{fmt.Sprint("-kcp-datashard=", data), fmt.Sprint("-kcp-parityshard=", parity)}
		if key != "" {
			flags = append(flags, "-kcp-crypt=aes", "-kcp-key="+key)
		}
		return flags
	}
	for _, test := range []struct {
		name  string
		flags []string
		good  kcpCode
		bad   []kcpCode
	}{
		{"none", nil, plain, []kcpCode{aes, shards}},
		{"aes", set("it's a secrect", 0, 0), aes, []kcpCode{plain, wrong, together}},
		{"shards", set("", 10, 3), shards, []kcpCode{aes, together}},
		{"aes and shards", set("it's a secrect", 10, 3), together, []kcpCode{plain, shards, wrong}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			backend := startKCPBackend(t, test.good, kcpEcho)
			g := startKCP(t, test.flags...)
			s := dialKCP(t, g.kcp, test.good)
			harness.Send(t, s, harness.Line(backend))
			harness.Expect(t, s, "200")
			harness.Echo(t, s, "hello")
			rest := g.Rest(t)
			var strangers []*session
			for _, code := range test.bad {
				s := dialKCP(t, g.kcp, code)
				harness.Send(t, s, harness.Line(backend))
				strangers = append(strangers, s)
			}
			echoByHash(t, s, 100_000) // before which the strangers' datagrams are read
			if now := g.Rest(t); now.Goroutines > rest.Goroutines {
				t.Errorf("the strangers' datagrams are not dropped: %+v, %+v before", now, rest)
			}
			c := harness.OpenTunnel(t, g.Addr, backend)
			echoByHash(t, c, 100_000)
			for i, s := range strangers {
				s.SetReadDeadline(time.Now().Add(time.Millisecond))
				if n, err := s.Read(make([]byte, 3)); n > 0 || err == nil {
					t.Errorf("stranger %d got an answer", i)
				}
			}
		})
	}
}

// A backend with another key never answers: that is a time-out.
func TestAKCPBackendWithAnotherKeyIsATimeout(t *testing.T) {
	t.Parallel()
	g := startKCP(t, "-kcp-crypt=aes", "-kcp-key=another", "-timeout=300ms")
	c := harness.Connect(t, g.Addr)
	harness.Send(t, c, harness.Line(startKCPBackend(t, kcpCode{key: kcptunKey}, kcpEcho)))
	harness.ExpectAll(t, c, "504")
}
