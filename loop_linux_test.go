package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gateway/internal/token"
)

// The loops from within: what cannot be seen, or not be brought about, from
// the two ends of a tunnel.

// inLoop runs f in a loop's thread: nobody else may touch what is a loop's.
func inLoop(t testing.TB, l *loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.send(func() { defer close(done); f() }) {
		t.Fatal("the loop has ended")
	}
	<-done
}

// startLoops starts a gateway with n loops.
func startLoops(t testing.TB, n int, configure func(*Config)) *testGateway {
	t.Helper()
	return startConfigured(t, func(cfg *Config) {
		cfg.Loops = n
		if configure != nil {
			configure(cfg)
		}
	}, nil)
}

// look waits until a client's connection is in a loop and runs f for it there.
func look(t testing.TB, g *testGateway, client net.Conn, f func(*loop, *tunnel)) {
	t.Helper()
	eventually(t, "the connection is in a loop", func() (found bool) {
		for _, l := range g.loops.all {
			inLoop(t, l, func() {
				for _, s := range l.table {
					if s.state != stateFree && s.session.client == addrOf(client) {
						found = true
						f(l, s)
					}
				}
			})
		}
		return found
	})
}

func addrOf(c net.Conn) netip.AddrPort { return netip.MustParseAddrPort(c.LocalAddr().String()) }

// reaches waits until a client's connection is in a state.
func reaches(t testing.TB, g *testGateway, client net.Conn, state tunnelState) {
	t.Helper()
	eventually(t, fmt.Sprint("the connection is in state ", state), func() (is bool) {
		look(t, g, client, func(_ *loop, s *tunnel) { is = s.state == state })
		return is
	})
}

// hold keeps a loop from doing anything until the returned function is called.
func hold(t testing.TB, l *loop) (release func()) {
	t.Helper()
	held, gate := make(chan struct{}), make(chan struct{})
	l.send(func() { close(held); <-gate })
	<-held
	return func() { close(gate) }
}

// wantAtRest waits until the loops of a gateway have no connection left,
// checks that they are as good as new, and returns how many pipes they keep.
func wantAtRest(t testing.TB, g *testGateway) (pipes int) {
	t.Helper()
	for i, l := range g.loops.all {
		eventually(t, "the loop has no connection", func() (rests bool) {
			inLoop(t, l, func() { rests = len(l.free) == len(l.table) && l.load.Load() == 0 && len(l.todo) == 0 })
			return rests
		})
		inLoop(t, l, func() {
			free := make(map[uint32]bool)
			for _, slot := range l.free {
				if free[slot] {
					t.Errorf("loop %d: slot %d is free twice", i, slot)
				}
				free[slot] = true
			}
			for _, s := range l.table {
				if s.state != stateFree || s.flows[0].pipe != nil || s.flows[1].pipe != nil {
					t.Errorf("loop %d: slot %d is free, but %+v", i, s.slot, s)
				}
			}
			if l.sweepable != 0 || l.pausedListeners != 0 {
				t.Errorf("loop %d: %d tunnels to sweep, %d paused listeners", i, l.sweepable, l.pausedListeners)
			}
			if n := len(l.pipes.idle); n > maxIdlePipes {
				t.Errorf("loop %d keeps %d pipes", i, n)
			}
			pipes += len(l.pipes.idle)
		})
	}
	if made := int(g.loops.pipes.Load()); made != pipes {
		t.Errorf("%d pipes, of which %d are idle", made, pipes)
	}
	return pipes
}

func TestAnEventOfASlotsFormerOwnerIsIgnored(t *testing.T) {
	g := startLoops(t, 1, func(cfg *Config) { cfg.Timeout = time.Hour })
	c := connect(t, g.addr)
	send(t, c, sealed(t, blackhole(t, "127.0.0.1", 0).String()))
	reaches(t, g, c, stateDial)
	look(t, g, c, func(l *loop, s *tunnel) {
		// To a backend that is dialed it would read "connected".
		stale := unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(s.slot<<1) | backendSide, Pad: int32(s.generation) - 1}
		l.dispatch(&stale)
		if s.state != stateDial || s.sockets[backendSide].writable {
			t.Errorf("it was taken for its own: %+v", s)
		}
	})
	c.SetLinger(0)
	c.Close()
	wantAtRest(t, g)
	inLoop(t, g.loops.all[0], func() {
		l := g.loops.all[0]
		for _, s := range l.table { // slots that are nobody's
			for side := range int32(2) {
				l.dispatch(&unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLHUP, Fd: int32(s.slot<<1) | side, Pad: int32(s.generation)})
			}
		}
	})
	wantAtRest(t, g)
	if got := g.log.lines("panic"); len(got) > 0 {
		t.Error(got)
	}
}

