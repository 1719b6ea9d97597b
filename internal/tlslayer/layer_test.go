package tlslayer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/layer"
)

// configs returns the configurations of a server and of a client that trusts it.
var configs = sync.OnceValues(func() (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: pool, ServerName: "test"}
})

// duct is one direction of a connection in memory. It has room for everything.
type duct struct {
	mu    sync.Mutex
	more  sync.Cond
	b     []byte
	first []byte // that was written
	end   bool
}

func newDuct() *duct {
	d := new(duct)
	d.more.L = &d.mu
	return d
}

func (d *duct) write(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.b = append(d.b, b...); d.first == nil {
		d.first = bytes.Clone(b)
	}
	d.more.Broadcast()
}

func (d *duct) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end = true
	d.more.Broadcast()
}

// take returns all that there is without waiting.
func (d *duct) take() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.b
	d.b = nil
	return b
}

func (d *duct) read(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.b) == 0 && !d.end {
		d.more.Wait()
	}
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b, d.b)
	d.b = d.b[n:]
	return n, nil
}

// end is one end of such a connection.
type end struct {
	net.Conn // none
	in, out  *duct
	closed   bool
}

func (e *end) Read(b []byte) (int, error)       { return e.in.read(b) }
func (e *end) Write(b []byte) (int, error)      { e.out.write(b); return len(b), nil }
func (e *end) Close() error                     { e.closed = true; e.out.close(); return nil }
func (e *end) CloseWrite() error                { e.out.close(); return nil }
func (e *end) SetDeadline(time.Time) error      { return nil }
func (e *end) SetReadDeadline(time.Time) error  { return nil }
func (e *end) SetWriteDeadline(time.Time) error { return nil }
func (e *end) LocalAddr() net.Addr              { return nil }
func (e *end) RemoteAddr() net.Addr             { return nil }

// pair is a client whose server has been lifted, or is about to be.
type pair struct {
	client   *tls.Conn
	server   *Conn
	up, down *duct
	layer.Transform
	heard []byte // what came out of In
	state layer.State
}

// connect shakes hands by a version. The client says early at once behind that. log gets
// what its keys are made of (NSS key log format).
func connect(t testing.TB, version uint16, early string, log io.Writer) *pair {
	t.Helper()
	server, client := configs()
	client = client.Clone()
	client.MinVersion, client.MaxVersion, client.KeyLogWriter = version, version, log
	p := &pair{up: newDuct(), down: newDuct()}
	p.client = tls.Client(&end{in: p.down, out: p.up}, client)
	p.server = Server(&end{in: p.up, out: p.down}, server)
	shaken := make(chan error, 1)
	go func() {
		err := p.client.Handshake()
		if err == nil && early != "" {
			_, err = p.client.Write([]byte(early))
		}
		shaken <- err
	}()
	if err := errors.Join(p.server.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	return p
}

// lift has the server go on in memory that is a loop's.
func (p *pair) lift(t testing.TB, upper layer.Transform, room *layer.Room) *pair {
	t.Helper()
	if p.Transform = p.server.Lift(nil, upper); p.Transform == nil {
		t.Fatal("not lifted")
	}
	p.Transform.(layer.Sharer).Share(room)
	p.hear(nil)
	return p
}

func (p *pair) hear(b []byte) {
	var out []byte
	out, p.state = p.In(bytes.Clone(b))
	p.heard = append(p.heard, out...)
}

// say sends what the backend says.
func (p *pair) say(b []byte) {
	p.down.write(p.Out(append(make([]byte, layer.Headroom), b...)))
}

// deliver gives the server what the client has sent, in pieces, and takes back what it
// has to say.
func (p *pair) deliver(piece func(left int) int) {
	for sent := p.up.take(); len(sent) > 0 && p.state == layer.Open; {
		n := piece(len(sent))
		p.hear(sent[:n])
		sent = sent[n:]
		if p.Due() {
			p.down.write(p.Back(nil))
		}
	}
}

func atOnce(left int) int { return left }

// pieces are ways to cut what comes.
func pieces(r *mathrand.Rand) map[string]func(left int) int {
	return map[string]func(int) int{
		"whole":          atOnce,
		"byte by byte":   func(int) int { return 1 },
		"anywhere":       func(left int) int { return min(left, 1+r.IntN(40_000)) },
		"small":          func(left int) int { return min(left, 1+r.IntN(30)) },
		"a large buffer": func(left int) int { return min(left, 16<<10) },
	}
}

func noise(r *mathrand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func eachVersion(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { test(t, version) })
	}
}

