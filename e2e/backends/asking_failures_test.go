package backends

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// What becomes of clients when the operator's service says no, or nothing.

// fate asks with a request and returns what the client reads until its end, or "reset".
func fate(t testing.TB, gateway, request string) string {
	t.Helper()
	c := harness.Connect(t, gateway)
	harness.Send(t, c, request)
	got, err := io.ReadAll(c)
	switch {
	case err != nil && harness.IsReset(err):
		return "reset"
	case err != nil:
		t.Fatal(err)
	}
	return string(got)
}

func TestEachFailureOfTheServiceHasItsStatus(t *testing.T) {
	t.Parallel()
	echo := harness.StartEcho(t)
	silent := make(chan struct{})
	t.Cleanup(func() { close(silent) })
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, question)
		want   string // of a line
		http   string
		reason string
		isBad  bool
	}{
		{"403", status(403), "401", "401", "denied", false},
		{"404", status(404), "401", "401", "denied", false},
		{"429", status(429), "reset", "429", "ask_limited", false},
		{"500", status(500), "502", "502", "ask_down", false},
		{"503", status(503), "502", "502", "ask_down", false},
		{"breaks off", func(http.ResponseWriter, question) { panic(http.ErrAbortHandler) }, "502", "502", "ask_down", false},
		{"silence", func(w http.ResponseWriter, q question) {
			w.(http.Flusher).Flush()
			<-silent
		}, "504", "504", "ask_silent", false},
		{"401", status(401), "502", "502", "ask_bad", true},
		{"204", status(204), "502", "502", "ask_bad", true},
		{"redirect", func(w http.ResponseWriter, _ question) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, "502", "502", "ask_bad", true},
		{"no JSON", text("10.0.0.7:4000"), "502", "502", "ask_bad", true},
		{"nothing", text(""), "502", "502", "ask_bad", true},
		{"no backend", text(`{"ttl": 5}`), "502", "502", "ask_bad", true},
		{"another name", text(`{"backend": "ask:room"}`), "502", "502", "ask_bad", true},
		{"no address", text(`{"backend": "127.0.0.1"}`), "502", "502", "ask_bad", true},
		{"too long", text(`{"backend": "` + echo + `"` + strings.Repeat(" ", 64<<10) + `}`), "502", "502", "ask_bad", true},
		{"not allowed", text(`{"backend": "10.20.30.40:4000"}`), "502", "502", "ask_bad", true},
		{"one of them not allowed", text(`{"backend": "` + echo + `,169.254.169.254:80"}`), "502", "502", "ask_bad", true},
		{"the gateway itself", func(w http.ResponseWriter, q question) { fmt.Fprintf(w, `{"backend": %q}`, q.text("listener")) }, "502", "502", "ask_bad", true},
		{"a name not allowed", text(`{"backend": "localhost:4000"}`), "502", "502", "denied", true},
		{"HTTP", text(`{"backend": "http://` + echo + `"}`), "502", "", "ask_bad", true},
		{"not HTTP", text(`{"backend": "tcp://` + echo + `"}`), "", "502", "ask_bad", true},
		{"refused", leadsTo(harness.ClosedPort(t), 0), "502", "502", "refused", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := startOperator(t, tt.answer)
			args := []string{"-ask=" + o.url(), "-ask-tickets=1", "-ask-timeout=200ms", "-resolver-timeout=1s"}
			switch tt.name {
			case "silence":
			case "a name not allowed":
				args = append(args, "-deny-backends=127.0.0.0/8,::1/128", "-ask-timeout="+harness.Patience.String())
			default:
				args = append(args, "-deny-backends=10.0.0.0/8", "-ask-timeout="+harness.Patience.String())
			}
			p := harness.Start(t, args...)
			n := 0
			for _, asked := range []string{harness.Sealed("ask:room-42"), "?t1cket"} {
				reason := tt.reason
				if reason == "denied" && !tt.isBad {
					reason = map[bool]string{true: "ticket_denied", false: "ask_denied"}[asked[0] == '?']
				}
				if tt.want != "" {
					if got := fate(t, p.Addr, asked+"\n"); got != tt.want {
						t.Errorf("a line with %.7s got %q, want %s", asked, got, tt.want)
					}
					if tt.want != "reset" {
						n++
						line := p.Log.WaitLine(t, "refused", n)
						if line["reason"] != reason || (line["level"] == "ERROR") != tt.isBad {
							t.Errorf("the log says %v, want %s", line, reason)
						}
					}
				}
				if tt.http != "" {
					got := fate(t, p.Addr, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Cipher-Origin: "+asked+"\r\n\r\n")
					if !strings.HasPrefix(got, "HTTP/1.1 "+tt.http+" ") {
						t.Errorf("HTTP with %.7s got %q, want %s", asked, got, tt.http)
					}
				}
			}
			if strings.Contains(p.Log.String(), "t1cket") {
				t.Error("a ticket is in the log")
			}
		})
	}
}

