package main

import (
	"bytes"
	"fmt"
	"gateway/internal/flagvalue"
	"gateway/internal/layer"
	"gateway/internal/policy"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	kcpgo "github.com/xtaci/kcp-go/v5"
)

// What a tunnel brings together: clients of any kind and backends that speak KCP.

func TestAnythingBringsEverythingToEverything(t *testing.T) {
	const size = 1 << 20
	tcp, kcp := startEcho(t), startKCPBackend(t, kcpCode{}, kcpEcho)
	for name, loops := range map[string]int{"loops": 0, "goroutines": -1} {
		t.Run(name, func(t *testing.T) {
			g := startKCP(t, func(cfg *Config) { cfg.Loops = loops })
			for _, test := range []struct {
				name string
				open func(t *testing.T) net.Conn
			}{
				{"KCP to TCP", func(t *testing.T) net.Conn { return openKCP(t, g.kcp, tcp) }},
				{"KCP to KCP", func(t *testing.T) net.Conn { return openKCP(t, g.kcp, kcp) }},
				{"TCP to KCP", func(t *testing.T) net.Conn { return openTunnel(t, g.addr, kcp) }},
				{"TCP to KCP by name", func(t *testing.T) net.Conn {
					return openTunnel(t, g.addr, strings.Replace(kcp, "127.0.0.1", "localhost", 1))
				}},
				{"forwarded TCP to KCP", func(t *testing.T) net.Conn {
					to := parseRoute(t, kcp)
					ln, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					served := make(chan error, 1)
					go func() { served <- g.ServeForward(ln, to) }()
					return connect(t, ln.Addr().String())
				}},
			} {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					c := test.open(t)
					echo(t, c, "hello")
					echoByHash(t, c, size)
				})
			}
		})
	}
}

func TestAWebSocketReachesAKCPBackend(t *testing.T) {
	backend := startKCPBackend(t, kcpCode{}, kcpEcho)
	g := startKCP(t, nil)
	c, _, err := websocket.Dial(t.Context(), "ws://"+g.addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, say := range []struct{ text, answer string }{
		{strings.TrimSuffix(sealed(t, backend), "\n"), "200"}, {"hello", "hello"},
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
	backend := startKCPBackend(t, kcpCode{}, kcpEcho)
	g := startKCP(t, nil)
	for _, c := range []net.Conn{connect(t, g.addr), dialKCP(t, g.kcp, kcpCode{})} {
		send(t, c, sealed(t, backend)+"early ")
		send(t, c, "late")
		expect(t, c, "200early late")
	}
}

// A backend that is the first to speak learns of the session by the dial.
func TestAKCPBackendMaySpeakFirst(t *testing.T) {
	backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
		io.WriteString(s, "welcome")
		kcpEcho(s)
	})
	g := startKCP(t, nil)
	for _, c := range []net.Conn{openTunnel(t, g.addr, backend), openKCP(t, g.kcp, backend)} {
		expect(t, c, "welcome")
		echo(t, c, "hello")
	}
}

