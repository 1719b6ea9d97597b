package web

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// What the tests share: a browser, the gateway as operators run it, and backends.

// patience is how long a test waits for what must come. It costs nothing where
// all is well.
const patience = 20 * time.Second

const testSecret = "a secret of the tests only"

// mustHaveBrowser has the tests fail where there is no browser, instead of
// being skipped.
var mustHaveBrowser = os.Getenv("NEED_BROWSER") == "1"

func TestMain(m *testing.M) {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "GATEWAY_") || name == "CREDENTIALS_DIRECTORY" {
			os.Unsetenv(name)
		}
	}
	code := m.Run()
	if theLab != nil && theLab.err == nil {
		if err := theLab.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// lab is what is dear to start, and therefore shared by all tests.
type lab struct {
	err     error  // why there is none
	dir     string // with the gateway's binary, its certificate and key, and the browser's profile
	pages   *httptest.Server
	browser *exec.Cmd
	stderr  logBuffer     // the browser's
	exited  chan struct{} // closed when the browser has ended
	waitErr error         // valid then
	asking  chan struct{} // closed when the page has asked for its first task
	once    sync.Once

	mu     sync.Mutex
	tasks  map[string]chan task // by the name of the page
	lastID int
	asked  map[int]chan report
}

var theLab *lab

// startLab returns the page in which tests run their code.
func startLab(t *testing.T) (*lab, *page) {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	switch {
	case path == "" && mustHaveBrowser:
		t.Fatal("there is no chromium")
	case path == "":
		t.Skip("there is no chromium; make test-browser installs it")
	}
	if theLab == nil {
		theLab = &lab{
			asking: make(chan struct{}),
			tasks:  make(map[string]chan task),
			asked:  make(map[int]chan report),
		}
		if theLab.err = theLab.start(path); theLab.err != nil {
			theLab.close()
		}
	}
	switch err := theLab.err; {
	case errors.Is(err, errBrowser) && !mustHaveBrowser:
		t.Skip(err) // one that runs for a user at a screen only, perhaps
	case err != nil:
		t.Fatal(err)
	}
	return theLab, &page{theLab, "main"}
}

var errBrowser = errors.New("the browser does not work here")

func (l *lab) start(browser string) error {
	var err error
	if l.dir, err = os.MkdirTemp("", "gateway-web-"); err != nil {
		return err
	}
	if out, err := exec.Command("go", "build", "-o", l.gatewayBinary(), "../..").CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %v\n%s", err, out)
	}
	if err := writeCertificate(l.file("cert.pem"), l.file("key.pem")); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServer(http.Dir(".")))
	mux.HandleFunc("GET /driver.html", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, driver) })
	mux.HandleFunc("GET /task", l.serveTask)
	mux.HandleFunc("POST /report", l.serveReport)
	l.pages = httptest.NewServer(mux)
	if err := l.startBrowser(browser); err != nil {
		return fmt.Errorf("%w: %v", errBrowser, err)
	}
	select {
	case <-l.asking:
		return nil
	case <-l.exited:
		return fmt.Errorf("%w: %v\n%s", errBrowser, l.waitErr, l.stderr.String())
	case <-time.After(2 * patience): // its first start can be slow
		return fmt.Errorf("%w\n%s", errBrowser, l.stderr.String())
	}
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) gatewayBinary() string { return l.file("gateway.exe") }

func (l *lab) startBrowser(path string) error {
	l.browser = exec.Command(path,
		"--headless=new",
		"--user-data-dir="+l.file("profile"),
		"--no-sandbox",            // which root and containers cannot have; the pages are our own
		"--disable-gpu",           // there may be none
		"--disable-dev-shm-usage", // it is small in containers
		"--enable-logging=stderr", // with what pages write to the console
		"--ignore-certificate-errors",
		// Nobody but the tests is asked for anything.
		"--no-first-run",
		"--no-proxy-server",
		"--disable-background-networking",
		"--disable-component-update",
		"--disable-extensions",
		"--disable-sync",
		"--disable-breakpad",
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		l.pages.URL+"/driver.html?page=main")
	// It leaves files in the user's directories otherwise.
	l.browser.Env = append(os.Environ(), "HOME="+l.dir, "XDG_CONFIG_HOME="+l.dir, "XDG_CACHE_HOME="+l.dir)
	l.browser.Stdout, l.browser.Stderr = &l.stderr, &l.stderr
	l.browser.WaitDelay = patience
	if err := l.browser.Start(); err != nil {
		return err
	}
	l.exited = make(chan struct{})
	go func() {
		defer close(l.exited)
		l.waitErr = l.browser.Wait() // for its children, too, which have the same standard error
	}()
	return nil
}

