package roaming

import (
	"bytes"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/resume"
)

// raw is a client that speaks the protocol by hand.
type raw struct {
	*resume.Session
	conn   net.Conn
	key    [32]byte
	ticket string
}

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	k, err := resume.NewKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// openRaw opens a session by a connection.
func openRaw(t testing.TB, c net.Conn, backend string) *raw {
	t.Helper()
	k := newKey(t)
	harness.Send(t, c, string(resume.AppendOpen(nil, k.PublicKey().Bytes(), harness.Sealed(backend))))
	harness.Expect(t, c, "200")
	r := &raw{Session: resume.NewClient(), conn: c}
	r.read(t, func() bool { return r.Greeted() })
	h, _ := r.Hello()
	key, err := resume.ClientKey(k, h.Secret)
	if err != nil {
		t.Fatal(err)
	}
	r.key, r.ticket = key, h.Ticket
	r.SetKey(key)
	return r
}

// read reads until cond holds.
func (r *raw) read(t testing.TB, cond func() bool) {
	t.Helper()
	buf := make([]byte, 4096)
	for !cond() {
		n, err := r.conn.Read(buf)
		if err == nil {
			err = r.Input(buf[:n])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// echo sends a text and reads it back.
func (r *raw) echo(t testing.TB, text string) {
	t.Helper()
	r.Send([]byte(text))
	harness.Send(t, r.conn, string(r.Output(nil, 1<<20, 0)))
	r.read(t, func() bool { return r.Buffered() == len(text) })
	got := make([]byte, len(text))
	if r.Take(got); string(got) != text {
		t.Fatalf("%q came back as %q", text, got)
	}
	r.Pass(false, 0)
}

// request is a signed request.
func (r *raw) request(seq, from, recv uint64) string {
	q := resume.Request{Ticket: r.ticket, Seq: seq, From: from, Recv: recv}
	return string(q.AppendSigned(nil, r.key))
}

// answer sends a request by a connection of its own and returns all that comes of it.
func answer(t testing.TB, addr, request string) string {
	t.Helper()
	c := harness.Connect(t, addr)
	defer c.Close()
	harness.Send(t, c, request)
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil && !harness.IsReset(err) {
		t.Fatal(err)
	}
	return string(got)
}

func TestWhatIsNotAuthenticDisturbsNobody(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		g := harness.Start(t, "-resume=1", "-resume-hold=500ms", way)
		again := harness.Start(t, "-resume=1", way) // the same secret, another boot
		b := startCounted(t, echo)
		r := openRaw(t, harness.Connect(t, g.Addr), b.addr)
		r.echo(t, "hello")

		// One resume, so that there is something to replay.
		used := string(r.Reattach(r.ticket))
		r.conn = harness.Connect(t, g.Addr)
		harness.Send(t, r.conn, used)
		harness.Expect(t, r.conn, "200")
		r.echo(t, "again")

		bad := map[string]struct{ request, status string }{
			"replayed":       {used, "401"},
			"an old seq":     {r.request(0, 0, 5), "401"},
			"forged":         {r.request(9, 0, 5)[:len(used)-3] + "AA\n", "401"},
			"another ticket": {strings.Replace(r.request(9, 0, 5), r.ticket[:10], "AAAAAAAAAA", 1), "401"},
			"far ahead":      {r.request(9, 1<<40, 10), "410"},
			"more than sent": {r.request(9, 0, 1<<40), "410"},
			"no request":     {"~1R x\n", "401"},
			"nothing":        {"~1\n", "401"},
		}
		var flood sync.WaitGroup
		for name, tt := range bad {
			for range 4 {
				flood.Go(func() {
					for range 30 {
						if got := answer(t, g.Addr, tt.request); got != tt.status {
							t.Errorf("%s: %q, want %s", name, got, tt.status)
						}
					}
				})
			}
		}
		for range 50 {
			r.echo(t, "undisturbed")
		}
		flood.Wait()
		r.echo(t, "still")
		if got := answer(t, again.Addr, r.request(9, 0, 10)); got != "410" {
			t.Errorf("another boot: %q", got)
		}
		if n := b.conns.Load(); n != 1 {
			t.Errorf("the backend saw %d connections", n)
		}
		g.Log.WaitLine(t, "refused", len(bad)*4*30)
		reasons := map[any]bool{}
		for _, line := range g.Log.Lines("refused") {
			reasons[line["reason"]] = true
		}
		for _, want := range []string{"used", "forged", "bad_ticket", "offsets", "bad_format"} {
			if !reasons[want] {
				t.Errorf("no %q among the reasons %v", want, reasons)
			}
		}
		// Refused offsets have used up no number.
		line := string(r.Reattach(r.ticket))
		r.conn = harness.Connect(t, g.Addr)
		harness.Send(t, r.conn, line)
		harness.Expect(t, r.conn, "200")
		r.echo(t, "the end")
	})
}

func TestOfTwoResumesTheNewerOneWins(t *testing.T) {
	g := harness.Start(t, "-resume=1", "-resume-hold=500ms")
	r := openRaw(t, harness.Connect(t, g.Addr), harness.StartEcho(t))
	r.echo(t, "x")
	var won sync.Map
	var all sync.WaitGroup
	for seq := range uint64(20) {
		all.Go(func() {
			c := harness.Connect(t, g.Addr)
			harness.Send(t, c, r.request(1+seq, 0, 1))
			status := make([]byte, 3)
			if _, err := io.ReadFull(c, status); err == nil && string(status) == "200" {
				won.Store(seq+1, c)
			}
		})
	}
	all.Wait()
	c, ok := won.Load(uint64(20))
	if !ok {
		t.Fatal("the newest did not win")
	}
	r.Detach()
	r.Reattach(r.ticket)
	r.conn = c.(net.Conn)
	r.echo(t, "the newest has it")
}

func TestRequestsForATunnelAreReadInEveryForm(t *testing.T) {
	flags, trusting := harness.TLSFlags(t)
	backend := harness.StartEcho(t)
	sealed := harness.Sealed(backend)
	key := base64.RawURLEncoding.EncodeToString(newKey(t).PublicKey().Bytes())
	good := "~1N " + key + " " + sealed
	for name, tt := range map[string]struct {
		flags  []string
		tls    bool
		sent   string
		status string
	}{
		"a line":                   {sent: good + "\n", status: "200"},
		"a line and CR":            {sent: good + "\r\n", status: "200"},
		"behind a length":          {sent: harness.Prefixed(good), status: "\x03\x00\x00\x00200"},
		"inside TLS":               {tls: true, sent: good + "\n", status: "200"},
		"no key":                   {sent: "~1N - " + sealed + "\n", status: "401"},
		"no key inside TLS":        {tls: true, sent: "~1N - " + sealed + "\n", status: "200"},
		"no key with resume-plain": {flags: []string{"-resume-plain=1"}, sent: "~1N - " + sealed + "\n", status: "200"},
		"a key of low order":       {sent: "~1N " + strings.Repeat("A", 43) + " " + sealed + "\n", status: "401"},
		"another line":             {sent: "~1N " + key + " " + harness.GoldenLine + "\n", status: "401"},
		"two spaces":               {sent: "~1N  " + key + " " + sealed + "\n", status: "401"},
		"a space at the end":       {sent: good + " \n", status: "401"},
		"another version":          {sent: "~2N " + key + " " + sealed + "\n", status: "401"},
		"binary":                   {sent: "\x00" + string(rune(len("~1N - x"))) + "~1N - x", status: "401"},
		"the limit is the line's":  {flags: []string{fmt.Sprintf("-handshake-max=%d", len(sealed))}, sent: good + "\n", status: "200"},
		"one more is too long":     {flags: []string{fmt.Sprintf("-handshake-max=%d", len(sealed)-1)}, sent: good + "\n", status: "400"},
		"the same behind a length": {flags: []string{fmt.Sprintf("-handshake-max=%d", len(sealed))}, sent: harness.Prefixed(good), status: "\x03\x00\x00\x00200"},
		"long, and no request":     {flags: []string{"-handshake-max=44"}, sent: harness.Prefixed(strings.Repeat("x", 200)), status: "\x03\x00\x00\x00400"},
		"no backend":               {sent: "~1N " + key + " " + harness.Sealed(harness.ClosedPort(t)) + "\n", status: "502"},
		"an HTTP backend":          {sent: "~1N " + key + " " + harness.Sealed("http://"+backend) + "\n", status: "401"},
		"resuming is off":          {flags: []string{"-resume=0"}, sent: good + "\n", status: "401"},
		"off, behind a length":     {flags: []string{"-resume=0"}, sent: harness.Prefixed(good), status: "\x03\x00\x00\x00401"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, way := range []string{"-loops=0", "-loops=-1"} {
				g := harness.Start(t, append(append(append([]string{"-resume=1"}, flags...), tt.flags...), way)...)
				for _, dribbled := range []bool{false, true} {
					var c net.Conn = harness.Connect(t, g.Addr)
					if tt.tls {
						c = tls.Client(c, trusting)
					}
					if dribbled {
						for i := range len(tt.sent) {
							if _, err := io.WriteString(c, tt.sent[i:i+1]); err != nil {
								break // it was refused before its end
							}
						}
					} else {
						harness.Send(t, c, tt.sent)
					}
					harness.Expect(t, c, tt.status)
				}
			}
		})
	}
}

