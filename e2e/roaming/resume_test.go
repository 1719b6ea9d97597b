package roaming

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
)

func TestATunnelGoesOnByAnotherConnection(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		g := harness.Start(t, "-resume=1", way)
		b := startCounted(t, echo)
		c, seen := open(t, through(g), b.addr)
		if !c.Resumable() {
			t.Fatal("the tunnel is plain")
		}
		harness.Echo(t, c, "before")
		for i := range 5 {
			reconnect(t, c)
			harness.Echo(t, c, "after")
			both(t, c, uint64(i), 300_000)
		}
		c.CloseWrite()
		harness.ExpectAll(t, c, "")
		<-c.Done()
		if n := b.conns.Load(); n != 1 {
			t.Errorf("the backend saw %d connections", n)
		}
		g.Log.WaitLine(t, "tunnel", 1)
		line, resumed := g.Log.Lines("tunnel")[0], g.Log.Lines("resumed")
		if len(resumed) != 5 || resumed[4]["session"] != line["session"] || resumed[4]["resumes"] != 5.0 ||
			resumed[0]["before"] != line["client"] || resumed[0]["client"] == line["client"] {
			t.Errorf("logged %v, %v", resumed, line)
		}
		if line["how"] != "fin" || line["up"] != 1_500_031.0 || line["down"] != 1_500_031.0 {
			t.Errorf("logged %v", line)
		}
		if n := len(seen.of(tunnel.Back)); n != 5 {
			t.Errorf("the client was told %d times that it is back", n)
		}
		if e := seen.of(tunnel.Ended); len(e) != 1 || e[0].Err != nil {
			t.Errorf("the end was told as %v", e)
		}
	})
}

func TestAResumeEvery50MillisecondsMakesProgress(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	c, _ := open(t, through(g), harness.StartEcho(t))
	stop := make(chan struct{})
	var roaming sync.WaitGroup
	roaming.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				c.Reconnect()
			}
		}
	})
	size, least := 100<<20, 5
	if testing.Short() || harness.RaceEnabled {
		size = 10 << 20
		least = 1
	}
	start := time.Now()
	both(t, c, 1, size)
	close(stop)
	roaming.Wait()
	t.Logf("%d resumes, %v", c.Resumes(), time.Since(start))
	if c.Resumes() < least {
		t.Errorf("%d resumes", c.Resumes())
	}
}

// cutter is a way to the gateway that can be cut by the test.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
	down  atomic.Bool
	to    string
}

func (k *cutter) listen(t testing.TB, to string) string {
	k.to = to
	return harness.StartBackend(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Time{})
		if k.down.Load() {
			return
		}
		d, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer d.Close()
		k.mu.Lock()
		k.conns = append(k.conns, c, d)
		k.mu.Unlock()
		var both sync.WaitGroup
		both.Go(func() {
			io.Copy(d, struct{ io.Reader }{c})
			d.(*net.TCPConn).CloseWrite()
		})
		io.Copy(c, struct{ io.Reader }{d})
		c.CloseWrite()
		both.Wait()
	})
}

// cut breaks all connections; until up is called there will be no other.
func (k *cutter) cut() {
	k.down.Store(true)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.conns {
		harness.Reset(c)
	}
	k.conns = nil
}

func (k *cutter) up() { k.down.Store(false) }

func TestWhatIsSaidWhileTheClientIsAwayIsDelivered(t *testing.T) {
	g := harness.Start(t, "-resume=1", "-resume-buffer=65536")
	away := make(chan struct{})
	const size = 4 << 20
	received := make(chan []byte, 1)
	b := startCounted(t, func(c *net.TCPConn) {
		harness.Expect(t, c, "go")
		<-away // it does not read either
		var both sync.WaitGroup
		both.Go(func() { c.Write(harness.Noise(1, size)); c.CloseWrite() })
		got, _ := io.ReadAll(c)
		received <- got
		both.Wait()
	})
	k := new(cutter)
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, g.Addr)}}, b.addr)
	harness.Send(t, c, "go")
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := c.Write(harness.Noise(2, size)); err != nil {
			t.Error(err)
		}
		c.CloseWrite()
	})
	k.cut()
	g.Log.WaitLine(t, "detached", 1)
	close(away)
	time.Sleep(100 * time.Millisecond) // let both fill what they can
	k.up()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, harness.Noise(1, size)) {
		t.Errorf("the client got %d bytes, %v", len(got), err)
	}
	writing.Wait()
	if got := <-received; !bytes.Equal(got, harness.Noise(2, size)) {
		t.Errorf("the backend got %d bytes", len(got))
	}
	if n := b.conns.Load(); n != 1 {
		t.Errorf("the backend saw %d connections", n)
	}
}

