package protocols

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"gateway/internal/harness"
)

// Clients behind a proxy that tells of them: -trusted-proxies.

const (
	believed     = "192.0.2.9:4321" // the client, by the headers of these tests
	believedHost = "192.0.2.9"
	public       = "198.51.100.7:443" // where it connected to
)

// proxyHeader returns a header of the PROXY protocol in front of a client.
func proxyHeader(t testing.TB, version int, client, to string) string {
	t.Helper()
	src, err := net.ResolveTCPAddr("tcp", client)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := net.ResolveTCPAddr("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proxyproto.HeaderProxyFromAddrs(byte(version), src, dst).Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	unknownHeader = "PROXY UNKNOWN\r\n"
	localHeader   = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
)

// introduced is a connection to which something is sent in front of its first
// write.
type introduced struct {
	*net.TCPConn
	header string
}

func (c *introduced) Write(b []byte) (int, error) {
	header := c.header
	c.header = ""
	n, err := c.TCPConn.Write([]byte(header + string(b)))
	return max(0, n-len(header)), err
}

// dribbling is a connection whose every byte is a write.
type dribbling struct{ *net.TCPConn }

func (c dribbling) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := c.TCPConn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// introductions are how a header and what follows may come.
var introductions = map[string]func(t testing.TB, addr, header string) net.Conn{
	"in one segment": func(t testing.TB, addr, header string) net.Conn {
		return &introduced{harness.Connect(t, addr), header}
	},
	"in segments of their own": func(t testing.TB, addr, header string) net.Conn {
		c := harness.Connect(t, addr)
		harness.Send(t, c, header)
		harness.Delivered(t, c)
		return c
	},
	"a byte at a time": func(t testing.TB, addr, header string) net.Conn {
		c := harness.Connect(t, addr)
		dribble(t, c, header)
		return dribbling{c}
	},
}

func TestATrustedProxyIsBelievedInEachForm(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-trusted-proxies=127.0.0.0/8")...)
	b := startBackends(t)
	told := make(chan http.Header, 1)
	b.http = harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := w.Header()
		h["Content-Type"], h["X-Backend"] = nil, []string{"game"}
		h["Date"] = []string{strings.TrimPrefix(harness.ADate, "Date: ")}
		select {
		case told <- r.Header:
		default:
			t.Error("too many requests")
		}
		w.Write(body)
	})
	port := 1024
	for _, v := range harness.Forms() {
		for _, config := range []*tls.Config{nil, trusting} {
			for how, introduce := range introductions {
				for version := 1; version <= 2; version++ {
					port++
					client := fmt.Sprintf("%s:%d", believedHost, port)
					c := introduce(t, p.Addr, proxyHeader(t, version, client, public))
					if config != nil {
						c = harness.Handshake(t, c, config)
					}
					harness.Send(t, c, v.Text(b.of(v))+v.Say)
					v.ExpectHello(t, c)
					v.Leave(t, c)
					c.Close()
					if !v.HTTP {
						continue
					}
					proto := "http"
					if config != nil {
						proto = "https"
					}
					h := <-told
					if h.Get("X-Forwarded-For") != believedHost || h.Get("X-Forwarded-Proto") != proto {
						t.Errorf("%s %s, version %d: the backend was told %v", v.Name, how, version, h)
					}
				}
			}
		}
	}
	harness.Eventually(t, "the log has the believed addresses", func() bool {
		missing := port - 1024
		for _, msg := range []string{"tunnel", "request"} {
			for _, l := range p.Log.Lines(msg) {
				if client, _ := l["client"].(string); strings.HasPrefix(client, believedHost+":") {
					missing--
				}
			}
		}
		return missing == 0
	})
}

func TestAProxyThatDoesNotKnowItsClientIsTakenForIt(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-trusted-proxies=127.0.0.1")
	backend := harness.StartEcho(t)
	var clients []string
	for _, header := range []string{unknownHeader, "PROXY UNKNOWN 1.2.3.4 5.6.7.8 9 10\r\n", localHeader} {
		for _, introduce := range introductions {
			c := introduce(t, p.Addr, header)
			harness.Send(t, c, harness.Line(backend)+"hello")
			harness.Expect(t, c, "200hello")
			c.Close()
			clients = append(clients, c.LocalAddr().String())
		}
	}
	for _, client := range clients {
		if l := p.Log.WaitClient(t, "tunnel", client); l["up"] != 5.0 {
			t.Errorf("logged as %v", l)
		}
	}
}

