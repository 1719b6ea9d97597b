package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protodelim"

	"gateway/internal/harness"
)

const (
	asked = Header
	token = "a-token-of-at-least-16"
)

func TestHealthAndReadinessAreWhatTheSourceSays(t *testing.T) {
	s := serveUnix(t, Options{})
	s.want(200, "ok", "GET", "/healthz", "")
	s.want(200, "ready", "GET", "/readyz", "")
	s.unready, s.dead = "lame duck", errFake
	s.want(503, "it fails", "GET", "/healthz", "")
	s.want(503, "lame duck", "GET", "/readyz", "")
	s.want(503, "", "HEAD", "/readyz", "")
}

func TestNothingIsChangedByWhoIsNotAskedTo(t *testing.T) {
	open, locked, unix := serveTCP(t, Options{}), serveTCP(t, Options{Token: token}), serveUnix(t, Options{Token: token})
	const level = `{"level":"debug"}`
	for _, s := range []*served{open, locked, unix} {
		s.want(405, "", "GET", "/api/drain", "", asked, "1", "Authorization", "Bearer "+token)
		s.want(405, "", "PUT", "/api/drain", "", asked, "1", "Authorization", "Bearer "+token)
		s.want(403, asked, "POST", "/api/drain", "")
		s.want(403, asked, "POST", "/api/drain", "", asked, "0")
		s.want(403, asked, "POST", "/api/log-level", level, "Authorization", "Bearer "+token)
		s.want(403, "origin", "POST", "/api/drain", "", asked, "1", "Origin", "https://evil.example", "Authorization", "Bearer "+token)
		s.want(403, "origin", "POST", "/api/drain", "", asked, "1", "Sec-Fetch-Site", "cross-site", "Authorization", "Bearer "+token)
	}
	open.want(403, "-admin-token-file", "POST", "/api/drain", "", asked, "1")
	open.want(403, "-admin-token-file", "POST", "/api/drain", "", asked, "1", "Authorization", "Bearer ")
	for _, wrong := range []string{"", "Bearer", "Bearer ", "Bearer " + token + "x", "Bearer " + token[1:], "Basic " + token, token} {
		locked.want(401, "token", "POST", "/api/drain", "", asked, "1", "Authorization", wrong)
	}
	for _, s := range []*served{open, locked, unix} {
		if len(s.drained) > 0 || len(s.cuts) > 0 || s.level != 0 {
			t.Errorf("something was changed: %+v", s.fake)
		}
		if refused := s.log.Lines("admin request refused"); len(refused) == 0 || refused[0]["by"] == "" || refused[0]["reason"] == "" {
			t.Errorf("the log does not tell who was refused: %v", refused)
		}
		if strings.Contains(s.log.String(), token) {
			t.Error("the log has the token")
		}
	}
}

func TestWhatIsChangedIsLoggedWithWhoAsked(t *testing.T) {
	locked, unix := serveTCP(t, Options{Token: token}), serveUnix(t, Options{})
	for _, s := range []*served{locked, unix} {
		post := func(status int, says, path, body string) {
			s.want(status, says, "POST", path, body, asked, "1", "Authorization", "bearer "+token)
		}
		post(200, `"draining":true`, "/api/drain", "")
		post(200, `"draining":false`, "/api/undrain", "")
		post(200, `"level":"debug"`, "/api/log-level", `{"level":"debug"}`)
		post(200, `"cut":2`, "/api/tunnels/cut", `{"client":"192.0.2.0/24"}`)
		post(200, `"reloaded":true`, "/api/reload", "")
		s.fails = errors.New("line 3 of gateway.conf")
		post(422, "line 3 of gateway.conf", "/api/reload", "")
		s.fails = nil
		if !slices.Equal(s.drained, []bool{true, false}) || s.level != -4 || len(s.cuts) != 1 {
			t.Errorf("it was told %v, %v, %v", s.drained, s.level, s.cuts)
		}
		lines := s.log.Lines("admin request")
		if len(lines) != 5 {
			t.Fatalf("%d lines: %v", len(lines), lines)
		}
		by := lines[3]["by"].(string)
		if lines[3]["request"] != "/api/tunnels/cut" || lines[3]["client"] != "192.0.2.0/24" || lines[3]["cut"] != 2.0 ||
			s.unix != strings.HasPrefix(by, "unix") || !s.unix && !strings.HasPrefix(by, "127.0.0.1:") {
			t.Errorf("%v", lines[3])
		}
	}
}