func TestWithoutAServiceANameLeadsNowhere(t *testing.T) {
	t.Parallel()
	p := harness.Start(t)
	if got := fate(t, p.Addr, harness.Line("ask:room-42")); got != "502" {
		t.Errorf("got %s", got)
	}
	if line := p.Log.WaitLine(t, "refused", 1); line["reason"] != "ask_off" {
		t.Errorf("the log says %v", line)
	}
	for _, args := range [][]string{
		{"-forward=ask:room-42"}, {"-listen=127.0.0.1:0=forward:ask:room-42"}, {"-ask-tickets=1"}, {"-ask-headers=Cookie"}, {"-ask-stale=1h"},
		{"-ask=http://127.0.0.1:1", "-ask-token-file=/nonexistent"}, {"-ask=https://127.0.0.1:1", "-ask-ca=/nonexistent"},
	} {
		_, stderr, code := harness.Run(t, nil, append([]string{"-secret=" + harness.Secret, "-check"}, args...)...)
		name, _, _ := strings.Cut(args[len(args)-1], "=")
		if code != harness.ExitUsage || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "-ask") {
			t.Errorf("%s: code %d, %s", name, code, stderr)
		}
	}
}

func TestAForwardMayLeadToAName(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		o := startOperator(t, leadsTo(harness.StartGreeter(t, "hi"), 60))
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-forward=ask:lobby")
		for range 3 {
			harness.Expect(t, harness.Connect(t, p.Addr), "hi")
		}
		if q := o.last(); o.count() != 1 || q.text("form") != "forward" || q.text("name") != "lobby" {
			t.Errorf("asked %d times, last %v", o.count(), q)
		}
		// HTTP is bytes to it: asked about once for a connection.
		web := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Header.Get("X-Forwarded-For")+"plain")
		})
		o = startOperator(t, leadsTo(web, 0))
		p = harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-forward=ask:site")
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if got, err := io.ReadAll(c); err != nil || strings.Count(string(got), "\r\n\r\nplain") != 2 {
			t.Errorf("read %q, %v", got, err)
		}
		if q := o.last(); o.count() != 1 || q.text("form") != "forward" || q["method"] != nil || q["path"] != nil {
			t.Errorf("asked %d times, last %v", o.count(), q)
		}
		o.says(leadsTo("http://"+web, 0)) // such a backend is for those who speak HTTP to the gateway
		if got := fate(t, p.Addr, ""); got != "" && got != "reset" {
			t.Errorf("got %q", got)
		}
		if line := p.Log.WaitLine(t, "refused", 1); line["reason"] != "ask_bad" || line["level"] != "ERROR" {
			t.Errorf("the log says %v", line)
		}
	})
}

func TestOneAsksForAllWhoBringAName(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		enough := make(chan struct{})
		backend := harness.StartGreeter(t, "x")
		o := startOperator(t, func(w http.ResponseWriter, q question) {
			<-enough
			leadsTo(backend, 60)(w, q)
		})
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String())
		const n = 200
		var conns []net.Conn
		for range n {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, harness.Line("ask:room"))
			conns = append(conns, c)
		}
		harness.Eventually(t, "the service is asked", func() bool { return o.count() > 0 })
		close(enough)
		for _, c := range conns {
			harness.Expect(t, c, "200x")
		}
		if o.count() != 1 {
			t.Errorf("asked %d times", o.count())
		}
	})
}

func TestLastAnswersServeOnWhileTheServiceIsDead(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		backend := harness.StartGreeter(t, "x")
		o := startOperator(t, leadsTo(backend, .05))
		a := harness.NewAdmin(t)
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-stale=1h", a.Flag)
		if _, err := meet("", p.Addr, harness.Line("ask:old")); err != nil {
			t.Fatal(err)
		}
		o.kill()
		for range 6 {
			if got := fate(t, p.Addr, harness.Line("ask:new")); got != "502" {
				t.Fatalf("got %s", got)
			}
		}
		p.Log.WaitLine(t, "-ask: the service is out of order, and is asked only now and then", 1)
		for range 50 {
			if got := fate(t, p.Addr, harness.Line("ask:new")); got != "502" {
				t.Fatalf("got %s", got)
			}
			if name, err := meet("", p.Addr, harness.Line("ask:old")); name != "x" {
				t.Fatalf("the last answer does not serve on: %v", err)
			}
		}
		m := a.Metrics(t)
		if m.Sum("gateway_ask_circuit_open") != 1 || m.Sum("gateway_ask_hits_total", `kind="stale"`) < 50 || m.Sum("gateway_ask_questions_total", `result="down"`) < 50 {
			t.Errorf("circuit %v, stale %v, down %v", m.Sum("gateway_ask_circuit_open"), m.Sum("gateway_ask_hits_total", `kind="stale"`), m.Sum("gateway_ask_questions_total", `result="down"`))
		}
		o.comeBack(t)
		harness.Eventually(t, "new names lead somewhere again", func() bool {
			name, _ := meet("", p.Addr, harness.Line("ask:new"))
			return name == "x"
		})
		p.Log.WaitLine(t, "-ask: the service answers again", 1)
		if got := a.Metrics(t).Sum("gateway_ask_circuit_open"); got != 0 {
			t.Errorf("the circuit is %v", got)
		}
	})
}

