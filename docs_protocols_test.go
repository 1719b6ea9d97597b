package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The clients in docs/protocols.md talk through a gateway, and its dumps are
// played back to one. What it lists is compared with the source.

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
			form := sniff(first, true)
			kind, backend := form.String(), startEcho(t)
			answer := []byte(nil)
			trust := func(*Config) {}
			switch {
			case form == formTLS: // is another one each time
				played["tls"] = true
				continue
			case form == formHTTP:
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
				g.keys.recent.put([]byte(goldenLine), parseRoute(t, backend))
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

func TestThePythonClientOfEachFormTalksThroughTheGateway(t *testing.T) {
	python := lookPath(t, "python3")
	var program strings.Builder
	for _, block := range readDocument(t, protocols[0]).blocks {
		if block.lang == "python" {
			program.WriteString(block.text)
		}
	}
	program.WriteString(`
import sys
host, port = sys.argv[2].rsplit(":", 1)
try:
    s = globals()[sys.argv[1]]((host, int(port)), sys.argv[3])
    s.sendall(b"hello")
    print(s.makefile("rb").read(len("welcome" + "hello")).decode())
except ConnectionError as e:
    print(e)
`)
	g, env := startSecure(t)
	found := regexp.MustCompile(`(?m)^def (connect_\w+)`).FindAllStringSubmatch(program.String(), -1)
	if len(found) < 4 {
		t.Fatalf("only %d clients", len(found))
	}
	for _, m := range found {
		t.Run(m[1], func(t *testing.T) {
			t.Parallel()
			checkStatuses(t, func(line string) string {
				return runClient(t, env, python, "-c", program.String(), m[1], g.addr, line)
			})
		})
	}
}

func TestTheGoWebSocketClientTalksThroughTheGateway(t *testing.T) {
	lookPath(t, "go")
	client := buildProgram(t, "package main\n\nimport \"os\"\n"+readDocument(t, protocols[0]).blockWith(t, "go", "func Connect")+`
func main() {
	c, err := Connect(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Println(err)
		return
	}
	io.WriteString(c, "hello")
	b := make([]byte, len("welcome"+"hello"))
	io.ReadFull(c, b)
	fmt.Printf("%s\n", b)
}
`)
	g, env := startSecure(t)
	for _, scheme := range []string{"ws", "wss"} {
		checkStatuses(t, func(line string) string {
			return runClient(t, env, client, scheme+"://"+g.addr+"/", line)
		})
	}
}

func TestTheJavaScriptClientTalksThroughTheGateway(t *testing.T) {
	node := lookPath(t, "node")
	const flag = "--experimental-websocket" // by default since version 22
	if out, err := exec.Command(node, flag, "-e", "WebSocket").CombinedOutput(); err != nil {
		t.Skipf("no WebSocket in this node: %s", out)
	}
	g, env := startSecure(t)
	program := readDocument(t, protocols[0]).blockWith(t, "js", "function connect") + `
(async () => {
  let text = "";
  const ws = await connect(process.argv[1], process.argv[2], (event) => {
    text += new TextDecoder().decode(event.data);
    if (text.length === "welcomehello".length) {
      console.log(text);
      ws.close();
    }
  });
  ws.send(new TextEncoder().encode("hello"));
})().catch((error) => console.log(error.message));
`
	for _, scheme := range []string{"ws", "wss"} {
		checkStatuses(t, func(line string) string {
			return runClient(t, env, node, flag, "--no-warnings", "-e", program, scheme+"://"+g.addr+"/", line)
		})
	}
}

// checkStatuses has a client talk to a backend that speaks first, and be
// refused.
func checkStatuses(t *testing.T, talk func(line string) string) {
	t.Helper()
	backend := startBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, "welcome")
		io.Copy(c, struct{ io.Reader }{c})
	})
	for _, test := range []struct{ line, want string }{
		{sealed(t, backend), "welcomehello"},
		{sealed(t, closedPort(t)), "the gateway answered 502"},
		{"nonsens=", "the gateway answered 401"}, // base64, which the binary client decodes
	} {
		if got := talk(strings.TrimSpace(test.line)); got != test.want {
			t.Errorf("%.10q…: the client printed %q, want %q", test.line, got, test.want)
		}
	}
}