func TestATrustedProxyHasToSendAHeader(t *testing.T) {
	t.Parallel()
	flags, _ := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-trusted-proxies=127.0.0.0/8")...)
	refused := make(map[string]string) // client → its request
	for _, request := range []string{
		harness.Line(harness.StartEcho(t)),
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
		"GET / HTTP/1.1\r\n\r\n",
		harness.Prefixed("no header"),
		"PROXY TCP4 192.0.2.9 198.51.100.7 1\r\n",
		"PROXY TCP4 192.0.2.9 198.51.100.7 1 65536\r\n",
		"PROXY TCP6 192.0.2.9 198.51.100.7 1 2\r\n",
		"PROXY UDP4 192.0.2.9 198.51.100.7 1 2\r\n",
		"PROXYED\r\n",
		"PROXY TCP4 192.0.2.9 198.51.100.7 1 2\n",
		"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c",
		"\r\n\r\nx",
	} {
		for how, write := range deliveries {
			c := harness.Connect(t, p.Addr)
			write(t, c, request[:len(request)-1])
			c.Write([]byte(request[len(request)-1:])) // it may be refused already
			if got, err := io.ReadAll(c); string(got) != "400" || err != nil {
				t.Errorf("%q %s: read %q, %v", request, how, got, err)
			}
			refused[c.LocalAddr().String()] = request
		}
	}
	p.Log.WaitLine(t, "refused", len(refused))
	for _, l := range p.Log.Lines("refused") {
		if request := refused[l["client"].(string)]; request == "" || harness.Status(l) != "400" || l["reason"] != "no_header" {
			t.Errorf("%q: logged as %v", request, l)
		}
	}
}

func TestAHeaderHasToComeWithinTheHandshakesTime(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-trusted-proxies=127.0.0.0/8", "-handshake-timeout=2s", "-log-level=debug")
	header := proxyHeader(t, 1, believed, public)
	for _, tt := range []struct{ request, client, msg, reason string }{
		{"", "", "no request", "empty"},
		{"PROXY TCP4 ", "", "refused", "too_slow"},
		{localHeader[:14], "", "refused", "too_slow"},
		{header, believed, "no request", "empty"},
		{header + "U2Fsd", believed, "refused", "too_slow"},
	} {
		t.Run(fmt.Sprintf("%q", tt.request), func(t *testing.T) {
			t.Parallel()
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, tt.request)
			harness.ExpectAll(t, c, "400")
			if tt.client == "" {
				tt.client = c.LocalAddr().String()
			}
			harness.Eventually(t, "the log has the reason", func() bool {
				for _, l := range p.Log.Lines(tt.msg) {
					if l["client"] == tt.client && harness.Status(l) == "400" && l["reason"] == tt.reason {
						return true
					}
				}
				return false
			})
		})
	}
}

func TestTheHeaderIsNoPartOfTheLine(t *testing.T) {
	t.Parallel()
	line := harness.Line(harness.StartEcho(t))
	p := harness.Start(t, "-trusted-proxies=127.0.0.0/8", fmt.Sprintf("-handshake-max=%d", len(line)-1))
	long := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 8), Port: 2})
	if err := long.SetTLVs([]proxyproto.TLV{{Type: 0xe0, Value: make([]byte, 4000)}}); err != nil {
		t.Fatal(err)
	}
	b, err := long.Format()
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{localHeader, string(b)} {
		for _, introduce := range introductions {
			c := introduce(t, p.Addr, header)
			harness.Send(t, c, line)
			harness.Send(t, c, "hello")
			harness.Expect(t, c, "200hello")
			c = introduce(t, p.Addr, header)
			harness.Send(t, c, "A"+line[:len(line)-1])
			harness.ExpectAll(t, c, "400")
		}
	}
}

// startHearing returns a backend of both kinds that is told of its clients.
func startHearing(t testing.TB, told chan<- string) string {
	return harness.StartBackend(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		h, err := proxyproto.Read(br)
		if err != nil {
			t.Errorf("the backend: %v", err)
			return
		}
		told <- fmt.Sprint(h.SourceAddr, " ", h.DestinationAddr)
		if b, _ := br.Peek(4); string(b) == "POST" {
			r, err := http.ReadRequest(br)
			if err != nil {
				t.Errorf("the backend: %v", err)
				return
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Backend: game\r\n%s\r\n\r\n%s", len(body), harness.ADate, body)
			return
		}
		io.Copy(c, br)
		c.CloseWrite()
	})
}

