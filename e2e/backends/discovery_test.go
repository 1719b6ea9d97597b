package backends

import (
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Targets that DNS lists, by a server of the test.

const game = "_game._tcp.test"

// srv returns the records of a target: of the service, and its host's, which is
// named after it.
func srv(priority, weight int, b *target) []string {
	host := b.name + ".test."
	return []string{
		fmt.Sprintf("%s. 1 IN SRV %d %d %s %s", game, priority, weight, harness.PortOf(b.addr), host),
		host + " 1 IN A 127.0.0.1",
	}
}

// player has a client go where DNS says, and returns the target's name.
func player(t testing.TB, gateway string) string {
	t.Helper()
	name, err := meet("", gateway, harness.Line("srv:"+game))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAPriorityComesAfterAllBetterOnes(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		all := startTargets(t, "abc")
		a, b, spare := all[0], all[1], all[2]
		z := &zone{}
		z.say(t, slices.Concat(srv(20, 100, spare), srv(10, 1, b), srv(10, 2, a))...)
		p := harness.Start(t, way, "-resolver="+z.start(t), "-balance=roundrobin")
		got := ""
		for range 6 {
			got += player(t, p.Addr)
		}
		if got != "abaaba" {
			t.Errorf("players met %s", got)
		}
		a.kill()
		for range 3 {
			if name := player(t, p.Addr); name != "b" {
				t.Errorf("with one dead, a player met %s", name)
			}
		}
		b.kill()
		for range 3 {
			if name := player(t, p.Addr); name != "c" {
				t.Errorf("with all better ones dead, a player met %s", name)
			}
		}
		b.comeBack(t)
		harness.Eventually(t, "the better one is used again", func() bool { return player(t, p.Addr) == "b" })
	})
}

// RFC 2782: without an order of its own, one of a priority is drawn by weight.
func TestFirstDrawsByTheWeightsOfDNS(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	const n, share = 300, .75
	all := startTargets(t, "abc")
	z := &zone{}
	z.say(t, slices.Concat(srv(1, 1, all[0]), srv(1, 3, all[1]), srv(2, 100, all[2]))...)
	g := harness.Start(t, "-resolver="+z.start(t))
	met := make(map[string]int)
	for range n {
		met[player(t, g.Addr)]++
	}
	if off := math.Abs(float64(met["b"]) - share*n); off > 5*math.Sqrt(share*(1-share)*n) || met["c"] > 0 {
		t.Errorf("players met %v", met)
	}
}

func TestTargetsComeAndGoWithTheirRecords(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		all := startTargets(t, "abc")
		z := &zone{}
		z.say(t, srv(1, 1, all[0])...)
		p := harness.Start(t, way, "-resolver="+z.start(t), "-balance=roundrobin")
		stays := harness.Connect(t, p.Addr)
		harness.Send(t, stays, harness.Line("srv:"+game))
		harness.Expect(t, stays, "200a")

		z.say(t, slices.Concat(srv(1, 1, all[0]), srv(1, 1, all[1]))...)
		harness.Eventually(t, "the second target is used", func() bool { return player(t, p.Addr) == "b" })
		z.say(t, slices.Concat(srv(1, 1, all[1]), srv(1, 1, all[2]))...)
		harness.Eventually(t, "the third target is used", func() bool { return player(t, p.Addr) == "c" })
		got := ""
		for range 4 {
			got += player(t, p.Addr)
		}
		if got != "bcbc" && got != "cbcb" {
			t.Errorf("players met %s", got)
		}
		harness.Echo(t, stays, "what is not listed any more lives on")
	})
}

// A name server that is down takes nobody with it.
func TestTheResolverIsKilledAndRestarted(t *testing.T) {
	t.Parallel()
	ways := []func(z *zone, stop func()){
		func(_ *zone, stop func()) { stop() },
		func(z *zone, _ func()) { z.change(func() { z.silent = true }) },
		func(z *zone, _ func()) { z.change(func() { z.fails = true }) },
	}
	atOnce(t, []string{"killed", "silent", "broken"}, func(t *testing.T, i int) {
		all := startTargets(t, "ab")
		z, addr := &zone{}, harness.ClosedPort(t)
		stop := z.serve(t, addr)
		z.say(t, srv(1, 1, all[0])...)
		p := harness.Start(t, "-resolver="+addr)
		host := harness.Line("a.test:" + harness.PortOf(all[0].addr))
		visit := func() {
			t.Helper()
			if name := player(t, p.Addr); name != "a" {
				t.Fatalf("a player met %s", name)
			}
			if name, err := meet("", p.Addr, host); name != "a" || err != nil {
				t.Fatalf("by the host's name a player met %q, %v", name, err)
			}
		}
		visit()
		ways[i](z, stop)
		for began := time.Now(); time.Since(began) < 1500*time.Millisecond; { // the records' time to live is 1 s
			visit()
			time.Sleep(20 * time.Millisecond)
		}
		z.say(t, append(srv(1, 1, all[1]), srv(1, 1, all[0])[1])...) // the host is still there
		z.change(func() { z.silent, z.fails = false, false })
		stop()
		z.serve(t, addr)
		harness.Eventually(t, "what the server says now is used", func() bool { return player(t, p.Addr) == "b" })
	})
}

