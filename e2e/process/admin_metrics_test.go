package process

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// wait waits until a metric has a value.
func wait(t testing.TB, a *harness.Admin, metric string, want float64) {
	t.Helper()
	var got float64
	harness.Eventually(t, fmt.Sprintf("%s is %v", metric, want), func() bool {
		got = a.Metrics(t)[metric]
		return got == want
	})
}

func TestWhatTheGatewayTellsBackendsIsNotAmongTheBytesOfClients(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		p, a := startAdmin(t, relay, "-send-proxy=v2")
		got := make(chan int, 1)
		backend := harness.StartBackend(t, func(c *net.TCPConn) {
			text, _ := io.ReadAll(c)
			got <- len(text)
		})
		c := harness.OpenTunnel(t, p.Addr, backend)
		harness.Send(t, c, "hello")
		c.CloseWrite()
		harness.ExpectAll(t, c, "")
		if n := <-got; n <= len("hello") {
			t.Fatalf("the backend got %d bytes", n)
		}
		wait(t, a, `gateway_bytes_total{direction="up",path="copied"}`, 5)
	})
}

func TestLivingTunnelsAreCountedAndLongRunsAreSpliced(t *testing.T) {
	t.Parallel()
	p, a := startAdmin(t, "-loops=1")
	before := a.Metrics(t)
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	const size = 4 << 20
	go c.Write(make([]byte, size))
	if _, err := io.CopyN(io.Discard, c, size); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "all is counted while the tunnel lives", func() bool {
		m := a.Metrics(t)
		return m.Sum("gateway_bytes_total", `direction="up"`) == size && m.Sum("gateway_bytes_total", `direction="down"`) == size
	})
	m := a.Metrics(t)
	if splices && m.Sum("gateway_bytes_total", `path="spliced"`) < size {
		t.Errorf("%v bytes were spliced", m.Sum("gateway_bytes_total", `path="spliced"`))
	}
	if !splices {
		return
	}
	if busy := m[`gateway_loop_busy_seconds_total{loop="0"}`] - before[`gateway_loop_busy_seconds_total{loop="0"}`]; busy <= 0 || busy > harness.Patience.Seconds() {
		t.Errorf("the loop was busy for %v s", busy)
	}
	if longest := m[`gateway_loop_longest_turn_seconds{loop="0"}`]; longest <= 0 || longest > harness.Patience.Seconds() {
		t.Errorf("the longest turn took %v s", longest)
	}
	if m[`gateway_loop_connections{loop="0"}`] != 1 || m["gateway_pipes_open"] < 1 || m["gateway_pipes_limit"] < 1 || m["gateway_connections_limit"] < 16 {
		t.Errorf("%v connections, %v pipes of %v; room for %v connections",
			m[`gateway_loop_connections{loop="0"}`], m["gateway_pipes_open"], m["gateway_pipes_limit"], m["gateway_connections_limit"])
	}
	if m["gateway_descriptors_open"] < 5 || m["gateway_descriptors_limit"] < m["gateway_descriptors_open"] {
		t.Errorf("%v descriptors of %v", m["gateway_descriptors_open"], m["gateway_descriptors_limit"])
	}
}

func TestTimesAreTakenOfHandshakesDialsAndFirstBytes(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		p, a := startAdmin(t, relay)
		const pause = 300 * time.Millisecond
		speak := make(chan struct{})
		backend := harness.StartBackend(t, func(c *net.TCPConn) {
			<-speak
			io.WriteString(c, "hello")
			io.Copy(io.Discard, c)
		})
		c := harness.Connect(t, p.Addr)
		line := harness.Line(backend)
		harness.Send(t, c, line[:10])
		wait(t, a, "gateway_connections_pending", 1)
		time.Sleep(pause) // what is measured
		harness.Send(t, c, line[10:])
		harness.Expect(t, c, "200")
		time.Sleep(pause) // what is measured
		close(speak)
		harness.Expect(t, c, "hello")
		for _, name := range []string{"gateway_handshake_duration_seconds", "gateway_dial_duration_seconds", "gateway_first_byte_duration_seconds"} {
			wait(t, a, name+"_count", 1)
			m := a.Metrics(t)
			sum, slow := m[name+"_sum"], !strings.Contains(name, "dial")
			if sum < 0 || slow && sum < pause.Seconds()*.9 || sum > harness.Patience.Seconds() || !slow && sum > 10 {
				t.Errorf("%s: %v s", name, sum)
			}
			if m[name+`_bucket{le="+Inf"}`] != 1 || slow && m[name+`_bucket{le="0.1"}`] != 0 {
				t.Errorf("%s has no buckets, or wrong ones: %v, %v", name, m[name+`_bucket{le="+Inf"}`], m[name+`_bucket{le="0.1"}`])
			}
		}
	})
}

