package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/clients/go/internal/resume"
	"gateway/clients/go/internal/resume/stream"
)

// gateway is one that answers as the test has it. A resumable tunnel is echoed.
type gateway struct {
	addr   string
	answer func(line string) string

	mu     sync.Mutex
	lines  []string
	tunnel *stream.Conn
	conns  []net.Conn
}

func startGateway(t *testing.T, answer func(line string) string) *gateway {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{addr: ln.Addr().String(), answer: answer}
	t.Cleanup(func() {
		ln.Close()
		g.cut()
	})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go g.serve(c)
		}
	}()
	return g
}

// cut breaks all connections.
func (g *gateway) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

func (g *gateway) serve(c net.Conn) {
	g.mu.Lock()
	g.conns = append(g.conns, c)
	g.mu.Unlock()
	br := bufio.NewReader(c)
	line, err := br.ReadString('\n')
	if err != nil {
		c.Close()
		return
	}
	line = strings.TrimSuffix(line, "\n")
	g.mu.Lock()
	g.lines = append(g.lines, line)
	g.mu.Unlock()
	status := g.answer(line)
	io.WriteString(c, status)
	if status != "200" {
		c.Close()
		return
	}
	early, _ := br.Peek(br.Buffered())
	open, again, err := resume.Parse([]byte(line))
	switch {
	case err != nil: // a plain one
		io.Copy(c, br)
		c.Close()
	case open != nil:
		pair, _ := resume.NewKeyPair()
		key, _ := resume.GatewayKey(pair, open.Key)
		h := resume.Hello{Window: resume.MinWindow, Ticket: "ticket", Secret: [32]byte(pair.PublicKey().Bytes())}
		c.Write(h.Append(nil))
		s := stream.New(resume.NewSession(resume.MinWindow, key), stream.Options{Late: true})
		g.mu.Lock()
		g.tunnel = s
		g.mu.Unlock()
		l := s.Attach(c, func() { c.Close() })
		go func() {
			io.Copy(s, struct{ io.Reader }{s})
			s.CloseWrite()
			s.Close()
		}()
		s.Carry(l, early)
	default:
		g.mu.Lock()
		s := g.tunnel
		g.mu.Unlock()
		l, err := s.Switch(c, func() { c.Close() }, func(s *resume.Session) error { return s.Resume(again) })
		if err != nil {
			c.Close()
			return
		}
		s.Carry(l, early)
	}
}

func (g *gateway) said() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.lines...)
}

func ok(string) string { return "200" }

func dial(t *testing.T, d *Dialer) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, "sealed")
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(c.Abort)
	return c
}

func echo(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("%q came back, %v; want %q", got, err, text)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestATunnelOutlivesItsConnection(t *testing.T) {
	g := startGateway(t, ok)
	events := make(chan Event, 100)
	c := dial(t, &Dialer{Gateways: []string{g.addr}, OnEvent: func(e Event) { events <- e }})
	echo(t, c, "before")
	g.cut()
	echo(t, c, "after the gateway has cut it")
	c.Reconnect()
	echo(t, c, "after Reconnect")
	for _, want := range []EventKind{Reconnecting, Back, Reconnecting, Back} {
		if e := <-events; e.Kind != want {
			t.Fatalf("told %v, want %v", e, want)
		}
	}
	if c.Resumes() != 2 || !c.Resumable() {
		t.Errorf("%d resumes", c.Resumes())
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read behind Close: %v", err)
	}
	if e := <-events; e.Kind != Ended || e.Err != nil {
		t.Errorf("told %v", e)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
}

func TestAGatewayThatDoesNotResumeGetsAPlainTunnel(t *testing.T) {
	for _, status := range []string{"401", "400"} {
		g := startGateway(t, func(line string) string {
			if strings.HasPrefix(line, "~") {
				return status
			}
			return "200"
		})
		c := dial(t, &Dialer{Gateways: []string{g.addr}})
		echo(t, c, "plain")
		if c.Resumable() || len(g.said()) != 2 || g.said()[1] != "sealed" {
			t.Errorf("said %q", g.said())
		}
		c.Reconnect()
		echo(t, c, "still plain")
	}
}

func TestRefusalsAreErrorsOfTheirOwn(t *testing.T) {
	for status, want := range map[string]error{
		"400": ErrBadRequest, "401": ErrUnauthorized, "502": ErrBadGateway, "504": ErrGatewayTimeout, "SSH": StatusError("SSH"),
	} {
		g := startGateway(t, func(string) string { return status })
		_, err := (&Dialer{Gateways: []string{g.addr}}).Dial(context.Background(), "sealed")
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", status, err)
		}
	}
}

func TestGatewaysAreTriedInTurn(t *testing.T) {
	down := startGateway(t, func(string) string { return "502" })
	up := startGateway(t, ok)
	d := &Dialer{Gateways: []string{down.addr, up.addr}}
	c := dial(t, d)
	echo(t, c, "through the second")
	c.Reconnect()
	echo(t, c, "again")
	if len(down.said()) != 1 {
		t.Errorf("the first was asked %d times", len(down.said()))
	}
}

func TestATunnelEndsWhenItsGatewayHasForgottenIt(t *testing.T) {
	for status, want := range map[string]error{"410": ErrGone, "401": ErrUnauthorized} {
		g := startGateway(t, func(line string) string {
			if strings.HasPrefix(line, "~1R") {
				return status
			}
			return "200"
		})
		c := dial(t, &Dialer{Gateways: []string{g.addr}})
		echo(t, c, "x")
		g.cut()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("%s: %v", status, err)
		}
		<-c.Done()
		if _, err := c.Write([]byte("x")); !errors.Is(err, want) {
			t.Errorf("%s: a write: %v", status, err)
		}
	}
}