func TestWhoSaysMoreThanIsListenedToIsToldSo(t *testing.T) {
	s := serveUnix(t, Options{})
	for _, path := range []string{"/api/drain", "/api/undrain", "/api/reload"} {
		for _, bad := range []string{`{"for":"10m"}`, "drain", "[]", "{} {}", `{"draining":false}`, strings.Repeat(" ", bodyMax+1)} {
			s.want(400, "error", "POST", path, bad, asked, "1")
		}
		s.want(200, "true", "POST", "/api/reload", "{}", asked, "1")
	}
	if len(s.drained) > 0 {
		t.Errorf("it was told %v", s.drained)
	}
}

func TestParametersThatCannotBeReadDoNotMeanAllTunnels(t *testing.T) {
	s := serveUnix(t, Options{})
	s.tunnelN = 3
	for _, bad := range []string{"%zz", "client=192.0.2.1%", "client=192.0.2.1;backend=10.0.0.7:4000", "%00=1", "state=open", "client=192.0.2.1&client=192.0.2.2"} {
		s.want(400, "error", "GET", "/api/tunnels?"+bad, "")
	}
}

func TestWhatOnlyTellsTakesNothing(t *testing.T) {
	s := serveUnix(t, Options{Page: func(context.Context, func() Status) (http.Handler, http.Handler) {
		return http.NotFoundHandler(), http.NotFoundHandler()
	}})
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/api/status", "/api/tunnels", "/api/events", "/"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			s.want(405, "", method, path, "", asked, "1")
		}
	}
}

func TestWhoCannotEndADrainIsToldWhy(t *testing.T) {
	s := serveUnix(t, Options{})
	s.want(200, `{"draining":false}`, "POST", "/api/undrain", "", asked, "1")
	s.unready = "draining: the gateway ends"
	s.want(200, `{"draining":false,"reason":"draining: the gateway ends"}`, "POST", "/api/undrain", "", asked, "1")
}

func TestACutNeedsExactlyOneFilter(t *testing.T) {
	s := serveUnix(t, Options{})
	for _, bad := range []string{
		"", "{}", "[]", "null", `{"id":""}`, `{"id":"x","client":"192.0.2.1"}`, `{"client":"nonsense"}`, `{"client":"fe80::1%eth0"}`, `{"client":"]192.0.2.1["}`, `{"client":"[::1"}`,
		`{"backend":"10.0.0.7"}`, `{"backend":":4000"}`, `{"all":true}`, `{"id":"x"} {"id":"y"}`, `{"id":7}`,
		`{"client":"` + strings.Repeat("1", bodyMax) + `"}`,
	} {
		s.want(400, "error", "POST", "/api/tunnels/cut", bad, asked, "1")
	}
	if len(s.cuts) > 0 {
		t.Errorf("these were cut: %v", s.cuts)
	}
	for body, want := range map[string]Filter{
		`{"id":"x-1"}`:                       {ID: "x-1"},
		`{"client":"192.0.2.1"}`:             {Client: netip.MustParsePrefix("192.0.2.1/32")},
		`{"client":"::ffff:192.0.2.1"}`:      {Client: netip.MustParsePrefix("192.0.2.1/32")},
		`{"client":"::ffff:192.0.2.9/120"}`:  {Client: netip.MustParsePrefix("192.0.2.0/24")},
		`{"client":"::ffff:0.0.0.0/96"}`:     {Client: netip.MustParsePrefix("0.0.0.0/0")},
		`{"client":"[2001:db8::7]"}`:         {Client: netip.MustParsePrefix("2001:db8::7/128")},
		`{"client":"::/0"}`:                  {Client: netip.MustParsePrefix("::/0")},
		`{"client":"2001:db8::7/32"}`:        {Client: netip.MustParsePrefix("2001:db8::/32")},
		`{"backend":"Game.example:4000"}`:    {Backend: mustBackend(t, "game.example:4000")},
		`{"backend":"kcp://[fd00::7]:4000"}`: {Backend: mustBackend(t, "[fd00::7]:4000")},
	} {
		s.cuts = nil
		s.want(200, `{"cut":2}`, "POST", "/api/tunnels/cut", body, asked, "1")
		if len(s.cuts) != 1 || s.cuts[0] != want {
			t.Errorf("%s: %v, want %v", body, s.cuts, want)
		}
	}
	s.fails = errFake
	s.want(500, "it fails", "POST", "/api/tunnels/cut", `{"id":"x"}`, asked, "1")
}

