// Package tunnel connects to a backend through a gateway, by a tunnel that outlives the
// connections that carry it: when the network changes, the tunnel is resumed by another
// connection, through the same gateway or another one, and neither the application nor
// the backend notices. No byte is lost or doubled.
//
//	d := tunnel.Dialer{Gateways: []string{"gateway.example:8000"}}
//	conn, err := d.Dial(ctx, sealedAddress)
//
// A gateway that does not resume tunnels gets a plain one.
package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"gateway/clients/go/internal/resume"
	"gateway/clients/go/internal/resume/stream"
)

// Dialer says how tunnels are opened and resumed. It must not change while one is open.
type Dialer struct {
	// Gateways are addresses, host:port, that are tried in turn: at least one.
	Gateways []string

	// DialContext connects to a gateway; nil: by TCP. With a TLS dialer's, a
	// WebSocket's or KCP's, tunnels go that way. What it returns carries bytes.
	DialContext func(ctx context.Context, address string) (net.Conn, error)

	// NewLine is called with the error where a new sealed address may help, since lines
	// expire; it returns one, with which Dial tries once more, or "". May be nil.
	NewLine func(ctx context.Context, err error) (string, error)

	// Plain asks for no more than a plain tunnel.
	Plain bool

	// Timeout bounds an attempt to reach a gateway and to get its answer; 0: 5 s.
	Timeout time.Duration

	// Hold is how long a lost tunnel is tried to be resumed, as the gateway's
	// -resume-hold; 0: 30 s.
	Hold time.Duration

	// Silence is after what silence the gateway is asked whether it is there, and
	// Patience how long it then has to answer, until the connection is taken for
	// lost; 0: 5 s and 3 s. A negative Silence never asks.
	Silence, Patience time.Duration

	// OnEvent is told what becomes of the tunnel; it must return soon. It is called
	// from one goroutine at a time. May be nil.
	OnEvent func(Event)
}

// EventKind is what has become of a tunnel.
type EventKind int

// The kinds of events.
const (
	// Reconnecting: the connection is gone, or was given up, and another one is
	// looked for. Err says why.
	Reconnecting EventKind = iota + 1
	// Back: the tunnel goes on, After the time that Event says, by Gateway.
	Back
	// Failed: an attempt has failed, and there will be another one. Err says why.
	Failed
	// Ended: the tunnel is over. Err is nil if both sides have finished, or this one
	// has closed it.
	Ended
)

func (k EventKind) String() string {
	return [...]string{"", "reconnecting", "back", "failed", "ended"}[k]
}

// Event tells a user interface what becomes of a tunnel.
type Event struct {
	Kind    EventKind
	Err     error
	After   time.Duration // since the connection was lost
	Gateway string
}

func orElse(d, other time.Duration) time.Duration {
	if d == 0 {
		return other
	}
	return d
}

func (d *Dialer) timeout() time.Duration { return orElse(d.Timeout, 5*time.Second) }
func (d *Dialer) hold() time.Duration    { return orElse(d.Hold, 30*time.Second) }

// Dial opens a tunnel to the backend whose sealed address, or token, is given. ctx
// bounds that, and not what comes after. The error is a StatusError if a gateway has
// refused; with several gateways, the last one's. AdviceOf says what to do about it.
func (d *Dialer) Dial(ctx context.Context, sealed string) (*Conn, error) {
	if len(d.Gateways) == 0 {
		return nil, errors.New("tunnel: no gateway to dial")
	}
	c, err := d.tryAll(ctx, sealed)
	if d.NewLine == nil || StatusOf(err) == 0 || ctx.Err() != nil {
		return c, err
	}
	fresh, failed := d.NewLine(ctx, err)
	if failed != nil {
		return nil, errors.Join(err, failed)
	}
	if fresh == "" {
		return nil, err
	}
	return d.tryAll(ctx, fresh)
}

// tryAll dials the gateways in turn.
func (d *Dialer) tryAll(ctx context.Context, sealed string) (*Conn, error) {
	var last error
	for at := range d.Gateways {
		c, err := d.open(ctx, at, sealed)
		if err == nil {
			return c, nil
		}
		last = err
		if ctx.Err() != nil || errors.Is(err, ErrUnauthorized) {
			break // the next one would say the same
		}
	}
	return nil, last
}

// open opens a tunnel through one gateway.
func (d *Dialer) open(ctx context.Context, at int, sealed string) (*Conn, error) {
	if !d.Plain {
		c, err := d.openResumable(ctx, at, sealed)
		// What does not know of sessions calls the request a bad address, or a
		// long one.
		if !errors.Is(err, ErrUnauthorized) && !errors.Is(err, ErrBadRequest) {
			return c, err
		}
	}
	conn, release, err := d.ask(ctx, at, append([]byte(sealed), '\n'))
	if err != nil {
		return nil, err
	}
	if release() {
		conn.Close()
		return nil, ctx.Err()
	}
	return &Conn{Conn: conn, dialer: d, plain: conn}, nil
}

func (d *Dialer) openResumable(ctx context.Context, at int, sealed string) (*Conn, error) {
	pair, err := resume.NewKeyPair()
	if err != nil {
		return nil, err
	}
	conn, release, err := d.ask(ctx, at, resume.AppendOpen(nil, pair.PublicKey().Bytes(), sealed))
	if err != nil {
		return nil, err
	}
	s := resume.NewClient()
	hello, err := readHello(conn, s)
	if err == nil {
		var key [32]byte
		if key, err = resume.ClientKey(pair, hello.Secret); err == nil {
			s.SetKey(key)
		}
	}
	if release() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Conn{dialer: d, ticket: hello.Ticket, at: at}
	c.stream = stream.New(s, stream.Options{Lost: c.lost, Ended: c.over})
	c.Conn = c.stream
	l := c.stream.Attach(conn, func() { cut(conn) })
	go c.stream.Carry(l, nil)
	if d.Silence >= 0 {
		c.watch()
	}
	return c, nil
}

