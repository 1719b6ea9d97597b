package web

import (
	"errors"
	"fmt"
	"gateway/internal/harness"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// What the tests share: a browser, the gateway as operators run it, and backends.

// mustHaveBrowser has the tests fail where there is no browser, instead of
// being skipped.
var mustHaveBrowser = os.Getenv("NEED_BROWSER") == "1"

func TestMain(m *testing.M) {
	harness.Main(m, func() error {
		if theLab == nil || theLab.err != nil {
			return nil
		}
		return theLab.close()
	})
}

// lab is what is dear to start, and therefore shared by all tests.
type lab struct {
	err     error  // why there is none
	dir     string // with the gateway's certificate and key, and the browser's profile
	pages   *httptest.Server
	browser *exec.Cmd
	stderr  harness.Log   // the browser's
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
	harness.LeaveTo(t, mustHaveBrowser, "test-browser")
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
		if theLab.err = theLab.start(t, path); theLab.err != nil {
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

func (l *lab) start(t *testing.T, browser string) error {
	var err error
	if l.dir, err = os.MkdirTemp("", "gateway-web-"); err != nil {
		return err
	}
	harness.WriteCertificate(t, l.file("cert.pem"), l.file("key.pem"), "gateway.test")
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServer(http.Dir(".")))
	mux.HandleFunc("GET /driver.html", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, driver) })
	mux.Handle("GET /kit/", http.FileServer(http.Dir(l.dir))) // see buildKit
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
	case <-time.After(2 * harness.Patience): // its first start can be slow
		return fmt.Errorf("%w\n%s", errBrowser, l.stderr.String())
	}
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

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
	l.browser.WaitDelay = harness.Patience
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
	timer := time.AfterFunc(harness.Patience, func() { p.Kill() })
	defer timer.Stop()
	<-exited
}

// gateway is a gateway to which pages connect.
type gateway struct{ *harness.Process }

func (g *gateway) ws() string  { return "ws://" + g.Addr + "/" }
func (g *gateway) wss() string { return "wss://" + g.Addr + "/" }

// startGateway starts a gateway on a free port of 127.0.0.1 that speaks TLS as
// well. It ends with the test.
func (l *lab) startGateway(t *testing.T, args ...string) *gateway {
	t.Helper()
	return &gateway{harness.Start(t, append([]string{"-drain=0",
		"-tls-cert=" + l.file("cert.pem"), "-tls-key=" + l.file("key.pem")}, args...)...)}
}