func TestEachSideMayFinishWhileTheClientIsAway(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	finish := make(chan struct{})
	heard := make(chan string, 1)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.Expect(t, c, "hello")
		<-finish
		harness.Send(t, c, "bye")
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		heard <- string(got)
	})
	k := new(cutter)
	c, seen := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, g.Addr)}}, backend)
	harness.Send(t, c, "hello")
	harness.Eventually(t, "the backend has read", func() bool { return c.Resumes() == 0 && len(seen.of(tunnel.Ended)) == 0 })
	k.cut()
	g.Log.WaitLine(t, "detached", 1)
	harness.Send(t, c, "last words")
	c.CloseWrite()
	close(finish)
	k.up()
	harness.ExpectAll(t, c, "bye")
	if got := <-heard; got != "last words" {
		t.Errorf("the backend heard %q", got)
	}
	<-c.Done()
	g.Log.WaitLine(t, "tunnel", 1)
	if line := g.Log.Lines("tunnel")[0]; line["how"] != "fin" {
		t.Errorf("logged %v", line)
	}
}

func TestAClientThatEndsTheSessionEndsTheBackendAtOnce(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	how := make(chan error, 1)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.Send(t, c, "x")
		_, err := io.ReadAll(c)
		how <- err
	})
	c, _ := open(t, through(g), backend)
	harness.Expect(t, c, "x")
	c.Abort()
	select {
	case err := <-how:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the backend's read ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the backend was not told")
	}
	g.Log.WaitLine(t, "tunnel", 1)
	if line := g.Log.Lines("tunnel")[0]; line["how"] != "reset" || line["ended_by"] != "client" {
		t.Errorf("logged %v", line)
	}
}

// Also while the backend does not read, and so nobody reads from its client.
func TestABackendThatDoesNotReadIsResetAtOnceToo(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	stop := make(chan struct{})
	backend := harness.StartBackend(t, func(c *net.TCPConn) { <-stop })
	c, _ := open(t, through(g), backend)
	c.SetWriteDeadline(time.Now().Add(time.Second))
	c.Write(make([]byte, 64<<20))
	c.Abort()
	start := time.Now()
	g.Log.WaitLine(t, "tunnel", 1)
	if d := time.Since(start); d > 900*time.Millisecond {
		t.Errorf("it took %v", d)
	}
	close(stop)
}

func TestABackendsResetComesBehindWhatItSaid(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.Expect(t, c, "x")
		harness.Send(t, c, "last words")
		harness.Delivered(t, c)
		c.SetLinger(0)
	})
	c, seen := open(t, through(g), backend)
	harness.Send(t, c, "x")
	harness.Expect(t, c, "last words")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client's read ended with %v", err)
	}
	<-c.Done()
	harness.Eventually(t, "the end is told", func() bool { return len(seen.of(tunnel.Ended)) == 1 })
	g.Log.WaitLine(t, "tunnel", 1)
	if line := g.Log.Lines("tunnel")[0]; line["how"] != "reset" || line["ended_by"] != "backend" {
		t.Errorf("logged %v", line)
	}
}