func TestTheServiceIsKilledAndRestartedUnderLoad(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		backend := harness.StartGreeter(t, "x")
		o := startOperator(t, leadsTo(backend, .02))
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-stale=1h")
		for i := range 8 {
			if _, err := meet("", p.Addr, harness.Line(fmt.Sprint("ask:n", i, "a"))); err != nil {
				t.Fatal(err)
			}
		}
		stop := make(chan struct{})
		var served atomic.Int64
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				line := harness.Line(fmt.Sprint("ask:n", i, "a"))
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := meet("", p.Addr, line); err != nil {
						t.Errorf("a client was lost: %v", err)
						return
					}
					served.Add(1)
				}
			})
		}
		for range 3 {
			for _, change := range []func(){o.kill, func() { o.comeBack(t) }} {
				change()
				before := served.Load()
				harness.Eventually(t, "clients are served meanwhile", func() bool { return served.Load() > before+100 })
			}
		}
		close(stop)
		all.Wait()
	})
}

func TestBadTicketsOfAnAddressAreNotAllPassedOn(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		backend := harness.StartGreeter(t, "x")
		o := startOperator(t, func(w http.ResponseWriter, q question) {
			if q.text("ticket") == "good" {
				leadsTo(backend, 0)(w, q)
			} else {
				http.Error(w, "", http.StatusForbidden)
			}
		})
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-tickets=1")
		for range 150 {
			if _, err := meet("", p.Addr, "?good\n"); err != nil {
				t.Fatalf("a good ticket: %v", err)
			}
		}
		// As many at a time that a busy machine does not make them slower than the bound.
		began, before := time.Now(), o.count()
		var away atomic.Int64
		var bad sync.WaitGroup
		for of := range 20 {
			bad.Go(func() {
				for i := range 15 {
					switch got := fate(t, p.Addr, fmt.Sprintf("?bad%d.%d\n", of, i)); got {
					case "401":
					case "reset":
						away.Add(1)
					default:
						t.Errorf("a bad ticket got %q", got)
					}
				}
			})
		}
		bad.Wait()
		most := 100 + int(time.Since(began).Seconds()*10) + 1
		if n := o.count() - before; n > most || int(away.Load()) != 300-n {
			t.Errorf("%d bad tickets were passed on, of which %d might be; %d were turned away", n, most, away.Load())
		}
		// Another address has its own.
		if _, err := meet("127.0.0.2", p.Addr, "?good\n"); err != nil {
			t.Errorf("another address: %v", err)
		}
		if line := p.Log.WaitLine(t, "clients were turned away", 1); line["tickets_per_ip"] == nil {
			t.Errorf("the log says %v", line)
		}
	})
}

func TestALabelGoesToTheLogTheBackendAndTheMetrics(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		headers := make(chan string, 2)
		backend := harness.StartBackend(t, func(c *net.TCPConn) {
			b := make([]byte, 512)
			n, _ := c.Read(b)
			headers <- string(b[:n])
			io.Copy(c, c)
		})
		o := startOperator(t, text(fmt.Sprintf(`{"backend": %q, "ttl": 60, "label": "eu/room-42"}`, backend)))
		a := harness.NewAdmin(t)
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-send-proxy=v2", a.Flag)
		for i := range 2 { // the second one is known
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, harness.Line("ask:room"))
			harness.Expect(t, c, "200")
			if h := <-headers; !strings.Contains(h, "\xe8\x00\x0aeu/room-42") {
				t.Errorf("the backend is told %q", h)
			}
			harness.Finish(t, c)
			if line := p.Log.WaitLine(t, "tunnel", i+1); line["label"] != "eu/room-42" {
				t.Errorf("the log says %v", line)
			}
		}
		if n := a.Metrics(t).Sum("gateway_ask_label_total", `label="eu/room-42"`); n != 2 {
			t.Errorf("%v were counted", n)
		}
	})
}

func TestBadTicketsEarnABanAndRefusedNamesDoNot(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		o := startOperator(t, status(404))
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-tickets=1", "-ban=3/1m:10m")
		for range 6 {
			if got := fate(t, p.Addr, harness.Line("ask:gone")); got != "401" {
				t.Fatalf("a refused name got %q", got)
			}
		}
		for range 3 {
			if got := fate(t, p.Addr, "?bad\n"); got != "401" {
				t.Fatalf("a bad ticket got %q", got)
			}
		}
		harness.Eventually(t, "the client is banned", func() bool {
			_, err := meet("", p.Addr, harness.Line("ask:gone"))
			return harness.IsReset(err)
		})
	})
}
