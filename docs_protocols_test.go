package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"gateway/internal/handshake"
	"go/ast"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The dumps in docs/protocols.md are played back to a gateway, and what it lists is
// compared with the source.

// A speech is what one side says in a dump.
type speech struct {
	client bool
	bytes  []byte
}

// dumps returns the conversations of the page's hex dumps. Each line has its
// place, up to 16 bytes in hex, and the same as text.
func dumps(t *testing.T, d *document) [][]speech {
	t.Helper()
	line := regexp.MustCompile(`^([<>]) ([0-9a-f]{4})  ([0-9a-f ]{1,48}) +\|(.{1,16})\|\n$`)
	var found [][]speech
	for _, block := range d.blocks {
		if block.lang != "text" || !strings.HasPrefix(block.text, "> 0000") {
			continue
		}
		var talk []speech
		for text := range strings.Lines(block.text) {
			m := line.FindStringSubmatch(text)
			if m == nil {
				t.Fatalf("%s: not a line of a dump: %q", d.name, text)
			}
			b, err := hex.DecodeString(strings.ReplaceAll(m[3], " ", ""))
			if err != nil {
				t.Fatalf("%s: %v in %q", d.name, err, text)
			}
			if m[2] == "0000" {
				talk = append(talk, speech{client: m[1] == ">"})
			}
			last := &talk[len(talk)-1]
			if place := fmt.Sprintf("%04x", len(last.bytes)); m[2] != place || last.client != (m[1] == ">") {
				t.Errorf("%s: %q is at %s", d.name, text, place)
			}
			shown := slices.Clone(b)
			for i, c := range shown {
				if c < ' ' || c > '~' {
					shown[i] = '.'
				}
			}
			if string(shown) != m[4] {
				t.Errorf("%s: %q is %q as text", d.name, text, shown)
			}
			last.bytes = append(last.bytes, b...)
		}
		found = append(found, talk)
	}
	return found
}

func TestDumpsOfTheProtocolsCanBePlayedBack(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer page.Close()
	played := make(map[string]bool)
	for _, name := range protocols {
		for i, talk := range dumps(t, readDocument(t, name)) {
			first := talk[0].bytes
			form := handshake.Sniff(first, true)
			kind, backend := form.String(), startEcho(t)
			answer := []byte(nil)
			trust := func(*Config) {}
			switch {
			case form == handshake.TLS: // is another one each time
				played["tls"] = true
				continue
			case form == handshake.HTTP:
				backend, answer = page.Listener.Addr().String(), []byte("HTTP/1.1 200 OK\r\n")
			case first[0] == 0x81:
				kind = "websocket"
			case bytes.HasPrefix(first, []byte("PROXY ")), bytes.HasPrefix(first, []byte("\r\n\r\n\x00\r\nQUIT\n")):
				kind = "proxy"
				trust = func(cfg *Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }
			}
			t.Run(fmt.Sprint(name, " ", i, " ", kind), func(t *testing.T) {
				g := startConfigured(t, trust, nil)
				// The golden line, which leads to a fixed port otherwise.
				g.rules.Load().keys.recent.put([]byte(goldenLine), parseRoute(t, backend))
				c := connect(t, g.addr)
				if kind == "websocket" {
					send(t, c, "GET / HTTP/1.1\r\nHost: play.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
						"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
					expectHeader(t, c, "HTTP/1.1 101 ")
				}
				for _, s := range append(talk, speech{bytes: answer}) {
					if s.client {
						send(t, c, string(s.bytes))
					} else {
						expect(t, c, string(s.bytes))
					}
				}
				c.Close()
				if kind == "proxy" {
					if line := g.log.waitLine(t, "tunnel", 1); line["client"] != "203.0.113.7:51000" {
						t.Errorf("the client is %v", line["client"])
					}
				}
				played[kind] = true
			})
		}
	}
	for _, kind := range []string{"line", "prefixed", "binary", "http", "websocket", "tls", "proxy"} {
		if !played[kind] {
			t.Errorf("no dump of %s", kind)
		}
	}
}

// expectHeader reads the header of an HTTP response and nothing behind it.
func expectHeader(t *testing.T, c net.Conn, start string) {
	t.Helper()
	var got []byte
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte("\r\n\r\n")); got = append(got, b...) {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	if !strings.HasPrefix(string(got), start) {
		t.Fatalf("read %q, want %q", got, start)
	}
}

func TestTheProtocolsListEveryMethodThatIsHTTP(t *testing.T) {
	for _, name := range protocols {
		for _, m := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"} {
			if !strings.Contains(readText(t, name), "`"+m+"`") {
				t.Errorf("%s does not say that %q is HTTP", name, m)
			}
		}
	}
}

func TestTheProtocolsListEveryReasonOfARequest(t *testing.T) {
	wantReasons(t, protocols, "no_address", reasonsOfRequests(t))
}

// reasonsOfRequests returns the words that internal/web may have as a reason,
// sorted: its errors of a single word.
func reasonsOfRequests(t *testing.T) []string {
	found := make(map[string]bool)
	inspectSource(t, "internal/web", func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		f, isSelector := call.Fun.(*ast.SelectorExpr)
		lit, isLit := call.Args[0].(*ast.BasicLit)
		if isSelector && isLit && f.Sel.Name == "New" {
			if word, _ := strconv.Unquote(lit.Value); !strings.Contains(word, " ") {
				found[word] = true
			}
		}
		return true
	})
	return slices.Sorted(maps.Keys(found))
}

func TestTheLogSamplesOfTheProtocolsHaveTheFieldsOfTheLog(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer backend.Close()
	echo := startEcho(t)
	g := startGateway(t, nil)
	line := func(addr string) string { return strings.TrimSpace(sealed(t, addr)) }
	get := func(headers string) string {
		return "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + headers + "\r\n"
	}
	for _, request := range []string{
		"\x2c\x00\x00\x00" + line(echo),
		get(""),
		get("X-Cipher-Origin: " + line(backend.Listener.Addr().String()) + "\r\n"),
		get("X-Cipher-Origin: " + line(closedPort(t)) + "\r\n"),
	} {
		c := connect(t, g.addr)
		send(t, c, request)
		c.CloseWrite()
		io.ReadAll(c)
		c.Close()
	}
	g.log.waitLine(t, "tunnel", 1)
	g.log.waitLine(t, "request", 3)

	kind := func(values map[string]any) string {
		return fmt.Sprint(values["msg"], " ", values["status"], " ", values["via"])
	}
	logged := make(map[string]string) // the fields of each kind of line
	for text := range strings.Lines(g.log.String()) {
		values, fields := loggedFields(t, text)
		logged[kind(values)] = fields
	}
	for _, name := range protocols {
		compared := make(map[string]bool)
		for _, text := range readDocument(t, name).logSamples() {
			values, fields := sampleFields(text)
			k := kind(values)
			if want, ok := logged[k]; ok {
				compared[k] = true
				if fields != want {
					t.Errorf("%s: the sample\n%shas the fields %q; the log has\n%q", name, text, fields, want)
				}
			}
		}
		for k := range logged {
			if !compared[k] && !strings.HasPrefix(k, "listening") {
				t.Errorf("%s has no sample of a line %q", name, k)
			}
		}
	}
}