func TestABelievedClientIsToldToItsBackend(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	told := make(chan string, 1)
	backend := startHearing(t, told)
	for _, version := range []string{"v1", "v2"} {
		p := harness.Start(t, append(flags, "-trusted-proxies=127.0.0.0/8", "-send-proxy="+version)...)
		for _, v := range harness.Forms() {
			for _, config := range []*tls.Config{nil, trusting} {
				for _, header := range []string{proxyHeader(t, 1, believed, public), proxyHeader(t, 2, believed, public), localHeader} {
					c := introductions["in one segment"](t, p.Addr, header)
					want := believed + " " + public
					if header == localHeader {
						want = c.LocalAddr().String() + " " + p.Addr
					}
					if config != nil {
						c = harness.Handshake(t, c, config)
					}
					harness.Send(t, c, v.Text(backend)+v.Say)
					v.ExpectHello(t, c)
					if got := <-told; got != want {
						t.Errorf("%s: the backend was told %s by %s, want %s", v.Name, got, version, want)
					}
					v.Leave(t, c)
					c.Close()
				}
			}
		}
	}
}

func TestAForwardedClientIsBelievedToo(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	backend := startHearing(t, told)
	p := harness.Start(t, "-trusted-proxies=127.0.0.0/8", "-send-proxy=v1", "-forward="+backend)
	for _, introduce := range introductions {
		c := introduce(t, p.Addr, proxyHeader(t, 2, believed, public))
		harness.Send(t, c, "hello")
		harness.Expect(t, c, "hello")
		if got := <-told; got != believed+" "+public {
			t.Errorf("the backend was told %s", got)
		}
	}
	c := harness.Connect(t, p.Addr) // who speaks second, sends nothing but the header
	harness.Send(t, c, proxyHeader(t, 2, believed, public))
	<-told
	c.Close()

	c = harness.Connect(t, p.Addr)
	harness.Send(t, c, "hello, I am no proxy")
	harness.ExpectAll(t, c, "") // nobody reads a status here
	if l := p.Log.WaitClient(t, "refused", c.LocalAddr().String()); l["reason"] != "no_header" {
		t.Errorf("logged as %v", l)
	}
}

func TestNobodyElsesHeaderIsBelieved(t *testing.T) {
	t.Parallel()
	told := make(chan http.Header, 1)
	asked := harness.StartHTTP(t, func(_ http.ResponseWriter, r *http.Request) { told <- r.Header })
	p := harness.Start(t, "-trusted-proxies=127.0.0.2,2001:db8::/32")
	line := harness.Line(harness.StartEcho(t))
	header := proxyHeader(t, 1, believed, public)

	c := harness.Connect(t, p.Addr)
	harness.Send(t, c, header+line)
	harness.ExpectAll(t, c, "401")
	p.Log.WaitClient(t, "refused", c.LocalAddr().String())
	c = harness.Connect(t, p.Addr)
	harness.Send(t, c, proxyHeader(t, 2, believed, public)+line)
	harness.ExpectAll(t, c, "401") // its first line is "\r\n"
	c = harness.Connect(t, p.Addr)
	harness.Send(t, c, line+"hello")
	harness.Expect(t, c, "200hello")
	c.Close()
	p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())

	// Nor is one that stands inside.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	dial := func() net.Conn {
		c, err := d.Dial("tcp", p.Addr)
		if err != nil {
			t.Skip(err) // elsewhere 127.0.0.2 may be no address of this host
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	proxy := dial()
	harness.Send(t, proxy, header+header+line)
	harness.ExpectAll(t, proxy, "401")

	proxy = dial()
	harness.Send(t, proxy, header+"GET / HTTP/1.1\r\nHost: game.test\r\nX-Forwarded-For: 203.0.113.1\r\nX-Cipher-Origin: "+
		harness.Sealed(asked)+"\r\n\r\n")
	if got := (<-told).Get("X-Forwarded-For"); got != "203.0.113.1, "+believedHost {
		t.Errorf("the backend was told %q", got)
	}
}

func TestAProxysHealthCheckIsNoRequest(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-trusted-proxies=127.0.0.0/8", "-log-level=debug")
	checks := map[string]func(*net.TCPConn){
		"close":  func(c *net.TCPConn) { c.Close() },
		"finish": func(c *net.TCPConn) { c.CloseWrite() },
		"reset":  func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	}
	n := 0
	for _, end := range checks {
		for _, header := range []string{"", unknownHeader, localHeader, proxyHeader(t, 1, believed, public)} {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, header)
			if header != "" {
				harness.Delivered(t, c)
			}
			end(c)
			n++
		}
	}
	if l := p.Log.WaitLine(t, "no request", n); l["level"] != "DEBUG" {
		t.Errorf("logged as %v", l)
	}
	for line := range strings.Lines(p.Log.String()) {
		var l struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &l); l.Level != "DEBUG" && l.Msg != "listening" && l.Msg != "settings" {
			t.Errorf("logged: %s", line)
		}
	}
}
