package process

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// tunnelList is what /api/tunnels answers.
type tunnelList struct {
	Tunnels []struct {
		ID, Client, Backend, Listener, Form, State string
		BackendIP                                  string `json:"backend_ip"`
		Since                                      time.Time
		Up, Down                                   int64
		IdleMS                                     int64 `json:"idle_ms"`
	}
	Next string
}

func startAdmin(t testing.TB, args ...string) (*harness.Process, *harness.Admin) {
	t.Helper()
	a := harness.NewAdmin(t)
	return harness.Start(t, append([]string{a.Flag}, args...)...), a
}

func TestReadinessSaysWhyNoClientShouldCome(t *testing.T) {
	t.Parallel()
	p, a := startAdmin(t, "-drain=1h")
	want := func(path string, status int, says string) {
		t.Helper()
		harness.Eventually(t, fmt.Sprintf("%s is %d %s", path, status, says), func() bool {
			got, text := a.Do(t, "GET", path, "")
			return got == status && strings.Contains(text, says)
		})
	}
	want("/readyz", 200, "ready")
	a.Do(t, "POST", "/api/drain", "")
	want("/readyz", 503, "lame duck")
	if m := a.Metrics(t); m["gateway_draining"] != 1 || m["gateway_ready"] != 0 {
		t.Errorf("draining %v, ready %v", m["gateway_draining"], m["gateway_ready"])
	}
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t)) // a lame duck serves
	harness.Echo(t, c, "hello")
	a.Do(t, "POST", "/api/undrain", "")
	want("/readyz", 200, "ready")

	p.Signal(t, syscall.SIGTERM)
	want("/readyz", 503, "draining")
	want("/healthz", 200, "ok")
	harness.Finish(t, c)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Lstat(a.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestLiveTunnelsAreListedAndCut(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		p, a := startAdmin(t, relay)
		echo, other := harness.StartEcho(t), harness.StartEcho(t)
		var clients []*net.TCPConn
		for range 3 {
			clients = append(clients, harness.OpenTunnel(t, p.Addr, echo))
		}
		clients = append(clients, harness.OpenTunnel(t, p.Addr, harness.ByName(other)))
		harness.Echo(t, clients[0], "hello")

		var all tunnelList
		harness.Eventually(t, "four tunnels are listed", func() bool {
			a.JSON(t, "GET", "/api/tunnels", "", &all)
			return len(all.Tunnels) == 4 && all.Tunnels[0].Down == 5
		})
		first := all.Tunnels[0]
		if first.Client != clients[0].LocalAddr().String() || first.Backend != echo || first.Listener != p.Addr || first.Form != "line" ||
			first.Up != 5 || first.State != "open" || time.Since(first.Since) > harness.Patience || first.IdleMS > harness.Patience.Milliseconds() {
			t.Errorf("%+v", first)
		}
		named := all.Tunnels[3]
		if named.Backend != harness.ByName(other) || named.BackendIP != other {
			t.Errorf("%+v", named)
		}

		var ids []string
		for after := ""; ; {
			var page tunnelList
			a.JSON(t, "GET", "/api/tunnels?limit=3&after="+after, "", &page)
			for _, tun := range page.Tunnels {
				ids = append(ids, tun.ID)
			}
			if after = page.Next; after == "" {
				break
			}
		}
		if len(ids) != 4 || ids[0] != first.ID || ids[3] != named.ID || len(slices.Compact(slices.Clone(ids))) != 4 {
			t.Errorf("in pages: %v", ids)
		}
		for query, want := range map[string]int{
			"client=127.0.0.0/8": 4, "client=127.0.0.1": 4, "client=10.0.0.0/8": 0, "backend=" + echo: 3, "backend=" + other: 1,
			"backend=" + harness.ByName(other): 1, "id=" + first.ID: 1, "id=nobody-1": 0, "listener=" + p.Addr: 4, "listener=x": 0,
		} {
			var some tunnelList
			if a.JSON(t, "GET", "/api/tunnels?"+query, "", &some); len(some.Tunnels) != want {
				t.Errorf("%s: %d tunnels, want %d", query, len(some.Tunnels), want)
			}
		}
		if status, text := a.Do(t, "GET", "/api/tunnels?after=nonsense", ""); status != 400 {
			t.Errorf("after nonsense: status %d, %s", status, text)
		}

		cut := func(body string, want int) {
			t.Helper()
			var answer struct{ Cut int }
			if a.JSON(t, "POST", "/api/tunnels/cut", body, &answer); answer.Cut != want {
				t.Errorf("%s: %d were cut, want %d", body, answer.Cut, want)
			}
		}
		cut(fmt.Sprintf(`{"id":%q}`, first.ID), 1)
		harness.ExpectCut(t, clients[0])
		line := p.Log.WaitClient(t, "tunnel", first.Client)
		if line["ended_by"] != "gateway" || line["how"] != "cut" {
			t.Errorf("%v", line)
		}
		cut(fmt.Sprintf(`{"id":%q}`, first.ID), 0)
		cut(fmt.Sprintf(`{"backend":%q}`, echo), 2)
		harness.ExpectCut(t, clients[1])
		harness.ExpectCut(t, clients[2])
		harness.Echo(t, clients[3], "still here")
		cut(`{"client":"127.0.0.0/8"}`, 1)
		harness.ExpectCut(t, clients[3])

		harness.Eventually(t, "all is counted", func() bool {
			m := a.Metrics(t)
			return m["gateway_tunnels_active"] == 0 && m.Sum("gateway_tunnels_ended_total", `how="cut"`, `by="gateway"`) == 4
		})
		p.Log.WaitLine(t, "admin request", 4)
		p.End(t)
	})
}

