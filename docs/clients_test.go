package docs_test

import (
	"fmt"
	"io"
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

	"gateway/internal/harness"
)

// The clients in the documents are run, and talk through a gateway.

func TestThePythonClientTalksThroughTheGateway(t *testing.T) {
	python := harness.LookPath(t, "python3")
	program := readDocument(t, readmes[0]).blockWith(t, "python", "def connect") + `
import sys
for gateway, line in zip(sys.argv[1::2], sys.argv[2::2]):
    host, port = gateway.rsplit(":", 1)
    try:
        s = connect((host, int(port)), line)
        s.sendall(b"hello")
        print(s.makefile("rb").read(len("welcome" + "hello")).decode())
    except Exception as e:
        print(e)
`
	talkThroughTheGateway(t, func(args ...string) []string {
		return strings.Split(harness.RunProgram(t, nil, python, append([]string{"-c", program}, args...)...), "\n")
	})
}

func TestTheGoClientTalksThroughTheGateway(t *testing.T) {
	client := buildClient(t, protocols[0], "net.DialTimeout")
	talkThroughTheGateway(t, func(args ...string) (printed []string) {
		for pair := range slices.Chunk(args, 2) {
			printed = append(printed, harness.RunProgram(t, nil, client, pair...))
		}
		return printed
	})
}

// talkThroughTheGateway runs a client with pairs of a gateway's address and a line as
// its arguments. For each it is to connect, send "hello", and print the 12 bytes it
// gets; or the error.
func talkThroughTheGateway(t *testing.T, talk func(args ...string) []string) {
	t.Helper()
	gateway := harness.Start(t).Addr
	// Backends that speak first show that the client keeps its hands off the
	// bytes behind the status.
	backend := harness.StartGreeter(t, "welcome")
	// What a gateway does that happens to send both in one segment.
	together := harness.StartBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, len("any line\n")))
		io.WriteString(c, "200welcome")
		io.Copy(c, struct{ io.Reader }{c})
	})
	got := talk(
		gateway, strings.TrimSpace(harness.Line(backend)),
		together, "any line",
		gateway, strings.TrimSpace(harness.Line(harness.ClosedPort(t))),
		gateway, "nonsense",
	)
	want := []string{"welcomehello", "welcomehello", "the gateway answered 502", "the gateway answered 401"}
	if !slices.Equal(got, want) {
		t.Errorf("the client printed %q, want %q", got, want)
	}
}

func TestThePythonClientOfEachFormTalksThroughTheGateway(t *testing.T) {
	python := harness.LookPath(t, "python3")
	var program strings.Builder
	for _, block := range readDocument(t, protocols[0]).blocks {
		if block.lang == "python" {
			program.WriteString(block.text)
		}
	}
	program.WriteString(`
import sys
host, port = sys.argv[2].rsplit(":", 1)
for line in sys.argv[3:]:
    try:
        s = globals()[sys.argv[1]]((host, int(port)), line)
        s.sendall(b"hello")
        print(s.makefile("rb").read(len("welcome" + "hello")).decode())
    except ConnectionError as e:
        print(e)
`)
	gateway, env := startSecure(t)
	found := regexp.MustCompile(`(?m)^def (connect_\w+)`).FindAllStringSubmatch(program.String(), -1)
	if len(found) < 4 {
		t.Fatalf("only %d clients", len(found))
	}
	for _, m := range found {
		t.Run(m[1], func(t *testing.T) {
			t.Parallel()
			checkStatuses(t, func(lines ...string) []string {
				out := harness.RunProgram(t, env, python, append([]string{"-c", program.String(), m[1], gateway}, lines...)...)
				return strings.Split(out, "\n")
			})
		})
	}
}

func TestTheGoWebSocketClientTalksThroughTheGateway(t *testing.T) {
	client := buildClient(t, protocols[0], "websocket.Dial")
	gateway, env := startSecure(t)
	for _, scheme := range []string{"ws", "wss"} {
		checkStatuses(t, func(lines ...string) (printed []string) {
			for _, line := range lines {
				printed = append(printed, harness.RunProgram(t, env, client, scheme+"://"+gateway+"/", line))
			}
			return printed
		})
	}
}

