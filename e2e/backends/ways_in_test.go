package backends

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"gateway/internal/harness"
)

// The ways in which clients come to a route: sealed or forwarded, on loops and on
// goroutines.

// wayIn is gateways and the way in which clients name a route to them.
type wayIn struct {
	flags    []string
	forwards bool // each route from an address of its own, instead of sealed lines
	names    bool // of hosts in the routes, instead of IP addresses

	*harness.Process // the gateway for sealed lines; nil where it forwards

	mu         sync.Mutex
	forwarding []*harness.Process
	ports      map[string]string // where they forward from, by their routes
}

// waysIn are the ways in which a gateway serves routes.
var waysIn = []struct {
	name, loops     string
	forwards, names bool
}{
	{"three loops", "-loops=3", false, false},
	{"names", "-loops=1", false, true},
	{"forward, goroutines", "-loops=-1", true, true},
	{"goroutines", "-loops=-1", false, false},
	{"forward", "-loops=3", true, false},
	{"one loop", "-loops=1", false, false},
}

// onEachWayIn runs a test on all ways in, at once. flags are those of the gateways.
func onEachWayIn(t *testing.T, flags []string, test func(t *testing.T, w *wayIn)) {
	onSomeWaysIn(t, len(waysIn), flags, test)
}

// onSomeWaysIn runs a test that takes its time on the first n ways in, with -short on
// two at most.
func onSomeWaysIn(t *testing.T, n int, flags []string, test func(t *testing.T, w *wayIn)) {
	if testing.Short() {
		n = min(n, 2)
	}
	var names []string
	for _, tt := range waysIn[:n] {
		names = append(names, tt.name)
	}
	atOnce(t, names, func(t *testing.T, i int) {
		tt := waysIn[i]
		w := &wayIn{flags: append([]string{tt.loops}, flags...), forwards: tt.forwards, names: tt.names,
			ports: make(map[string]string)}
		if !w.forwards {
			w.Process = harness.Start(t, w.flags...)
		}
		test(t, w)
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

// bothAtOnce is harness.BothWays at once.
func bothAtOnce(t *testing.T, test func(t *testing.T, way string)) {
	ways := []string{"-loops=0", "-loops=-1"}
	atOnce(t, ways, func(t *testing.T, i int) { test(t, ways[i]) })
}

// gateways returns all gateways of this way in.
func (w *wayIn) gateways() []*harness.Process {
	if w.Process != nil {
		return []*harness.Process{w.Process}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.forwarding)
}

// lines returns the lines of the log with a message, in the order of their times.
func (w *wayIn) lines(msg string) (all []map[string]any) {
	for _, p := range w.gateways() {
		all = append(all, p.Log.Lines(msg)...)
	}
	slices.SortStableFunc(all, func(a, b map[string]any) int {
		return cmp.Compare(fmt.Sprint(a["time"]), fmt.Sprint(b["time"]))
	})
	return all
}

// waitLine waits for n lines of the log with a message and returns the nth.
func (w *wayIn) waitLine(t testing.TB, msg string, n int) map[string]any {
	t.Helper()
	var found []map[string]any
	harness.Eventually(t, fmt.Sprintf("%d log lines %q", n, msg), func() bool {
		found = w.lines(msg)
		return len(found) >= n
	})
	return found[n-1]
}

// waitClient waits for a line of the log with a message about a client.
func (w *wayIn) waitClient(t testing.TB, msg string, c net.Conn) (line map[string]any) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("a log line %q of %v", msg, c.LocalAddr()), func() bool {
		for _, line = range w.lines(msg) {
			if line["client"] == c.LocalAddr().String() {
				return true
			}
		}
		return false
	})
	return line
}

// stop ends the gateways and returns the sum of a number that they log then.
func (w *wayIn) stop(t testing.TB, number string) (sum float64) {
	t.Helper()
	for _, p := range w.gateways() {
		p.End(t)
		sum += p.Log.WaitLine(t, "stopped", 1)[number].(float64)
	}
	return sum
}

// spell returns a route as it is spelled here.
func (w *wayIn) spell(route string) string {
	if w.names {
		return strings.ReplaceAll(route, "127.0.0.1:", "localhost:")
	}
	return route
}

// enter returns where a client goes for a route, and the line that it sends
// there.
func (w *wayIn) enter(t testing.TB, route string) (addr, line string) {
	t.Helper()
	route = w.spell(route)
	if !w.forwards {
		return w.Addr, harness.Line(route)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ports[route] == "" {
		w.forward(t, route)
	}
	return w.ports[route], ""
}

// serve has one gateway serve several routes, where each has to be forwarded.
func (w *wayIn) serve(t testing.TB, routes ...string) {
	t.Helper()
	if !w.forwards {
		return
	}
	for i := range routes {
		routes[i] = w.spell(routes[i])
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forward(t, routes...)
}

// forward starts a gateway that forwards to routes. w.mu is held.
func (w *wayIn) forward(t testing.TB, routes ...string) {
	t.Helper()
	flags := slices.Clone(w.flags)
	for _, route := range routes {
		flags = append(flags, "-listen=127.0.0.1:0=forward:"+route)
	}
	p := harness.StartBare(t, nil, flags...)
	w.forwarding = append(w.forwarding, p)
	for i, line := range p.Listeners(t, len(routes)) {
		w.ports[routes[i]] = line["addr"].(string)
	}
}

// visit has a client go to one of the targets of a route and returns its name.
func (w *wayIn) visit(t testing.TB, route string) (string, error) {
	t.Helper()
	addr, line := w.enter(t, route)
	return meet("", addr, line)
}

// wantVisit is visit for a route on which one target is to be met.
func (w *wayIn) wantVisit(t testing.TB, route, want string) {
	t.Helper()
	if got, err := w.visit(t, route); got != want || err != nil {
		t.Fatalf("a client of %s met %q, %v; want %s", route, got, err, want)
	}
}

// open connects a client that stays, and reads the name of its target.
func (w *wayIn) open(t testing.TB, route string) (c *net.TCPConn, name string) {
	t.Helper()
	c = w.begin(t, route)
	if !w.forwards {
		harness.Expect(t, c, "200")
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return c, string(b)
}

// begin connects a client that has named its route.
func (w *wayIn) begin(t testing.TB, route string) *net.TCPConn {
	t.Helper()
	addr, line := w.enter(t, route)
	c := harness.Connect(t, addr)
	harness.Send(t, c, line)
	return c
}

// wantRefused expects a status, and a reason in the log. A client that is forwarded
// reads nothing.
func (w *wayIn) wantRefused(t testing.TB, route, status, reason string) (line map[string]any) {
	t.Helper()
	want := status
	if w.forwards {
		want = ""
	}
	c := w.begin(t, route)
	harness.ExpectAll(t, c, want)
	if line = w.waitClient(t, "refused", c); harness.Status(line) != status || line["reason"] != reason {
		t.Errorf("%s: logged %v, want %s %s", route, line, status, reason)
	}
	return line
}
