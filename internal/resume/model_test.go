package resume

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"gateway/internal/layer"
)

// The model: two ends, a network that loses everything under way whenever it likes,
// and applications that write and read when they like. Whatever happens, each
// application reads what the other one wrote: every byte once, in order, its end once.

// party is one end with its application.
type party struct {
	*Session
	wire    []byte // on the way to the other one
	total   uint64 // bytes that the application writes before it finishes
	written uint64
	read    uint64
	ends    int
	first   uint64 // offset at which everything began
	held    int    // bytes that it has read, and that are not passed on yet
}

// contents are what the two applications write, over and over. The period is a prime,
// so that no byte is mistaken for another one nearby.
var contents = func() (c [2][65521]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range c[0] {
		c[0][i], c[1][i] = byte(r.Uint32()), byte(r.Uint32())
	}
	return c
}()

// content appends n bytes from an offset on.
func content(b []byte, p *party, at uint64, n int) []byte {
	c := &contents[int(p.first&1)]
	for n > 0 {
		piece := c[at%uint64(len(c)):]
		piece = piece[:min(n, len(piece))]
		b = append(b, piece...)
		at, n = at+uint64(len(piece)), n-len(piece)
	}
	return b
}

type model struct {
	t               *testing.T
	r               *rand.Rand
	now             time.Duration
	client, gateway *party
	key             [32]byte
	requests        [][]byte // that were sent, in order
	resumed         int
	moved           int
	steps           int
	layered         bool // the gateway uses its session as a layer
}

// layer returns the gateway's end as a loop has it, or nil.
func (m *model) layer(p *party) *Layer {
	if p != m.gateway || !m.layered {
		return nil
	}
	return &Layer{p.Session, m.now}
}

func newModel(t *testing.T, seed uint64, base [2]uint64, window int) *model {
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 1))}
	m.r.Uint64()
	m.layered = seed%2 == 1
	for i := range m.key {
		m.key[i] = byte(m.r.Uint32())
	}
	m.client = &party{Session: NewClient(), first: base[0] &^ 1}
	m.gateway = &party{Session: NewSession(window, m.key), first: base[1] | 1}
	for _, p := range []*party{m.client, m.gateway} {
		other := m.other(p)
		p.acked, p.next, p.sent, p.end = p.first, p.first, p.first, p.first
		other.received, other.taken, other.passed, other.reported = p.first, p.first, p.first, p.first
		p.total = uint64(m.r.IntN(300_000))
	}
	h := Hello{Window: window, Ticket: "ticket", Secret: m.key}
	if err := m.client.Input(h.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if got, ok := m.client.Hello(); !ok || got != h {
		t.Fatalf("the client read %+v, %v", got, ok)
	}
	m.client.SetKey(m.key)
	return m
}

func (m *model) other(p *party) *party {
	if p == m.client {
		return m.gateway
	}
	return m.client
}

func (m *model) name(p *party) string {
	if p == m.client {
		return "client"
	}
	return "gateway"
}

// wireMax is how much a connection takes before a write would wait, in bytes.
const wireMax = 40 << 10

func (m *model) write(p *party, most int) {
	n := min(p.Room(), most, int(p.total-p.written))
	if l := m.layer(p); l != nil && n > 0 && len(p.wire) < wireMax {
		n = min(n, MaxData)
		wire := l.Out(content(make([]byte, layer.Headroom), p, p.written, n))
		if len(wire) > 0 && !p.attached {
			m.t.Fatal("something goes to nobody")
		}
		p.wire = append(p.wire, wire...)
		p.written += uint64(n)
	} else if n > 0 {
		p.Send(content(nil, p, p.written, n))
		p.written += uint64(n)
	}
	if p.written == p.total && !p.finished {
		p.Finish()
	}
	if u := p.end - p.kept(); u > uint64(p.window) || p.out.n != int(u) {
		m.t.Fatalf("%s keeps %d of %d bytes, %d in its ring", m.name(p), u, p.window, p.out.n)
	}
}

func (m *model) output(p *party, limit int) {
	for len(p.wire) < wireMax && p.Pending(m.now) {
		p.wire = p.Output(p.wire, limit, m.now)
	}
}

