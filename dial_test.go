package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/handshake"
	"gateway/internal/policy"
)

// DNS response codes (RFC 1035 section 4.1.1).
const (
	noError    = 0
	serverFail = 2
	noSuchName = 3
)

// answer makes a DNS response to a query of one question: a code and, for
// questions of type A, the IPv4 addresses.
func answer(query []byte, code byte, addrs ...string) []byte {
	question := query[12:]
	for question[0] != 0 { // labels
		question = question[1+question[0]:]
	}
	qtype := binary.BigEndian.Uint16(question[1:])
	end := len(query) - len(question) + 5

	msg := append([]byte(nil), query[:end]...)
	msg[2], msg[3] = 0x84, code // a response, authoritative
	binary.BigEndian.PutUint16(msg[8:], 0)
	binary.BigEndian.PutUint16(msg[10:], 0)
	if qtype != 1 {
		addrs = nil
	}
	binary.BigEndian.PutUint16(msg[6:], uint16(len(addrs)))
	for _, a := range addrs {
		ip := netip.MustParseAddr(a).As4()
		msg = append(msg, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4) // the name, A, IN, 60 s
		msg = append(msg, ip[:]...)
	}
	return msg
}

// resolver returns a resolver that asks a DNS server of its own on 127.0.0.1;
// respond makes its answers, nil for none.
func resolver(t testing.TB, respond func(query []byte) []byte) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			if msg := respond(buf[:n]); msg != nil {
				server.WriteTo(msg, from)
			}
		}
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

func TestDialErrorsHaveTheirStatusAndReason(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, tt := range []struct {
		err    error
		status handshake.Status
		reason string
	}{
		{op(syscall.ECONNREFUSED), "502", "refused"},
		{op(syscall.ENETUNREACH), "502", "unreachable"},
		{op(syscall.EHOSTUNREACH), "502", "unreachable"},
		{op(syscall.EMFILE), "502", "no_descriptors"},
		{op(syscall.ENFILE), "502", "no_descriptors"},
		{op(syscall.EADDRNOTAVAIL), "502", "no_local_port"},
		{op(syscall.EACCES), "502", "connect_failed"},
		{op(syscall.ETIMEDOUT), "504", "timeout"},
		{os.ErrDeadlineExceeded, "504", "timeout"},
		{context.DeadlineExceeded, "504", "timeout"},
		{&net.DNSError{IsNotFound: true}, "502", "unknown_host"},
		{&net.DNSError{}, "502", "lookup_failed"},
		{&net.DNSError{IsTimeout: true}, "504", "timeout"},
		{errors.New("anything"), "502", "connect_failed"},
	} {
		if got := dialFailure(tt.err); got.status != tt.status || got.reason != tt.reason {
			t.Errorf("%v: %s %s, want %s %s", tt.err, got.status, got.reason, tt.status, tt.reason)
		}
	}
}