func TestDialsAreCountedByResultAndAttempt(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		echo, nobody := harness.StartEcho(t), harness.ClosedPort(t)
		p, a := startAdmin(t, relay, "-listen=127.0.0.1:0=forward:"+nobody+","+echo, "-addr=127.0.0.1:0")
		forward := p.Listeners(t, 2)[1]["addr"].(string)
		c := harness.Connect(t, forward) // fails over
		harness.Echo(t, c, "hello")
		c2 := harness.OpenTunnel(t, p.Addr, echo)
		c3 := harness.Connect(t, p.Addr)
		harness.Send(t, c3, harness.Line(nobody))
		harness.ExpectAll(t, c3, "502")
		wait(t, a, `gateway_dials_total{attempt="2",result="ok"}`, 1)
		wait(t, a, `gateway_dials_total{attempt="1",result="ok"}`, 1)
		wait(t, a, `gateway_dials_total{attempt="1",result="refused"}`, 2)
		// What a client has chosen does not count among the backends.
		wait(t, a, fmt.Sprintf(`gateway_backend_tunnels_active{backend=%q}`, echo), 1)
		wait(t, a, fmt.Sprintf(`gateway_backend_failures_total{backend=%q}`, nobody), 1)
		wait(t, a, fmt.Sprintf(`gateway_backend_failures_total{backend=%q}`, echo), 0)
		m := a.Metrics(t)
		if m.Sum("gateway_backend_skipped") > 1 || m[fmt.Sprintf(`gateway_backend_skipped{backend=%q}`, echo)] != 0 {
			t.Errorf("backends are skipped: %v", m.Sum("gateway_backend_skipped"))
		}
		c.Close()
		c2.Close()
		wait(t, a, fmt.Sprintf(`gateway_backend_tunnels_active{backend=%q}`, echo), 0)
		wait(t, a, "gateway_tunnels_active", 0)
	})
}

func TestNamesAreCountedAsTheyAreLookedUp(t *testing.T) {
	t.Parallel()
	echo := harness.StartEcho(t)
	p, a := startAdmin(t, "-resolver="+harness.StartDNS(t, "127.0.0.1"))
	harness.Finish(t, harness.OpenTunnel(t, p.Addr, "game.test:"+harness.PortOf(echo)))
	wait(t, a, `gateway_dns_lookups_total{result="ok",type="address"}`, 1)
	harness.Finish(t, harness.OpenTunnel(t, p.Addr, "game.test:"+harness.PortOf(echo))) // is known
	wait(t, a, `gateway_dns_lookups_total{result="ok",type="address"}`, 1)
	wait(t, a, "gateway_dns_stale_seconds", 0)
}