func TestWhatCannotBeLookedUpIsABadGatewayOrATimeout(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		all := startTargets(t, "a")
		a := all[0]
		healthy, broken, silent := &zone{}, &zone{fails: true}, &zone{silent: true}
		healthy.say(t, append(srv(1, 1, a), "empty.test. 1 IN TXT nothing", "closed.test. 1 IN SRV 0 0 0 .",
			"lost.test. 1 IN SRV 0 0 80 nowhere.test.")...)
		for _, server := range []struct {
			name, addr string
			routes     map[string]string // status and reason, or a target's name
		}{
			{"healthy", healthy.start(t), map[string]string{
				"srv:none.test":   "502 unknown_host",
				"srv:empty.test":  "502 unknown_host",
				"srv:closed.test": "502 unknown_host",
				"srv:lost.test":   "502 unknown_host",
				"none.test:80":    "502 unknown_host",
				"empty.test:80":   "502 unknown_host",
				"none.test:80,a.test:" + harness.PortOf(a.addr): "a",
				"a.test:" + harness.PortOf(a.addr):              "a",
				"A.TEST:" + harness.PortOf(a.addr):              "a",
				"srv:" + strings.ToUpper(game):                  "a",
				"none.test:80,none.test:81,empty.test:80":       "502 unknown_host",
			}},
			{"broken", broken.start(t), map[string]string{
				"srv:" + game:                         "502 lookup_failed",
				"a.test:80":                           "502 lookup_failed",
				"a.test:80," + a.addr:                 "a",
				a.addr + ",a.test:80":                 "a",
				"127.0.0.1:" + harness.PortOf(a.addr): "a", // none is asked
			}},
			{"silent", silent.start(t), map[string]string{
				"srv:" + game:         "504 timeout",
				"a.test:80":           "504 timeout",
				"a.test:80," + a.addr: "a",
			}},
			{"down", harness.ClosedPort(t), map[string]string{
				"srv:" + game: "502 lookup_failed",
				"a.test:80":   "502 lookup_failed",
			}},
		} {
			limit := harness.Patience
			if server.name == "silent" {
				limit = 150 * time.Millisecond
			}
			p := harness.Start(t, way, "-resolver="+server.addr, "-resolver-timeout="+limit.String(), "-timeout=1h")
			refused := 0
			for route, want := range server.routes {
				status, reason, fails := strings.Cut(want, " ")
				name, err := meet("", p.Addr, harness.Line(route))
				if !fails {
					if name != want || err != nil {
						t.Errorf("%s: %s: met %q, %v; want %s", server.name, route, name, err, want)
					}
					continue
				}
				if err == nil || err.Error() != status {
					t.Errorf("%s: %s: met %q, %v; want %s", server.name, route, name, err, status)
				}
				refused++
				if line := p.Log.WaitLine(t, "refused", refused); harness.Status(line) != status || line["reason"] != reason {
					t.Errorf("%s: %s: logged %v, want %s", server.name, route, line, want)
				}
			}
		}
	})
}

// A question that is never answered holds up neither the server that it is about,
// where another answer is enough, nor the spare.
func TestADroppedQuestionHoldsUpNobody(t *testing.T) {
	bothAtOnce(t, func(t *testing.T, way string) {
		all := startTargets(t, "ab")
		a, b := all[0], all[1]
		toA, toB := harness.PortOf(a.addr), harness.PortOf(b.addr)
		z := &zone{drops: []string{"AAAA a.test", "A slow.test", "AAAA slow.test"}}
		z.say(t, append(slices.Concat(srv(1, 1, a), srv(2, 1, b)), "slow.test. 1 IN A 127.0.0.1",
			"passed.test. 1 IN SRV 1 1 "+toA+" slow.test.", "passed.test. 1 IN SRV 2 1 "+toB+" b.test.")...)
		p := harness.Start(t, way, "-resolver="+z.start(t), "-resolver-timeout=1h", "-timeout=1h")
		for route, want := range map[string]string{
			"a.test:" + toA:                       "a",
			"srv:" + game:                         "a",
			"slow.test:" + toA + ",b.test:" + toB: "b",
			"slow.test:80," + b.addr:              "b",
			"srv:passed.test":                     "b",
		} {
			if name, err := meet("", p.Addr, harness.Line(route)); name != want || err != nil {
				t.Errorf("%s: met %q, %v; want %s", route, name, err, want)
			}
		}
	})
}