func TestDeadlinesExpireInOrderAndOnlyWhileTheyHold(t *testing.T) {
	d := deadlines{after: 100}
	tunnels := make([]*tunnel, 5)
	for i := range tunnels {
		tunnels[i] = &tunnel{slot: uint32(i), state: stateDial}
		d.set(tunnels[i], int64(i*10))
	}
	tunnels[1].state = stateOpen // moved on
	tunnels[3].generation++      // released, and a new one
	var got []string
	for now := int64(0); now <= 200; now++ {
		for {
			s, at := d.due(now)
			if s == nil {
				break
			}
			got = append(got, fmt.Sprint(s.slot, " at ", now))
			if at != now || s.deadline != at {
				t.Errorf("%d: due at %d, not at %d (%d)", s.slot, now, at, s.deadline)
			}
		}
	}
	if want := "[0 at 100 2 at 120 4 at 140]"; fmt.Sprint(got) != want {
		t.Errorf("due: %v, want %v", got, want)
	}
	if !d.empty() {
		t.Errorf("%d entries stay", len(d.queue))
	}
}

func TestADeadlineThatIsSetAgainReplacesTheFirst(t *testing.T) {
	d := deadlines{after: 100}
	s := &tunnel{state: stateDial}
	d.set(s, 0)
	d.set(s, 50)
	if due, at := d.due(100); due != s || at == s.deadline {
		t.Errorf("the first entry: %v at %d, deadline %d", due, at, s.deadline)
	}
	if due, at := d.due(149); due != nil {
		t.Errorf("due at %d already", at)
	}
	if due, at := d.due(150); due != s || at != s.deadline {
		t.Errorf("the second entry: %v at %d, deadline %d", due, at, s.deadline)
	}
}

func TestDeadlinesThatDoNotHoldTakeNoMemory(t *testing.T) {
	d := deadlines{after: 3e9}
	s := &tunnel{}
	for now := range int64(1e6) {
		s.generation++
		s.state = stateDial
		d.set(s, now)
		s.state = stateOpen
		if len(d.queue) > 1 || cap(d.queue) > 64 {
			t.Fatalf("%d entries in an array of %d after %d connections", len(d.queue), cap(d.queue), now+1)
		}
	}
}

func TestPipesAreFewAndNeverLentWithBytesInThem(t *testing.T) {
	var made atomic.Int32
	pool := pipePool{made: &made, max: maxPipes, maxIdle: maxIdlePipes}
	before := openDescriptors()
	made.Store(maxPipes - 2)
	a, b := pool.get(), pool.get()
	if a == nil || b == nil {
		t.Fatal("there are pipes left")
	}
	if c := pool.get(); c != nil || made.Load() != maxPipes {
		t.Errorf("one pipe too many, %d counted", made.Load())
	}
	if a.size < minPipeSize || a.size > pipeSize {
		t.Errorf("a pipe of %d bytes", a.size)
	}
	unix.Write(a.w, []byte("another tunnel's"))
	pool.put(a, false)
	if made.Load() != maxPipes-1 || len(pool.idle) != 0 {
		t.Errorf("a pipe with bytes in it was kept: %d counted", made.Load())
	}
	pool.put(b, true)
	if got := pool.get(); got != b {
		t.Error("an empty pipe is not lent again")
	}
	pool.put(b, true)

	made.Store(1)
	var lent []*pipe
	for range maxIdlePipes + 3 {
		lent = append(lent, pool.get())
	}
	for _, p := range lent {
		pool.put(p, true)
	}
	if len(pool.idle) != maxIdlePipes || made.Load() != maxIdlePipes {
		t.Errorf("%d pipes are kept, %d counted, want %d", len(pool.idle), made.Load(), maxIdlePipes)
	}
	pool.closeIdle()
	if n := openDescriptors(); made.Load() != 0 || n != before {
		t.Errorf("%d pipes are counted, %d descriptors open, %d before", made.Load(), n, before)
	}
}

// bulk sends size bytes through a tunnel and back, and returns how many of
// them the gateway spliced and how many it copied.
func bulk(t testing.TB, g *testGateway, backend string, size int) (spliced, copied int64) {
	t.Helper()
	s0, c0 := g.relay.moved()
	c := openTunnel(t, g.addr, backend)
	text := string(noise(1, size))
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, text)
		c.CloseWrite()
		sent <- err
	}()
	expectAll(t, c, text)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	eventually(t, "all is counted", func() bool {
		spliced, copied = g.relay.moved()
		spliced, copied = spliced-s0, copied-c0
		return spliced+copied >= int64(2*size)
	})
	if spliced+copied != int64(2*size) {
		t.Errorf("%d bytes spliced and %d copied of %d", spliced, copied, 2*size)
	}
	return spliced, copied
}