func TestABackendIsMeantByItsAddressAndByWhereItLed(t *testing.T) {
	led := netip.MustParseAddrPort("10.0.0.7:4000")
	for _, tt := range []struct {
		filter, backend string
		led             netip.AddrPort
		want            bool
	}{
		{"10.0.0.7:4000", "10.0.0.7:4000", netip.AddrPort{}, true},
		{"10.0.0.7:4000", "kcp://10.0.0.7:4000", netip.AddrPort{}, true},
		{"10.0.0.7:4000", "10.0.0.7:4001", netip.AddrPort{}, false},
		{"10.0.0.7:4000", "10.0.0.8:4000", netip.AddrPort{}, false},
		{"10.0.0.7:4000", "game.example:4000", led, true},
		{"10.0.0.7:4001", "game.example:4000", led, false},
		{"game.example:4000", "GAME.example:4000", led, true},
		{"game.example:4000", "other.example:4000", led, false},
		{"game.example:4000", "10.0.0.7:4000", netip.AddrPort{}, false},
		{"[::ffff:10.0.0.7]:4000", "10.0.0.7:4000", netip.AddrPort{}, true},
	} {
		f := Filter{Backend: mustBackend(t, tt.filter)}
		if got := f.MatchesBackend(mustAddress(t, tt.backend), tt.led); got != tt.want {
			t.Errorf("%s means %s, led to %v: %v", tt.filter, tt.backend, tt.led, got)
		}
	}
	if none := (Filter{}); !none.MatchesBackend(mustAddress(t, "a:1"), led) || !none.Zero() {
		t.Error("no filter means not all")
	}
}

func TestTheListIsAPageOfJSON(t *testing.T) {
	s := serveTCP(t, Options{})
	for _, tt := range []struct {
		tunnels, limit int
		next           string
	}{{0, 3, ""}, {2, 3, ""}, {3, 3, ""}, {5, 3, "3"}} {
		s.tunnelN = tt.tunnels
		status, body := s.do("GET", "/api/tunnels?limit=3", "")
		var page struct {
			Tunnels []Tunnel
			Next    string
		}
		err := json.Unmarshal([]byte(body), &page)
		if err != nil || status != 200 || len(page.Tunnels) != min(tt.tunnels, tt.limit) || page.Next != tt.next || page.Tunnels == nil {
			t.Errorf("of %d: status %d, %s, %v", tt.tunnels, status, body, err)
		}
	}
	want := Query{Filter{"x-1", netip.MustParsePrefix("10.0.0.0/8"), mustBackend(t, "b:1"), "0.0.0.0:8000"}, "x-9", 7}
	s.want(200, "", "GET", "/api/tunnels?client=10.0.0.0/8&backend=b:1&listener=0.0.0.0:8000&limit=7&after=x-9&id=x-1", "")
	if s.asked != want {
		t.Errorf("it was asked for %v, want %v", s.asked, want)
	}
	s.want(200, "", "GET", "/api/tunnels?client=&backend=&listener=&limit=&after=", "")
	if want := (Query{Limit: defaultLimit}); s.asked != want {
		t.Errorf("it was asked for %v, want %v", s.asked, want)
	}
	for _, bad := range []string{"limit=0", "limit=-1", "limit=100001", "limit=x", "client=x", "backend=x", "what=x", "limit=1&limit=2"} {
		s.want(400, "error", "GET", "/api/tunnels?"+bad, "")
	}
	s.fails, s.tunnelN = errFake, 0
	s.want(503, "it fails", "GET", "/api/tunnels", "")
	s.fails = ErrUnknownID
	s.want(400, "after", "GET", "/api/tunnels", "")
}

