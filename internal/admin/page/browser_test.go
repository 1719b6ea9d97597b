package page

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/admin"
	"gateway/internal/harness"
)

// browser is a headless Chromium, driven through its pipe: messages of its DevTools
// protocol, each with a zero behind it.
type browser struct {
	t       *testing.T
	in      *os.File
	out     *bufio.Reader
	id      int
	session string
	errors  []string // exceptions, and what the console and the policy complained of
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

func startBrowser(t *testing.T, args ...string) *browser {
	harness.LeaveTo(t, os.Getenv("NEED_BROWSER") != "", "test-browser")
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("NEED_BROWSER") != "" {
			t.Fatal(err)
		}
		t.Skip("no chromium: make test-browser installs it")
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append(args, "--headless=new", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "--no-sandbox",
		"--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server", "--disable-background-networking",
		"--disable-component-update", "--disable-extensions", "about:blank")...)
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, in: in, out: bufio.NewReader(out)}
	limit := time.AfterFunc(90*time.Second, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		limit.Stop()
		b.session = ""
		b.call("Browser.close", nil)
		cmd.Wait()
		in.Close()
		out.Close()
	})
	return b
}

// call returns the result of a method.
func (b *browser) call(method string, params any) json.RawMessage {
	b.t.Helper()
	b.id++
	m := map[string]any{"id": b.id, "method": method}
	if params != nil {
		m["params"] = params
	}
	if b.session != "" {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		b.t.Fatal(err)
	}
	for {
		text, err := b.out.ReadBytes(0)
		if err != nil {
			b.t.Fatal(method, ": ", err)
		}
		var m message
		if err := json.Unmarshal(text[:len(text)-1], &m); err != nil {
			b.t.Fatal(err)
		}
		p := string(m.Params)
		switch {
		case m.Method == "Runtime.exceptionThrown",
			m.Method == "Runtime.consoleAPICalled" && strings.Contains(p, `"type":"error"`),
			// That the server is away is what a test is about.
			m.Method == "Log.entryAdded" && strings.Contains(p, `"level":"error"`) && !strings.Contains(p, `"source":"network"`):
			b.errors = append(b.errors, p)
		}
		if m.ID == b.id {
			if m.Error != nil {
				b.t.Fatalf("%s: %s", method, m.Error)
			}
			return m.Result
		}
	}
}

func (b *browser) open(url string) {
	var target struct{ TargetID, SessionID string }
	json.Unmarshal(b.call("Target.createTarget", map[string]any{"url": "about:blank"}), &target)
	json.Unmarshal(b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}), &target)
	b.session = target.SessionID
	b.call("Runtime.enable", nil)
	b.call("Log.enable", nil)
	b.call("Page.enable", nil)
	b.call("Page.navigate", map[string]any{"url": url})
}

// eval returns what an expression, or its promise, comes to.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	json.Unmarshal(b.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}), &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%.80s: %s", expression, r.ExceptionDetails)
	}
	return fmt.Sprint(r.Result.Value)
}

// shows waits until the page has a text.
func (b *browser) shows(text string) {
	b.t.Helper()
	harness.Eventually(b.t, "the page shows "+text, func() bool { return strings.Contains(b.eval("document.body?.innerText ?? ''"), text) })
}

// gateway is a server with a page, whose figures move.
type gateway struct {
	address string
	turn    atomic.Int64
	ill     atomic.Bool
}

