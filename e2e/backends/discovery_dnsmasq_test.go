package backends

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/harness"
)

// Services of a real DNS server: dnsmasq as distributions ship it. make
// test-deps installs it.

// needDNS in the environment says that it must be there. It is read before
// TestMain clears the environment.
var needDNS = os.Getenv("NEED_DNSMASQ") == "1"

// startDnsmasq runs dnsmasq with records of its own only, until stop is called
// or the test ends, and waits until it answers.
func startDnsmasq(t *testing.T, addr string, records ...string) (stop func()) {
	t.Helper()
	path := harness.FindServer(t, "dnsmasq", needDNS, "test-deps")
	host, port, _ := net.SplitHostPort(addr)
	p := harness.Launch(t, exec.Command(path, append([]string{"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=",
		"--log-facility=-", "--listen-address=" + host, "--port=" + port, "--bind-interfaces", "--no-resolv", "--no-hosts",
		"--local=/test/", "--local-ttl=1"}, records...)...))
	question := new(dns.Msg).SetQuestion("probe.test.", dns.TypeA)
	client := &dns.Client{Timeout: time.Second}
	harness.Eventually(t, "dnsmasq answers", func() bool {
		if !p.Runs() {
			t.Fatal("dnsmasq ended")
		}
		_, _, err := client.Exchange(question, addr)
		return err == nil
	})
	return p.Kill
}

func TestDnsmasqIsKilledAndRestarted(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		all := startTargets(t, "abc")
		port := func(i int) string { return harness.PortOf(all[i].addr) }
		addr := harness.ClosedPort(t)
		stop := startDnsmasq(t, addr,
			"--srv-host="+game+",a.test,"+port(0)+",10,2", "--srv-host="+game+",b.test,"+port(1)+",10,1",
			"--srv-host="+game+",c.test,"+port(2)+",20,0",
			"--host-record=a.test,127.0.0.1", "--host-record=b.test,127.0.0.1", "--host-record=c.test,127.0.0.1")
		p := harness.Start(t, way, "-resolver="+addr, "-balance=roundrobin")
		round := func() (got string) {
			t.Helper()
			for range 3 {
				got += player(t, p.Addr)
			}
			return got
		}
		if got := round() + round(); got != "abaaba" {
			t.Errorf("players met %s", got)
		}
		for route, want := range map[string]string{"b.test:" + port(1): "b", "none.test:80,c.test:" + port(2): "c"} {
			if name, err := meet("", p.Addr, harness.Line(route)); name != want || err != nil {
				t.Errorf("%s: met %q, %v; want %s", route, name, err, want)
			}
		}
		if name, err := meet("", p.Addr, harness.Line("srv:none.test")); err == nil || err.Error() != "502" {
			t.Errorf("met %q, %v; want 502", name, err)
		}

		stop()
		for began := time.Now(); time.Since(began) < 1500*time.Millisecond; { // the time to live is 1 s
			if got := round(); got != "aba" {
				t.Fatalf("while dnsmasq is down players met %s", got)
			}
			time.Sleep(20 * time.Millisecond)
		}
		all[0].kill() // failover and stale answers go together
		for range 3 {
			if name := player(t, p.Addr); name != "b" {
				t.Errorf("with one dead, a player met %s", name)
			}
		}

		startDnsmasq(t, addr, "--srv-host="+game+",c.test,"+port(2)+",10,1",
			"--host-record=b.test,127.0.0.1", "--host-record=c.test,127.0.0.1")
		harness.Eventually(t, "what dnsmasq says now is used", func() bool { return player(t, p.Addr) == "c" })
	})
}