// Every byte comes once and in order, however what carries it is cut, and wherever the
// socket is given up.
func TestBytesPassBothWaysInAnyPieces(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		r := mathrand.New(mathrand.NewPCG(1, uint64(version)))
		var room layer.Room
		for name, piece := range pieces(r) {
			t.Run(name, func(t *testing.T) {
				for range 4 {
					want := noise(r, 1+r.IntN(50_000))
					at := r.IntN(min(len(want), 20_000))
					p := connect(t, version, string(want[:at]), nil)
					for got := 0; got < at/2; { // by a goroutine
						b := make([]byte, 1+r.IntN(at/2-got+1))
						n, err := p.server.Read(b)
						if err != nil {
							t.Fatal(err)
						}
						p.heard = append(p.heard, b[:n]...)
						got += n
					}
					p.lift(t, nil, &room)
					for rest := want[at:]; len(rest) > 0; {
						n := min(len(rest), 1+r.IntN(40_000))
						if _, err := p.client.Write(rest[:n]); err != nil {
							t.Fatal(err)
						}
						rest = rest[n:]
						p.deliver(piece)
					}
					if !bytes.Equal(p.heard, want) || p.state != layer.Open {
						t.Fatalf("%d bytes of %d came, state %d", len(p.heard), len(want), p.state)
					}
					back := noise(r, 1+r.IntN(100_000))
					for rest := back; len(rest) > 0; {
						n := min(len(rest), 1+r.IntN(60_000))
						p.say(rest[:n])
						rest = rest[n:]
					}
					got := make([]byte, len(back))
					if _, err := io.ReadFull(p.client, got); err != nil || !bytes.Equal(got, back) {
						t.Fatalf("of %d bytes others came back: %v", len(back), err)
					}
				}
			})
		}
	})
}

func TestEachDirectionEndsByItself(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		p := connect(t, version, "", nil).lift(t, nil, new(layer.Room))
		p.client.Write([]byte("last"))
		p.client.CloseWrite()
		p.deliver(atOnce)
		if p.state != layer.HalfClosed || string(p.heard) != "last" {
			t.Fatalf("%q, state %d", p.heard, p.state)
		}
		p.say([]byte("more"))
		p.Finish(false)
		p.down.write(p.Back(nil))
		if got, err := io.ReadAll(p.client); string(got) != "more" || err != nil || p.Due() {
			t.Errorf("the client got %q, %v", got, err)
		}

		p = connect(t, version, "", nil).lift(t, nil, new(layer.Room))
		p.Finish(false)
		p.down.write(p.Back(nil))
		if got, err := io.ReadAll(p.client); len(got) > 0 || err != nil {
			t.Errorf("the client got %q, %v", got, err)
		}
		p.client.Write([]byte("still"))
		p.deliver(atOnce)
		if p.state != layer.Open || string(p.heard) != "still" {
			t.Errorf("%q, state %d", p.heard, p.state)
		}
		if p.Cut(false) != layer.HalfClosed || p.Cut(true) != layer.Failed {
			t.Error("a FIN and a reset are the same")
		}
	})
}

// Behind a failure there is no close_notify: the client can tell that something lacks.
func TestAFailedBackendIsNoEnd(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		p := connect(t, version, "", nil).lift(t, nil, new(layer.Room))
		p.Finish(true)
		p.Leave()
		if p.Due() {
			t.Errorf("%x is sent", p.Back(nil))
		}
		p = connect(t, version, "", nil)
		p.down.take()
		if err := p.server.FailWrite(); err != nil || !p.down.end || len(p.down.take()) > 0 {
			t.Errorf("by a goroutine: %v, %v", err, p.down.end)
		}
	})
}

func TestWhatIsNoRecordIsAnsweredByAnAlert(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		for name, garbage := range map[string]string{
			"no TLS":            "GET / HTTP/1.1\r\n\r\n",
			"forged":            "\x17\x03\x03\x00\x40" + strings.Repeat("*", 64),
			"empty":             "\x17\x03\x03\x00\x00",
			"too long":          "\x17\x03\x03\xff\xff",
			"a hello":           "\x16\x03\x03\x00\x40" + strings.Repeat("\x01", 64),
			"of no type":        "\x99\x03\x03\x00\x40" + strings.Repeat("*", 64),
			"an alert in clear": "\x15\x03\x03\x00\x02\x02\x00",
		} {
			p := connect(t, version, "", nil).lift(t, nil, new(layer.Room))
			p.client.Write([]byte("good"))
			p.up.write([]byte(garbage))
			p.deliver(func(left int) int { return min(left, 7) })
			if p.state != layer.Wrong || string(p.heard) != "good" {
				t.Errorf("%s: %q, state %d", name, p.heard, p.state)
			}
			p.down.close()
			var alert *net.OpError
			if _, err := p.client.Read(make([]byte, 1)); !errors.As(err, &alert) || alert.Op != "remote error" {
				t.Errorf("%s: the client read %v, no alert", name, err)
			}
		}
	})
}