func (g *gateway) status() admin.Status {
	n, now := g.turn.Add(1), time.Now()
	wave := n*40 + int64(900*math.Sin(float64(n)/40)+200*math.Sin(float64(n)/11))
	reasons := []string{"bad_padding", "too_slow", "refused"}
	st := admin.Status{Time: now, Started: now.Add(-100 * time.Hour), Version: "v1.2.3", PID: 4711, Ready: !g.ill.Load(), Reason: "starting",
		Listeners:   []admin.Listener{{Name: "[::]:8000", Accepted: wave}, {Name: "kcp://[::]:8000", Accepted: wave / 3}},
		Connections: []admin.ConnectionCount{{Form: "line", Count: wave / 2}, {Form: "websocket+tls", Count: wave / 3}, {Form: "http", Count: wave / 5}},
		Refusals:    []admin.ReasonCount{{Reason: "bad_padding", Count: n/3 + int64(9*math.Sin(float64(n)/35))}},
		Tunnels:     admin.Tunnels{Active: 31200 + int64(2600*math.Sin(float64(n)/150)) + n%3},
		Bytes:       admin.Bytes{Up: admin.Moved{Spliced: wave * 90e3}, Down: admin.Moved{Spliced: wave * 700e3}},
		Backends:    []admin.Backend{{Address: "10.20.0.7:4000", Tunnels: 16100}, {Address: "10.20.0.8:4000", Tunnels: 15100, Failures: 3}},
		Loops:       []admin.Loop{{BusySeconds: float64(n) * .31, LongestTurnSeconds: .0021, Connections: 15600}, {BusySeconds: float64(n) * .27, LongestTurnSeconds: .0018, Connections: 15600}},
		Limits: admin.Limits{Descriptors: admin.Use{Used: 63120, Limit: 200000}, Connections: admin.Use{Used: 31300, Limit: 99900},
			Pipes: admin.Use{Used: 410, Limit: 4096}, Unproven: admin.Use{Used: 37, Limit: 16384}},
		Recent: []admin.Refusal{},
	}
	for i, r := range reasons {
		st.Recent = append(st.Recent, admin.Refusal{Time: now.Add(-time.Duration(i) * time.Minute), Client: fmt.Sprintf("198.51.100.%d:52710", i+7), Listener: "[::]:8000", Form: "line", Reason: r})
	}
	return st
}

// serve serves until stop is called, at the same address each time.
func (g *gateway) serve(t *testing.T) (stop func()) {
	if g.address == "" {
		g.address = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	g.address = ln.Addr().String()
	p := New(g.status)
	p.mu.Lock()
	p.history.next, p.history.n = 0, 0
	for i := range 880 { // so that there is something to see
		st := g.status()
		st.Time = time.Now().Add(time.Duration(i-880) * time.Second)
		p.history.add(&st)
	}
	p.mu.Unlock()
	mux := http.NewServeMux()
	mux.Handle("/", p)
	mux.HandleFunc("/api/events", p.Events)
	srv := &http.Server{Handler: mux}
	go srv.Serve(ln)
	return func() { p.Stop(); srv.Close() }
}

// picture writes a screenshot where $SCREENSHOTS says.
func (b *browser) picture(name string) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	var r struct{ Data string }
	json.Unmarshal(b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}), &r)
	png, err := base64.StdEncoding.DecodeString(r.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/"+name+".png", png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func TestThePageShowsLiveFiguresAndSurvivesARestart(t *testing.T) {
	b := startBrowser(t, "--lang=en-US", "--window-size=1200,1180")
	g := new(gateway)
	stop := g.serve(t)
	b.open("http://" + g.address + "/")
	b.shows("All is well")
	b.shows("Sealed with another secret")
	before := b.eval("document.querySelector('#charts').innerText")
	harness.Eventually(t, "figures change", func() bool { return b.eval("document.querySelector('#charts').innerText") != before })
	b.shows("31 %")
	b.picture("light")
	for _, scheme := range []string{"light", "dark"} {
		b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
		b.accessible()
	}
	b.picture("dark")
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 390, "height": 1800, "deviceScaleFactor": 1, "mobile": true})
	if wide := b.eval("document.documentElement.scrollWidth"); wide != "390" {
		t.Errorf("on a phone the page is %s pixels wide", wide)
	}
	b.picture("phone")
	g.ill.Store(true)
	b.shows("Something is wrong")
	g.ill.Store(false)
	stop()
	b.shows("Lost contact")
	stop = g.serve(t)
	defer stop()
	b.shows("All is well")
	if len(b.errors) != 0 {
		t.Error(b.errors)
	}
}

// accessible lets axe-core look at the page, where $AXE says where that is.
func (b *browser) accessible() {
	b.t.Helper()
	file := os.Getenv("AXE")
	if file == "" {
		if os.Getenv("NEED_BROWSER") != "" {
			b.t.Error("AXE does not say where axe.min.js is")
		}
		return
	}
	axe, err := os.ReadFile(file)
	if err != nil {
		b.t.Fatal(err)
	}
	b.eval(string(axe) + "; 0")
	if found := b.eval("axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.nodes[0].html).join('\\n'))"); found != "" {
		b.t.Error(found)
	}
}