func TestATunnelIsGivenUpAfterItsHold(t *testing.T) {
	g := startGateway(t, func(line string) string {
		if strings.HasPrefix(line, "~1R") {
			return "502"
		}
		return "200"
	})
	c := dial(t, &Dialer{Gateways: []string{g.addr}, Hold: 100 * time.Millisecond})
	echo(t, c, "x")
	g.cut()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrLost) || !errors.Is(err, ErrBadGateway) {
		t.Errorf("%v", err)
	}
}

func TestDeadlinesStrikeWhileTheConnectionIsGone(t *testing.T) {
	g := startGateway(t, func(line string) string {
		if strings.HasPrefix(line, "~1R") {
			return "502"
		}
		return "200"
	})
	c := dial(t, &Dialer{Gateways: []string{g.addr}})
	echo(t, c, "x")
	g.cut()
	c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a read: %v", err)
	}
	n, err := c.Write(make([]byte, 1<<20))
	if !errors.As(err, &timeout) || !timeout.Timeout() || n > resume.MinWindow {
		t.Errorf("a write: %d, %v", n, err)
	}
}

func TestACanceledDialReturnsAtOnce(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = (&Dialer{Gateways: []string{silent.Addr().String()}}).Dial(ctx, "sealed")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestASilentGatewayIsAskedAndGivenUp(t *testing.T) {
	g := startGateway(t, ok)
	var dialed []net.Conn
	d := &Dialer{Gateways: []string{g.addr}, Silence: 40 * time.Millisecond, Patience: 40 * time.Millisecond}
	d.DialContext = func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil && len(dialed) == 0 {
			c = &deaf{Conn: c}
		}
		dialed = append(dialed, c)
		return c, err
	}
	c := dial(t, d)
	echo(t, c, "x")
	time.Sleep(200 * time.Millisecond)
	if c.Resumes() != 0 {
		t.Error("a gateway that answers is given up")
	}
	dialed[0].(*deaf).now.Do(func() { close(dialed[0].(*deaf).ch()) })
	eventually(t, "the tunnel is resumed", func() bool { return c.Resumes() == 1 })
	echo(t, c, "y")
}

// deaf swallows what is written to it from a moment on.
type deaf struct {
	net.Conn
	now  sync.Once
	once sync.Once
	c    chan struct{}
}

func (d *deaf) ch() chan struct{} {
	d.once.Do(func() { d.c = make(chan struct{}) })
	return d.c
}

func (d *deaf) Write(b []byte) (int, error) {
	select {
	case <-d.ch():
		return len(b), nil
	default:
		return d.Conn.Write(b)
	}
}
