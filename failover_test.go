package main

import (
	"errors"
	"fmt"
	"gateway/internal/flagvalue"
	"gateway/internal/policy"
	"io"
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
			if err := flagvalue.Sum(&cfg.Deny, policy.ParseRule, "").Set("127.0.0.0/8:" + portOf(x.addr) + ",[::1]:" + portOf(x.addr)); err != nil {
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
		if got := e.ledger.denied.Load(); got != 2 {
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
