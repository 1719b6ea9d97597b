package main

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/pires/go-proxyproto"

	"gateway/internal/harness"
)

// What these tests share: the gateway inside the test process, and by other names
// what those that drive it from outside have.

const (
	patience   = harness.Patience
	testSecret = harness.Secret
)

var (
	eventually     = harness.Eventually
	startBackend   = harness.StartBackend
	startEcho      = harness.StartEcho
	closedPort     = harness.ClosedPort
	connect        = harness.Connect
	openTunnel     = harness.OpenTunnel
	send           = harness.Send
	expect         = harness.Expect
	expectAll      = harness.ExpectAll
	expectCut      = harness.ExpectCut
	finish         = harness.Finish
	waitRefused    = harness.WaitRefused
	descriptorsOf  = harness.Descriptors
	gatewayCommand = harness.Command
	runGateway     = harness.Run
	portOf         = harness.PortOf
	tlsFiles       = harness.TLSFiles
	connectWith    = harness.ConnectWith
	expectAnswer   = harness.ExpectAnswer
	frameHead      = harness.FrameHead
	sealedText     = harness.Sealed
)

const binaryFrame = harness.BinaryFrame

// Some tests count what all of the process does or has, or change it; no test that
// calls t.Parallel runs beside those. A loop holds a processor of Go's while it waits
// for a moment: as many gateways at once need more of them than there are CPUs.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(4 * runtime.NumCPU())
	harness.Main(m)
}

// logBuffer is harness.Log.
type logBuffer harness.Log

func (b *logBuffer) Write(p []byte) (int, error) { return (*harness.Log)(b).Write(p) }
func (b *logBuffer) String() string              { return (*harness.Log)(b).String() }

func (b *logBuffer) lines(msg string) []map[string]any { return (*harness.Log)(b).Lines(msg) }

func (b *logBuffer) waitLine(t testing.TB, msg string, n int) map[string]any {
	t.Helper()
	return (*harness.Log)(b).WaitLine(t, msg, n)
}

// process is harness.Process.
type process struct {
	*harness.Process
	cmd  *exec.Cmd
	log  *logBuffer
	addr string
}

func asProcess(p *harness.Process) *process {
	return &process{p, p.Cmd, (*logBuffer)(&p.Log), p.Addr}
}

func startProcess(t testing.TB, args ...string) *process {
	t.Helper()
	return asProcess(harness.Start(t, args...))
}

func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	return asProcess(harness.Launch(t, cmd))
}

func (p *process) signal(t testing.TB, sig os.Signal) { t.Helper(); p.Signal(t, sig) }
func (p *process) wait(t testing.TB) int              { t.Helper(); return p.Wait(t) }

// testGateway is a gateway inside the test process.
type testGateway struct {
	*Gateway
	addr string
	log  logBuffer // JSON lines from debug level on

	partner *Gateway // to which tunnels may have moved; nil: none
}

// Close closes a partner too.
func (tg *testGateway) Close() error {
	if tg.partner != nil {
		tg.partner.Close()
	}
	return tg.Gateway.Close()
}

// cuts returns how many tunnels were cut by Close.
func (tg *testGateway) cuts() int64 {
	n := tg.ledger.cut.Load()
	if tg.partner != nil {
		n += tg.partner.ledger.cut.Load()
	}
	return n
}

// startGateway serves on a free port of 127.0.0.1 with testSecret until the
// test ends. tweak, if not nil, changes the gateway before it serves.
func startGateway(t testing.TB, tweak func(*Gateway)) *testGateway {
	t.Helper()
	return startConfigured(t, nil, tweak)
}

// startConfigured is startGateway with another configuration.
func startConfigured(t testing.TB, configure func(*Config), tweak func(*Gateway)) *testGateway {
	t.Helper()
	tg := &testGateway{}
	log := slog.New(slog.NewJSONHandler(&tg.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := defaultConfig()
	cfg.Secrets, cfg.IOUring = [][]byte{[]byte(testSecret)}, harness.IOUring()
	cfg.LogRefusedRate = 0 // tests count the lines
	cfg.Timeout = patience // a busy machine is no backend that is gone
	if configure != nil {
		configure(cfg)
	}
	err := cfg.load(log)
	if err != nil {
		t.Fatal(err)
	}
	if tg.Gateway, err = NewGateway(cfg, log); err != nil {
		t.Fatal(err)
	}
	if tweak != nil {
		tweak(tg.Gateway)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tg.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- tg.Serve(ln) }()
	t.Cleanup(func() {
		tg.Close()
		if err := <-served; err != ErrGatewayClosed {
			t.Errorf("Serve returned %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", (*harness.Log)(&tg.log).Tail())
		}
	})
	return tg
}

// goroutinesServe counts the connections that goroutines have, not loops.
func (g *testGateway) goroutinesServe() int {
	g.clients.mu.Lock()
	defer g.clients.mu.Unlock()
	return len(g.clients.all)
}

// sealed returns the request line for a backend, newline included, sealed with
// testSecret.
func sealed(_ testing.TB, backend string) string { return harness.Line(backend) }

// sealedTo is sealed without its newline.
func sealedTo(_ testing.TB, backend string) string { return harness.Sealed(backend) }

// tongue is harness.Form.
type tongue struct {
	name, half, wrong, say, welcome string
	ask                             func(line string) string
	harness.Form
}

func (v tongue) text(_ testing.TB, backend string) string { return v.Text(backend) }

func tongues() (all []tongue) {
	for _, f := range harness.Forms() {
		all = append(all, tongue{f.Name, f.Half, f.Wrong, f.Say, f.Welcome, f.Ask, f})
	}
	return all
}

const (
	believed = "192.0.2.9:4321"   // the client, by the headers of these tests
	public   = "198.51.100.7:443" // where it connected to

	unknownHeader = "PROXY UNKNOWN\r\n"
	localHeader   = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
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
