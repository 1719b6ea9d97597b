package backends

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
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
	onSomeWaysIn(t, 3, []string{"-timeout=" + timeout.String()}, func(t *testing.T, w *wayIn) {
		alive := startTarget(t, "c")
		route := strings.Join([]string{harness.Blackhole(t), harness.Blackhole(t), alive.addr}, ",")
		began := time.Now()
		w.wantVisit(t, route, "c")
		if took := time.Since(began); took < timeout {
			t.Errorf("the first client took %v: nothing was timed out", took)
		}
		// The first penalty ends a second after the first time-out. Some clients
		// may be unlucky with this machine, but not most.
		clients, waited := 0, 0
		for time.Since(began) < time.Second {
			at := time.Now()
			w.wantVisit(t, route, "c")
			if clients++; time.Since(at) >= timeout/2 { // of two addresses of a name, one may refuse
				waited++
			}
		}
		if waited > clients/2 {
			t.Errorf("%d of %d more clients waited", waited, clients)
		}
		if refused := w.lines("refused"); len(refused) > 0 {
			t.Errorf("logged: %v", refused)
		}
	})
}

func TestTheLastAttemptDecidesTheStatus(t *testing.T) {
	t.Parallel()
	onSomeWaysIn(t, 3, []string{"-timeout=500ms"}, func(t *testing.T, w *wayIn) {
		hole, dead := harness.Blackhole(t), harness.ClosedPort(t)
		for i, tt := range []struct{ route, status, reason string }{
			{hole + "," + dead, "502", "refused"},
			{dead + "," + hole, "504", "timeout"},
			{hole + "," + hole, "504", "timeout"},
			{dead + "," + hole + "," + dead, "502", "refused"},
		} {
			w.wantRefused(t, tt.route, tt.status, tt.reason)
			w.wantRefused(t, tt.route, tt.status, tt.reason) // all are skipped by now
			last := tt.route[strings.LastIndexByte(tt.route, ',')+1:]
			if line := w.waitLine(t, "refused", 2*i+2); harness.PortOf(fmt.Sprint(line["backend"])) != harness.PortOf(last) {
				t.Errorf("logged %v, want %s", line, last)
			}
		}
	})
}

// -retry counts attempts in all. Beyond the number of targets, the round begins
// anew with the first.
func TestTimeoutsAreRetriedAsOftenAsConfigured(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	const timeout, retry = 500 * time.Millisecond, 3
	onSomeWaysIn(t, 3, []string{"-timeout=" + timeout.String(), fmt.Sprint("-retry=", retry)}, func(t *testing.T, w *wayIn) {
		hole, dead := harness.Blackhole(t), harness.ClosedPort(t)
		for i, tt := range []struct {
			route, status, reason string
			least                 time.Duration
		}{
			{hole + "," + dead, "502", "refused", timeout},                                      // and no more
			{dead + "," + hole, "502", "refused", timeout},                                      // the third
			{hole + "," + hole, "504", "timeout", retry * timeout},                              // two and one
			{strings.Repeat(hole+",", retry+1) + hole, "504", "timeout", (retry + 2) * timeout}, // each once
		} {
			if w.names { // of whose two addresses one refuses at once
				tt.least /= 2
			}
			began := time.Now()
			w.wantRefused(t, tt.route, tt.status, tt.reason)
			if took := time.Since(began); took < tt.least {
				t.Errorf("%d: %s after %v, want %v", i, tt.status, took, tt.least)
			}
		}
	})
}

// A client that is gone does not get as far as the spare, and what it tried is
// not to blame.
func TestAClientThatResetsDuringFailoverEndsIt(t *testing.T) {
	t.Parallel()
	onSomeWaysIn(t, 3, []string{"-timeout=1h"}, func(t *testing.T, w *wayIn) {
		spare := startTarget(t, "c")
		hole := harness.Blackhole(t)
		route := harness.ClosedPort(t) + "," + hole + "," + spare.addr
		c := w.begin(t, route)
		harness.Eventually(t, "the second target is dialed", func() bool { return connecting(t, hole) == 1 })
		c.SetLinger(0)
		c.Close()
		if line := w.waitLine(t, "refused", 1); line["reason"] != "client_gone" || harness.Status(line) != "" {
			t.Errorf("logged: %v", line)
		}
		harness.Eventually(t, "the dial is given up", func() bool { return connecting(t, hole) == 0 })
		if n := spare.accepted.Load(); n > 0 {
			t.Errorf("the spare was dialed %d times", n)
		}
	})
}

// A dial counts as a connection as long as it lasts, and no longer.
func TestADialThatIsGivenUpIsReleased(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	onSomeWaysIn(t, 3, []string{"-timeout=1h", "-balance=leastconn"}, func(t *testing.T, w *wayIn) {
		hole, b := harness.Blackhole(t), startTarget(t, "b")
		route := hole + "," + b.addr
		first := w.begin(t, route)
		harness.Eventually(t, "the first target is dialed", func() bool { return connecting(t, hole) == 1 })
		_, name := w.open(t, route) // which stays
		if name != "b" {
			t.Fatalf("met %s", name)
		}
		first.SetLinger(0)
		first.Close()
		// The other one has a connection more now: of equals, two clients in a row
		// would go to different ones.
		harness.Eventually(t, "the dial is released", func() bool {
			first, second := w.goesTo(t, route, hole), w.goesTo(t, route, hole)
			return first && second
		})
	})
}

// goesTo has a client come and leave, and tells whether it was for an address that
// does not answer.
func (w *wayIn) goesTo(t testing.TB, route, hole string) (goes bool) {
	t.Helper()
	c := w.begin(t, route)
	harness.Eventually(t, "the client is connected or waits", func() bool {
		goes = connecting(t, hole) > 0
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, _ := c.Read(make([]byte, 1))
		return goes || n > 0
	})
	c.SetLinger(0)
	c.Close()
	harness.Eventually(t, "the dial is given up", func() bool { return connecting(t, hole) == 0 })
	return goes
}