func TestTheCountersTellSplicedFromCopied(t *testing.T) {
	const size = 8 << 20
	for _, splice := range []bool{true, false} {
		g := startLoops(t, 1, func(cfg *Config) { cfg.Splice = splice })
		backend := startEcho(t)
		spliced, copied := bulk(t, g, backend, size)
		if splice && spliced < size || !splice && spliced != 0 {
			t.Errorf("with -splice=%v %d bytes were spliced, %d copied", splice, spliced, copied)
		}
		if spliced, _ := bulk(t, g, backend, 1000); spliced != 0 {
			t.Errorf("%d bytes of a message were spliced", spliced)
		}
	}
}

func TestWithoutAPipeTunnelsCopy(t *testing.T) {
	g := startLoops(t, 1, nil)
	backend := startEcho(t)
	g.loops.pipes.Add(maxPipes)
	if spliced, _ := bulk(t, g, backend, 4<<20); spliced != 0 {
		t.Errorf("%d bytes were spliced", spliced)
	}
	g.loops.pipes.Add(-maxPipes)
	if spliced, _ := bulk(t, g, backend, 4<<20); spliced == 0 {
		t.Error("with pipes to be had again, nothing was spliced")
	}
	wantAtRest(t, g)
}

func TestWhereSpliceIsRefusedTunnelsCopy(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EINVAL} {
		g := startLoops(t, 1, nil)
		var err error
		inLoop(t, g.loops.all[0], func() { err = refuseSplice(errno) }) // for this thread, which ends with its loop
		if err != nil {
			t.Skip("no seccomp here: ", err)
		}
		if spliced, _ := bulk(t, g, startEcho(t), 4<<20); spliced != 0 {
			t.Errorf("%d bytes were spliced", spliced)
		}
		wantAtRest(t, g)
	}
}

// refuseSplice has splice(2) fail in the calling thread from now on, as a
// sandbox does.
func refuseSplice(errno unix.Errno) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_SPLICE},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

func TestRoomIsAskedForOnlyOnceThereWasNone(t *testing.T) {
	g := startLoops(t, 1, nil)
	wants := func(c net.Conn) (wants bool) {
		t.Helper()
		look(t, g, c, func(_ *loop, s *tunnel) { wants = s.sockets[clientSide].wantOut })
		return wants
	}
	c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
		io.CopyN(b, b, 5)
		b.Write(make([]byte, 64<<20)) // more than the client takes
	}))
	for _, part := range []string{"he", "llo"} {
		send(t, c, part)
		expect(t, c, part)
		if part == "he" && wants(c) {
			t.Error("EPOLLOUT was asked for, though there always was room")
		}
	}
	eventually(t, "EPOLLOUT is asked for", func() bool { return wants(c) })
	expectAll(t, c, string(make([]byte, 64<<20)))
}

func TestBothSocketsOfATunnelHaveTheirOptions(t *testing.T) {
	type option struct {
		name       string
		level, opt int
	}
	options := []option{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	}
	all := "TCP_NODELAY=1 SO_KEEPALIVE=1 TCP_KEEPIDLE=21 TCP_KEEPINTVL=7 TCP_KEEPCNT=3 TCP_USER_TIMEOUT=12345"
	for _, tt := range []struct {
		name                   string
		keepalive, userTimeout time.Duration
		want                   string // of all options; those of keepalive only where it is on
	}{
		{"all", 21 * time.Second, 12345 * time.Millisecond, all},
		{"no keepalive", 0, 0, "TCP_NODELAY=1 SO_KEEPALIVE=0 TCP_USER_TIMEOUT=0"},
		{"less than a second", 300 * time.Millisecond, 0,
			"TCP_NODELAY=1 SO_KEEPALIVE=1 TCP_KEEPIDLE=1 TCP_KEEPINTVL=1 TCP_KEEPCNT=3 TCP_USER_TIMEOUT=0"},
	} {
		g := startConfigured(t, func(cfg *Config) {
			cfg.Keepalive, cfg.UserTimeout = tt.keepalive, tt.userTimeout
			cfg.HalfCloseTimeout = 100 * time.Millisecond // has the sweep come soon
		}, func(g *Gateway) {
			g.dialer.resolver = resolver(t, func(query []byte) []byte { return answer(query, noError, "127.0.0.1") })
		})
		backend := startEcho(t)
		_, port, _ := net.SplitHostPort(backend)
		for way, request := range map[string][]string{
			"at once":   {sealed(t, backend)},
			"a name":    {sealed(t, "game.test:"+port)},
			"in pieces": {sealed(t, backend)[:10], sealed(t, backend)},
		} {
			t.Run(tt.name+", "+way, func(t *testing.T) {
				c := connect(t, g.addr)
				if len(request) == 2 {
					send(t, c, request[0])
					delivered(t, c)
					request = []string{request[1][10:]}
					c.Close() // another line has another salt
					c = connect(t, g.addr)
					line := sealed(t, backend)
					send(t, c, line[:10])
					delivered(t, c)
					request = []string{line[10:]}
				}
				send(t, c, request[0])
				expect(t, c, "200")
				for side, name := range []string{"client", "backend"} {
					var got string
					defer func() {
						if t.Failed() {
							t.Logf("the %s's: %s", name, got)
						}
					}()
					eventually(t, "the "+name+"'s socket has "+tt.want, func() bool {
						look(t, g, c, func(_ *loop, s *tunnel) {
							var values []string
							fd := int(s.sockets[side].fd)
							for _, o := range options {
								v, err := unix.GetsockoptInt(fd, o.level, o.opt)
								if err != nil {
									t.Errorf("%s: %v", o.name, err)
								}
								if tt.keepalive > 0 || !strings.HasPrefix(o.name, "TCP_KEEP") {
									values = append(values, fmt.Sprintf("%s=%d", o.name, v))
								}
							}
							got = strings.Join(values, " ")
							if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
								t.Errorf("the %s's socket stays open in a child process", name)
							}
							if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
								t.Errorf("the %s's socket blocks", name)
							}
						})
						return got == tt.want
					})
				}
			})
		}
	}
}