func (m *model) deliver(p *party, n int) {
	n = min(n, len(p.wire))
	if !p.attached || !m.other(p).attached { // nobody is there to read
		return
	}
	defer func() { p.wire = p.wire[n:] }()
	to := m.other(p)
	if l := m.layer(to); l != nil && to.Buffered() == 0 && to.held == 0 {
		out, _ := l.In(bytes.Clone(p.wire[:n]))
		if l.Violated() {
			m.t.Fatalf("the %s sent what is no protocol", m.name(p))
		}
		if want := content(nil, p, to.read, len(out)); !bytes.Equal(out, want) {
			m.t.Fatalf("the %s reads something else at %d", m.name(to), to.read)
		}
		to.read += uint64(len(out))
		to.held = m.r.IntN(len(out) + 1)
		l.Passed(to.held)
		return
	}
	if err := to.Input(p.wire[:n]); err != nil {
		m.t.Fatalf("the %s sent what is no protocol: %v", m.name(p), err)
	}
}

// move has a gateway's session go on in another process.
func (m *model) move() {
	before := *m.gateway.Session
	after, err := RestoreSession(before.Append(nil))
	if err != nil {
		m.t.Fatalf("%v: %+v", err, before)
	}
	before.since, before.out.head, before.in.head = after.since, after.out.head, after.in.head
	if outline(after) != outline(&before) {
		m.t.Fatalf("moved as\n%s\nfrom\n%s", outline(after), outline(&before))
	}
	m.gateway.Session = after
	m.moved++
}

func (m *model) readApp(p *party, most int) {
	b := make([]byte, most)
	from := m.other(p)
	if p.held > 0 {
		p.held = 0
		m.layer(p).Passed(0)
	}
	n := p.Take(b)
	if want := content(nil, from, p.read, n); !bytes.Equal(b[:n], want) {
		m.t.Fatalf("the %s reads something else at %d", m.name(p), p.read)
	}
	p.read += uint64(n)
	p.Pass(false, m.now)
	if p.AtEnd() && p.ends == 0 {
		p.ends++
		p.Pass(true, m.now)
		if p.read != from.total {
			m.t.Fatalf("the %s reads an end after %d bytes of %d", m.name(p), p.read, from.total)
		}
	}
}

// cut loses the connection; what was under way arrives up to somewhere.
func (m *model) cut() {
	for _, p := range []*party{m.client, m.gateway} {
		if m.r.IntN(2) == 0 {
			m.deliver(p, m.r.IntN(len(p.wire)+1))
		}
		p.wire = nil
	}
	m.client.Detach()
	if m.r.IntN(2) == 0 { // else the gateway does not notice
		m.gateway.Detach()
	}
}

// resume is what a client does that has a network. The request may get lost.
func (m *model) resume() {
	if m.client.attached {
		m.cut()
	}
	line := m.client.Reattach("ticket")
	m.requests = append(m.requests, line)
	if m.r.IntN(4) == 0 { // lost, and all that followed
		m.client.Detach()
		return
	}
	before := *m.gateway.Session
	_, r, err := Parse(bytes.TrimSuffix(line, []byte("\n")))
	if err == nil {
		m.gateway.wire = nil
		err = m.gateway.Resume(r)
	}
	if err != nil {
		m.t.Fatalf("a resume is refused: %v; the gateway had acked %d, sent %d, received %d; %s",
			err, before.acked, before.sent, before.received, line)
	}
	m.resumed++
}

// replay sends again what was sent before: nothing comes of it.
func (m *model) replay() {
	if len(m.requests) == 0 {
		return
	}
	line := bytes.Clone(m.requests[m.r.IntN(len(m.requests))])
	want := ErrUsed
	if m.r.IntN(2) == 0 {
		line[len(line)-10] ^= 1
		want = ErrForged
	}
	_, r, err := Parse(bytes.TrimSuffix(line, []byte("\n")))
	if err != nil {
		return // a letter that is none
	}
	if want == ErrUsed && r.Seq > m.gateway.seq {
		return // it was lost, and is good
	}
	before := outline(m.gateway.Session)
	if err := m.gateway.Resume(r); err != want {
		m.t.Fatalf("a replayed resume: %v, want %v", err, want)
	}
	if after := outline(m.gateway.Session); after != before {
		m.t.Fatalf("a refused resume changed\n%s\nto\n%s", before, after)
	}
}

