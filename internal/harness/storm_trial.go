package harness

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// finale is how a tunnel of the stress test ends.
type finale int

const (
	bothFinish      finale = iota // each when it has sent everything
	clientResets                  // somewhere in the middle
	clientHurries                 // it resets before it has an answer
	backendResets                 // somewhere in the middle
	backendDelivers               // it resets when all it sent was taken
)

func (e finale) String() string {
	return [...]string{"both finish", "client resets", "client hurries", "backend resets", "backend delivers"}[e]
}

// trial is one tunnel of the stress test.
type trial struct {
	finale   finale
	up, down *stream
	name     bool  // the address has a name, not an IP address
	dribble  bool  // the request comes in pieces
	early    int   // bytes of up that come with the request
	wait     bool  // the client sends no more than that before the answer
	cut      int   // after how many bytes whoever resets does so
	hasty    bool  // a backend that resets does not wait for the tunnel to stand
	seed     int64 // of the pieces of the request

	host            string        // of the backend
	client, backend string        // as they stand in the log
	stands          chan struct{} // closed when the client has its 200
	listener        net.Listener  // of the backend
	backends        chan outcome  // of the backend, then closed
}

func (tr *trial) String() string {
	return fmt.Sprintf("%v, %d bytes up and %d down, %d early, reset after %d, name %v, dribbling %v, waiting %v",
		tr.finale, len(tr.up.data), len(tr.down.data), tr.early, tr.cut, tr.name, tr.dribble, tr.wait)
}

// noisePool is what all streams are cut from.
var noisePool = sync.OnceValue(func() []byte { return Noise(9, 8<<20) })

func newTrial(seed uint64, i int) *trial {
	r := rand.New(rand.NewPCG(seed, uint64(i)))
	tr := &trial{
		finale:  finale([]int{0, 0, 0, 0, 0, 1, 1, 2, 3, 4}[r.IntN(10)]),
		up:      newStream(r),
		down:    newStream(r),
		name:    r.IntN(6) == 0,
		dribble: r.IntN(6) == 0,
		wait:    r.IntN(2) == 0,
		seed:    r.Int64(),
		stands:  make(chan struct{}),

		backends: make(chan outcome, 1),
	}
	switch tr.finale {
	case clientResets, clientHurries:
		tr.cut = r.IntN(len(tr.up.data) + 1)
	case backendResets:
		tr.cut = r.IntN(len(tr.down.data) + 1)
	case backendDelivers:
		// A client that goes on sending to a backend that is gone may be reset
		// in the end. This one does not.
		tr.up.data = tr.up.data[:min(len(tr.up.data), 1000)]
	}
	if r.IntN(2) == 0 {
		tr.early = r.IntN(min(len(tr.up.data), 64<<10) + 1)
	}
	return tr
}

// stream is what one end sends, and how it is sent and received. Sending and
// receiving have a source of chance each, since they happen at the same time.
type stream struct {
	data           []byte
	send, receive  *rand.Rand
	sendStall      int // where the sender pauses
	receiveStall   int // where the receiver does
	pause, receipt time.Duration
}

func newStream(r *rand.Rand) *stream {
	size := 0
	switch k := r.IntN(20); {
	case k == 0: // nothing at all
	case k == 1:
		size = 1<<20 + r.IntN(3<<20)
	case k < 10:
		size = r.IntN(2000)
	default:
		size = r.IntN(128 << 10)
	}
	from := r.IntN(len(noisePool()) - size)
	s := &stream{
		data:         noisePool()[from : from+size],
		send:         rand.New(rand.NewPCG(r.Uint64(), 0)),
		receive:      rand.New(rand.NewPCG(r.Uint64(), 0)),
		sendStall:    -1,
		receiveStall: -1,
		pause:        time.Duration(r.IntN(30)) * time.Millisecond,
		receipt:      time.Duration(r.IntN(100)) * time.Millisecond,
	}
	if r.IntN(4) == 0 {
		s.sendStall = r.IntN(size + 1)
	}
	if r.IntN(4) == 0 {
		s.receiveStall = r.IntN(size + 1)
	}
	return s
}