// Whose lookup takes long is dialed when all others have failed.
func TestASlowLookupIsNotForgotten(t *testing.T) {
	bothAtOnce(t, func(t *testing.T, way string) {
		all := startTargets(t, "ab")
		a, dead := all[0], all[1]
		dead.kill()
		z := &zone{drops: []string{"A a.test", "AAAA a.test"}}
		z.say(t, srv(1, 1, a)...)
		p := harness.Start(t, way, "-resolver="+z.start(t), "-resolver-timeout=4s", "-timeout=1h")
		route := harness.Line("a.test:" + harness.PortOf(a.addr) + "," + dead.addr)
		met := make(chan string)
		go func() {
			name, err := meet("", p.Addr, route)
			met <- fmt.Sprint(name, err)
		}()
		harness.Eventually(t, "the server is asked", func() bool { return z.times("A a.test") > 0 })
		z.change(func() { z.drops = nil }) // it will be asked again
		if got := <-met; got != "a<nil>" {
			t.Errorf("met %s", got)
		}
	})
}

// In an outage a client looks up a service and then its target, and has one
// patience for both.
func TestInAnOutageAClientWaitsOnce(t *testing.T) {
	const patience = 500 * time.Millisecond
	a := startTarget(t, "a")
	for tries := 1; ; tries++ {
		z := &zone{}
		z.say(t, srv(1, 1, a)...)
		p := harness.Start(t, "-resolver="+z.start(t))
		if name := player(t, p.Addr); name != "a" {
			t.Fatalf("met %s", name)
		}
		z.change(func() { z.silent = true })
		time.Sleep(1100 * time.Millisecond) // the records' time to live is a second
		start := time.Now()
		if name := player(t, p.Addr); name != "a" {
			t.Fatalf("met %s", name)
		}
		switch took := time.Since(start); {
		case took < patience:
			t.Errorf("waited %v, want half a second", took)
		case took < 2*patience:
			return
		case tries == 5: // none of them by a machine that is busy
			t.Fatalf("waited %v, want half a second", took)
		}
	}
}

func TestAClientThatResetsDuringTheLookupIsGone(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		z := &zone{silent: true}
		p := harness.Start(t, way, "-resolver="+z.start(t), "-resolver-timeout=1h", "-timeout=1h")
		for i, tt := range []struct{ route, question string }{
			{"srv:one.test", "SRV one.test"},
			{"two.test:80", "A two.test"},
			{"three.test:80,four.test:80", "A three.test"},
		} {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, harness.Line(tt.route))
			harness.Eventually(t, "the server is asked", func() bool { return z.times(tt.question) > 0 })
			c.SetLinger(0)
			c.Close()
			if line := p.Log.WaitLine(t, "refused", i+1); line["reason"] != "client_gone" || harness.Status(line) != "" {
				t.Errorf("%s: logged %v", tt.route, line)
			}
		}
	})
}

// Lookups of one name at one time are one lookup.
func TestACrowdAsksOnce(t *testing.T) {
	t.Parallel()
	const clients = 50
	harness.BothWays(t, func(t *testing.T, way string) {
		a := startTarget(t, "a")
		z := &zone{gate: make(chan struct{})}
		z.say(t, srv(1, 1, a)...)
		p := harness.Start(t, way, "-resolver="+z.start(t), "-resolver-timeout="+harness.Patience.String())
		var crowd sync.WaitGroup
		sent := make(chan *net.TCPConn, clients)
		for range clients {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, harness.Line("srv:"+game))
			sent <- c
		}
		close(sent)
		harness.Eventually(t, "the server is asked", func() bool { return z.times("SRV "+game) > 0 })
		close(z.gate)
		for c := range sent {
			crowd.Go(func() {
				b := make([]byte, 4)
				if _, err := io.ReadFull(c, b); string(b) != "200a" {
					t.Errorf("a client got %q, %v", b, err)
				}
			})
		}
		crowd.Wait()
		// Within the record's time to live of a second there may be a refresh.
		if n, hosts := z.times("SRV "+game), z.times("A a.test"); n > 2 || hosts > 2 {
			t.Errorf("%d clients asked %d times for the service, %d for its host", clients, n, hosts)
		}
	})
}