// enterNetwork moves the calling thread into an empty network of its own, with
// few local ports for the kernel to pick.
func enterNetwork(ports string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	return setLocalPorts(ports)
}

func setLocalPorts(ports string) error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0)
}

// connectOnce connects to a port of 127.0.0.1, from a port that the kernel
// picks or from a given one, and returns the socket and its own port.
func connectOnce(from, to int) (fd, port int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}
	local := &unix.SockaddrInet4{Port: from, Addr: [4]byte{127, 0, 0, 1}}
	if from != 0 {
		err = unix.Bind(fd, local)
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: to, Addr: local.Addr})
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, err
	}
	return fd, sa.(*unix.SockaddrInet4).Port, nil
}

// Without somebody who listens there, a socket may meet itself: the port that
// it dials is one that the kernel may give it.
func TestNoTunnelLeadsToItself(t *testing.T) {
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
	var err error
	var fd, own int
	inLoop(t, l, func() { // the thread ends with its loop
		if err = enterNetwork("40000 40001"); err == nil {
			fd, own, err = connectOnce(0, 40000)
		}
	})
	if err != nil {
		t.Skip("no network of our own, or none where sockets meet themselves: ", err)
	}
	defer unix.Close(fd)
	if own != 40000 {
		t.Fatalf("connected from port %d", own)
	}
	// A port that was joined to itself is not to be had again for a while.
	const rounds = 20
	for i := range rounds {
		port := 40002 + 2*i
		inLoop(t, l, func() { err = setLocalPorts(fmt.Sprint(port, port+1)) })
		if err != nil {
			t.Fatal(err)
		}
		c := connect(t, g.addr)
		send(t, c, sealed(t, fmt.Sprint("127.0.0.1:", port))+"hello")
		expectAll(t, c, "502")
		c.Close()
	}
	g.log.waitLine(t, "refused", rounds)
	for _, line := range g.log.lines("refused") {
		if line["reason"] != "refused" { // from the second port
			t.Errorf("refused: %v", line)
		}
	}
	wantAtRest(t, g)
}

func TestWithoutALocalPortTheClientIsTold(t *testing.T) {
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
	var err error
	var ln, only int
	inLoop(t, l, func() {
		if err = enterNetwork("40000 40000"); err != nil {
			return
		}
		if ln, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		unix.Bind(ln, &unix.SockaddrInet4{Port: 50000, Addr: [4]byte{127, 0, 0, 1}})
		unix.Listen(ln, 10)
		only, _, err = connectOnce(0, 50000)
	})
	if err != nil {
		t.Skip("no network of our own: ", err)
	}
	defer unix.Close(ln)
	defer unix.Close(only)
	c := connect(t, g.addr)
	send(t, c, sealed(t, "127.0.0.1:50000"))
	expectAll(t, c, "502")
	if line := g.log.waitLine(t, "refused", 1); line["reason"] != "no_local_port" {
		t.Errorf("refused: %v", line)
	}
	c.Close()
	wantAtRest(t, g)
}