func TestWhoDoesNotComeBackLosesTheBackend(t *testing.T) {
	g := harness.Start(t, "-resume=1", "-resume-hold=200ms")
	how := make(chan error, 1)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.Send(t, c, "x")
		_, err := io.ReadAll(c)
		how <- err
	})
	k := new(cutter)
	c, seen := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, g.Addr)}, Hold: 20 * time.Second}, backend)
	harness.Expect(t, c, "x")
	k.cut()
	if err := <-how; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend's read ended with %v", err)
	}
	g.Log.WaitLine(t, "not resumed", 1)
	if line := g.Log.Lines("not resumed")[0]; line["reason"] != "hold" {
		t.Errorf("logged %v", line)
	}
	g.Log.WaitLine(t, "tunnel", 1)
	if line := g.Log.Lines("tunnel")[0]; line["how"] != "timeout" || line["ended_by"] != "client" {
		t.Errorf("logged %v", line)
	}
	k.up()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("the client's read ended with %v", err)
	}
	harness.Eventually(t, "the end is told", func() bool { return len(seen.of(tunnel.Ended)) == 1 })
	if e := seen.of(tunnel.Ended)[0]; !errors.Is(e.Err, tunnel.ErrGone) {
		t.Errorf("told %v", e)
	}
}

func TestTheOldestGivesWayWhereTooManyAreAway(t *testing.T) {
	g := harness.Start(t, "-resume=1", "-resume-max=2")
	backend := harness.StartEcho(t)
	ways := make([]cutter, 3)
	var conns []*tunnel.Conn
	for i := range ways {
		c, _ := open(t, &tunnel.Dialer{Gateways: []string{ways[i].listen(t, g.Addr)}}, backend)
		harness.Echo(t, c, "x")
		conns = append(conns, c)
	}
	for i := range ways {
		ways[i].cut()
		g.Log.WaitLine(t, "detached", i+1)
	}
	g.Log.WaitLine(t, "not resumed", 1)
	if line := g.Log.Lines("not resumed")[0]; line["reason"] != "max" {
		t.Errorf("logged %v", line)
	}
	for i := range ways {
		ways[i].up()
	}
	if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("the first one's read ended with %v", err)
	}
	for _, c := range conns[1:] {
		harness.Echo(t, c, "still here")
	}
}

func TestAClientFindsOutByItselfThatTheWayIsDead(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	c, seen := open(t, &tunnel.Dialer{Gateways: []string{silentOnce(t, g.Addr), g.Addr},
		Silence: 200 * time.Millisecond, Patience: 200 * time.Millisecond, Timeout: time.Second}, harness.StartEcho(t))
	harness.Echo(t, c, "x")
	harness.Send(t, c, "is there anybody?")
	harness.Expect(t, c, "is there anybody?")
	if c.Resumes() == 0 || len(seen.of(tunnel.Reconnecting)) == 0 {
		t.Errorf("%d resumes, %v", c.Resumes(), seen.all)
	}
}

// silentOnce leads to addr. Its first connection falls silent, both ways, once the
// client asks whether there is anybody.
func silentOnce(t testing.TB, addr string) string {
	var conns atomic.Int32
	return harness.StartBackend(t, func(c *net.TCPConn) {
		d, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		var both sync.WaitGroup
		both.Go(func() { io.Copy(c, struct{ io.Reader }{d}) })
		buf := make([]byte, 1000)
		for first, silent := conns.Add(1) == 1, false; ; {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			silent = silent || first && bytes.Contains(buf[:n], []byte("anybody"))
			if !silent {
				d.Write(buf[:n])
			}
		}
		d.Close()
		both.Wait()
	})
}

func TestGatewaysAndClientsThatDoNotKnowOfResumingNoticeNothing(t *testing.T) {
	old, with := harness.Start(t), harness.Start(t, "-resume=1")
	backend := harness.StartEcho(t)
	c, _ := open(t, through(old), backend)
	if c.Resumable() {
		t.Error("resumable, by a gateway that does not resume")
	}
	harness.Echo(t, c, "plain")
	plain := harness.OpenTunnel(t, with.Addr, backend)
	harness.Echo(t, plain, "plain")
	harness.Finish(t, plain)
	raw := harness.Connect(t, old.Addr)
	harness.Send(t, raw, "~1N - "+harness.Line(backend))
	harness.ExpectAll(t, raw, "401")
}

