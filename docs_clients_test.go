package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The clients in the documents are run, and talk through a gateway.

func TestTheDocumentedOpensslCommandSealsAnAddress(t *testing.T) {
	needTool(t, "openssl")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", readDocument(t, readmes[0]).blockWith(t, "sh", "openssl enc"))
	cmd.Dir = dir
	line, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	addr, err := newKeyring([][]byte{[]byte(testSecret)}, defaultConfig().KDFs).open(context.Background(), line)
	if err != nil || addr.String() != "10.0.0.7:4000" {
		t.Errorf("%q opens to %v, %v", line, addr, err)
	}
}

func TestThePythonClientTalksThroughTheGateway(t *testing.T) {
	lookPath(t, "python3")
	program := readDocument(t, readmes[0]).blockWith(t, "python", "def connect") + `
import sys
host, port = sys.argv[1].rsplit(":", 1)
try:
    s = connect((host, int(port)), sys.argv[2])
    s.sendall(b"hello")
    print(s.makefile("rb").read(len("welcome" + "hello")).decode())
except Exception as e:
    print(e)
`
	talkThroughTheGateway(t, "python3", "-c", program)
}

func TestTheGoClientTalksThroughTheGateway(t *testing.T) {
	talkThroughTheGateway(t, buildClient(t, readmes[0]))
}

// talkThroughTheGateway runs a client with the gateway's address and a line as
// its last arguments. It is to connect, send "hello", and print the 12 bytes it
// gets; or the error.
func talkThroughTheGateway(t *testing.T, client ...string) {
	t.Helper()
	g := startGateway(t, nil)
	// Backends that speak first show that the client keeps its hands off the
	// bytes behind the status.
	backend := startGreeter(t, "welcome")
	// What a gateway does that happens to send both in one segment.
	together := startBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, len("any line\n")))
		io.WriteString(c, "200welcome")
		io.Copy(c, struct{ io.Reader }{c})
	})
	for _, test := range []struct{ gateway, line, want string }{
		{g.addr, sealed(t, backend), "welcomehello"},
		{together, "any line", "welcomehello"},
		{g.addr, sealed(t, closedPort(t)), "the gateway answered 502"},
		{g.addr, "nonsense", "the gateway answered 401"},
	} {
		args := append(client[1:len(client):len(client)], test.gateway, strings.TrimSuffix(test.line, "\n"))
		if got := runClient(t, nil, client[0], args...); got != test.want {
			t.Errorf("%.10q…: the client printed %q, want %q", test.line, got, test.want)
		}
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
	client := buildClient(t, protocols[0])
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
	backend := startGreeter(t, "welcome")
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

// startGreeter starts a backend that speaks first, and then sends back what it
// gets.
func startGreeter(t testing.TB, text string) string {
	return startBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, text)
		io.Copy(c, struct{ io.Reader }{c})
	})
}

// buildClient builds the Go client of a page, whose Connect takes the gateway's
// address and a line: it says "hello", and prints the 12 bytes it gets.
func buildClient(t *testing.T, page string) string {
	t.Helper()
	lookPath(t, "go")
	return buildProgram(t, "package main\n\nimport \"os\"\n"+readDocument(t, page).blockWith(t, "go", "func Connect")+`
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
}

// buildProgram builds a documented program with the module's dependencies, and
// returns the binary.
func buildProgram(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "program.go"), filepath.Join(dir, "program.exe")
	if err := os.WriteFile(source, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", binary, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// runClient runs a program to its end, in this process's environment if env is
// nil, and returns what it prints.
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

// lookPath finds a program that not all machines have.
func lookPath(t *testing.T, name string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	return file
}

// needTool skips a test for want of a program that only some machines have; in
// CI, which installs it (make test-deps), that is a failure.
func needTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); errors.Is(err, exec.ErrNotFound) {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}