func TestASocketThatMetItselfIsRecognized(t *testing.T) {
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
	var fd, port int
	for range 100 { // until a port is free
		port = int(g.loops.firstLocalPort) + rand.IntN(1000)
		var err error
		if fd, _, err = connectOnce(port, port); err == nil {
			defer unix.Close(fd)
			break
		}
		fd = -1
	}
	if fd < 0 {
		t.Skip("this kernel joins no socket to itself")
	}
	s := &tunnel{}
	s.sockets[backendSide].fd = int32(fd)
	for addr, want := range map[string]bool{
		fmt.Sprint("127.0.0.1:", port):          true,
		fmt.Sprint("[::ffff:127.0.0.1]:", port): true,
		fmt.Sprint("0.0.0.0:", port):            true, // this host too
		fmt.Sprint("127.0.0.1:", port+1):        false,
		"127.0.0.1:80":                          false,
	} {
		s.session.backend = mustParse(t, addr)
		if got := l.isSelfConnect(s); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// accepted returns a connection, as its client and as a descriptor that a loop
// may own.
func accepted(t testing.TB) (client *net.TCPConn, fd int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client = connect(t, ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if fd, err = dupConn(c.(*net.TCPConn)); err != nil {
		t.Fatal(err)
	}
	return client, fd
}

// A loop that has much to do sees a backend's connect late, and it may be over
// by then.
func TestABackendThatIsGoneBeforeItsConnectIsSeenStillDelivers(t *testing.T) {
	for _, end := range []string{"closes", "resets"} {
		for _, early := range []string{"", "early"} {
			t.Run(fmt.Sprintf("%s, %d early bytes", end, len(early)), func(t *testing.T) {
				g := startLoops(t, 1, nil)
				l := g.loops.all[0]
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				c, fd := accepted(t)
				send(t, c, sealed(t, ln.Addr().String())+early)
				delivered(t, c)
				l.load.Add(1)
				g.serving.Add(1)
				inLoop(t, l, func() {
					l.begin(fd, addrOf(c), nil) // which connects
					b, err := ln.Accept()
					if err != nil {
						t.Error(err)
						return
					}
					io.WriteString(b, "goodbye")
					if end == "resets" {
						b.(*net.TCPConn).SetLinger(0)
					}
					b.Close()
				})
				// The client goes on for as long as it gets something.
				expectAll(t, c, "200goodbye")
				if end == "closes" {
					c.CloseWrite()
				}
				line := g.log.waitLine(t, "tunnel", 1) // though the client does not close
				want := map[string]any{"ended_by": "backend", "how": "fin", "down": 7.0}
				if end == "resets" || early != "" {
					want["how"] = "reset"
				}
				for key, value := range want {
					if line[key] != value {
						t.Errorf("account %v, want %v", line, want)
					}
				}
				wantAtRest(t, g)
			})
		}
	}
}

// onBothWays runs a test on one loop, on three and on goroutines.
func onBothWays(t *testing.T, configure func(*Config), test func(t *testing.T, g *testGateway)) {
	for _, n := range []int{1, 3, -1} {
		t.Run(fmt.Sprintf("-loops=%d", n), func(t *testing.T) { test(t, startLoops(t, n, configure)) })
	}
}

func TestABlackholedBackendIsDialedAsOftenAsConfigured(t *testing.T) {
	const timeout, retry = 150 * time.Millisecond, 3
	onBothWays(t, func(cfg *Config) { cfg.Timeout, cfg.Retry = timeout, retry }, func(t *testing.T, g *testGateway) {
		hole := blackhole(t, "127.0.0.1", 0).String()
		c := connect(t, g.addr)
		start := time.Now()
		send(t, c, sealed(t, hole))
		expectAll(t, c, "504")
		if took := time.Since(start); took < retry*timeout {
			t.Errorf("504 after %v, want %v", took, retry*timeout)
		}
		if line := g.log.waitLine(t, "refused", 1); line["reason"] != "timeout" || line["status"] != "504" {
			t.Errorf("refused: %v", line)
		}
	})
}

func TestAClientsResetEndsItsDialAndItsFINDoesNot(t *testing.T) {
	onBothWays(t, func(cfg *Config) { cfg.Timeout = time.Second }, func(t *testing.T, g *testGateway) {
		hole := blackhole(t, "127.0.0.1", 0).String()
		for _, early := range []string{"", "early"} {
			fin, reset := connect(t, g.addr), connect(t, g.addr)
			for _, c := range []*net.TCPConn{fin, reset} {
				send(t, c, sealed(t, hole)+early)
				delivered(t, c)
			}
			fin.CloseWrite()
			reset.SetLinger(0)
			reset.Close()
			expectAll(t, fin, "504")
			var how string
			eventually(t, "both are accounted for", func() bool {
				found := 0
				for _, line := range g.log.lines("refused") {
					switch line["client"] {
					case reset.LocalAddr().String():
						found++
						how = fmt.Sprint(line["reason"], line["status"])
					case fin.LocalAddr().String():
						found++
					}
				}
				return found == 2
			})
			if how != "client_gone" {
				t.Errorf("the reset led to %s", how)
			}
		}
	})
}

// The tail of a tunnel in which both sides have more than the other takes, and
// then the backend breaks off.
func TestAClientIsNotStuckWithWhatItsBackendDidNotTake(t *testing.T) {
	onBothWays(t, nil, func(t *testing.T, g *testGateway) {
		stuck, broken := make(chan struct{}), make(chan struct{})
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			<-stuck
			io.WriteString(b, "goodbye")
			delivered(t, b)
			b.SetLinger(0)
			b.Close()
			close(broken)
		}))
		c.SetWriteBuffer(64 << 10)
		chunk := make([]byte, 64<<10)
		for { // until nobody takes more
			c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := c.Write(chunk); err != nil {
				break
			}
		}
		c.SetWriteDeadline(time.Now().Add(patience))
		close(stuck)
		<-broken
		// Before the tunnel ends for it, a client that does nothing but send
		// gets rid of it.
		if _, err := c.Write(chunk); err != nil {
			t.Errorf("the client cannot go on: %v", err)
		}
		expectAll(t, c, "goodbye")
	})
}