func TestHalfAListDoesNotLookLikeAllOfIt(t *testing.T) {
	s := serveTCP(t, Options{})
	s.fails, s.tunnelN = errFake, 5
	resp, err := s.client.Get(s.base + "/api/tunnels")
	if err == nil {
		resp.Body.Close()
		t.Errorf("status %s", resp.Status)
	}
}

func TestMetricsAreTextThatPrometheusReads(t *testing.T) {
	s := serveTCP(t, Options{})
	_, text := s.do("GET", "/metrics", "")
	for _, want := range []string{
		"# HELP gateway_accepted_total ", "# TYPE gateway_accepted_total counter",
		`gateway_accepted_total{listener="127.0.0.1:8000"} 3`,
		`gateway_connections_total{form="tls",listener="127.0.0.1:8000",status="none"} 2`,
		"gateway_tunnels_active 7", "gateway_draining 0", "go_goroutines ", "process_start_time_seconds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in %s", want, text)
		}
	}
	_, text = s.do("GET", "/metrics", "", "Accept", "application/openmetrics-text;version=1.0.0")
	if !strings.HasSuffix(text, "# EOF\n") || !strings.Contains(text, "# TYPE gateway_accepted counter") {
		t.Errorf("this is no OpenMetrics: %s", text)
	}
}

func TestMetricsHaveNamesByTheRules(t *testing.T) {
	for _, m := range values {
		if !strings.HasPrefix(m.name, "gateway_") || m.help == "" || !strings.HasSuffix(m.help, ".") {
			t.Errorf("%s: %q", m.name, m.help)
		}
		if isCounter := strings.HasSuffix(m.name, "_total"); isCounter != (m.kind == prometheus.CounterValue) {
			t.Errorf("%s: _total is for counters, and for all of them", m.name)
		}
	}
}