// readHello reads up to the gateway's HELLO. What comes with it is in the session.
func readHello(conn net.Conn, s *resume.Session) (resume.Hello, error) {
	buf := make([]byte, 4<<10)
	for {
		n, err := conn.Read(buf)
		if s.Input(buf[:n]) != nil {
			return resume.Hello{}, errNotHere
		}
		if s.Greeted() {
			h, _ := s.Hello()
			return h, nil
		}
		if err != nil {
			return resume.Hello{}, err
		}
	}
}

// ask connects to a gateway, sends the request and reads the answer; the error is a
// StatusError if that is not 200. What is read next is still bounded; release ends that,
// and reports whether ctx has ended.
func (d *Dialer) ask(ctx context.Context, at int, request []byte) (conn net.Conn, release func() bool, err error) {
	deadline := time.Now().Add(d.timeout())
	conn, err = d.connect(ctx, at, deadline)
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	release = func() bool {
		ended := !stop()
		conn.SetDeadline(time.Time{})
		return ended
	}
	if _, err = conn.Write(request); err == nil {
		err = readStatus(conn)
	}
	if err != nil {
		if release() && ctx.Err() != nil {
			err = ctx.Err()
		}
		conn.Close()
		return nil, nil, err
	}
	return conn, release, nil
}

func (d *Dialer) connect(ctx context.Context, at int, deadline time.Time) (net.Conn, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	address := d.Gateways[at]
	if d.DialContext != nil {
		return d.DialContext(ctx, address)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// cut closes a connection without waiting for anything: TLS would wait for room for its
// last words, a WebSocket for an answer.
func cut(conn net.Conn) {
	layer := conn
	for {
		upper, ok := layer.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		layer = upper.NetConn()
	}
	if _, ok := layer.(*net.TCPConn); ok {
		layer.Close()
	} else {
		go conn.Close()
	}
}

func readStatus(conn net.Conn) error {
	var status [3]byte
	if _, err := io.ReadFull(conn, status[:]); err != nil {
		return err
	}
	if string(status[:]) != "200" {
		return StatusError(status[:])
	}
	return nil
}

// Conn is a tunnel. It is a net.Conn: Read and Write never see a change of networks,
// they only take longer. Its addresses are those of the connection that carries it.
type Conn struct {
	net.Conn
	dialer *Dialer
	stream *stream.Conn // nil: plain
	plain  net.Conn
	ticket string

	closing sync.Once
	events  sync.Mutex // held while OnEvent is called

	mu       sync.Mutex
	at       int // the gateway, of dialer.Gateways
	running  bool
	lostAt   time.Time
	hurry    chan struct{} // closed by Reconnect, while the tunnel is being resumed
	resumes  int
	watching *time.Timer
	attempts attempts
}

// Resumable tells whether the tunnel outlives its connection: not if the gateway does
// not resume tunnels.
func (c *Conn) Resumable() bool { return c.stream != nil }

// Resumes returns how often the tunnel has been resumed.
func (c *Conn) Resumes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resumes
}

// Done is closed when the tunnel is over; nil for a plain one.
func (c *Conn) Done() <-chan struct{} {
	if c.stream == nil {
		return nil
	}
	return c.stream.Done()
}

// Err returns why the tunnel is over, or nil.
func (c *Conn) Err() error {
	if c.stream == nil {
		return nil
	}
	return c.stream.Err()
}

// Reconnect gives up the connection and goes on by another one. It is for when the
// system tells that the network has changed: otherwise that is found out after some
// seconds. It does not wait.
func (c *Conn) Reconnect() {
	if c.stream == nil {
		return
	}
	c.mu.Lock()
	resuming := c.running
	if !resuming { // this is no failure to be spared
		c.attempts = attempts{}
	}
	c.mu.Unlock()
	c.stream.Cut(errReconnect)
	if !resuming {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hurry != nil { // an attempt that is under way goes by the old network
		close(c.hurry)
		c.hurry = nil
	}
}

// CloseWrite finishes writing; reading goes on.
func (c *Conn) CloseWrite() error {
	if c.stream != nil {
		return c.stream.CloseWrite()
	}
	if w, ok := c.plain.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// closeTime is how long a closed tunnel has for the backend to finish too.
const closeTime = 2 * time.Second

// Close ends the tunnel; what was written still arrives. It does not wait.
func (c *Conn) Close() error {
	if c.stream == nil {
		return c.plain.Close()
	}
	err := net.ErrClosed
	c.closing.Do(func() {
		err = nil
		c.stream.CloseWrite()
		c.stream.Discard()
		time.AfterFunc(closeTime, func() { c.stream.AbortFor(resume.ByApplication) })
	})
	return err
}

// Abort ends the tunnel at once: the backend sees a reset.
func (c *Conn) Abort() {
	if c.stream == nil {
		if l, ok := c.plain.(interface{ SetLinger(int) error }); ok {
			l.SetLinger(0)
		}
		c.plain.Close()
		return
	}
	c.stream.AbortFor(resume.ByApplication)
}