func TestBackendsHearOfKCPClientsByThePROXYHeader(t *testing.T) {
	for _, test := range []struct{ version, listen string }{
		{"v1", "127.0.0.1:0"}, {"v2", "127.0.0.1:0"}, {"v1", ":0"}, {"v1", "0.0.0.0:0"},
	} {
		t.Run(test.version+" "+test.listen, func(t *testing.T) {
			backends := []string{startEcho(t), startKCPBackend(t, kcpCode{}, kcpEcho)}
			g := startKCP(t, func(cfg *Config) { cfg.SendProxy, cfg.KCP = test.version, test.listen })
			for _, backend := range backends {
				s := dialKCP(t, g.kcp, kcpCode{})
				send(t, s, sealed(t, backend)+"hello")
				expect(t, s, "200")
				from, to := layer.AddrPort(s.LocalAddr()).Port(), layer.AddrPort(g.Addr()).Port()
				toIP := "127.0.0.1"
				if test.listen != "127.0.0.1:0" {
					toIP = "0.0.0.0"
				}
				if test.version == "v1" {
					expect(t, s, fmt.Sprintf("PROXY TCP4 127.0.0.1 %s %d %d\r\nhello", toIP, from, to))
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
	heard := make(chan struct{}, 100)
	backend := startKCPBackend(t, kcpCode{}, func(*kcpgo.UDPSession) { heard <- struct{}{} })
	denied := func(cfg *Config) {
		if err := flagvalue.Sum(&cfg.Deny, policy.ParseRule, "").Set("127.0.0.0/8"); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name      string
		configure func(*Config)
		backend   func(g *kcpGateway) string
	}{
		{"denied", denied, func(*kcpGateway) string { return backend }},
		{"denied by name", denied, func(*kcpGateway) string { return strings.Replace(backend, "127.0.0.1", "localhost", 1) }},
		{"the gateway's own port of KCP", nil, func(g *kcpGateway) string { return "kcp://" + g.kcp }},
		{"the gateway's own port of TCP", nil, func(g *kcpGateway) string { return "kcp://" + g.addr }},
		{"metadata", nil, func(*kcpGateway) string { return "kcp://169.254.169.254:80" }},
		{"multicast", nil, func(*kcpGateway) string { return "kcp://224.0.0.1:4000" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := startKCP(t, test.configure)
			line := sealed(t, test.backend(g))
			for i, c := range []net.Conn{connect(t, g.addr), dialKCP(t, g.kcp, kcpCode{})} {
				send(t, c, line)
				expect(t, c, "502")
				if got := g.log.waitLine(t, "refused", i+1); got["reason"] != "denied" {
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
	var (
		plain    = kcpCode{}
		aes      = kcpCode{key: kcptunKey}
		wrong    = kcpCode{key: bytes.Repeat([]byte{1}, 32)}
		shards   = kcpCode{data: 10, parity: 3}
		together = kcpCode{kcptunKey, 10, 3}
	)
	set := func(key string, data, parity int) func(*Config) {
		return func(cfg *Config) {
			cfg.KCPDataShards, cfg.KCPParityShards = data, parity
			if key != "" {
				cfg.KCPCrypt, cfg.KCPKey = "aes", key
			}
		}
	}
	for _, test := range []struct {
		name      string
		configure func(*Config)
		good      kcpCode
		bad       []kcpCode
	}{
		{"none", nil, plain, []kcpCode{aes, shards}},
		{"aes", set("it's a secrect", 0, 0), aes, []kcpCode{plain, wrong, together}},
		{"shards", set("", 10, 3), shards, []kcpCode{aes, together}},
		{"aes and shards", set("it's a secrect", 10, 3), together, []kcpCode{plain, shards, wrong}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			backend := startKCPBackend(t, test.good, kcpEcho)
			g := startKCP(t, test.configure)
			var strangers []*kcpgo.UDPSession
			for _, code := range test.bad {
				s := dialKCP(t, g.kcp, code)
				send(t, s, sealed(t, backend))
				strangers = append(strangers, s)
			}
			eventually(t, "the strangers' datagrams are dropped", func() bool {
				return g.Stats().Dropped >= uint64(len(strangers))
			})
			s := dialKCP(t, g.kcp, test.good)
			send(t, s, sealed(t, backend))
			expect(t, s, "200")
			echoByHash(t, s, 100_000)
			c := openTunnel(t, g.addr, backend)
			echoByHash(t, c, 100_000)
			if n := g.Stats().Sessions; n != 1 {
				t.Errorf("%d sessions", n)
			}
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
	g := startKCP(t, func(cfg *Config) {
		cfg.KCPCrypt, cfg.KCPKey, cfg.Timeout = "aes", "another", 100*time.Millisecond
	})
	c := connect(t, g.addr)
	send(t, c, sealed(t, startKCPBackend(t, kcpCode{key: kcptunKey}, kcpEcho)))
	expectAll(t, c, "504")
}
