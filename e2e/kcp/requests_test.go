package kcp

import (
	"encoding/base64"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Clients that speak KCP: their requests, and what becomes of them.

func TestAKCPClientGetsTheStatusFirst(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	g := startKCP(t, "-timeout=2s", "-handshake-timeout=2s")
	for _, test := range []struct{ name, request, status, reason string }{
		{"a sealed line", harness.Line(backend), "200", ""},
		{"a sealed line of tcp://", harness.Line("tcp://" + backend), "200", ""},
		{"half a line", harness.Line(backend)[:20], "400", "too_slow"},
		{"a line without end", strings.Repeat("A", 1025), "400", "too_long"},
		{"a line that does not open", harness.BadlyPadded() + "\n", "401", "bad_padding"},
		{"nonsense", "non sense\n", "401", "bad_base64"},
		{"an empty line", "\n", "401", "bad_format"},
		{"an address for HTTP", harness.Line("http://" + backend), "401", "wrong_way"},
		{"a closed port", harness.Line(harness.ClosedPort(t)), "502", "refused"},
		{"a closed port of UDP", harness.Line("kcp://" + closedUDPPort(t)), "502", "refused"},
		{"a backend that is silent", harness.Line("kcp://" + deafPort(t)), "504", "timeout"},
	} {
		s := dialKCP(t, g.kcp, kcpCode{}) // which keeps its port until all are over
		t.Run(test.name, func(t *testing.T) {
			harness.Send(t, s, test.request)
			harness.Expect(t, s, test.status)
			if test.status == "200" {
				harness.Echo(t, s, "hello")
				return
			}
			line := g.Log.WaitClient(t, "refused", clientOf(s))
			if harness.Status(line) != test.status || line["reason"] != test.reason || line["via"] != "line+kcp" {
				t.Errorf("logged as %v", line)
			}
		})
	}
}

// A refused session holds its place only until the client has the status.
func TestARefusedKCPSessionIsForgottenAtOnce(t *testing.T) {
	t.Parallel()
	g := startKCP(t)
	began := time.Now()
	for range 10 {
		s := dialKCP(t, g.kcp, kcpCode{})
		harness.Send(t, s, "nonsense\n")
		harness.Expect(t, s, "401")
	}
	g.forgotten(t)
	if took := time.Since(began); took > 10*time.Second { // sessions end by themselves after a minute
		t.Errorf("it took %v", took)
	}
}

// tokenLine returns a token for a backend, newline included, and the file of
// the key that opens it.
func tokenLine(t testing.TB, backend string) (line, file string) {
	t.Helper()
	keys, stderr, code := harness.Run(t, nil, "-keygen")
	if code != 0 {
		t.Fatalf("-keygen: code %d, %s", code, stderr)
	}
	file = filepath.Join(t.TempDir(), "keys.json")
	harness.WriteFile(t, file, keys)
	line, stderr, code = harness.Run(t, nil, "-token-keys="+file, "-ttl=10m", "-seal="+backend)
	if code != 0 {
		t.Fatalf("-seal: code %d, %s", code, stderr)
	}
	return line, file
}

func TestKCPTakesEveryFormOfRequestThatIsNotOfTCP(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	tokenText, keys := tokenLine(t, backend)
	g := startKCP(t, "-token-keys="+keys)
	line := harness.Line(backend)
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
				harness.Expect(t, s, test.reply+"early")
				harness.Echo(t, s, "later")
			}
		})
	}
}

func TestKCPIsNeitherHTTPNorTLSNorBehindAProxy(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	a := harness.NewAdmin(t)
	g := startKCP(t, "-trusted-proxies=127.0.0.0/8", a.Flag)
	line := harness.Line(backend)
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: " + backend + "\r\n\r\n",
		"GET /" + line,
		"CONNECT " + backend + " HTTP/1.1\r\n\r\n",
		"\x16\x03\x01\x00\x05\x01\x00\x00\x01\n",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + line,
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02" + line,
	} {
		s := dialKCP(t, g.kcp, kcpCode{})
		harness.Send(t, s, request)
		harness.Expect(t, s, "401")
	}
	// The same client is no proxy by KCP, however trusted it is by TCP.
	s := openKCP(t, g.kcp, backend)
	harness.Echo(t, s, "hello")
	if n := a.Metrics(t).Unaccounted(); n != 0 {
		t.Errorf("%v connections are in none of the sums", n)
	}
}

func TestTheLogTellsOfKCP(t *testing.T) {
	t.Parallel()
	g := startKCP(t)
	s := openKCP(t, g.kcp, harness.StartBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		io.WriteString(c, "goodbye")
	}))
	harness.Send(t, s, "hello")
	harness.Expect(t, s, "goodbye")
	line := g.Log.WaitLine(t, "tunnel", 1)
	for key, want := range map[string]any{
		"client": clientOf(s), "up": 5.0, "down": 7.0, "ended_by": "backend", "how": "fin", "via": "line+kcp",
	} {
		if line[key] != want {
			t.Errorf("%s=%v, want %v", key, line[key], want)
		}
	}
	if ms := line["duration_ms"].(float64); ms > 10_000 {
		t.Errorf("the session went on for %v ms behind the backend's end", ms)
	}
}