func TestTheJavaScriptClientTalksThroughTheGateway(t *testing.T) {
	node := harness.LookPath(t, "node")
	const flag = "--experimental-websocket" // by default since version 22
	if out, err := exec.Command(node, flag, "-e", "WebSocket").CombinedOutput(); err != nil {
		t.Skipf("no WebSocket in this node: %s", out)
	}
	gateway, env := startSecure(t)
	program := readDocument(t, protocols[0]).blockWith(t, "js", "function connect") + `
const [url, ...lines] = process.argv.slice(1);
const talk = (line) => new Promise(async (done) => {
  let text = "";
  const ws = await connect(url, line, (event) => {
    text += new TextDecoder().decode(event.data);
    if (text.length === "welcomehello".length) {
      ws.close();
      done(text);
    }
  }).catch((error) => done(error.message));
  ws?.send(new TextEncoder().encode("hello"));
});
(async () => {
  for (const line of lines) console.log(await talk(line));
})();
`
	for _, scheme := range []string{"ws", "wss"} {
		checkStatuses(t, func(lines ...string) []string {
			args := append([]string{flag, "--no-warnings", "-e", program, scheme + "://" + gateway + "/"}, lines...)
			return strings.Split(harness.RunProgram(t, env, node, args...), "\n")
		})
	}
}

// checkStatuses has a client talk to a backend that speaks first, and be
// refused. talk returns what the client prints for each line.
func checkStatuses(t *testing.T, talk func(lines ...string) []string) {
	t.Helper()
	backend := harness.StartGreeter(t, "welcome")
	lines := []string{
		strings.TrimSpace(harness.Line(backend)),
		strings.TrimSpace(harness.Line(harness.ClosedPort(t))),
		"nonsens=", // base64, which the binary client decodes
	}
	want := []string{"welcomehello", "the gateway answered 502", "the gateway answered 401"}
	if got := talk(lines...); !slices.Equal(got, want) {
		t.Errorf("the client printed %q, want %q", got, want)
	}
}

func TestTheCurlCommandsReachTheirBackend(t *testing.T) {
	harness.LookPath(t, "curl")
	harness.LookPath(t, "sh")
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			fmt.Fprintf(w, "%s: %s\n", name, r.Header.Get(name))
		}
		fmt.Fprintf(w, "Host: %s\n%s %s", r.Host, r.Method, r.RequestURI)
	}))
	defer backend.Close()
	line := strings.TrimSpace(harness.Line(backend.Listener.Addr().String()))
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
		got := harness.RunProgram(t, append(env, "line="+line), "sh", "-c", block.text)
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
		if got := harness.RunProgram(t, append(env, "line=nonsense"), "sh", "-c", block.text); got != "401 Unauthorized" {
			t.Errorf("%s: with a bad line it printed %q", block.text, got)
		}
	}
	if commands < 3 {
		t.Errorf("only %d commands", commands)
	}
}

// startSecure starts a gateway that speaks TLS too, and returns its address. The
// environment has Python, Go, curl and node trust its certificate, and lets curl
// take it for play.example.com:8000.
func startSecure(t *testing.T) (gateway string, env []string) {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	harness.WriteCertificate(t, cert, key, "gateway.test")
	gateway = harness.Start(t, "-tls-cert="+cert, "-tls-key="+key).Addr
	rc := fmt.Sprintf("silent\nshow-error\nconnect-to = %q\ncacert = %q\n", "play.example.com:8000:"+gateway, cert)
	if err := os.WriteFile(filepath.Join(dir, ".curlrc"), []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
	return gateway, append(os.Environ(), "SSL_CERT_FILE="+cert, "NODE_EXTRA_CA_CERTS="+cert, "CURL_HOME="+dir, "no_proxy=*")
}

// buildClient builds the Go client of a page in the block with a text, whose Connect
// takes the gateway's address and a line: it says "hello", and prints the 12 bytes
// it gets.
func buildClient(t *testing.T, page, text string) string {
	t.Helper()
	return harness.BuildProgram(t, "package main\n\nimport \"os\"\n"+readDocument(t, page).blockWith(t, "go", text)+`
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
