package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/token"
)

// Clients and backends that speak KCP, by kcp-go's own client and server.

// kcpGateway is a gateway inside the test process with a port for KCP too.
type kcpGateway struct {
	*testGateway
	kcpListener
	kcp string // its address
}

func startKCP(t testing.TB, configure func(*Config)) *kcpGateway {
	t.Helper()
	var cfg *Config
	g := &kcpGateway{testGateway: startConfigured(t, func(c *Config) {
		c.KCP = "127.0.0.1:0"
		if configure != nil {
			configure(c)
		}
		cfg = c
	}, nil)}
	ln, err := cfg.listenKCP()
	if err != nil {
		t.Fatal(err)
	}
	g.kcpListener, g.kcp = ln.(kcpListener), fmt.Sprint("127.0.0.1:", addrPort(ln.Addr()).Port())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	t.Cleanup(func() {
		g.testGateway.Close()
		if err := <-served; err != ErrGatewayClosed {
			t.Errorf("Serve returned %v", err)
		}
	})
	return g
}

// forgotten waits until no session is left.
func (g *kcpGateway) forgotten(t testing.TB) {
	t.Helper()
	eventually(t, "the gateway forgets every session", func() bool { return g.Stats().Sessions == 0 })
}

// kcpCode is what both ends must agree on.
type kcpCode struct {
	key          []byte // of AES, nil: none
	data, parity int
}