func TestABugInAnAccountEndsOnlyThatTunnel(t *testing.T) {
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays, ends := openTunnel(t, g.addr, backend), openTunnel(t, g.addr, backend)
		var account func(*session, tunnelEnd)
		for _, l := range g.loops.all {
			inLoop(t, l, func() {
				account = l.account
				l.account = func(*session, tunnelEnd) { panic("a bug") }
			})
		}
		ends.CloseWrite()
		expectAll(t, ends, "")
		g.log.waitLine(t, "panic", 1)
		for _, l := range g.loops.all {
			inLoop(t, l, func() { l.account = account })
		}
		send(t, stays, "hello")
		expect(t, stays, "hello")
		finish(t, stays)
		wantAtRest(t, g)
		closed := make(chan struct{})
		go func() { defer close(closed); g.Close() }()
		select {
		case <-closed:
		case <-time.After(patience):
			t.Fatal("Close waits for the tunnel that had no account")
		}
	}
}

func TestABugInWhatALoopIsSentLosesNothingElse(t *testing.T) {
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
	release := hold(t, l)
	done := make(chan int, 10)
	for i := range 10 {
		l.send(func() {
			if i%3 == 0 {
				panic("a bug")
			}
			done <- i
		})
	}
	release()
	eventually(t, "the others have run", func() bool { return len(done) == 6 })
	g.log.waitLine(t, "panic", 4)
}

func TestABugInAHandshakeEndsOnlyThatConnection(t *testing.T) {
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		var holds []func()
		for _, l := range g.loops.all {
			holds = append(holds, hold(t, l))
		}
		g.tokens = new(token.Keys) // which panics; no loop runs
		for _, release := range holds {
			release()
		}
		for i := range 20 {
			c := connect(t, g.addr)
			send(t, c, anyToken)
			if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !isReset(err) {
				t.Errorf("read %q, %v", got, err)
			}
			g.log.waitLine(t, "panic", i+1)
		}
		holds = nil
		for _, l := range g.loops.all {
			holds = append(holds, hold(t, l))
		}
		g.tokens = nil
		for _, release := range holds {
			release()
		}
		send(t, stays, "hello")
		expect(t, stays, "hello")
		finish(t, stays)
		finish(t, openTunnel(t, g.addr, backend))
		wantAtRest(t, g)
	}
}

// states brings one connection into each state that one can be in.
type states struct {
	silent, pieces        *net.TCPConn // waiting for a request: in a loop, in a goroutine
	dialing, looking      *net.TCPConn // for a backend: in a loop, in a goroutine
	refused               *net.TCPConn // has its status, and does not close
	open, whole, halfOpen *net.TCPConn // tunnels
	rest                  string       // of pieces' request
}

func (s *states) all() []*net.TCPConn {
	return []*net.TCPConn{s.silent, s.pieces, s.dialing, s.looking, s.refused, s.open, s.whole, s.halfOpen}
}