func TestANameIsDialedAtEachOfItsAddresses(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.3:0")
	if err != nil {
		t.Skip("no 127.0.0.3 here: ", err)
	}
	defer ln.Close()
	d := &dialer{resolver: resolver(t, func(q []byte) []byte {
		return answer(q, noError, "127.0.0.2", "127.0.0.3")
	})}
	addr := parseAddr(t, "game.test:1")
	addr.Port = netip.MustParseAddrPort(ln.Addr().String()).Port()
	conn, err := d.dial(context.Background(), anywhere(patience), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != ln.Addr().String() {
		t.Errorf("connected to %s", got)
	}
}

func TestAServerThatCannotAnswerIsABadGateway(t *testing.T) {
	d := &dialer{resolver: resolver(t, func(q []byte) []byte {
		return answer(q, serverFail)
	})}
	_, err := d.dial(context.Background(), anywhere(patience), parseAddr(t, "game.test:1"))
	if statusOf(err) != handshake.BadGateway {
		t.Errorf("%s (%v), want 502", statusOf(err), err)
	}
}

func TestASilentNameServerIsATimeOutWithinRetryTimesTimeout(t *testing.T) {
	t.Parallel()
	const timeout, attempts = 150 * time.Millisecond, 3
	g := startGateway(t, func(g *Gateway) {
		g.rules.Load().attempts, g.rules.Load().timeout = attempts, timeout
		g.dialer.resolver = resolver(t, func([]byte) []byte { return nil })
	})
	start := time.Now()
	_, err := g.dialer.connect(context.Background(), g.rules.Load(), &session{}, &upstream{}, parseRoute(t, "game.test:1"))
	if statusOf(err) != handshake.GatewayTimeout {
		t.Errorf("%s (%v), want 504", statusOf(err), err)
	}
	if took := time.Since(start); took < attempts*timeout || took > attempts*timeout+2*time.Second {
		t.Errorf("took %v, want %v", took, attempts*timeout)
	}
}

func TestARefusalIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	asked := 0
	g := startGateway(t, func(g *Gateway) {
		g.rules.Load().attempts = 5
		g.dialer.resolver = resolver(t, func(q []byte) []byte {
			if q[len(q)-1] == 1 {
				asked++
			}
			return answer(q, noSuchName)
		})
	})
	g.dialer.connect(context.Background(), g.rules.Load(), &session{}, &upstream{}, parseRoute(t, "game.test:1"))
	first := asked
	asked = 0
	g.rules.Load().attempts = 1
	g.dialer.connect(context.Background(), g.rules.Load(), &session{}, &upstream{}, parseRoute(t, "game.test:1"))
	if first != asked {
		t.Errorf("%d queries with 5 attempts, %d with 1", first, asked)
	}
}

// anywhere are rules that permit what is usual, for one attempt.
func anywhere(timeout time.Duration) *rules {
	return &rules{policy: policy.New(nil, nil), attempts: 1, timeout: timeout}
}

type fixedNames []netip.Addr

func (n fixedNames) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) { return n, nil }

func TestEachAddressOfANameHasAllTheTimeThatIsLeft(t *testing.T) {
	t.Parallel()
	d := &dialer{}
	// Nobody listens on the first three, and they refuse at once.
	d.resolver = fixedNames{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3"),
		netip.MustParseAddr("127.0.0.4"), netip.MustParseAddr("127.0.0.1")}
	dialed := make(chan time.Duration, 4) // by attempts that run side by side
	d.base.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		deadline, _ := ctx.Deadline()
		dialed <- time.Until(deadline).Round(5 * time.Minute)
		return nil
	}
	addr, _ := address.Parse("several.test:" + portOf(startEcho(t)))
	c, err := d.dial(t.Context(), anywhere(time.Hour), addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for range 4 {
		if left := <-dialed; left != time.Hour {
			t.Errorf("an address got %v of an hour", left)
		}
	}
}

// slowNames knows some addresses of a name at once, and others once late is
// closed.
type slowNames struct {
	fixedNames
	rest []netip.Addr
	late chan struct{}
}

func (n slowNames) AddressesAndLate(context.Context, string) ([]netip.Addr, <-chan []netip.Addr, error) {
	rest := make(chan []netip.Addr, 1)
	go func() {
		<-n.late
		rest <- n.rest
		close(rest)
	}()
	return n.fixedNames, rest, nil
}