// write sends a part of the stream in pieces.
func (s *stream) write(c *net.TCPConn, from, to int) error {
	for from < to {
		n := min(to-from, 1<<s.send.IntN(18)+s.send.IntN(100))
		if from <= s.sendStall && s.sendStall < from+n {
			time.Sleep(s.pause)
		}
		if _, err := c.Write(s.data[from : from+n]); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// read receives until the end and returns how much came. The end is nil for a
// FIN. It is an error of the stream if something else came than was sent.
func (s *stream) read(c *net.TCPConn) (n int, end error) {
	hash := sha256.New()
	buf := make([]byte, 64<<10)
	for {
		if s.receiveStall >= 0 && n >= s.receiveStall {
			s.receiveStall = -1
			time.Sleep(s.receipt)
		}
		m, err := c.Read(buf[:min(len(buf), 1<<s.receive.IntN(18)+s.receive.IntN(100))])
		hash.Write(buf[:m])
		if n += m; n > len(s.data) {
			return n, fmt.Errorf("%d bytes came of %d", n, len(s.data))
		}
		if err == nil {
			continue
		}
		if want := sha256.Sum256(s.data[:n]); !bytes.Equal(hash.Sum(nil), want[:]) {
			return n, fmt.Errorf("the first %d of %d bytes are others than were sent", n, len(s.data))
		}
		if err == io.EOF {
			err = nil
		}
		return n, err
	}
}

// outcome is what became of one end of a tunnel.
type outcome struct {
	got      int
	readEnd  error // nil: FIN
	writeEnd error // nil: everything was sent
}

func (o outcome) String() string {
	return fmt.Sprintf("got %d bytes and %v, sent with %v", o.got, o.readEnd, o.writeEnd)
}

// run opens a tunnel between two ends of its own and tells what went wrong.
func (tr *trial) run(gateway string) error {
	ln, err := net.Listen("tcp4", net.JoinHostPort(tr.host, "0"))
	if err != nil {
		return err
	}
	// Who hurries may be gone before its backend is dialed. Its port must not
	// become that of another tunnel meanwhile.
	if tr.finale != clientHurries {
		defer ln.Close()
	}
	tr.listener, tr.backend = ln, ln.Addr().String()
	if tr.name {
		tr.backend = fmt.Sprint("game.test:", ln.Addr().(*net.TCPAddr).Port)
	}
	conn, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	client := conn.(*net.TCPConn)
	defer client.Close()
	client.SetDeadline(time.Now().Add(2 * Patience))
	tr.client = client.LocalAddr().String()

	go func() {
		defer close(tr.backends)
		if b, err := ln.Accept(); err == nil {
			tr.backends <- tr.runBackend(b.(*net.TCPConn))
		}
	}()
	c, err := tr.runClient(client, Line(tr.backend))
	if err != nil {
		return err
	}
	if tr.finale == clientHurries {
		return nil
	}
	return tr.check(c, <-tr.backends)
}

func (tr *trial) runClient(c *net.TCPConn, line string) (o outcome, err error) {
	if err := tr.request(c, line); err != nil {
		return o, fmt.Errorf("request: %w", err)
	}
	if tr.finale == clientHurries {
		o.writeEnd = tr.up.write(c, tr.early, max(tr.early, tr.cut))
		c.SetLinger(0)
		c.Close()
		return o, nil
	}
	answered := make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		status := make([]byte, len("200"))
		n, err := io.ReadFull(c, status)
		if string(status) != "200" {
			answered <- fmt.Errorf("answer %q: %w", status[:n], errors.Join(err, errors.New("want 200")))
			return
		}
		answered <- nil
		close(tr.stands)
		o.got, o.readEnd = tr.down.read(c)
	})
	if tr.wait || tr.finale == clientResets {
		if err := <-answered; err != nil {
			return o, err
		}
		answered <- nil
	}
	if tr.finale == clientResets {
		o.writeEnd = tr.up.write(c, tr.early, max(tr.early, tr.cut))
		c.SetLinger(0)
		c.Close()
	} else {
		o.writeEnd = tr.up.write(c, tr.early, len(tr.up.data))
		if tr.finale == bothFinish {
			c.CloseWrite()
		}
	}
	reading.Wait()
	return o, <-answered
}