func (c kcpCode) block(t testing.TB) kcpgo.BlockCrypt {
	if c.key == nil {
		return nil
	}
	block, err := kcpgo.NewAESBlockCrypt(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// tune is what kcp-go's users write behind a dial or an accept.
func tune(s *kcpgo.UDPSession) *kcpgo.UDPSession {
	s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
	s.SetNoDelay(1, 10, 2, 1)
	s.SetWindowSize(1024, 1024)
	s.SetDeadline(time.Now().Add(2 * patience))
	return s
}

// dialKCP begins a session, which is closed at the end of the test.
func dialKCP(t testing.TB, addr string, code kcpCode) *kcpgo.UDPSession {
	t.Helper()
	s, err := kcpgo.DialWithOptions(addr, code.block(t), code.data, code.parity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return tune(s)
}

// openKCP connects to a backend through a gateway and reads the 200.
func openKCP(t testing.TB, gateway, backend string) *kcpgo.UDPSession {
	t.Helper()
	s := dialKCP(t, gateway, kcpCode{})
	send(t, s, sealed(t, backend))
	expect(t, s, "200")
	return s
}

// startKCPBackend runs kcp-go's server on a free port, and serve for each of
// its sessions. It returns the address to be sealed. Like every backend of KCP
// clients it is to be started before the gateway: it hears of their end when
// that closes.
func startKCPBackend(t testing.TB, code kcpCode, serve func(*kcpgo.UDPSession)) string {
	t.Helper()
	ln, err := kcpgo.ListenWithOptions("127.0.0.1:0", code.block(t), code.data, code.parity)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			s, err := ln.AcceptKCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer s.Close()
				serve(tune(s))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close() // which ends the reads of its sessions
		serving.Wait()
	})
	return "kcp://" + ln.Addr().String()
}

func kcpEcho(s *kcpgo.UDPSession) { io.Copy(s, s) }

// deafPort returns an address of 127.0.0.1 where datagrams vanish.
func deafPort(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().String()
}

// closedUDPPort returns an address of 127.0.0.1 whose port nobody has.
func closedUDPPort(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// echoByHash sends n bytes to an echo and compares the hash of what comes back.
func echoByHash(t testing.TB, c net.Conn, n int) {
	t.Helper()
	text := noise(uint64(n), n)
	var sending sync.WaitGroup
	sending.Go(func() {
		if _, err := c.Write(text); err != nil {
			t.Error(err)
		}
	})
	h := sha256.New()
	got, err := io.CopyN(h, c, int64(n))
	if err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(text) {
		t.Errorf("%d bytes of %d came back, %v, or others", got, n, err)
		c.SetDeadline(time.Unix(1, 0))
	}
	sending.Wait()
}

func TestAKCPClientGetsTheStatusFirst(t *testing.T) {
	backend := startEcho(t)
	g := startKCP(t, func(cfg *Config) {
		cfg.Timeout = 100 * time.Millisecond
		cfg.HandshakeTimeout = 300 * time.Millisecond
	})
	for _, test := range []struct{ name, request, status, reason string }{
		{"a sealed line", sealed(t, backend), "200", ""},
		{"a sealed line of tcp://", sealed(t, "tcp://"+backend), "200", ""},
		{"half a line", sealed(t, backend)[:20], "400", "too_slow"},
		{"a line without end", strings.Repeat("A", 1025), "400", "too_long"},
		{"a line that does not open", badlyPadded(t) + "\n", "401", "bad_padding"},
		{"nonsense", "non sense\n", "401", "bad_base64"},
		{"an empty line", "\n", "401", "bad_format"},
		{"an address for HTTP", sealed(t, "http://"+backend), "401", "wrong_way"},
		{"a closed port", sealed(t, closedPort(t)), "502", "refused"},
		{"a closed port of UDP", sealed(t, "kcp://"+closedUDPPort(t)), "502", "refused"},
		{"a backend that is silent", sealed(t, "kcp://"+deafPort(t)), "504", "timeout"},
	} {
		s := dialKCP(t, g.kcp, kcpCode{}) // which keeps its port until all are over
		t.Run(test.name, func(t *testing.T) {
			send(t, s, test.request)
			expect(t, s, test.status)
			if test.status == "200" {
				echo(t, s, "hello")
				return
			}
			var line map[string]any
			eventually(t, "a line of the log", func() bool {
				for _, line = range g.log.lines("refused") {
					if line["client"] == clientOf(s) {
						return true
					}
				}
				return false
			})
			if line["status"] != test.status || line["reason"] != test.reason || line["via"] != "line+kcp" {
				t.Errorf("logged as %v", line)
			}
		})
	}
}

// clientOf is a session's client as the gateway's log has it.
func clientOf(s *kcpgo.UDPSession) string {
	return fmt.Sprint("127.0.0.1:", addrPort(s.LocalAddr()).Port())
}

// A refused session holds its place only until the client has the status.
func TestARefusedKCPSessionIsForgottenAtOnce(t *testing.T) {
	g := startKCP(t, nil)
	began := time.Now()
	for range 10 {
		s := dialKCP(t, g.kcp, kcpCode{})
		send(t, s, "nonsense\n")
		expect(t, s, "401")
	}
	g.forgotten(t)
	if took := time.Since(began); took > lingerTime+time.Second {
		t.Errorf("it took %v", took)
	}
}

// tokenLine returns a token for a backend, newline included, and the file of
// the key that opens it.
func tokenLine(t testing.TB, backend string) (line, file string) {
	t.Helper()
	text, err := token.Generate()
	if err != nil {
		t.Fatal(err)
	}
	file = tempFile(t, "keys.json", string(text))
	keys, err := token.Load(file, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	line, err = keys.Seal(backend, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return line + "\n", file
}

func TestKCPTakesEveryFormOfRequestThatIsNotOfTCP(t *testing.T) {
	backend := startEcho(t)
	tokenText, keys := tokenLine(t, backend)
	g := startKCP(t, func(cfg *Config) { cfg.TokenKeys = keys })
	line := sealed(t, backend)
	text := strings.TrimSuffix(line, "\n")
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	prefix := func(s string) string { return string([]byte{byte(len(s)), byte(len(s) >> 8), 0, 0}) + s }
	for _, test := range []struct{ name, request, reply, via string }{
		{"line", line, "200", "line+kcp"},
		{"line with a carriage return", text + "\r\n", "200", "line+kcp"},
		{"token", tokenText, "200", "line+kcp"},
		{"prefixed", prefix(text), prefix("200"), "prefixed+kcp"},
		{"binary", string([]byte{0, byte(len(raw))}) + string(raw), "200", "binary+kcp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, portion := range []int{len(test.request) + 5, 1} {
				// Each write is a datagram of its own, or several.
				s := dialKCP(t, g.kcp, kcpCode{})
				for b := []byte(test.request + "early"); len(b) > 0; {
					n := min(portion, len(b))
					if _, err := s.Write(b[:n]); err != nil {
						t.Fatal(err)
					}
					b = b[n:]
				}
				expect(t, s, test.reply+"early")
				echo(t, s, "later")
			}
		})
	}
}

func TestKCPIsNeitherHTTPNorTLSNorBehindAProxy(t *testing.T) {
	backend := startEcho(t)
	g := startKCP(t, func(cfg *Config) {
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	line := sealed(t, backend)
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: " + backend + "\r\n\r\n",
		"GET /" + line,
		"CONNECT " + backend + " HTTP/1.1\r\n\r\n",
		"\x16\x03\x01\x00\x05\x01\x00\x00\x01\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + line,
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02" + line,
	} {
		s := dialKCP(t, g.kcp, kcpCode{})
		send(t, s, request)
		expect(t, s, "401")
	}
	// The same client is no proxy by KCP, however trusted it is by TCP.
	s := openKCP(t, g.kcp, backend)
	echo(t, s, "hello")
}

func TestTheLogTellsOfKCP(t *testing.T) {
	g := startKCP(t, nil)
	s := openKCP(t, g.kcp, startBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		io.WriteString(c, "goodbye")
	}))
	send(t, s, "hello")
	expect(t, s, "goodbye")
	line := g.log.waitLine(t, "tunnel", 1)
	for key, want := range map[string]any{
		"client": clientOf(s), "up": 5.0, "down": 7.0, "ended_by": "backend", "how": "fin", "via": "line+kcp",
	} {
		if line[key] != want {
			t.Errorf("%s=%v, want %v", key, line[key], want)
		}
	}
	if ms := line["duration_ms"].(float64); ms > 2000 {
		t.Errorf("the session went on for %v ms behind the backend's end", ms)
	}
}

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
				from, to := addrPort(s.LocalAddr()).Port(), addrPort(g.Addr()).Port()
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
		if err := (*rulesValue)(&cfg.Deny).Set("127.0.0.0/8"); err != nil {
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