func TestAHalfClosedTunnelIsListedAsSuch(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		p, a := startAdmin(t, relay)
		ended := make(chan struct{})
		defer close(ended)
		backend := harness.StartBackend(t, func(c *net.TCPConn) { <-ended })
		c := harness.OpenTunnel(t, p.Addr, backend)
		c.CloseWrite()
		harness.Eventually(t, "it is half-closed", func() bool {
			var all tunnelList
			a.JSON(t, "GET", "/api/tunnels", "", &all)
			return len(all.Tunnels) == 1 && all.Tunnels[0].State == "half_closed"
		})
	})
}

func TestTheLogLevelChangesWhileItRuns(t *testing.T) {
	t.Parallel()
	p, a := startAdmin(t)
	look := func() { harness.Connect(t, p.Addr).Close() } // "no request", at debug level
	look()
	a.Do(t, "POST", "/api/log-level", `{"level":"debug"}`)
	look()
	p.Log.WaitLine(t, "no request", 1)
	a.Do(t, "POST", "/api/log-level", `{"level":"warn"}`)
	harness.Finish(t, harness.OpenTunnel(t, p.Addr, harness.StartEcho(t)))
	harness.Eventually(t, "the tunnel has ended", func() bool { return a.Metrics(t).Sum("gateway_tunnels_ended_total") == 1 })
	p.End(t)
	if lines := p.Log.Lines("tunnel"); len(lines) > 0 {
		t.Errorf("%v", lines)
	}
}