func TestAddressesThatComeLateJoinTheDial(t *testing.T) {
	t.Parallel()
	names := slowNames{fixedNames{netip.MustParseAddr("127.0.0.2")}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, make(chan struct{})}
	d := &dialer{resolver: names}
	var first sync.Once
	d.base.Control = func(string, string, syscall.RawConn) error {
		first.Do(func() { close(names.late) }) // nobody listens there
		return nil
	}
	addr, _ := address.Parse("late.test:" + portOf(startEcho(t)))
	c, err := d.dial(t.Context(), anywhere(time.Hour), addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestWhatIsDeniedTellsLessThanAnyAttempt(t *testing.T) {
	r := anywhere(patience)
	var deny []policy.Rule
	for _, ip := range []string{"127.0.0.3", "127.0.0.4"} {
		rule, err := policy.ParseRule(ip)
		if err != nil {
			t.Fatal(err)
		}
		deny = append(deny, rule)
	}
	r.policy = policy.New(nil, deny)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := portOf(ln.Addr().String())
	ln.Close() // nobody listens there
	for host, want := range map[string]string{"127.0.0.3": "denied", "127.0.0.2": "refused", "several.test": "refused", "denied.test": "denied"} {
		d := &dialer{resolver: fixedNames{netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.4")}}
		if host == "denied.test" {
			d.resolver = fixedNames{netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("127.0.0.4")}
		}
		_, err := d.dial(t.Context(), r, parseAddr(t, host+":"+port))
		if got := refusalOf(err); got.reason != want {
			t.Errorf("%s: %v, want %s", host, err, want)
		}
	}
}

func TestDeniedAddressesTakeNoTimeFromTheOthers(t *testing.T) {
	t.Parallel()
	r := anywhere(time.Hour)
	loopback, err := policy.ParseRule("127.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	r.policy = policy.New([]policy.Rule{loopback}, nil)
	d := &dialer{}
	d.resolver = fixedNames(slices.Concat([]netip.Addr{netip.MustParseAddr("127.0.0.1")},
		slices.Repeat([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, 99)))
	var share time.Duration
	ctx := context.Background()
	d.base.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		deadline, _ := ctx.Deadline()
		share = time.Until(deadline)
		return nil
	}
	addr, _ := address.Parse("several.test:" + portOf(startEcho(t)))
	c, err := d.dial(ctx, r, addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if share < 59*time.Minute {
		t.Errorf("the one allowed address got %v of an hour", share)
	}
}

// What a choice of target leaves behind: nothing.

// occupy puts a connection's weight on the first target of a route until the test
// ends, and returns the route's group.
func occupy(t testing.TB, g *testGateway, route string) *balance.Group {
	t.Helper()
	group := g.rules.Load().routes.Group(parseRoute(t, route), balanceClock())
	attempt := group.Start(netip.Addr{})
	if addr, _ := attempt.Next(balanceClock()); !strings.HasPrefix(route, addr.String()) {
		t.Fatalf("the first pick of %s is %s", route, addr)
	}
	t.Cleanup(attempt.Release)
	return group
}

// picks returns the port of the target that a client would get.
func picks(group *balance.Group) string {
	attempt := group.Start(netip.Addr{})
	defer attempt.Release()
	addr, _ := attempt.Next(balanceClock())
	return portOf(addr.HostPort())
}

// wantIdle waits until nothing counts against the second target of a route
// whose first is occupied. (The log is written a moment before.) Of equals, two
// picks in a row would be different ones.
func wantIdle(t testing.TB, group *balance.Group, second string) {
	t.Helper()
	port := portOf(second)
	eventually(t, second+" has no connection", func() bool {
		one, next := picks(group), picks(group)
		return one == port && next == port
	})
}

func TestASingleTargetCostsNoTableEntry(t *testing.T) {
	g := startConfigured(t, func(cfg *Config) { cfg.Balance = balance.LeastConn }, nil)
	entries := func() (n int) {
		buckets := reflect.ValueOf(g.rules.Load().routes).Elem().FieldByName("buckets")
		for i := range buckets.Len() {
			for j := range buckets.Index(i).Len() {
				if !buckets.Index(i).Index(j).FieldByName("v").IsNil() {
					n++
				}
			}
		}
		return n
	}
	for route, want := range map[string]int{"127.0.0.1:4000": 0, "game.test:4000": 0, "127.0.0.1:4000*7": 0, "http://game.test:4000": 0,
		"127.0.0.1:4000,127.0.0.1:4001": 1} {
		r := parseRoute(t, route)
		s, u := session{}, upstream{}
		before := entries()
		if err := u.choose(t.Context(), g.rules.Load(), &s, r); err != nil || u.backend != r.Target(0).Addr {
			t.Errorf("%s: chose %s, %v", route, u.backend, err)
		}
		u.release()
		if got := entries() - before; got != want {
			t.Errorf("%s: %d entries, want %d", route, got, want)
		}
		if allocs := testing.AllocsPerRun(100, func() { u.choose(t.Context(), g.rules.Load(), &s, r) }); want == 0 && allocs > 0 {
			t.Errorf("%s: %v allocations", route, allocs)
		}
	}
}