func TestTLSIsCountedAndItsCertificateIsSeenToExpire(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p, a := startAdmin(t, flags...)
	echo := harness.StartEcho(t)
	trusting = trusting.Clone()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		trusting.MinVersion, trusting.MaxVersion = version, version
		c := harness.ConnectWith(t, p.Addr, trusting)
		harness.Send(t, c, harness.Line(echo))
		harness.Expect(t, c, "200")
		c.Close()
	}
	stranger := tls.Client(harness.Connect(t, p.Addr), &tls.Config{ServerName: "127.0.0.1"}) // does not trust it
	if err := stranger.Handshake(); err == nil {
		t.Error("a stranger trusts the certificate")
	}
	wait(t, a, `gateway_tls_handshakes_total{result="ok",version="1.2"}`, 1)
	wait(t, a, `gateway_tls_handshakes_total{result="ok",version="1.3"}`, 1)
	harness.Eventually(t, "a handshake has failed", func() bool {
		return a.Metrics(t).Sum("gateway_tls_handshakes_total", `result="failed"`) == 1
	})
	in := time.Until(time.Unix(int64(a.Metrics(t).Sum("gateway_tls_certificate_expiry_timestamp_seconds")), 0))
	if in < 30*time.Minute || in > 2*time.Hour { // the tests' are good for an hour
		t.Errorf("the certificate expires in %v", in)
	}
	wait(t, a, `gateway_connections_total{form="line+tls",listener="`+p.Addr+`",status="200"}`, 2)
}

func TestRefusalsAreCountedByReasonAndTheLatestAreShown(t *testing.T) {
	t.Parallel()
	p, a := startAdmin(t)
	for range 3 {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, harness.BadlyPadded()+"\n")
		harness.ExpectAll(t, c, "401")
	}
	wait(t, a, `gateway_refusals_total{reason="bad_padding"}`, 3)
	wait(t, a, `gateway_connections_total{form="line",listener="`+p.Addr+`",status="401"}`, 3)
	var status struct {
		Recent []struct{ Client, Listener, Form, Status, Reason, Backend string } `json:"recent_refusals"`
	}
	c := harness.Connect(t, p.Addr)
	nobody := harness.ClosedPort(t)
	harness.Send(t, c, harness.Line(nobody))
	harness.ExpectAll(t, c, "502")
	a.JSON(t, "GET", "/api/status", "", &status)
	if len(status.Recent) != 4 {
		t.Fatalf("%d are shown", len(status.Recent))
	}
	last := status.Recent[0]
	if last.Client != c.LocalAddr().String() || last.Listener != p.Addr || last.Form != "line" || last.Status != "502" || last.Reason != "refused" || last.Backend != nobody {
		t.Errorf("%+v", last)
	}
}

// splices tells whether this system has loops and splice.
const splices = runtime.GOOS == "linux"

func TestALimitThatEndsTunnelsIsCounted(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		p, a := startAdmin(t, relay, "-idle-timeout=500ms", "-half-close-timeout=300ms")
		release := make(chan struct{})
		defer close(release)
		silent := harness.StartBackend(t, func(*net.TCPConn) { <-release })
		whole, half := harness.OpenTunnel(t, p.Addr, silent), harness.OpenTunnel(t, p.Addr, silent)
		half.CloseWrite()
		io.Copy(io.Discard, whole)
		io.Copy(io.Discard, half)
		wait(t, a, `gateway_tunnels_ended_total{by="gateway",how="timeout",limit="idle"}`, 1)
		wait(t, a, `gateway_tunnels_ended_total{by="gateway",how="timeout",limit="half_close"}`, 1)
	})
}

func TestNoCounterFallsWithAReload(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p, a := startAdmin(t, flags...)
	var file string
	for _, flag := range flags {
		if path, ok := strings.CutPrefix(flag, "-tls-cert="); ok {
			file = path
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, file, string(text)+"\n")
	const reloads = `gateway_reloads_total{result="ok",what="certificate"}`
	harness.Eventually(t, "the certificate is loaded again", func() bool {
		c, err := tls.Dial("tcp", p.Addr, trusting) // which has it looked at
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		return a.Metrics(t)[reloads] == 1
	})
	for range 2 {
		before := a.Metrics(t)
		if status, text := a.Do(t, "POST", "/api/reload", ""); status != 200 {
			t.Fatalf("%d, %s", status, text)
		}
		now := a.Metrics(t)
		if fell := now.Fell(before); len(fell) > 0 || now[reloads] != 1 {
			t.Errorf("%v; counters fell: %q", now[reloads], fell)
		}
	}
}
