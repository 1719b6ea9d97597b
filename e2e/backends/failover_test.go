package backends

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// One address may stand for several servers. A client never learns that one of
// them is dead.

func TestOneOfThreeTargetsAliveIsEnough(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
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
					if got, err := w.visit(t, route); got != want || err != nil {
						t.Errorf("a client met %q, %v; want %s", got, err, want)
					}
				})
			}
			clients.Wait()
		}
		if refused := w.lines("refused"); len(refused) > 0 {
			t.Errorf("logged: %v", refused)
		}
	})
}

func TestAPlayerWhoseServerDiedIsOnTheSpareAtOnce(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
		targets := startTargets(t, "ab")
		route := routeTo(targets...)
		c, name := w.open(t, route)
		if name != "a" {
			t.Fatalf("met %s", name)
		}
		harness.Echo(t, c, "hello")
		targets[0].kill()
		if _, err := io.ReadAll(c); err != nil && !harness.IsReset(err) {
			t.Error(err)
		}
		w.wantVisit(t, route, "b") // c is not even closed
		harness.Eventually(t, "the log names the one that it got", func() bool {
			return slices.ContainsFunc(w.lines("tunnel"), func(line map[string]any) bool {
				return harness.PortOf(fmt.Sprint(line["backend"])) == harness.PortOf(targets[1].addr)
			})
		})
	})
}

func TestATargetThatComesBackIsUsedAgain(t *testing.T) {
	t.Parallel()
	onSomeWaysIn(t, 3, nil, func(t *testing.T, w *wayIn) {
		targets := startTargets(t, "abc")
		route := routeTo(targets...)
		targets[0].kill()
		targets[1].kill()
		w.wantVisit(t, route, "c")
		targets[0].comeBack(t)
		harness.Eventually(t, "the first target is used again", func() bool {
			name, err := w.visit(t, route)
			if err != nil || name == "b" {
				t.Fatalf("a client met %q, %v", name, err)
			}
			return name == "a"
		})
		for range 3 { // its success has cleared it
			w.wantVisit(t, route, "a")
		}
	})
}

// To be skipped is to be tried last.
func TestATargetThatComesBackIsUsedAtOnceIfAllWereDead(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
		targets := startTargets(t, "abc")
		route := routeTo(targets...)
		for _, b := range targets {
			b.kill()
		}
		const clients = 3
		for range clients {
			w.wantRefused(t, route, "502", "refused")
		}
		targets[1].comeBack(t)
		w.wantVisit(t, route, "b")
	})
}

// A second is as long as the shortest penalty: a visit that ends within one of
// the moment before the failure was picked for while the target was skipped.
func TestWhoFailedOneClientIsSkippedForAllOfTheText(t *testing.T) {
	t.Parallel()
	var names []string
	for _, tt := range waysIn {
		names = append(names, tt.name)
	}
	atOnce(t, names, func(t *testing.T, i int) {
		targets := startTargets(t, "ab")
		w := &wayIn{names: waysIn[i].names}
		a, route := targets[0], routeTo(targets...)
		p := harness.Start(t, waysIn[i].loops, "-listen=127.0.0.1:0=forward:"+w.spell(route))
		w.Process = p
		forwarded := p.Listeners(t, 2)[1]["addr"].(string)
		a.kill()
		began := time.Now()
		w.wantVisit(t, route, "b")
		a.comeBack(t)
		for i := range 6 {
			name, err := w.visit(t, route) // each sealed line with its own salt
			if i%2 == 1 {
				name, err = meet("", forwarded, "")
			}
			if took := time.Since(began); err != nil || name != "b" && took < time.Second {
				t.Errorf("client %d met %q, %v, %v after the first", i, name, err, took)
			}
		}
		// Another text is another matter.
		w.wantVisit(t, routeTo(a, a, targets[1]), "a")
	})
}

func TestDeniedTargetsArePassedOver(t *testing.T) {
	t.Parallel()
	targets := startTargets(t, "abcd") // of all gateways here
	a, b, c, d := targets[0], targets[1], targets[2], targets[3]
	c.kill()
	var denied []string
	for _, x := range []*target{a, b} {
		denied = append(denied, "-deny=127.0.0.0/8:"+harness.PortOf(x.addr)+",[::1]:"+harness.PortOf(x.addr))
	}
	onEachWayIn(t, denied, func(t *testing.T, w *wayIn) {
		for _, route := range []string{routeTo(a, d), routeTo(a, b, d), routeTo(d, a), routeTo(a, c, b, d)} {
			for range 3 {
				w.wantVisit(t, route, "d")
			}
		}
		w.wantRefused(t, routeTo(a, b, a), "502", "denied")
		w.wantRefused(t, routeTo(a, c), "502", "refused")
		w.wantRefused(t, routeTo(c, a), "502", "denied") // the last attempt decides
		if got := w.stop(t, "denied"); got != 2 {
			t.Errorf("%v denied, want 2", got)
		}
	})
	if n := a.accepted.Load() + b.accepted.Load(); n > 0 {
		t.Errorf("denied targets were connected %d times", n)
	}
}

