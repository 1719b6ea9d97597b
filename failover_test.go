package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One address may stand for several servers. A client never learns that one of
// them is dead.

// target is a backend that says its name, one letter, and sends back what it
// gets. It can die, and come back where it was.
type target struct {
	name     string
	addr     string
	accepted atomic.Int64

	mu      sync.Mutex
	ln      net.Listener // nil: dead
	conns   map[net.Conn]struct{}
	serving sync.WaitGroup
}

// startTarget starts a target that ends with the test.
func startTarget(t testing.TB, name string) *target {
	t.Helper()
	b := &target{name: name, conns: make(map[net.Conn]struct{})}
	for range 100 {
		// A port that the kernel gives to nobody while the target is dead.
		b.addr = fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		if b.listen() == nil {
			t.Cleanup(b.kill)
			return b
		}
	}
	t.Fatal("no port is free")
	return nil
}

// startTargets starts several, by the letters of names.
func startTargets(t testing.TB, names string) (all []*target) {
	t.Helper()
	for _, name := range names {
		all = append(all, startTarget(t, string(name)))
	}
	return all
}

func (b *target) listen() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	ln, err := net.Listen("tcp", b.addr)
	if err != nil {
		return err
	}
	b.ln = ln
	b.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.accepted.Add(1)
			b.mu.Lock()
			if b.conns[c] = struct{}{}; b.ln != ln {
				c.(*net.TCPConn).SetLinger(0) // too late
				c.Close()
			}
			b.mu.Unlock()
			b.serving.Go(func() { b.serve(c) })
		}
	})
	return nil
}

func (b *target) serve(c net.Conn) {
	io.WriteString(c, b.name)
	io.Copy(c, struct{ io.Reader }{c})
	c.Close()
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

// comeBack ends being dead.
func (b *target) comeBack(t testing.TB) {
	t.Helper()
	if err := b.listen(); err != nil {
		t.Fatal(err)
	}
}

// stop has nobody listen; tunnels go on.
func (b *target) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ln != nil {
		b.ln.Close()
		b.ln = nil
	}
}

// kill also resets the tunnels, as when a process dies.
func (b *target) kill() {
	b.stop()
	b.cut()
	b.serving.Wait()
}

// cut resets the tunnels.
func (b *target) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// routeTo returns a route in that order.
func routeTo(targets ...*target) string {
	var addrs []string
	for _, b := range targets {
		addrs = append(addrs, b.addr)
	}
	return strings.Join(addrs, ",")
}

// sealedRoute returns the request line for a route, with a salt of its own.
func sealedRoute(t testing.TB, route string) string {
	t.Helper()
	return newKeyring([][]byte{[]byte(testSecret)}, []kdf{kdfSHA256}).seal(parseRoute(t, route)) + "\n"
}

// meet has a client go to a target and returns its name. line is empty where
// the gateway forwards; from is the client's IP address, or empty. A status is
// returned as an error.
func meet(from, gateway, line string) (name string, err error) {
	d := net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial("tcp", gateway)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if line != "" {
		if _, err := io.WriteString(c, line); err != nil {
			return "", err
		}
		status := make([]byte, 3)
		if _, err := io.ReadFull(c, status); err != nil {
			return "", err
		}
		if string(status) != "200" {
			return "", errors.New(string(status))
		}
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return "", fmt.Errorf("%w: %w", errLost, err)
	}
	return string(b), nil
}