func bringAbout(t testing.TB, g *testGateway, started chan context.Context) *states {
	t.Helper()
	echo := startEcho(t)
	s := &states{
		silent: connect(t, g.addr), pieces: connect(t, g.addr),
		dialing: connect(t, g.addr), looking: connect(t, g.addr),
		refused: connect(t, g.addr),
		open:    openTunnel(t, g.addr, echo), whole: openTunnel(t, g.addr, echo), halfOpen: openTunnel(t, g.addr, echo),
	}
	line := sealed(t, echo)
	send(t, s.pieces, line[:10])
	s.rest = line[10:]
	send(t, s.dialing, sealed(t, blackhole(t, "127.0.0.1", 0).String()))
	send(t, s.looking, sealed(t, "game.test:80"))
	<-started
	send(t, s.refused, "nonsense\n")
	expectAll(t, s.refused, "401")
	s.halfOpen.CloseWrite()
	expectAll(t, s.halfOpen, "")
	s.halfOpen = openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
		b.CloseWrite()
		io.Copy(io.Discard, b)
	}))
	expectAll(t, s.halfOpen, "")
	if g.loops != nil {
		reaches(t, g, s.silent, stateRequest)
		reaches(t, g, s.pieces, stateRequest)
		reaches(t, g, s.dialing, stateDial)
	}
	eventually(t, "the goroutines have theirs", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.clients) >= 1
	})
	return s
}

func TestShutdownWaitsForConnectionsInEveryState(t *testing.T) {
	for _, n := range []int{1, 3, -1} {
		t.Run(fmt.Sprintf("-loops=%d", n), func(t *testing.T) {
			r, started, release := stuckLookup()
			defer release()
			g := startConfigured(t, func(cfg *Config) { cfg.Loops, cfg.Timeout = n, 2*time.Second }, func(g *Gateway) { g.dialer.resolver = r })
			s := bringAbout(t, g, started)
			done := make(chan error, 1)
			go func() { done <- g.Shutdown(context.Background()) }()
			waitRefused(t, g.addr)
			for _, c := range []*net.TCPConn{s.open, s.whole} {
				send(t, c, "still here")
				expect(t, c, "still here")
			}
			line := sealed(t, startEcho(t))
			send(t, s.silent, line)
			expect(t, s.silent, "200")
			finish(t, s.silent)
			send(t, s.pieces, s.rest)
			expect(t, s.pieces, "200")
			finish(t, s.pieces)
			release()
			expectAll(t, s.looking, "502")
			expectAll(t, s.dialing, "504")
			send(t, s.halfOpen, "the end")
			s.halfOpen.CloseWrite()
			finish(t, s.open)
			s.refused.Close()
			select {
			case err := <-done:
				t.Fatalf("Shutdown returned %v before the last tunnel ended", err)
			default:
			}
			finish(t, s.whole)
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("Shutdown does not return")
			}
			if g.loops != nil {
				wantAtRest(t, g)
			}
		})
	}
}

func TestCloseCutsConnectionsInEveryState(t *testing.T) {
	for _, n := range []int{1, 3, -1} {
		t.Run(fmt.Sprintf("-loops=%d", n), func(t *testing.T) {
			r, started, release := stuckLookup()
			defer release()
			g := startConfigured(t, func(cfg *Config) {
				cfg.Loops, cfg.Timeout, cfg.HandshakeTimeout = n, time.Hour, time.Hour
			}, func(g *Gateway) { g.dialer.resolver = r })
			s := bringAbout(t, g, started)
			closed := make(chan struct{})
			go func() { defer close(closed); g.Close() }()
			select {
			case <-closed:
			case <-time.After(patience):
				t.Fatal("Close does not return")
			}
			for _, c := range s.all() {
				if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !isReset(err) {
					t.Errorf("a client read %q, %v", got, err)
				}
			}
			connections := 9 // two for halfOpen
			if lines := len(g.log.lines("tunnel")) + len(g.log.lines("refused")) + len(g.log.lines("no request")); lines != connections {
				t.Errorf("%d accounts for %d connections", lines, connections)
			}
			if g.cut.Load() != 3 {
				t.Errorf("%d tunnels were cut, want 3", g.cut.Load())
			}
			if g.loops != nil {
				eventually(t, "the loops have ended", func() bool { return g.loops.pipes.Load() == 0 && loopsGone(g) })
			}
		})
	}
}

func loopsGone(g *testGateway) bool {
	for _, l := range g.loops.all {
		if l.send(func() {}) {
			return false
		}
	}
	return true
}

// A loop leaves some requests to a goroutine. It may get
// there when Close has been through the list of clients.
func TestCloseDoesNotWaitForARequestThatIsChangingHands(t *testing.T) {
	g := startConfigured(t, func(cfg *Config) { cfg.Loops, cfg.HandshakeTimeout = 1, time.Hour }, nil)
	_, fd := accepted(t)
	g.serving.Add(1)
	closed := make(chan struct{})
	go func() { defer close(closed); g.Close() }()
	eventually(t, "only the request is left", func() bool { return loopsGone(g) })
	go g.serveDescriptor(fd, &session{accepted: time.Now()}, []byte("half a li"))
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close waits for the rest of the request")
	}
}