// A service may stand wherever a route may.
func TestEveryKindOfClientFindsAService(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	b := startTarget(t, "b")
	page, _ := startWebPage(t, "p")
	z := &zone{}
	z.say(t, append(srv(1, 1, b), "web.test. 1 IN SRV 1 1 "+harness.PortOf(page.addr)+" b.test.")...)
	resolver := "-resolver=" + z.start(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, resolver, "-listen=127.0.0.1:0=forward:srv:"+game)
		for _, l := range p.Listeners(t, 2) {
			line := harness.Line("srv:" + game)
			if l["forward"] != nil {
				line = ""
			}
			if name, err := meet("", l["addr"].(string), line); name != "b" || err != nil {
				t.Errorf("%v: met %q, %v", l["forward"], name, err)
			}
		}
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, "GET / HTTP/1.0\r\nX-Cipher-Origin: "+harness.Sealed("srv:web.test")+"\r\n\r\n")
		answer, err := io.ReadAll(c)
		if !strings.HasPrefix(string(answer), "HTTP/1.0 200 ") || !strings.HasSuffix(string(answer), "\r\n\r\np") || err != nil {
			t.Errorf("an HTTP client got %q, %v", answer, err)
		}
	})
}

var noRoutes = []string{
	"srv:", "srv:" + game + ":80", "srv:a.test,b.test:80", "srv:a.test,srv:b.test", "srv:a.test*2", "srv:127.0.0.1",
	"srv:[::1]", "srv://a.test", "tcp://srv:a.test", "srv:tcp://a.test:80", "srv:a..test", "srv:.test", "srv:a.test/",
	"srv:a test", "srv:a.test\n", "SRV:a.test", "Srv:a.test", "srv:a.test;b.test",
	"a.test:80,", ",a.test:80", "a.test:80,,b.test:80", ",", "*", "a.test:80,srv:b.test", "a.test:80, b.test:80",
	"a.test:80 ,b.test:80", "a.test:80;b.test:80", "a.test:80 b.test:80", "a.test:0,b.test:80", "a.test:80,b.test",
	"a.test:80,b.test:65536", "a.test,b.test:80", "a.test:80,:80", "a.test:80,127.1:80", "a.test:80,[::1%lo]:80",
	"a.test:80*0", "a.test:80*257", "a.test:80*01", "a.test:80*+1", "a.test:80*-1", "a.test:80*", "a.test:80*1*1",
	"a.test:80*1.5", "a.test:80*x", "a.test*2:80", "*2,a.test:80", "a.test:80 *2", "a.test:80* 2", "a.test:80*256,b.test:80*99999",
	"udp://a.test:80", "a.test:80,ftp://b.test:80", "https://a.test:80,https://b.test:80", "HTTP://a.test:80,HTTP://b.test:80",
	"http://a.test:80,b.test:80", "http://a.test:80,tcp://b.test:80", "kcp://a.test:80,http://b.test:80",
	"http://a.test:80/,http://b.test:80/", "tcp:a.test:80,b.test:80",
	strings.TrimSuffix(strings.Repeat("a.test:80,", 17), ","),
	// These are routes, but not for clients who speak no HTTP.
	"http://a.test:80", "http://a.test:80,http://b.test:80", "http://a.test:80*2",
}

func TestWhatIsNoRouteIsUnauthorizedAndLooksNothingUp(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"-loops=1", "-loops=-1"} {
		z := &zone{}
		g := harness.Start(t, way, "-resolver="+z.start(t))
		for _, text := range noRoutes {
			if name, err := meet("", g.Addr, harness.Line(text)); err == nil || err.Error() != "401" {
				t.Errorf("%q: met %q, %v; want 401", text, name, err)
			}
		}
		if n := z.times(""); n > 0 {
			t.Errorf("%d questions: %v", n, z.asked)
		}
		// Whereas these are routes.
		for i, text := range []string{"srv:80", "srv:a.test", "a.test:80*256", "srv:80,b.test:80*1", "tcp://c.test:80,kcp://d.test:80",
			strings.TrimSuffix(strings.Repeat("w.test:80,", 16), ",")} {
			if name, err := meet("", g.Addr, harness.Line(text)); err == nil || err.Error() != "502" {
				t.Errorf("%q: met %q, %v; want 502", text, name, err)
			}
			if n := z.times(""); n <= i {
				t.Errorf("%q: %d questions", text, n)
			}
		}
	}
}