// errLost is what becomes of a client that was connected when its target died.
var errLost = errors.New("no name")

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
		if err := (*balanceValue)(&cfg.Balance).Set(algorithm); err != nil {
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

func TestOneOfThreeTargetsAliveIsEnough(t *testing.T) {
	onEntrances(t, nil, func(t *testing.T, e *entrance) {
		for alive := range 3 {
			targets := startTargets(t, "abc")
			for i, b := range targets {
				if i != alive {
					b.kill()
				}
			}
			route, want := routeTo(targets...), targets[alive].name
			var clients sync.WaitGroup
			for range 10 {
				clients.Go(func() {
					if got, err := e.visit(t, route); got != want || err != nil {
						t.Errorf("a client met %q, %v; want %s", got, err, want)
					}
				})
			}
			clients.Wait()
		}
		if refused := e.log.lines("refused"); len(refused) > 0 {
			t.Errorf("logged: %v", refused)
		}
	})
}

func TestAPlayerWhoseServerDiedIsOnTheSpareAtOnce(t *testing.T) {
	onEntrances(t, nil, func(t *testing.T, e *entrance) {
		targets := startTargets(t, "ab")
		route := routeTo(targets...)
		c, name := e.open(t, route)
		if name != "a" {
			t.Fatalf("met %s", name)
		}
		echo(t, c, "hello")
		targets[0].kill()
		if _, err := io.ReadAll(c); err != nil && !isReset(err) {
			t.Error(err)
		}
		e.wantVisit(t, route, "b") // c is not even closed
		eventually(t, "the log names the one that it got", func() bool {
			return slices.ContainsFunc(e.log.lines("tunnel"), func(line map[string]any) bool {
				return portOf(fmt.Sprint(line["backend"])) == portOf(targets[1].addr)
			})
		})
	})
}

func TestATargetThatComesBackIsUsedAgain(t *testing.T) {
	onSomeEntrances(t, 3, nil, func(t *testing.T, e *entrance) {
		targets := startTargets(t, "abc")
		route := routeTo(targets...)
		targets[0].kill()
		targets[1].kill()
		e.wantVisit(t, route, "c")
		targets[0].comeBack(t)
		eventually(t, "the first target is used again", func() bool {
			name, err := e.visit(t, route)
			if err != nil || name == "b" {
				t.Fatalf("a client met %q, %v", name, err)
			}
			return name == "a"
		})
		for range 3 { // its success has cleared it
			e.wantVisit(t, route, "a")
		}
	})
}

// To be skipped is to be tried last.
func TestATargetThatComesBackIsUsedAtOnceIfAllWereDead(t *testing.T) {
	onEntrances(t, nil, func(t *testing.T, e *entrance) {
		targets := startTargets(t, "abc")
		route := routeTo(targets...)
		for _, b := range targets {
			b.kill()
		}
		const clients = 3
		for i := range clients {
			e.wantRefused(t, route, "502", "refused", i+1)
		}
		targets[1].comeBack(t)
		e.wantVisit(t, route, "b")
	})
}

// A second is as long as the shortest penalty: a visit that ends within one of
// the moment before the failure was picked for while the target was skipped.
func TestWhoFailedOneClientIsSkippedForAllOfTheText(t *testing.T) {
	onEntrances(t, nil, func(t *testing.T, e *entrance) {
		targets := startTargets(t, "ab")
		a, route := targets[0], routeTo(targets...)
		forwarded := forwardTo(t, e.testGateway, e.spell(route))
		a.kill()
		began := time.Now()
		e.wantVisit(t, route, "b")
		a.comeBack(t)
		for i := range 6 {
			name, err := e.visit(t, route) // each sealed line with its own salt
			if i%2 == 1 {
				name, err = meet("", forwarded, "")
			}
			if took := time.Since(began); err != nil || name != "b" && took < time.Second {
				t.Errorf("client %d met %q, %v, %v after the first", i, name, err, took)
			}
		}
		// Another text is another matter.
		e.wantVisit(t, routeTo(a, a, targets[1]), "a")
	})
}

func TestDeniedTargetsArePassedOver(t *testing.T) {
	targets := startTargets(t, "abcd") // of all gateways here
	a, b, c, d := targets[0], targets[1], targets[2], targets[3]
	c.kill()
	denied := func(cfg *Config) {
		for _, x := range []*target{a, b} {
			if err := (*rulesValue)(&cfg.Deny).Set("127.0.0.0/8:" + portOf(x.addr) + ",[::1]:" + portOf(x.addr)); err != nil {
				panic(err)
			}
		}
	}
	onEntrances(t, denied, func(t *testing.T, e *entrance) {
		for _, route := range []string{routeTo(a, d), routeTo(a, b, d), routeTo(d, a), routeTo(a, c, b, d)} {
			for range 3 {
				e.wantVisit(t, route, "d")
			}
		}
		e.wantRefused(t, routeTo(a, b, a), "502", "denied", 1)
		e.wantRefused(t, routeTo(a, c), "502", "refused", 2)
		e.wantRefused(t, routeTo(c, a), "502", "denied", 3) // the last attempt decides
		if got := e.denied.Load(); got != 2 {
			t.Errorf("%d denied, want 2", got)
		}
	})
	if n := a.accepted.Load() + b.accepted.Load(); n > 0 {
		t.Errorf("denied targets were connected %d times", n)
	}
}

// Only a time-out is tried again.
func TestRefusalsAreNotRetriedBeyondTheTargets(t *testing.T) {
	onEntrances(t, func(cfg *Config) { cfg.Retry = 1000 }, func(t *testing.T, e *entrance) {
		targets := startTargets(t, "ab")
		for _, b := range targets {
			b.kill()
		}
		e.wantRefused(t, routeTo(targets...), "502", "refused", 1)
	})
}

// A client that breaks off while it is connected leaves nothing behind.
func TestClientsThatBreakOffDuringFailoverLeaveNothing(t *testing.T) {
	onEntrances(t, balancing("leastconn"), func(t *testing.T, e *entrance) {
		targets := startTargets(t, "abcd")
		route := routeTo(targets...)
		for _, b := range targets[:3] {
			b.kill()
		}
		for range 50 {
			c := e.begin(t, route)
			c.SetLinger(0)
			c.Close()
		}
		eventually(t, "all are accounted for", func() bool {
			return len(e.log.lines("refused"))+len(e.log.lines("no request"))+len(e.log.lines("tunnel")) == 50
		})
		e.wantVisit(t, route, "d")
	})
}

// steady has clients come without a pause until stop is called, which returns
// how many were served. No client may get a status but 200. A client that was
// connected when its target died may be lost: one per client and death.
func (e *entrance) steady(t *testing.T, clients int, routes ...string) (served *atomic.Int64, stop func() (lost int64)) {
	served = new(atomic.Int64)
	var lost atomic.Int64
	var coming sync.WaitGroup
	enough := make(chan struct{})
	for i := range clients {
		coming.Go(func() {
			for n := i; ; n++ {
				select {
				case <-enough:
					return
				default:
				}
				switch name, err := e.visit(t, routes[n%len(routes)]); {
				case err == nil && name != "":
					served.Add(1)
				case errors.Is(err, errLost): // or a refused forward, which the log has
					lost.Add(1)
				default:
					t.Errorf("a client met %q, %v", name, err)
				}
			}
		})
	}
	return served, func() int64 {
		close(enough)
		coming.Wait()
		if refused := e.log.lines("refused"); len(refused) > 0 {
			t.Errorf("logged: %v", refused)
		}
		return lost.Load()
	}
}

func TestNoClientSeesARollingRestart(t *testing.T) {
	for _, algorithm := range []string{"first", "roundrobin"} {
		t.Run(algorithm, func(t *testing.T) {
			onEntrances(t, balancing(algorithm), func(t *testing.T, e *entrance) {
				const clients, visits = 4, 12
				targets := startTargets(t, "abc")
				served, stop := e.steady(t, clients, routeTo(targets...))
				more := func() {
					enough := served.Load() + visits
					eventually(t, "clients are served", func() bool { return served.Load() >= enough })
				}
				more()
				for _, b := range targets {
					b.kill()
					more()
					b.comeBack(t)
					more()
				}
				if lost := stop(); lost > clients*int64(len(targets)) {
					t.Errorf("%d clients were lost in %d restarts", lost, len(targets))
				}
			})
		})
	}
}

// All loops and goroutines share what is known of targets.
func TestManyClientsOfManyRoutesOverFlappingTargets(t *testing.T) {
	for _, algorithm := range []string{"first", "roundrobin", "random", "leastconn", "source"} {
		t.Run(algorithm, func(t *testing.T) {
			onSomeEntrances(t, 3, balancing(algorithm), func(t *testing.T, e *entrance) {
				targets := startTargets(t, "abcdef") // f never dies
				f := targets[5]
				routes := []string{routeTo(targets...), routeTo(targets[0], f), routeTo(f, targets[1]),
					routeTo(targets[1], targets[1], f), routeTo(targets[2], targets[3], f),
					targets[4].addr + "*256," + f.addr, f.addr, f.addr + "*7"}
				served, stop := e.steady(t, 8, routes...)
				for _, b := range targets[:5] {
					b.kill()
					enough := served.Load() + 10
					eventually(t, "clients are served", func() bool { return served.Load() >= enough })
					b.comeBack(t)
				}
				stop()
			})
		})
	}
}

// A player leaves a Wi-Fi for a mobile network: another client address, and
// the next best gateway. The line alone leads to the same server, where the
// game is still on.
func TestAPlayerWhoChangesNetworksReachesTheSameServer(t *testing.T) {
	const wifi, mobile = "127.0.0.2", "127.0.0.3"
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		first, second := startProcess(t, way), startProcess(t, way, "-balance=source")
		servers := startTargets(t, "abcdefgh")
		for _, server := range servers {
			line := sealedRoute(t, server.addr)
			for _, at := range []struct {
				from    string
				gateway *process
			}{{wifi, first}, {mobile, first}, {mobile, second}, {wifi, second}} {
				name, err := meet(at.from, at.gateway.addr, line)
				if err != nil && strings.Contains(err.Error(), "assign requested address") {
					t.Skip(err)
				}
				if name != server.name || err != nil {
					t.Errorf("from %s the player met %q, %v; want %s", at.from, name, err, server.name)
				}
			}
		}
		clients := make(map[string]bool)
		eventually(t, "both networks are in the log", func() bool {
			for _, line := range append(first.log.lines("tunnel"), second.log.lines("tunnel")...) {
				host, _, _ := net.SplitHostPort(line["client"].(string))
				clients[host] = true
			}
			return clients[wifi] && clients[mobile]
		})
	}
}