// close ends the browser and removes all files.
func (l *lab) close() error {
	var err error
	if l.exited != nil {
		end(l.browser.Process, l.exited)
		if errors.Is(l.waitErr, exec.ErrWaitDelay) {
			err = errors.New("the browser left processes behind")
		}
	}
	if l.pages != nil {
		l.pages.CloseClientConnections()
		l.pages.Close()
	}
	return errors.Join(err, os.RemoveAll(l.dir))
}

// end ends a process as `kill PID` does, or else as `kill -9 PID` does, and
// waits for it. Windows only has the latter.
func end(p *os.Process, exited <-chan struct{}) {
	if p.Signal(os.Interrupt) != nil {
		p.Kill()
	}
	timer := time.AfterFunc(patience, func() { p.Kill() })
	defer timer.Stop()
	<-exited
}

// gateway is a gateway that runs as a process of its own.
type gateway struct {
	cmd    *exec.Cmd
	log    logBuffer // JSON lines
	addr   string
	exited chan struct{}
}

func (g *gateway) ws() string  { return "ws://" + g.addr + "/" }
func (g *gateway) wss() string { return "wss://" + g.addr + "/" }

func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command(l.gatewayBinary(), args...)
	cmd.Env = append(os.Environ(), "GATEWAY_SECRET="+testSecret)
	return cmd
}

// startGateway starts a gateway on a free port of 127.0.0.1 that speaks TLS as
// well. It ends with the test.
func (l *lab) startGateway(t *testing.T, args ...string) *gateway {
	t.Helper()
	g := &gateway{exited: make(chan struct{})}
	g.cmd = l.command(append([]string{"-addr=127.0.0.1:0", "-pidfile=", "-log-format=json", "-drain=0",
		"-tls-cert=" + l.file("cert.pem"), "-tls-key=" + l.file("key.pem")}, args...)...)
	g.cmd.Stderr = &g.log
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		g.cmd.Wait()
		close(g.exited)
	}()
	t.Cleanup(func() {
		end(g.cmd.Process, g.exited)
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", g.log.String())
		}
	})
	g.addr, _ = g.await(t, "listening")["addr"].(string)
	return g
}

// await waits for a line of the log with a message and returns the first.
func (g *gateway) await(t *testing.T, msg string) map[string]any {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for line := range strings.Lines(g.log.String()) {
			var m map[string]any
			if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == msg {
				return m
			}
		}
		select {
		case <-g.exited:
			t.Fatalf("the gateway has ended: %v", g.cmd.ProcessState)
		default:
		}
	}
	t.Fatalf("the gateway did not log %q", msg)
	return nil
}

// seal returns the sealed line for an address, as the operator makes it.
func (l *lab) seal(t *testing.T, addr string) string {
	t.Helper()
	out, err := l.command("-seal=" + addr).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out) // with the newline: whoever copies a line may well have it
}

// startBackend listens on a free port of 127.0.0.1, runs serve for each
// connection and closes it afterwards. It returns the address.
func startBackend(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
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
				c.SetDeadline(time.Now().Add(patience)) // ends what a failed test left
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// startEcho starts a backend that sends back what it gets, until FIN.
func startEcho(t *testing.T) string {
	return startBackend(t, func(c *net.TCPConn) { c.ReadFrom(struct{ net.Conn }{c}) })
}

// closedPort returns an address of 127.0.0.1 where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// logBuffer collects what a process writes and can be read meanwhile.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// writeCertificate makes a certificate for 127.0.0.1 that nobody but itself
// vouches for.
func writeCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}
