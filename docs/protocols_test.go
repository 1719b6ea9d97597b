package docs_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"go/ast"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
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

// All dumps have one line, sealed with one secret, for one address.
const (
	goldenSecret  = "p0S8rX680*48"
	goldenBackend = "127.0.0.1:62863"
)

// listenGolden takes the port that the dumps' line leads to. Another run of this test
// on the machine may have it for a moment.
func listenGolden(t *testing.T) (ln net.Listener) {
	t.Helper()
	harness.Eventually(t, "the port "+goldenBackend+" is free", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", goldenBackend)
		return err == nil
	})
	return ln
}

// serveGolden serves what the dumps say is behind the gateway until stop is called: a
// web server, or an echo.
func serveGolden(t *testing.T, web bool) (stop func()) {
	t.Helper()
	ln := listenGolden(t)
	if web {
		server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		go server.Serve(ln)
		return func() { server.Close() }
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * harness.Patience))
				io.Copy(c, struct{ io.Reader }{c})
			})
		}
	})
	return func() { ln.Close(); serving.Wait() }
}

func TestDumpsOfTheProtocolsCanBePlayedBack(t *testing.T) {
	played := make(map[string]bool)
	for _, name := range protocols {
		for i, talk := range dumps(t, readDocument(t, name)) {
			first := talk[0].bytes
			var kind string // as the log has it in via
			switch {
			case first[0] == 0x16: // is another one each time
				played["tls"] = true
				continue
			case bytes.HasPrefix(first, []byte("GET ")):
				kind = "http"
			case first[0] == 0x81:
				kind = "websocket"
			case bytes.HasPrefix(first, []byte("PROXY ")), bytes.HasPrefix(first, []byte("\r\n\r\n\x00\r\nQUIT\n")):
				kind = "proxy"
			case first[0] == 0:
				kind = "binary"
			case bytes.HasPrefix(first[2:], []byte{0, 0}):
				kind = "prefixed"
			default:
				kind = "line"
			}
			played[kind] = true
			t.Run(fmt.Sprint(name, " ", i, " ", kind), func(t *testing.T) { playBack(t, kind, talk) })
		}
	}
	for _, kind := range []string{"line", "prefixed", "binary", "http", "websocket", "tls", "proxy"} {
		if !played[kind] {
			t.Errorf("no dump of %s", kind)
		}
	}
}

// playBack says what a dump's client says, and wants to hear what it hears.
func playBack(t *testing.T, kind string, talk []speech) {
	stop := serveGolden(t, kind == "http")
	defer stop()
	args := []string{"-secret=" + goldenSecret}
	if kind == "proxy" {
		args = append(args, "-trusted-proxies=127.0.0.0/8")
	}
	p := harness.Start(t, args...)
	c := harness.Connect(t, p.Addr)
	if kind == "websocket" {
		harness.Send(t, c, "GET / HTTP/1.1\r\nHost: play.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
		expectHeader(t, c, "HTTP/1.1 101 ")
	}
	for _, s := range talk {
		if s.client {
			harness.Send(t, c, string(s.bytes))
		} else {
			harness.Expect(t, c, string(s.bytes))
		}
	}
	message := "tunnel"
	if kind == "http" {
		harness.Expect(t, c, "HTTP/1.1 200 OK\r\n")
		message = "request"
	}
	c.Close()
	line := p.Log.WaitLine(t, message, 1)
	want := map[string]any{"backend": goldenBackend, "via": kind}
	switch kind {
	case "proxy":
		want["client"] = "203.0.113.7:51000"
		want["via"] = nil
	case "line":
		want["via"] = nil
	}
	for field, value := range want {
		if line[field] != value {
			t.Errorf("the log has %s=%v, want %v", field, line[field], value)
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
	var methods []string
	inspectSource(t, "internal/handshake", func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && spec.Names[0].Name == "methods" && len(spec.Values) == 1 {
			methods = literals(spec.Values[0].(*ast.CompositeLit).Elts...)
		}
		return true
	})
	if len(methods) < 5 {
		t.Fatalf("the source has the methods %q", methods)
	}
	for _, name := range protocols {
		for _, m := range methods {
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
	echo := harness.StartEcho(t)
	p := harness.Start(t)
	line := func(addr string) string { return strings.TrimSpace(harness.Line(addr)) }
	get := func(headers string) string {
		return "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + headers + "\r\n"
	}
	for _, request := range []string{
		"\x2c\x00\x00\x00" + line(echo) + "hello",
		get(""),
		get("X-Cipher-Origin: " + line(backend.Listener.Addr().String()) + "\r\n"),
		get("X-Cipher-Origin: " + line(harness.ClosedPort(t)) + "\r\n"),
	} {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, request)
		c.CloseWrite()
		io.ReadAll(c)
		c.Close()
	}
	p.Log.WaitLine(t, "tunnel", 1)
	p.Log.WaitLine(t, "request", 3)

	kind := func(values map[string]any) string {
		return fmt.Sprint(values["msg"], " ", values["status"], " ", values["via"])
	}
	logged := make(map[string]string) // the fields of each kind of line
	for text := range strings.Lines(p.Log.String()) {
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
			if !compared[k] && !strings.HasPrefix(k, "listening") && !strings.HasPrefix(k, "settings") {
				t.Errorf("%s has no sample of a line %q", name, k)
			}
		}
	}
}