// pauseAll has all loops stop accepting for a while.
func pauseAll(t testing.TB, g *testGateway, delay time.Duration) {
	for _, l := range g.loops.all {
		inLoop(t, l, func() {
			l.tick()
			sl := l.listeners[0]
			sl.pace.delay = delay / 2 // the next is twice that
			l.pause(sl, unix.EMFILE)
		})
	}
}

func TestAListenerPausesAndGoesOn(t *testing.T) {
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		for range 3 {
			pauseAll(t, g, 20*time.Millisecond)
			c := connect(t, g.addr)
			send(t, c, sealed(t, backend))
			send(t, stays, "meanwhile")
			expect(t, stays, "meanwhile")
			expect(t, c, "200")
			finish(t, c)
		}
		if warned := len(g.log.lines("cannot accept, trying again")); warned != 1 {
			t.Errorf("warned %d times", warned)
		}
		finish(t, stays)
		for _, l := range g.loops.all { // which may still be pausing
			eventually(t, "no listener is paused", func() (ok bool) {
				inLoop(t, l, func() { ok = l.pausedListeners == 0 })
				return ok
			})
		}
		wantAtRest(t, g)
	}
}

// The descriptor of a listener that is not given up may be that of a client
// the next moment.
func TestAListenerThatIsPausedEndsWithTheServing(t *testing.T) {
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		pauseAll(t, g, time.Hour)
		queued := connect(t, g.addr)
		send(t, queued, sealed(t, backend))
		done := make(chan error, 1)
		go func() { done <- g.Shutdown(context.Background()) }()
		expect(t, queued, "200") // closing the listener would have reset it
		finish(t, queued)
		waitRefused(t, g.addr)
		eventually(t, "nobody accepts any more", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.listeners) == 0
		})
		for _, l := range g.loops.all {
			inLoop(t, l, func() {
				for _, sl := range l.listeners {
					if sl.fd >= 0 || sl.paused || l.pausedListeners != 0 {
						t.Errorf("of %d loops one still has %+v", n, sl)
					}
				}
			})
		}
		finish(t, stays)
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantAtRest(t, g)
	}
}

func TestOneGatewayServesManyListeners(t *testing.T) {
	onBothWays(t, nil, func(t *testing.T, g *testGateway) {
		backend := startEcho(t)
		addrs := []string{g.addr}
		served := make(chan error, 2)
		for range cap(served) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, ln.Addr().String())
			go func() { served <- g.Serve(ln) }()
		}
		for range 3 {
			for _, addr := range addrs {
				c := openTunnel(t, addr, backend)
				send(t, c, "hello")
				expect(t, c, "hello")
				finish(t, c)
			}
		}
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		for range cap(served) {
			if err := <-served; err != ErrGatewayClosed {
				t.Error(err)
			}
		}
		for _, addr := range addrs {
			waitRefused(t, addr)
		}
	})
}

func TestServeAfterCloseReturnsAtOnce(t *testing.T) {
	onBothWays(t, nil, func(t *testing.T, g *testGateway) {
		g.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Serve(ln); err != ErrGatewayClosed {
			t.Error(err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
		g.Close() // again
	})
}

func TestRequestsOfAnySizeFitBuffersOfAnySize(t *testing.T) {
	for _, buffer := range []int{1, 100, 1025, 1026, 1027, 16384} {
		for _, splice := range []bool{true, false} {
			onBothWays(t, func(cfg *Config) { cfg.Buffer, cfg.Splice = buffer, splice }, func(t *testing.T, g *testGateway) {
				backend := startEcho(t)
				line := sealed(t, backend)
				for _, n := range []int{0, 1, buffer - 1, buffer, buffer + 1,
					1026 - len(line) - 1, 1026 - len(line), 1026 - len(line) + 1, 16384 - len(line), 64 << 10} {
					early := string(noise(uint64(n), n))
					c := connect(t, g.addr)
					send(t, c, line+early)
					c.CloseWrite()
					expectAll(t, c, "200"+early)
					c.Close()
				}
				for _, tt := range []struct{ request, want string }{
					{strings.Repeat("A", 1024) + "\n", "401"},
					{strings.Repeat("A", 1024) + "\r\n", "401"},
					{strings.Repeat("A", 1025) + "\n", "400"},
					{strings.Repeat("A", 1026), "400"},
					{strings.Repeat("A", 64<<10), "400"},
				} {
					c := connect(t, g.addr)
					send(t, c, tt.request)
					expectAll(t, c, tt.want)
					c.Close()
				}
			})
		}
	}
}