// request sends the sealed line and the early bytes, at once or in pieces.
func (tr *trial) request(c *net.TCPConn, line string) error {
	text := append([]byte(line), tr.up.data[:tr.early]...)
	if tr.dribble {
		r := rand.New(rand.NewPCG(uint64(tr.seed), 0))
		for range 1 + r.IntN(4) {
			n := r.IntN(min(len(text), len(line)+10))
			if _, err := c.Write(text[:n]); err != nil {
				return err
			}
			text = text[n:]
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		}
	}
	_, err := c.Write(text)
	return err
}

func (tr *trial) runBackend(c *net.TCPConn) (o outcome) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * Patience))
	if (tr.finale == backendResets || tr.finale == backendDelivers) && !tr.hasty {
		<-tr.stands
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		switch tr.finale {
		default:
			if o.writeEnd = tr.down.write(c, 0, len(tr.down.data)); o.writeEnd == nil {
				c.CloseWrite()
			}
		case backendResets:
			o.writeEnd = tr.down.write(c, 0, tr.cut)
			c.SetLinger(0)
			c.Close()
		case backendDelivers:
			if o.writeEnd = tr.down.write(c, 0, len(tr.down.data)); o.writeEnd == nil {
				o.writeEnd = allTaken(c)
			}
			c.SetLinger(0)
			c.Close()
		}
	})
	o.got, o.readEnd = tr.up.read(c)
	writing.Wait()
	return o
}

// allTaken waits until the peer's kernel has all that was written to c.
func allTaken(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(Patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if n, ok := unacked(raw); !ok || n == 0 {
			return nil
		}
	}
	return errors.New("not everything was taken")
}

// check compares what became of both ends with what should have.
func (tr *trial) check(c, b outcome) error {
	for _, err := range []error{c.readEnd, b.readEnd} {
		// A deadline that passed, or bytes that are others.
		if err != nil && !IsReset(err) && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("client: %v; backend: %v", c, b)
		}
	}
	clientWhole := c.got == len(tr.down.data) && c.readEnd == nil && c.writeEnd == nil
	backendWhole := b.got == len(tr.up.data) && b.readEnd == nil && b.writeEnd == nil
	ok := true
	switch tr.finale {
	case bothFinish:
		ok = clientWhole && backendWhole
	case clientResets:
		// The kernel tells of a reset once: the reader or the writer.
		ok = IsReset(b.readEnd) || IsReset(b.writeEnd)
	case backendResets:
		ok = errors.Is(b.readEnd, net.ErrClosed) || b.got <= len(tr.up.data)
	case backendDelivers:
		// What the client still sends may meet a connection that has ended.
		ok = c.got == len(tr.down.data) && c.readEnd == nil
	}
	if !ok {
		return fmt.Errorf("client: %v; backend: %v", c, b)
	}
	return nil
}

// checkAccount checks the tunnel's line in the log.
func (tr *trial) checkAccount(line map[string]any) error {
	want := map[string]any{}
	switch tr.finale {
	case clientHurries:
		return nil
	case bothFinish:
		want = map[string]any{"up": float64(len(tr.up.data)), "down": float64(len(tr.down.data)), "how": "fin"}
	case clientResets:
		want = map[string]any{"ended_by": "client", "how": "reset"}
	case backendResets:
		want = map[string]any{"ended_by": "backend", "how": "reset"}
	case backendDelivers:
		want = map[string]any{"down": float64(len(tr.down.data)), "ended_by": "backend", "how": "reset"}
	}
	for key, value := range want {
		if line[key] != value {
			return fmt.Errorf("account %v, want %v", line, want)
		}
	}
	return nil
}
