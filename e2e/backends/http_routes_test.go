package backends

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"gateway/internal/harness"
)

// Routes of HTTP servers: each request makes its own choice.

// webPage is an HTTP server that answers with its name and what it was asked.
type webPage struct {
	addr     string
	conns    atomic.Int64
	requests chan *http.Request
}

// startWebPage starts a page until the test ends. With a path of /wait it answers
// when the request's context or the returned function ends; with /ws it is a
// WebSocket server that sends back what it gets.
func startWebPage(t testing.TB, name string) (p *webPage, answer func()) {
	t.Helper()
	p = &webPage{requests: make(chan *http.Request, 64)}
	waiting := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests <- r
		switch r.URL.Path {
		case "/wait":
			select {
			case <-waiting:
			case <-r.Context().Done():
			}
		case "/ws":
			c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
			if err != nil {
				return
			}
			defer c.CloseNow()
			for {
				kind, b, err := c.Read(r.Context())
				if err != nil || c.Write(r.Context(), kind, append([]byte(name), b...)) != nil {
					return
				}
			}
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s%s", name, body)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.conns.Add(1)
		}
	}
	s.Start()
	p.addr = s.Listener.Addr().String()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return p, func() { waiting <- struct{}{} }
}

// browser is an HTTP client. Its connections end with the test.
func browser(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: harness.Patience}
}

// ask makes a request with a sealed route, or none, and returns status and body.
func (w *wayIn) ask(t testing.TB, client *http.Client, method, path, route, body string) (status int, answer string) {
	t.Helper()
	addr, _ := w.enter(t, route)
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if !w.forwards {
		r.Header.Set("X-Cipher-Origin", harness.Sealed(w.spell(route)))
	}
	reply, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	b, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply.StatusCode, string(b)
}

// dialWS opens a WebSocket whose server is a target of the route.
func (w *wayIn) dialWS(t testing.TB, path, route string) (*websocket.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	t.Cleanup(cancel)
	addr, _ := w.enter(t, route)
	o := &websocket.DialOptions{HTTPClient: browser(t), HTTPHeader: make(http.Header)}
	if !w.forwards {
		o.HTTPHeader.Set("X-Cipher-Origin", harness.Sealed(w.spell(route)))
	}
	c, _, err := websocket.Dial(ctx, "ws://"+addr+path, o)
	if err == nil {
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, err
}

// say sends a message and returns the answer.
func say(t testing.TB, c *websocket.Conn, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageBinary, []byte(text)); err != nil {
		t.Fatal(err)
	}
	_, b, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEachRequestOfAClientIsBalanced(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-balance=roundrobin"}, func(t *testing.T, w *wayIn) {
		a, _ := startWebPage(t, "a")
		b, _ := startWebPage(t, "b")
		routes := []string{"http://" + a.addr + ",http://" + b.addr}
		if !w.forwards { // where an HTTP client decides what is spoken
			routes = append(routes, a.addr+","+b.addr)
		}
		for _, route := range routes {
			client, got := browser(t), ""
			for range 6 {
				_, name := w.ask(t, client, "GET", "/", route, "")
				got += name
			}
			if got != "ababab" {
				t.Errorf("%s: met %s", route, got)
			}
		}
		if n, want := a.conns.Load()+b.conns.Load(), int64(6*len(routes)); n != want {
			t.Errorf("%d requests came by %d connections", want, n)
		}
	})
}

func TestADeadFirstServerDoesNotHurtARequest(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
		b, _ := startWebPage(t, "b")
		dead := harness.ClosedPort(t)
		route := "http://" + dead + ",http://" + b.addr
		body := string(harness.Noise(1, 100<<10))
		client := browser(t)
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			if status, got := w.ask(t, client, method, "/", route, body); status != 200 || got != "b"+body {
				t.Errorf("%s: %d with %d bytes", method, status, len(got))
			}
		}
		if n := len(b.requests); n != 4 {
			t.Errorf("%d requests came", n)
		}
		line := w.waitLine(t, "request", 4)
		if !strings.HasSuffix(fmt.Sprint(line["backend"]), ":"+harness.PortOf(b.addr)) || line["status"] != 200.0 {
			t.Errorf("logged: %v", line)
		}
		if status, _ := w.ask(t, client, "GET", "/", "http://"+dead+",http://"+harness.ClosedPort(t), ""); status != 502 {
			t.Errorf("all dead: %d", status)
		}
		if line := w.waitLine(t, "request", 5); line["status"] != 502.0 || line["reason"] != "refused" {
			t.Errorf("logged: %v", line)
		}
	})
}