// outline is a session without the bytes that it holds.
func outline(s *Session) string {
	copied := *s
	copied.out.buf, copied.in.buf = nil, nil
	return fmt.Sprintf("%+v", copied)
}

func (m *model) done() bool { return m.client.Complete() && m.gateway.Complete() }

func (m *model) step(cuts bool) {
	m.steps++
	p := m.client
	if m.r.IntN(2) == 0 {
		p = m.gateway
	}
	switch k := m.r.IntN(40); {
	case k < 8:
		m.write(p, m.r.IntN(20_000))
	case k < 16:
		m.output(p, 1+m.r.IntN(20_000))
	case k < 26:
		m.deliver(p, 1+m.r.IntN(20_000))
	case k < 34:
		m.readApp(p, m.r.IntN(20_000))
	case k < 36:
		m.now += time.Duration(m.r.IntN(700)) * time.Millisecond
	case k < 37:
		p.Ping()
		p.Trim()
		m.move()
	case k == 37 && cuts:
		m.resume()
	case k == 38 && cuts && m.r.IntN(3) == 0:
		m.cut()
	case k == 39:
		m.replay()
	}
}

func run(t *testing.T, seed uint64, base [2]uint64) *model {
	m := newModel(t, seed, base, MinWindow<<m64(seed))
	for range 300 + m.r.IntN(3000) {
		if m.step(true); m.done() {
			break
		}
	}
	// From here on the network is there, and all comes to its end.
	for !m.done() {
		if !m.client.attached {
			m.resume()
			continue
		}
		if m.step(false); m.steps > 100_000 {
			t.Fatalf("seed %d: no end: client %+v\ngateway %+v", seed, *m.client.Session, *m.gateway.Session)
		}
	}
	for _, p := range []*party{m.client, m.gateway} {
		if p.ends != 1 || p.read != m.other(p).total {
			t.Fatalf("seed %d: the %s read %d bytes of %d and %d ends", seed, m.name(p), p.read, m.other(p).total, p.ends)
		}
	}
	return m
}

func m64(seed uint64) uint64 { return seed % 3 }

func TestWhateverTheNetworkDoesEveryByteArrivesOnceInOrder(t *testing.T) {
	t.Parallel()
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 100
	}
	resumed, moved := 0, 0
	for seed := range seeds {
		m := run(t, seed, [2]uint64{})
		resumed, moved = resumed+m.resumed, moved+m.moved
	}
	if resumed < int(seeds) || moved < int(seeds) {
		t.Errorf("only %d resumes, %d moves", resumed, moved)
	}
}

func TestTheSamePast4GiB(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		near := uint64(1)<<32 - seed*1000
		run(t, seed, [2]uint64{near, 5 * near})
	}
}

// Both directions are full, and nobody reads: acknowledgements are behind data. Once
// the applications read, all goes on.
func TestTwoFullDirectionsDoNotLockEachOther(t *testing.T) {
	m := newModel(t, 7, [2]uint64{}, MinWindow)
	m.layered = false // whose backend reads at once
	m.client.total, m.gateway.total = 1<<20, 1<<20
	full := func() {
		for range 100 {
			for _, p := range []*party{m.client, m.gateway} {
				m.write(p, 1<<20)
				m.output(p, 1<<20)
				m.deliver(p, 1<<20)
			}
		}
	}
	full()
	for _, p := range []*party{m.client, m.gateway} {
		if p.Room() != 0 || p.Buffered() != MinWindow {
			t.Fatalf("room for %d, %d buffered", p.Room(), p.Buffered())
		}
	}
	m.cut()
	m.resume()
	for range 100 {
		if !m.client.attached {
			m.resume()
		}
		full()
		for _, p := range []*party{m.client, m.gateway} {
			m.readApp(p, 1<<20)
			m.now += ackDelay
		}
	}
	if !m.done() {
		t.Errorf("client %+v\ngateway %+v", *m.client.Session, *m.gateway.Session)
	}
}