func TestTheCurlCommandsReachTheirBackend(t *testing.T) {
	lookPath(t, "curl")
	lookPath(t, "sh")
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			fmt.Fprintf(w, "%s: %s\n", name, r.Header.Get(name))
		}
		fmt.Fprintf(w, "Host: %s\n%s %s", r.Host, r.Method, r.RequestURI)
	}))
	defer backend.Close()
	line := strings.TrimSpace(sealed(t, backend.Listener.Addr().String()))
	_, env := startSecure(t)
	d := readDocument(t, protocols[0])

	commands := 0
	for _, block := range d.blocks {
		if block.lang != "sh" || !strings.HasPrefix(block.text, "curl ") {
			continue
		}
		commands++
		proto := "http"
		if strings.Contains(block.text, "https://") {
			proto = "https"
		}
		// Of the lines of the page's request, all but the program's version
		// and the client's address are the same here.
		got := runClient(t, append(env, "line="+line), "sh", "-c", block.text)
		for want := range strings.Lines(d.blockWith(t, "http", "X-Forwarded-For")) {
			switch name, _, _ := strings.Cut(want, ":"); name {
			case "User-Agent":
				continue
			case "X-Forwarded-For":
				want = "X-Forwarded-For: 127.0.0.1"
			case "X-Forwarded-Proto":
				want = "X-Forwarded-Proto: " + proto
			}
			want = strings.TrimSuffix(strings.TrimSpace(want), " HTTP/1.1")
			if !slices.Contains(strings.Split(got, "\n"), want) {
				t.Errorf("%s: the backend got\n%s\nwithout %q", block.text, got, want)
			}
		}
		if regexp.MustCompile(`(?i)cipher|identify`).MatchString(got) {
			t.Errorf("%s: the backend got\n%s", block.text, got)
		}
		if got := runClient(t, append(env, "line=nonsense"), "sh", "-c", block.text); got != "401 Unauthorized" {
			t.Errorf("%s: with a bad line it printed %q", block.text, got)
		}
	}
	if commands < 3 {
		t.Errorf("only %d commands", commands)
	}
}

// startSecure starts a gateway that speaks TLS too. The environment has Python,
// Go, curl and node trust its certificate, and lets curl take it for
// play.example.com:8000.
func startSecure(t *testing.T) (*testGateway, []string) {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	selfSigned(t, cert, key)
	g := startConfigured(t, func(cfg *Config) { cfg.TLSCert, cfg.TLSKey = cert, key }, nil)
	rc := fmt.Sprintf("silent\nshow-error\nconnect-to = %q\ncacert = %q\n", "play.example.com:8000:"+g.addr, cert)
	if err := os.WriteFile(filepath.Join(dir, ".curlrc"), []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
	return g, append(os.Environ(), "SSL_CERT_FILE="+cert, "NODE_EXTRA_CA_CERTS="+cert, "CURL_HOME="+dir, "no_proxy=*")
}

// selfSigned writes a certificate for 127.0.0.1 and play.example.com, and its key.
func selfSigned(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "a certificate of the tests only"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		DNSNames:              []string{"play.example.com"},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// lookPath finds a program that not all machines have.
func lookPath(t *testing.T, name string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	return file
}

// runClient runs a program to its end and returns what it prints.
func runClient(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v", err)
	}
	return strings.TrimSpace(string(out))
}

func TestTheProtocolsListEveryMethodThatIsHTTP(t *testing.T) {
	for _, name := range protocols {
		for _, m := range methods {
			if !strings.Contains(readText(t, name), "`"+m+"`") {
				t.Errorf("%s does not say that %q is HTTP", name, m)
			}
		}
	}
}

func TestTheProtocolsListEveryReasonOfARequest(t *testing.T) {
	want := reasonsOfRequests(t)
	for _, name := range protocols {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, "no_address") {
			got = append(got, row[0])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the reasons\n%q\nwant those in the source\n%q", name, got, want)
		}
	}
}

// reasonsOfRequests returns the words that internal/web may have as a reason,
// sorted: its errors of a single word.
func reasonsOfRequests(t *testing.T) []string {
	files, err := filepath.Glob("internal/web/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	found := make(map[string]bool)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
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
	}
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

	kind := func(msg, status, via string) string { return msg + " " + status + " " + via }
	fields := make(map[string]string) // of each kind of line
	for text := range strings.Lines(g.log.String()) {
		m := make(map[string]string)
		var names []string
		for _, f := range regexp.MustCompile(`[{,]"(\w+)":(?:"((?:[^"\\]|\\.)*)"|(\d+))`).FindAllStringSubmatch(text, -1) {
			m[f[1]] = f[2] + f[3]
			names = append(names, f[1])
		}
		fields[kind(m["msg"], m["status"], m["via"])] = strings.Join(names, " ")
	}
	for _, name := range protocols {
		compared := make(map[string]bool)
		for _, block := range readDocument(t, name).blocks {
			for text := range strings.Lines(block.text) {
				if !strings.HasPrefix(text, "time=") {
					continue
				}
				m := make(map[string]string)
				var names []string
				for _, f := range regexp.MustCompile(`(\w+)=("(?:[^"\\]|\\.)*"|\S*)`).FindAllStringSubmatch(text, -1) {
					m[f[1]] = f[2]
					names = append(names, f[1])
				}
				k := kind(m["msg"], m["status"], m["via"])
				if want, ok := fields[k]; ok {
					compared[k] = true
					if got := strings.Join(names, " "); got != want {
						t.Errorf("%s: the sample\n%shas the fields %q; the log has\n%q", name, text, got, want)
					}
				}
			}
		}
		for k := range fields {
			if !compared[k] && !strings.HasPrefix(k, "listening") {
				t.Errorf("%s has no sample of a line %q", name, k)
			}
		}
	}
}