// Whether there is one server or several, the page gets the same request.
func TestAnUpgradePassesThroughToAnyOfSeveralServers(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
		a, _ := startWebPage(t, "a")
		for _, route := range []string{"http://" + a.addr, "http://" + harness.ClosedPort(t) + ",http://" + a.addr} {
			c, err := w.dialWS(t, "/ws", route)
			if err != nil {
				t.Errorf("%s: %v", route, err)
				continue
			}
			if got := say(t, c, "hello"); got != "ahello" {
				t.Errorf("%s: got %q", route, got)
			}
			c.CloseNow()
			r := <-a.requests
			if got := r.Header["Connection"]; !slices.Equal(got, []string{"Upgrade"}) {
				t.Errorf("%s: Connection: %q", route, got)
			}
			if got := r.Header["X-Forwarded-For"]; !slices.Equal(got, []string{"127.0.0.1"}) {
				t.Errorf("%s: X-Forwarded-For: %q", route, got)
			}
		}
	})
}

// A WebSocket may also end at the gateway, with servers behind it that speak
// something else.
func TestAWebSocketIsBalancedToo(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		w := &wayIn{Process: harness.Start(t, way, "-balance=leastconn")}
		targets := startTargets(t, "ab")
		route := routeTo(targets...)
		w.occupy(t, route, "a")
		for _, of := range []string{route, harness.ClosedPort(t) + "," + targets[1].addr} {
			for i := range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
				defer cancel()
				var c *websocket.Conn
				harness.Eventually(t, "a WebSocket meets b", func() bool { // who has just left may still count
					var err error
					c, _, err = websocket.Dial(ctx, "ws://"+w.Addr+"/?x-cipher-origin="+url.QueryEscape(harness.Sealed(of)), nil)
					if err != nil {
						t.Fatal(err)
					}
					_, got, err := c.Read(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if string(got) != "b" {
						c.CloseNow()
					}
					return string(got) == "b"
				})
				defer c.CloseNow()
				if i == 0 {
					c.Close(websocket.StatusNormalClosure, "")
				} else {
					c.CloseNow()
				}
				w.wantIdle(t, route, "b")
			}
		}
	})
}

// A forward that speaks HTTP tells its servers of the client, and nothing but
// HTTP gets through.
func TestAForwardMaySpeakHTTP(t *testing.T) {
	t.Parallel()
	cert, key, _ := harness.TLSFiles(t)
	a, _ := startWebPage(t, "a")
	dead := harness.ClosedPort(t)
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		for name, p := range map[string]*harness.Process{
			"-forward": harness.StartBare(t, nil, way, "-addr=127.0.0.1:0", "-forward=http://"+a.addr, "-tls-cert="+cert, "-tls-key="+key),
			"-listen":  harness.StartBare(t, nil, way, "-listen=127.0.0.1:0=forward:http://"+dead+",http://"+a.addr, "-tls-cert="+cert, "-tls-key="+key),
			"by name":  harness.StartBare(t, nil, way, "-listen=127.0.0.1:0=forward:http://"+harness.ByName(dead)+"*9,http://"+harness.ByName(a.addr), "-tls-cert="+cert, "-tls-key="+key),
		} {
			t.Run(way+" "+name, func(t *testing.T) {
				client := browser(t)
				for i, scheme := range []string{"http", "https"} {
					r, err := http.NewRequestWithContext(t.Context(), "POST", scheme+"://"+p.Addr+"/path?x=1", strings.NewReader("hello"))
					if err != nil {
						t.Fatal(err)
					}
					r.Host = "game.example"
					r.Header.Set("X-Forwarded-For", "192.0.2.1")
					reply, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					got, _ := io.ReadAll(reply.Body)
					reply.Body.Close()
					if reply.StatusCode != 200 || string(got) != "ahello" {
						t.Errorf("%s: %d, %q", scheme, reply.StatusCode, got)
					}
					asked := <-a.requests
					if asked.Host != "game.example" || asked.URL.String() != "/path?x=1" ||
						strings.Join(asked.Header["X-Forwarded-For"], ", ") != "192.0.2.1, 127.0.0.1" ||
						asked.Header.Get("X-Forwarded-Proto") != scheme || asked.Header.Get("X-Forwarded-Host") != "game.example" {
						t.Errorf("%s: the server was asked for %s of %s, %v", scheme, asked.URL, asked.Host, asked.Header)
					}
					via := []string{"http", "http+tls"}[i]
					if line := p.Log.WaitLine(t, "request", i+1); line["via"] != via || line["status"] != 200.0 || line["client"] == nil {
						t.Errorf("%s: logged %v", scheme, line)
					}

					ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
					defer cancel()
					c, _, err := websocket.Dial(ctx, scheme+"://"+p.Addr+"/ws", &websocket.DialOptions{HTTPClient: client})
					if err != nil {
						t.Fatal(err)
					}
					defer c.CloseNow()
					if got := say(t, c, "hello"); got != "ahello" {
						t.Errorf("%s: the WebSocket says %q", scheme, got)
					}
					<-a.requests
				}
				c := harness.Connect(t, p.Addr)
				harness.Send(t, c, "SSH-2.0-OpenSSH\r\n\r\n")
				if got, err := io.ReadAll(c); !strings.HasPrefix(string(got), "HTTP/1.1 400 ") || err != nil {
					t.Errorf("what is no HTTP is answered %q, %v", got, err)
				}
				if n := len(a.requests); n > 0 {
					t.Errorf("%d more requests came", n)
				}
			})
		}
	}
}