func TestAConnIsClosedToItsUserOnceItIsLifted(t *testing.T) {
	p := connect(t, tls.VersionTLS13, "", nil).lift(t, nil, new(layer.Room))
	p.down.take()
	b := make([]byte, 1)
	_, readErr := p.server.Read(b)
	_, writeErr := p.server.Write(b)
	for _, err := range []error{readErr, writeErr, p.server.CloseWrite(), p.server.FailWrite()} {
		if err != net.ErrClosed {
			t.Errorf("got %v", err)
		}
	}
	p.server.SetDeadline(time.Unix(1, 0))
	if err := p.server.Close(); err != nil || p.Due() || len(p.down.take()) > 0 || p.down.end {
		t.Errorf("Close has done something, %v", err)
	}
	p.say([]byte("x"))
	if _, err := p.client.Read(b); err != nil || b[0] != 'x' {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestALandedConnGoesOnAsBefore(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		p := connect(t, version, "early", nil)
		if p.server.Lift(nil, nil) == nil {
			t.Fatal("not lifted")
		}
		if p.server.Lift(nil, nil) != nil {
			t.Error("lifted twice")
		}
		p.server.Land()
		b := make([]byte, 5)
		if _, err := io.ReadFull(p.server, b); err != nil || string(b) != "early" {
			t.Errorf("read %q, %v", b, err)
		}
		p.server.Write([]byte("hello"))
		if _, err := io.ReadFull(p.client, b); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v", b, err)
		}
		// Whoever closes it meanwhile has it closed then.
		p.server.Lift(nil, nil)
		p.server.Close()
		if p.down.end {
			t.Error("closed in somebody else's hands")
		}
		p.server.Land()
		if !p.down.end || p.server.Lift(nil, nil) != nil {
			t.Error("not closed")
		}
	})
}

// A layer at rest holds no buffer, whatever it has carried.
func TestALayerAtRestHoldsLittle(t *testing.T) {
	if !known {
		t.Fatal("crypto/tls has other fields than it had: a layer at rest keeps its buffers")
	}
	const count = 200
	heap := func() int {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	var room layer.Room
	work := func() layer.Transform {
		p := connect(t, tls.VersionTLS13, "early", nil).lift(t, nil, &room)
		p.client.Write(make([]byte, 100_000))
		p.deliver(func(left int) int { return min(left, 16<<10) })
		p.say(make([]byte, 100_000))
		return p.Transform
	}
	all := make([]layer.Transform, count)
	work() // the room grows
	before := heap()
	for i := range all {
		all[i] = work()
	}
	if each := (heap() - before) / count; each > 4<<10 {
		t.Errorf("%d bytes each", each)
	}
	runtime.KeepAlive(all)
}

// Who waits for the client's Finished has no use for room for a ClientHello, which is large.
func TestAHandshakeLeavesNoLargeBuffers(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := buffersOf(connect(t, version, "", nil).server.Conn)
		if n := b.raw.Cap() + b.hand.Cap(); n > 1<<10 {
			t.Errorf("%d bytes are left", n)
		}
	})
}

// BenchmarkMessage is a message and its answer. Nothing is allocated.
func BenchmarkMessage(b *testing.B) { benchmark(b, 64) }

// BenchmarkBulk is 16 KiB both ways.
func BenchmarkBulk(b *testing.B) { benchmark(b, 16<<10) }

func benchmark(b *testing.B, size int) {
	p := connect(b, tls.VersionTLS13, "", nil).lift(b, nil, new(layer.Room))
	message, buf := make([]byte, layer.Headroom+size), make([]byte, 32<<10)
	const batch = 256
	b.ReportAllocs()
	b.SetBytes(2 * int64(size))
	p.client.Write(make([]byte, 1<<20)) // its records are small until then
	p.deliver(atOnce)
	for b.Loop() {
		if len(p.up.b) == 0 {
			b.StopTimer()
			for range batch {
				p.client.Write(message[layer.Headroom:])
			}
			b.StartTimer()
		}
		n := copy(buf, p.up.b[:size+headerSize+1+16])
		p.up.b = p.up.b[n:]
		if out, state := p.In(buf[:n]); len(out) != size || state != layer.Open {
			b.Fatal(len(out), state)
		}
		p.Out(message)
	}
}

// FuzzIn gives a server records that its client never sent, behind some that it did.
func FuzzIn(f *testing.F) {
	for _, seed := range []string{"\x17\x03\x03\x00\x02hi", "\x15\x03\x03\x00\x02\x01\x00", "\x14\x03\x03\x00\x01\x01", "\x16\x03\x03\x00\x04\x18\x00\x00\x01"} {
		f.Add([]byte(seed), uint8(3), true)
	}
	var room layer.Room
	f.Fuzz(func(t *testing.T, hostile []byte, piece uint8, new bool) {
		version := uint16(tls.VersionTLS12)
		if new {
			version = tls.VersionTLS13
		}
		p := connect(t, version, "before", nil).lift(t, nil, &room)
		p.client.Write([]byte("good"))
		p.up.write(hostile)
		p.deliver(func(left int) int { return min(left, 1+int(piece)) })
		if string(p.heard) != "beforegood" {
			t.Errorf("%q came", p.heard)
		}
		if p.state == layer.HalfClosed || p.state == layer.Finished {
			t.Errorf("a forged record has ended it, state %d", p.state)
		}
		p.say([]byte("x")) // may be nothing, after an alert
	})
}
