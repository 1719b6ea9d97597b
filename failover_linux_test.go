package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// A host that is gone does not refuse: connects to it get no answer at all.

// connecting counts the connects to an IPv4 address of this host that have no
// answer yet.
func connecting(t testing.TB, to string) (n int) {
	t.Helper()
	const synSent = "02"
	ap := netip.MustParseAddrPort(to)
	ip := ap.Addr().As4()
	all, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(all), fmt.Sprintf(" %08X:%04X %s ", binary.NativeEndian.Uint32(ip[:]), ap.Port(), synSent))
}

func TestAfterATimeoutOnlyTheFirstPlayerWaits(t *testing.T) {
	const timeout = 100 * time.Millisecond
	onSomeEntrances(t, 3, func(cfg *Config) { cfg.Timeout = timeout }, func(t *testing.T, e *entrance) {
		alive := startTarget(t, "c")
		route := strings.Join([]string{blackhole(t, "127.0.0.1", 0).String(), blackhole(t, "127.0.0.1", 0).String(), alive.addr}, ",")
		began := time.Now()
		e.wantVisit(t, route, "c")
		if took := time.Since(began); took < timeout {
			t.Errorf("the first client took %v: nothing was timed out", took)
		}
		// The first penalty ends a second after the first time-out. Some clients
		// may be unlucky with this machine, but not most.
		clients, waited := 0, 0
		for time.Since(began) < time.Second {
			at := time.Now()
			e.wantVisit(t, route, "c")
			if clients++; time.Since(at) >= timeout/2 { // of two addresses of a name, one may refuse
				waited++
			}
		}
		if waited > clients/2 {
			t.Errorf("%d of %d more clients waited", waited, clients)
		}
		if refused := e.log.lines("refused"); len(refused) > 0 {
			t.Errorf("logged: %v", refused)
		}
	})
}

func TestTheLastAttemptDecidesTheStatus(t *testing.T) {
	onSomeEntrances(t, 3, func(cfg *Config) { cfg.Timeout = 50 * time.Millisecond }, func(t *testing.T, e *entrance) {
		hole, dead := blackhole(t, "127.0.0.1", 0).String(), closedPort(t)
		for i, tt := range []struct{ route, status, reason string }{
			{hole + "," + dead, "502", "refused"},
			{dead + "," + hole, "504", "timeout"},
			{hole + "," + hole, "504", "timeout"},
			{dead + "," + hole + "," + dead, "502", "refused"},
		} {
			e.wantRefused(t, tt.route, tt.status, tt.reason, 2*i+1)
			e.wantRefused(t, tt.route, tt.status, tt.reason, 2*i+2) // all are skipped by now
			last := tt.route[strings.LastIndexByte(tt.route, ',')+1:]
			if line := e.log.waitLine(t, "refused", 2*i+2); portOf(fmt.Sprint(line["backend"])) != portOf(last) {
				t.Errorf("logged %v, want %s", line, last)
			}
		}
	})
}

// -retry counts attempts in all. Beyond the number of targets, the round begins
// anew with the first.
func TestTimeoutsAreRetriedAsOftenAsConfigured(t *testing.T) {
	const timeout, retry = 60 * time.Millisecond, 3
	onSomeEntrances(t, 3, func(cfg *Config) { cfg.Timeout, cfg.Retry = timeout, retry }, func(t *testing.T, e *entrance) {
		hole, dead := blackhole(t, "127.0.0.1", 0).String(), closedPort(t)
		for i, tt := range []struct {
			route, status, reason string
			least                 time.Duration
		}{
			{hole + "," + dead, "502", "refused", timeout},                                      // and no more
			{dead + "," + hole, "502", "refused", timeout},                                      // the third
			{hole + "," + hole, "504", "timeout", retry * timeout},                              // two and one
			{strings.Repeat(hole+",", retry+1) + hole, "504", "timeout", (retry + 2) * timeout}, // each once
		} {
			if e.names { // of whose two addresses one refuses at once
				tt.least /= 2
			}
			began := time.Now()
			e.wantRefused(t, tt.route, tt.status, tt.reason, i+1)
			if took := time.Since(began); took < tt.least {
				t.Errorf("%d: %s after %v, want %v", i, tt.status, took, tt.least)
			}
		}
	})
}

// A client that is gone does not get as far as the spare, and what it tried is
// not to blame.
func TestAClientThatResetsDuringFailoverEndsIt(t *testing.T) {
	onSomeEntrances(t, 3, func(cfg *Config) { cfg.Timeout = time.Hour }, func(t *testing.T, e *entrance) {
		spare := startTarget(t, "c")
		hole := blackhole(t, "127.0.0.1", 0).String()
		route := closedPort(t) + "," + hole + "," + spare.addr
		c := e.begin(t, route)
		eventually(t, "the second target is dialed", func() bool { return connecting(t, hole) == 1 })
		c.SetLinger(0)
		c.Close()
		if line := e.log.waitLine(t, "refused", 1); line["reason"] != "client_gone" || line["status"] != "" {
			t.Errorf("logged: %v", line)
		}
		eventually(t, "the dial is given up", func() bool { return connecting(t, hole) == 0 })
		if n := spare.accepted.Load(); n > 0 {
			t.Errorf("the spare was dialed %d times", n)
		}
	})
}

// A dial counts as a connection as long as it lasts, and no longer.
func TestADialThatIsGivenUpIsReleased(t *testing.T) {
	onSomeEntrances(t, 3, func(cfg *Config) {
		cfg.Timeout = time.Hour
		balancing("leastconn")(cfg)
	}, func(t *testing.T, e *entrance) {
		hole, b := blackhole(t, "127.0.0.1", 0).String(), startTarget(t, "b")
		route := hole + "," + b.addr
		first := e.begin(t, route)
		eventually(t, "the first target is dialed", func() bool { return connecting(t, hole) == 1 })
		_, name := e.open(t, route) // which stays
		if name != "b" {
			t.Fatalf("met %s", name)
		}
		first.SetLinger(0)
		first.Close()
		// The other one has a connection more now.
		wantIdle(t, e.rules.Load().routes.Group(parseRoute(t, e.spell(route)), balanceClock()), hole)
	})
}

// A bug in the account of a tunnel does not keep its target busy for ever.
func TestABugInAnAccountReleasesTheTarget(t *testing.T) {
	for _, loops := range []int{3, -1} {
		var bug accountBug
		bug.on.Store(true)
		g := startConfigured(t, func(cfg *Config) {
			cfg.Loops = loops
			balancing("leastconn")(cfg)
		}, bug.into)
		targets := startTargets(t, "ab")
		route := routeTo(targets...)
		group := occupy(t, g, route)
		for i := range 3 {
			if name, err := meet("", g.addr, sealedRoute(t, route)); name != "b" || err != nil {
				t.Errorf("met %q, %v", name, err)
			}
			g.log.waitLine(t, "panic", i+1)
			wantIdle(t, group, targets[1].addr)
		}
	}
}