func TestAnswersAreNotCachedNorSniffed(t *testing.T) {
	s := serveTCP(t, Options{Page: func(context.Context, func() Status) (page, events http.Handler) {
		return http.NotFoundHandler(), http.NotFoundHandler()
	}})
	for _, path := range []string{"/", "/metrics", "/api/tunnels", "/readyz"} {
		resp, err := s.client.Get(s.base + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if h := resp.Header; h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

func TestWhoOpensManyConnectionsWaitsForAPlace(t *testing.T) {
	s := serveTCP(t, Options{})
	addr := strings.TrimPrefix(s.base, "http://")
	var conns []net.Conn
	for range maxConns {
		c := harness.Connect(t, addr)
		harness.Send(t, c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		harness.Expect(t, c, "HTTP/1.1 200 OK\r\n")
		conns = append(conns, c)
	}
	late := harness.Connect(t, addr)
	harness.Send(t, late, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	late.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := late.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many was served: %d bytes, %v", n, err)
	}
	late.SetReadDeadline(time.Now().Add(harness.Patience))
	conns[7].Close()
	harness.Expect(t, late, "HTTP/1.1 200 OK\r\n")
}

func TestNativeHistogramsAreThereForWhoUnderstandsThem(t *testing.T) {
	s := serveTCP(t, Options{})
	s.metrics.Dial.Observe(3 * time.Millisecond)
	_, text := s.do("GET", "/metrics", "", "Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	r := bufio.NewReader(strings.NewReader(text))
	for {
		var family dto.MetricFamily
		if err := protodelim.UnmarshalFrom(r, &family); err != nil {
			t.Fatalf("no histogram of dials in %d bytes: %v", len(text), err)
		}
		if family.GetName() == "gateway_dial_duration_seconds" {
			h := family.GetMetric()[0].GetHistogram()
			if h.GetSampleCount() != 1 || len(h.GetBucket()) < 10 || len(h.GetPositiveSpan()) == 0 {
				t.Errorf("%v", h)
			}
			return
		}
	}
}

func FuzzFilters(f *testing.F) {
	for _, seed := range []string{"", "10.0.0.0/8", "client=::1,backend=a.example:1", "id=x-1f", "listener=kcp://:1", "a,b", "=", "client==", "[::1]:4000", "fe80::1%eth0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		values, err := ParseFilter(s)
		if err != nil {
			return
		}
		q, err := parseQuery(values)
		if err != nil {
			t.Fatalf("%q is a filter, and %v no query: %v", s, values, err)
		}
		if s != "" && q.Filter.Zero() {
			t.Errorf("%q means everything", s)
		}
		if q.Client.IsValid() && q.Client != q.Client.Masked() {
			t.Errorf("%q has bits beyond its prefix: %v", s, q.Client)
		}
		if CheckCut(values) == nil && q.Filter.Zero() {
			t.Errorf("%q cuts everything", s)
		}
	})
}

func TestThePageAndItsEventsLastAsLongAsTheServer(t *testing.T) {
	var life context.Context
	s := serveTCP(t, Options{Page: func(ctx context.Context, status func() Status) (page, events http.Handler) {
		life = ctx
		page = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%d tunnels, %v", status().Tunnels.Active, status().Limits.Descriptors.Limit > 0)
		})
		events = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "data: hello\n\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		return page, events
	}})
	s.want(200, fmt.Sprintf("7 tunnels, %v", runtime.GOOS == "linux"), "GET", "/", "")
	s.want(200, "7 tunnels", "GET", "/page.css", "")
	s.want(405, "", "POST", "/", "")
	s.want(404, "", "GET", "/api/none", "")
	resp, err := s.client.Get(s.base + "/api/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if line != "data: hello\n" || err != nil || life.Err() != nil {
		t.Errorf("%q, %v, %v", line, err, life.Err())
	}
	s.stop()
	if life.Err() == nil {
		t.Error("the server has ended, and the page does not hear of it")
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream of events ended as if it were whole")
	}
}

func TestJSONThatSaysNothingIsNotTakenForAGateway(t *testing.T) {
	other := harness.StartHTTP(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") })
	c := NewClient(other, "")
	_, status := c.Status(t.Context())
	_, cut := c.Cut(t.Context(), url.Values{"client": {"192.0.2.1"}})
	for what, err := range map[string]error{
		"-status":  status,
		"-cut":     cut,
		"-tunnels": c.Tunnels(t.Context(), nil, func(*Tunnel) {}),
	} {
		if err == nil || !strings.Contains(err.Error(), "not a gateway") || !strings.Contains(err.Error(), other) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A gateway without tunnels is one.
	s := serveTCP(t, Options{})
	if err := NewClient(strings.TrimPrefix(s.base, "http://"), "").Tunnels(t.Context(), nil, func(*Tunnel) { t.Error("there is none") }); err != nil {
		t.Error(err)
	}
}

func TestOnlySoManyListsAreMadeAtATime(t *testing.T) {
	s := serveTCP(t, Options{})
	s.slow, s.tunnelN = make(chan struct{}), 1
	var all sync.WaitGroup
	for range maxLists {
		all.Go(func() { s.want(200, `"id":"1"`, "GET", "/api/tunnels", "") })
	}
	harness.Eventually(t, "all lists are being made", func() bool { return s.started.Load() == maxLists })
	s.want(503, "ask again", "GET", "/api/tunnels", "")
	close(s.slow)
	all.Wait()
	s.want(200, `"id":"1"`, "GET", "/api/tunnels", "")
}
