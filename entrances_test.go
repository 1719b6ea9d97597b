package main

import (
	"gateway/internal/balance"
	"gateway/internal/flagvalue"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// The ways in which clients come to a route: sealed or forwarded, on loops and on
// goroutines.

// entrance is a gateway and the way in which clients name a route to it.
type entrance struct {
	*testGateway
	forwards bool // a listener for each route, instead of sealed lines
	names    bool // of hosts in the routes, instead of IP addresses

	mu    sync.Mutex
	ports map[string]string // where routes are forwarded from
}

// entrances are the ways in which a gateway serves routes.
var entrances = []struct {
	name            string
	loops           int
	forwards, names bool
}{
	{"three loops", 3, false, false},
	{"names", 1, false, true},
	{"forward, goroutines", -1, true, true},
	{"goroutines", -1, false, false},
	{"forward", 3, true, false},
	{"one loop", 1, false, false},
}

// onEntrances runs a test on all entrances, at once.
func onEntrances(t *testing.T, configure func(*Config), test func(t *testing.T, e *entrance)) {
	onSomeEntrances(t, len(entrances), configure, test)
}

// onSomeEntrances runs a test that takes its time on the first n entrances.
func onSomeEntrances(t *testing.T, n int, configure func(*Config), test func(t *testing.T, e *entrance)) {
	var names []string
	for _, tt := range entrances[:n] {
		names = append(names, tt.name)
	}
	atOnce(t, names, func(t *testing.T, i int) {
		tt := entrances[i]
		g := startConfigured(t, func(cfg *Config) {
			cfg.Loops = tt.loops
			if configure != nil {
				configure(cfg)
			}
		}, nil)
		test(t, &entrance{testGateway: g, forwards: tt.forwards, names: tt.names, ports: make(map[string]string)})
	})
}

// atOnce runs a test under several names at once: more than t.Parallel, since
// most of these wait for a second to pass.
func atOnce(t *testing.T, names []string, test func(t *testing.T, i int)) {
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { t.Run(name, func(t *testing.T) { test(t, i) }) })
	}
	all.Wait()
}

// bothAtOnce is bothWays at once.
func bothAtOnce(t *testing.T, test func(t *testing.T, way string)) {
	ways := []string{"-loops=0", "-loops=-1"}
	atOnce(t, ways, func(t *testing.T, i int) { test(t, ways[i]) })
}

// balancing sets an algorithm.
func balancing(algorithm string) func(*Config) {
	return func(cfg *Config) {
		if err := flagvalue.Parsed(&cfg.Balance, balance.ParseAlgorithm, balance.Algorithm.String).Set(algorithm); err != nil {
			panic(err)
		}
	}
}

// spell returns a route as it is spelled here.
func (e *entrance) spell(route string) string {
	if e.names {
		return strings.ReplaceAll(route, "127.0.0.1:", "localhost:")
	}
	return route
}

// enter returns where a client goes for a route, and the line that it sends
// there.
func (e *entrance) enter(t testing.TB, route string) (addr, line string) {
	t.Helper()
	route = e.spell(route)
	if !e.forwards {
		return e.addr, sealedRoute(t, route)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ports[route] == "" {
		e.ports[route] = forwardTo(t, e.testGateway, route)
	}
	return e.ports[route], ""
}

// visit has a client go to one of the targets of a route and returns its name.
func (e *entrance) visit(t testing.TB, route string) (string, error) {
	t.Helper()
	addr, line := e.enter(t, route)
	return meet("", addr, line)
}

// wantVisit is visit for a route on which one target is to be met.
func (e *entrance) wantVisit(t testing.TB, route, want string) {
	t.Helper()
	if got, err := e.visit(t, route); got != want || err != nil {
		t.Fatalf("a client of %s met %q, %v; want %s", route, got, err, want)
	}
}

// open connects a client that stays, and reads the name of its target.
func (e *entrance) open(t testing.TB, route string) (c *net.TCPConn, name string) {
	t.Helper()
	c = e.begin(t, route)
	if !e.forwards {
		expect(t, c, "200")
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return c, string(b)
}

// begin connects a client that has named its route.
func (e *entrance) begin(t testing.TB, route string) *net.TCPConn {
	t.Helper()
	addr, line := e.enter(t, route)
	c := connect(t, addr)
	send(t, c, line)
	return c
}

// wantRefused expects a status, and a reason in the log's nth refusal. A client
// that is forwarded reads nothing.
func (e *entrance) wantRefused(t testing.TB, route, status, reason string, nth int) {
	t.Helper()
	want := status
	if e.forwards {
		want = ""
	}
	expectAll(t, e.begin(t, route), want)
	if line := e.log.waitLine(t, "refused", nth); line["status"] != status || line["reason"] != reason {
		t.Errorf("%s: logged %v, want %s %s", route, line, status, reason)
	}
}