func TestOperatorsSeeWhoIsAway(t *testing.T) {
	a := harness.NewAdmin(t)
	g := harness.Start(t, "-resume=1", a.Flag)
	k := new(cutter)
	harness.ExpectAll(t, asking(t, g.Addr, "~1R AAAA 1 0 0 "+strings.Repeat("A", 43)), "401")
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, g.Addr)}}, harness.StartEcho(t))
	harness.Echo(t, c, "x")
	k.cut()
	shows := func(what string, want map[string]float64) {
		t.Helper()
		harness.Eventually(t, what, func() bool {
			m := a.Metrics(t)
			for name, value := range want {
				name, labels, _ := strings.Cut(strings.TrimSuffix(name, "}"), "{")
				if m.Sum(name, strings.Fields(labels)...) != value {
					return false
				}
			}
			return true
		})
	}
	shows("the tunnel is detached", map[string]float64{
		"gateway_resume_detached": 1, "gateway_resume_tunnels": 1, "gateway_tunnels_active": 1, "gateway_tunnels_opened_total": 1,
		"gateway_resume_stall_seconds_count": 0, `gateway_resume_attempts_total{result="bad_ticket"}`: 1,
	})
	if n := a.Metrics(t).Unaccounted(); n != 0 {
		t.Errorf("%v connections are in none of the sums", n)
	}
	k.up()
	harness.Echo(t, c, "z")
	shows("its stall was counted", map[string]float64{
		"gateway_resume_detached": 0, "gateway_resume_stall_seconds_count": 1,
		`gateway_resume_stall_seconds_bucket{le="300"}`: 1, `gateway_resume_attempts_total{result="ok"}`: 1,
	})
}

// asking sends a request to a gateway.
func asking(t testing.TB, addr, request string) net.Conn {
	t.Helper()
	c := harness.Connect(t, addr)
	harness.Send(t, c, request+"\n")
	return c
}

func TestAnAddressPaysForATunnelWhoseClientIsAway(t *testing.T) {
	g := harness.Start(t, "-resume=1", "-resume-hold=300ms", "-max-conns-per-ip=2")
	backend := harness.StartEcho(t)
	k := new(cutter)
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, g.Addr)}}, backend)
	harness.Echo(t, c, "x")
	plain := harness.OpenTunnel(t, g.Addr, backend)
	k.cut()
	g.Log.WaitLine(t, "detached", 1)
	third, err := net.Dial("tcp", g.Addr)
	if err == nil {
		defer third.Close()
		_, err = third.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a third connection beside a tunnel and a held one: %v", err)
	}
	g.Log.WaitLine(t, "not resumed", 1)
	g.Log.WaitLine(t, "tunnel", 1)
	harness.Echo(t, harness.OpenTunnel(t, g.Addr, backend), "there is a place again")
	harness.Echo(t, plain, "y")
}

// nudged is a connection that calls a function right behind the first that it reads.
type nudged struct {
	net.Conn
	once  sync.Once
	nudge func()
}

func (c *nudged) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.once.Do(c.nudge)
	return n, err
}

// The answer to a resume has come, and the client does not know yet: it is told of another
// network in that moment.
func TestAConnectionThatIsGivenUpRightBehindItsAnswerIsReplaced(t *testing.T) {
	g := harness.Start(t, "-resume=1")
	var c *tunnel.Conn
	dials := 0
	d := through(g)
	d.DialContext = func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := overTCP(addr)(ctx)
		if dials++; dials == 2 && err == nil {
			return &nudged{Conn: conn, nudge: func() { c.Reconnect() }}, nil
		}
		return conn, err
	}
	c, _ = open(t, d, harness.StartEcho(t))
	harness.Echo(t, c, "before")
	reconnect(t, c)
	both(t, c, 1, 100_000)
	if n := c.Resumes(); n != 2 {
		t.Errorf("%d resumes", n)
	}
}