// A client that never says the end of its request, or never reads, delays nobody.
func TestOneStuckResumeDelaysNobody(t *testing.T) {
	g := harness.Start(t, "-resume=1", "-loops=1")
	flood := harness.StartBackendProcess(t, harness.RoleFlood)
	r := openRaw(t, harness.Connect(t, g.Addr), flood)
	for seq := range uint64(5) {
		half := harness.Connect(t, g.Addr)
		harness.Send(t, half, "~1R "+r.ticket)
		deaf := harness.Connect(t, g.Addr)
		harness.Send(t, deaf, r.request(1+seq, 0, 0))
	}
	start := time.Now()
	c, _ := open(t, through(g), harness.StartEcho(t))
	both(t, c, 1, 1<<20)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestManyTunnelsAwayAtOnceAreForgottenTogether(t *testing.T) {
	harness.Long(t)
	n, hold := 1000, "2s"
	if full {
		n, hold = 11_000, "20s"
	}
	g := harness.Start(t, "-resume=1", "-resume-hold="+hold, fmt.Sprintf("-resume-max=%d", n-n/10), fmt.Sprintf("-resume-memory=%d", n<<16))
	var gone sync.WaitGroup
	gone.Add(n)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		defer gone.Done()
		c.Write(bytes.Repeat([]byte("x"), 100_000))
		io.Copy(io.Discard, struct{ io.Reader }{c})
	})
	for range n {
		c := harness.Connect(t, g.Addr)
		openRaw(t, c, backend)
		harness.Reset(c)
	}
	gone.Wait()
	g.Log.WaitLine(t, "tunnel", n)
	g.Log.WaitLine(t, "not resumed", n)
	reasons := map[any]int{}
	for _, line := range g.Log.Lines("not resumed") {
		reasons[line["reason"]]++
	}
	t.Log(reasons)
	if reasons["hold"]+reasons["max"]+reasons["memory"] != n || reasons["hold"] == 0 {
		t.Errorf("reasons %v", reasons)
	}
	// The memory is free for others.
	c, _ := open(t, through(g), harness.StartEcho(t))
	both(t, c, 1, 1<<20)
}