// Only a time-out is tried again.
func TestRefusalsAreNotRetriedBeyondTheTargets(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-retry=1000"}, func(t *testing.T, w *wayIn) {
		targets := startTargets(t, "ab")
		for _, b := range targets {
			b.kill()
		}
		w.wantRefused(t, routeTo(targets...), "502", "refused")
	})
}

// A client that breaks off while it is connected leaves nothing behind.
func TestClientsThatBreakOffDuringFailoverLeaveNothing(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	onEachWayIn(t, []string{"-balance=leastconn"}, func(t *testing.T, w *wayIn) {
		targets := startTargets(t, "abcd")
		route := routeTo(targets...)
		for _, b := range targets[:3] {
			b.kill()
		}
		for range 50 {
			c := w.begin(t, route)
			c.SetLinger(0)
			c.Close()
		}
		harness.Eventually(t, "all are accounted for", func() bool {
			return len(w.lines("refused"))+len(w.lines("no request"))+len(w.lines("tunnel")) == 50
		})
		w.wantVisit(t, route, "d")
	})
}

// steady has clients come without a pause until stop is called, which returns
// how many were served. No client may get a status but 200. A client that was
// connected when its target died may be lost: one per client and death.
func (w *wayIn) steady(t *testing.T, clients int, routes ...string) (served *atomic.Int64, stop func() (lost int64)) {
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
				switch name, err := w.visit(t, routes[n%len(routes)]); {
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
		if refused := w.lines("refused"); len(refused) > 0 {
			t.Errorf("logged: %v", refused)
		}
		return lost.Load()
	}
}

func TestNoClientSeesARollingRestart(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	for _, algorithm := range []string{"first", "roundrobin"} {
		t.Run(algorithm, func(t *testing.T) {
			onEachWayIn(t, []string{"-balance=" + algorithm}, func(t *testing.T, w *wayIn) {
				const clients, visits = 4, 12
				targets := startTargets(t, "abc")
				served, stop := w.steady(t, clients, routeTo(targets...))
				more := func() {
					enough := served.Load() + visits
					harness.Eventually(t, "clients are served", func() bool { return served.Load() >= enough })
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
	harness.Long(t)
	t.Parallel()
	for _, algorithm := range []string{"first", "roundrobin", "random", "leastconn", "source"} {
		t.Run(algorithm, func(t *testing.T) {
			onSomeWaysIn(t, 3, []string{"-balance=" + algorithm}, func(t *testing.T, w *wayIn) {
				targets := startTargets(t, "abcdef") // f never dies
				f := targets[5]
				routes := []string{routeTo(targets...), routeTo(targets[0], f), routeTo(f, targets[1]),
					routeTo(targets[1], targets[1], f), routeTo(targets[2], targets[3], f),
					targets[4].addr + "*256," + f.addr, f.addr, f.addr + "*7"}
				w.serve(t, slices.Clone(routes)...)
				served, stop := w.steady(t, 8, routes...)
				for _, b := range targets[:5] {
					b.kill()
					enough := served.Load() + 10
					harness.Eventually(t, "clients are served", func() bool { return served.Load() >= enough })
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
	harness.Long(t)
	t.Parallel()
	const wifi, mobile = "127.0.0.2", "127.0.0.3"
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		first, second := harness.Start(t, way), harness.Start(t, way, "-balance=source")
		servers := startTargets(t, "abcdefgh")
		for _, server := range servers {
			line := harness.Line(server.addr)
			for _, at := range []struct {
				from    string
				gateway *harness.Process
			}{{wifi, first}, {mobile, first}, {mobile, second}, {wifi, second}} {
				name, err := meet(at.from, at.gateway.Addr, line)
				if err != nil && strings.Contains(err.Error(), "assign requested address") {
					t.Skip(err)
				}
				if name != server.name || err != nil {
					t.Errorf("from %s the player met %q, %v; want %s", at.from, name, err, server.name)
				}
			}
		}
		clients := make(map[string]bool)
		harness.Eventually(t, "both networks are in the log", func() bool {
			for _, line := range append(first.Log.Lines("tunnel"), second.Log.Lines("tunnel")...) {
				host, _, _ := net.SplitHostPort(line["client"].(string))
				clients[host] = true
			}
			return clients[wifi] && clients[mobile]
		})
	}
}