func TestOnlyWhoHasTheTokenChangesThingsByTCP(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdefghij"
	file := filepath.Join(t.TempDir(), "token")
	harness.WriteFile(t, file, token+"\n")
	p := harness.Start(t, "-admin=127.0.0.1:0", "-admin-token-file="+file)
	url := p.Log.WaitLine(t, "admin is on", 1)["url"].(string)
	client := http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	do := func(method, path, authorization string) int {
		t.Helper()
		r, err := http.NewRequest(method, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Gateway-Admin", "1")
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	for _, tt := range []struct {
		method, path, authorization string
		want                        int
	}{
		{"GET", "readyz", "", 200}, {"GET", "metrics", "", 200}, {"GET", "api/tunnels", "", 200},
		{"POST", "api/drain", "", 401}, {"POST", "api/drain", "Bearer x", 401}, {"GET", "readyz", "", 200},
		{"POST", "api/drain", "Bearer " + token, 200}, {"GET", "readyz", "", 503},
	} {
		if got := do(tt.method, tt.path, tt.authorization); got != tt.want {
			t.Errorf("%s /%s with %q: status %d, want %d", tt.method, tt.path, tt.authorization, got, tt.want)
		}
	}
	p.End(t)
	if strings.Contains(p.Log.String(), token) {
		t.Error("the log has the token")
	}
}

func TestNoClientGetsToTheAdminAddress(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-admin=127.0.0.1:0")
	url := p.Log.WaitLine(t, "admin is on", 1)["url"].(string)
	addr := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	mapped := netip.MustParseAddrPort(addr)
	for _, backend := range []string{addr, harness.ByName(addr), fmt.Sprintf("[::ffff:127.0.0.1]:%d", mapped.Port())} {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, harness.Line(backend))
		harness.ExpectAll(t, c, "502")
	}
	p.Log.WaitLine(t, "refused", 3)
	for _, line := range p.Log.Lines("refused") {
		if line["reason"] != "denied" {
			t.Errorf("%v", line)
		}
	}
}

func TestAnAdminAddressThatCannotBeIsFoundAtTheStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	precious, short := filepath.Join(dir, "precious"), filepath.Join(dir, "short")
	harness.WriteFile(t, precious, "precious")
	harness.WriteFile(t, short, "short\n")
	_, living := startAdmin(t)
	for _, tt := range []struct {
		args  []string
		code  int
		words []string
	}{
		{[]string{"-admin=" + taken.Addr().String()}, harness.ExitFailure, []string{"-admin", taken.Addr().String()}},
		{[]string{"-admin=unix:" + precious}, harness.ExitFailure, []string{"-admin", precious, "no socket"}},
		{[]string{"-admin=unix:" + filepath.Join(dir, "none", "s")}, harness.ExitFailure, []string{"-admin", "none"}},
		{[]string{living.Flag}, harness.ExitFailure, []string{"-admin", living.Socket, "another process"}},
		{[]string{"-admin=127.0.0.1:0", "-admin-token-file=" + short}, harness.ExitUsage, []string{"-admin-token-file", short, "16"}},
		{[]string{"-admin-token-file=" + short}, harness.ExitUsage, []string{"-admin-token-file", "-admin"}},
	} {
		for _, check := range []bool{false, true} {
			args, code := append([]string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-pidfile="}, tt.args...), tt.code
			if check {
				args, code = append(args, "-check"), harness.ExitUsage
			}
			_, stderr, got := harness.Run(t, nil, append(args, "-log-level=error")...)
			wantOneLine(t, stderr, got, code, tt.words...)
		}
	}
	if text, _ := os.ReadFile(precious); string(text) != "precious" {
		t.Errorf("the file is now %q", text)
	}
	if status, _ := living.Do(t, "GET", "/readyz", ""); status != 200 {
		t.Errorf("the living gateway is not ready: %d", status)
	}
	_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-check", "-admin=0.0.0.0:0")
	if code != 0 || !strings.Contains(stderr, "level=WARN") || !strings.Contains(stderr, "-admin") {
		t.Errorf("a public address: exit code %d, %q", code, stderr)
	}
}

func TestAGatewayThatWasKilledLeavesNoSocketInTheWay(t *testing.T) {
	t.Parallel()
	p, a := startAdmin(t)
	p.Kill()
	if _, err := os.Lstat(a.Socket); err != nil {
		t.Fatal(err)
	}
	harness.Start(t, a.Flag)
	if status, _ := a.Do(t, "GET", "/readyz", ""); status != 200 {
		t.Errorf("status %d", status)
	}
}

func TestAFullGatewayIsNotReady(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("how many there may be is known on Linux alone")
	}
	a := harness.NewAdmin(t)
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json", "-loops=1", "-drain=0", a.Flag)
	cmd.Args = append([]string{"sh", "-c", `ulimit -n 200 && exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	p := harness.StartCommand(t, cmd)
	echo := harness.StartEcho(t)
	limit := int(a.Metrics(t)["gateway_connections_limit"])
	if limit < 1 || limit > 100 {
		t.Fatalf("there is room for %d connections", limit)
	}
	for range limit - 1 {
		harness.OpenTunnel(t, p.Addr, echo)
	}
	if status, text := a.Do(t, "GET", "/readyz", ""); status != 200 {
		t.Errorf("with room for one: status %d, %s", status, text)
	}
	last := harness.OpenTunnel(t, p.Addr, echo)
	status, text := a.Do(t, "GET", "/readyz", "")
	if status != 503 || !strings.Contains(text, "out of descriptors") {
		t.Errorf("with none: status %d, %s", status, text)
	}
	if status, _ := a.Do(t, "GET", "/healthz", ""); status != 200 {
		t.Errorf("/healthz: status %d", status)
	}
	harness.Finish(t, last)
	harness.Eventually(t, "it is ready again", func() bool {
		status, _ := a.Do(t, "GET", "/readyz", "")
		return status == 200
	})
	p.End(t)
}

func TestThePageIsServedAndHearsOfWhatHappens(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-admin=127.0.0.1:0", "-drain=0")
	url := p.Log.WaitLine(t, "admin is on", 1)["url"].(string)
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), "<html") ||
		!strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%s, %v, %.100s, %v", resp.Status, resp.Header, body, err)
	}
	resp, err = http.Get(url + "api/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	events := bufio.NewScanner(resp.Body)
	events.Buffer(nil, 1<<20)
	seen := false
	for !seen && events.Scan() {
		seen = strings.Contains(events.Text(), `"active":1`)
	}
	if !seen {
		t.Errorf("no event tells of the tunnel: %v", events.Err())
	}
	p.End(t) // does not wait for the stream
}