// What a server sends while it still reads is not held back.
func TestAServerMayAnswerWhileItReads(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.EnableFullDuplex()
			rc.Flush()
			for br := bufio.NewReader(r.Body); ; {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				io.WriteString(w, line)
				rc.Flush()
			}
		}))
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		addr := server.Listener.Addr().String()
		for _, route := range []string{"http://" + addr, "http://" + addr + ",http://" + addr} {
			to, _ := w.enter(t, route)
			header := ""
			if !w.forwards {
				header = "X-Cipher-Origin: " + harness.Line(w.spell(route))
			}
			c := harness.Connect(t, to)
			c.SetDeadline(time.Now().Add(harness.Patience / 4))
			harness.Send(t, c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"+header+"\r\n6\r\nhello\n\r\n")
			reply, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%s: %v", route, err)
				c.Close()
				continue
			}
			body := bufio.NewReader(reply.Body)
			for i := range 3 {
				line, err := body.ReadString('\n')
				if line != "hello\n" {
					t.Errorf("%s: line %d is %q, %v", route, i, line, err)
				}
				harness.Send(t, c, "6\r\nhello\n\r\n")
			}
			c.Close()
		}
	})
}

// A request, an upgraded connection and a WebSocket count as connections for
// as long as they last.
func TestLeastConnCountsWhatHTTPClientsDo(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-balance=leastconn"}, func(t *testing.T, w *wayIn) {
		a, answerA := startWebPage(t, "a")
		b, answerB := startWebPage(t, "b")
		route := "http://" + a.addr + ",http://" + b.addr
		client := browser(t)
		met := make(chan string, 2)
		ask := func() {
			_, name := w.ask(t, client, "GET", "/wait", route, "")
			met <- name
		}
		go ask()
		<-a.requests
		go ask()
		<-b.requests // one each
		answerB()
		if name := <-met; name != "b" {
			t.Errorf("met %s", name)
		}
		// asked returns the name of who is asked.
		asked := func() string {
			select {
			case <-a.requests:
				return "a"
			case <-b.requests:
				return "b"
			}
		}
		// pick is where a request goes that is soon over.
		pick := func() string {
			_, name := w.ask(t, client, "GET", "/", route, "")
			if met := asked(); met != name {
				t.Errorf("%s was asked, and %s answered", met, name)
			}
			return name
		}
		wantIdle := func() { // b, since a is busy
			t.Helper()
			harness.Eventually(t, "b has no connection", func() bool { return pick()+pick() == "bb" })
		}
		wantIdle()

		var c *websocket.Conn
		harness.Eventually(t, "a WebSocket meets b", func() bool { // who has just left may still count
			var err error
			if c, err = w.dialWS(t, "/ws", route); err != nil {
				t.Fatal(err)
			}
			met := asked()
			if got := say(t, c, "hello"); got != met+"hello" {
				t.Errorf("the WebSocket of %s says %q", met, got)
			}
			if met != "b" {
				c.CloseNow()
			}
			return met == "b"
		})
		if first, second := pick(), pick(); first == second {
			t.Errorf("with a connection each, %s is picked twice", first)
		}
		c.CloseNow()
		wantIdle()

		to, header := "", ""
		if w.forwards {
			to, _ = w.enter(t, route)
		} else {
			to, header = w.Addr, "X-Cipher-Origin: "+harness.Line(w.spell(route))
		}
		harness.Eventually(t, "a request meets b", func() bool {
			leaves := harness.Connect(t, to)
			harness.Send(t, leaves, "GET /wait HTTP/1.1\r\nHost: a\r\n"+header+"\r\n")
			met := asked()
			leaves.SetLinger(0)
			leaves.Close()
			return met == "b"
		})
		wantIdle()
		answerA()
		<-met
	})
}
