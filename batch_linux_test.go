package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/harness"
	"gateway/internal/layer"
	"gateway/internal/relay"
	"gateway/internal/sys"
	"gateway/internal/websocket"
)

// needRing skips a test where there is no io_uring.
func needRing(t testing.TB) {
	t.Helper()
	var b batch
	err := b.open()
	b.close()
	if err != nil {
		t.Skip("no io_uring: ", err)
	}
	t.Setenv("TEST_IO_URING", "1") // see harness.IOUring
}

// drivenLoop is a loop without a thread of its own: it runs in the test's, turn by turn.
type drivenLoop struct {
	*loop
	listener, backends int // descriptors; clients connect to one, the loop to the other
	to                 unix.Sockaddr
	by                 *entrance
	pairs              int // a listener of which the loop knows nothing, see pair
	pairsTo            unix.Sockaddr
}

// drive makes a loop that forwards to a listener of the test's. The calling
// goroutine must stay on its thread.
func drive(t testing.TB, ring bool, log slog.Handler) *drivenLoop {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	cfg := defaultConfig()
	cfg.Loops, cfg.HalfCloseTimeout = 1, time.Hour
	r := newRules(cfg, nil)
	ls := &loops{}
	ls.pipes.Max = 8
	l, err := newLoop(ls, cfg, newLedger(slog.New(log)), nil)
	if err != nil {
		t.Fatal(err)
	}
	ls.all, ls.crew.all = []*loop{l}, []*acceptor{&l.acceptor}
	d := &drivenLoop{loop: l}
	var target *unix.SockaddrInet4
	d.listener, d.to = listenRaw(t)
	d.backends, _ = listenRaw(t)
	d.pairs, d.pairsTo = listenRaw(t)
	sa, _ := unix.Getsockname(d.backends)
	target = sa.(*unix.SockaddrInet4)
	// Small buffers, so that sends are short. The loop's side inherits them.
	unix.SetsockoptInt(d.listener, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	unix.SetsockoptInt(d.pairs, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	for _, fd := range []int{d.listener, d.backends, d.pairs} {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	route, err := address.ParseRoute("127.0.0.1:" + strconv.Itoa(target.Port))
	if err != nil {
		t.Fatal(err)
	}
	d.by = &entrance{forward: &route}
	l.listen(d.listener, d.by, func() *rules { return r })
	t.Cleanup(func() {
		l.closing = true
		for range 2 { // and who reads the last words of a layer
			for _, tun := range l.slots {
				l.cut(tun, relay.Shutdown)
			}
		}
		l.pipes.CloseIdle()
		l.batch.close()
		l.reactor.Close()
		unix.Close(d.listener)
		unix.Close(d.backends)
		unix.Close(d.pairs)
	})
	if ring {
		if err := l.batch.open(); err != nil {
			t.Skip(err)
		}
	}
	return d
}

func listenRaw(t testing.TB) (int, unix.Sockaddr) {
	t.Helper()
	fd, err := sys.Socket(unix.AF_INET)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, sa
}

// poll fetches events without dealing with them.
func (d *drivenLoop) poll() { d.pending, d.handled, d.batch.looked = d.reactor.Poll(), 0, 0 }

// deal deals with them, and returns how many a batch has taken.
func (d *drivenLoop) deal() (taken int) {
	for !d.turn() {
	}
	for _, ev := range d.reactor.Events[:d.pending] {
		if ev.Fd == takenEvent {
			taken++
		}
	}
	return taken
}

// tunnelOf opens a tunnel through a loop that is driven.
func (d *drivenLoop) tunnelOf(t testing.TB) (client, backend int) {
	t.Helper()
	client, err := sys.Socket(unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(client) })
	if err := unix.Connect(client, d.to); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	eventually(t, "the backend is connected", func() bool {
		d.poll()
		d.deal()
		backend, _, err = unix.Accept4(d.backends, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err == nil
	})
	t.Cleanup(func() { unix.Close(backend) })
	for range 3 { // the edges of both
		d.poll()
		d.deal()
	}
	return client, backend
}

// layeredTunnelOf is tunnelOf for a client with a layer on its socket.
func (d *drivenLoop) layeredTunnelOf(t testing.TB, on layer.Transform) (client, backend int) {
	t.Helper()
	client, cfd := d.pair(t)
	bfd, backend := d.pair(t)
	s := session{accepted: time.Now()}
	d.ledger.begin()
	d.ledger.arrived(&s, d.by)
	s.reserved = false
	d.load.Add(1)
	d.adopt(&s, &upstream{}, cfd, bfd, beginning{layer: on})
	d.current = nil
	return client, backend
}

// pair returns the two ends of a connection.
func (d *drivenLoop) pair(t testing.TB) (active, passive int) {
	t.Helper()
	active, err := sys.Socket(unix.AF_INET)
	if err == nil {
		unix.SetsockoptInt(active, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) // and the other end inherits its small ones
		err = unix.Connect(active, d.pairsTo)
	}
	if err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	eventually(t, "it is connected", func() bool {
		passive, _, err = unix.Accept4(d.pairs, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err == nil
	})
	return active, passive
}

// says sends a message and waits until one turn of the loop has passed it on. It
// returns how many events that batch has taken.
func (d *drivenLoop) says(t testing.TB, texts map[[2]int]string) (taken int) {
	t.Helper()
	for ends, text := range texts {
		if n, err := sys.Send(int32(ends[0]), []byte(text)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
	}
	d.poll()
	taken = d.deal()
	for ends, text := range texts {
		got := ""
		eventually(t, "the message arrives", func() bool {
			buf := make([]byte, 64<<10)
			if n, err := sys.Recv(int32(ends[1]), buf); err == nil {
				got += string(buf[:n])
			}
			d.poll()
			d.deal()
			return len(got) >= len(text)
		})
		if got != text {
			t.Errorf("%q arrives, want %q", got, text)
		}
	}
	return taken
}

// hears waits until a socket has read what it is to read; "" is the end.
func (d *drivenLoop) hears(t testing.TB, fd int, want string) {
	t.Helper()
	got, err := "", error(nil)
	eventually(t, "what is sent is heard", func() bool {
		buf := make([]byte, 100)
		n := 0
		if n, err = sys.Recv(int32(fd), buf); n > 0 {
			got += string(buf[:n])
		}
		d.poll()
		d.deal()
		return err != unix.EAGAIN && (err != nil || n == 0 || len(got) >= len(want))
	})
	if got != want || err != nil {
		t.Errorf("read %q, %v; want %q", got, err, want)
	}
}

func TestOnlyPlainMessagesWaitForABatchAndOnlyWhereThereAreTwo(t *testing.T) {
	d := drive(t, true, slog.DiscardHandler)
	c1, b1 := d.tunnelOf(t)
	c2, b2 := d.tunnelOf(t)
	up1, up2, down1, down2 := [2]int{c1, b1}, [2]int{c2, b2}, [2]int{b1, c1}, [2]int{b2, c2}
	long := strings.Repeat("long ", 1600) // what is left of it is more than a slot, too
	for _, tt := range []struct {
		what  string
		texts map[[2]int]string
		want  int
	}{
		{"one alone", map[[2]int]string{up1: "hello"}, 0},
		{"two clients", map[[2]int]string{up1: "hello", up2: "world"}, 2},
		{"two backends", map[[2]int]string{down1: "hello", down2: "world"}, 2},
		{"both ways", map[[2]int]string{up1: "a", down1: "b"}, 2},
		{"all", map[[2]int]string{up1: "a", down1: "b", up2: "c", down2: "d"}, 4},
		{"a long one", map[[2]int]string{up1: long, up2: "c", down2: "d"}, 3},
		{"behind a long one", map[[2]int]string{up1: "short again", up2: "c", down2: "d"}, 2},
		{"and then", map[[2]int]string{up1: "short", up2: "c", down2: "d"}, 3},
	} {
		if got := d.says(t, tt.texts); got != tt.want {
			t.Errorf("%s: %d are taken, want %d", tt.what, got, tt.want)
		}
	}
	// What has come to an end, on either side, is not plain.
	c3, b3 := d.tunnelOf(t)
	unix.Shutdown(b3, unix.SHUT_WR)
	d.poll()
	d.deal()
	if got := d.says(t, map[[2]int]string{{c3, b3}: "still", up1: "a", up2: "b"}); got != 2 {
		t.Errorf("half-closed: %d are taken, want 2", got)
	}
}

// What is for a client that closes in the same batch need not find it there.
func TestAWebSocketThatClosesInABatchHasFinishedEvenIfItIsGone(t *testing.T) {
	d := drive(t, true, slog.DiscardHandler)
	c, b := d.layeredTunnelOf(t, websocket.New(1<<20))
	defer unix.Close(b)
	d.poll()
	d.deal()
	sys.Send(int32(c), []byte(harness.Masked(harness.BinaryFrame, "bye")+harness.Masked(harness.CloseFrame, "\x03\xe8")))
	sys.Send(int32(b), []byte("late"))
	d.poll()
	sys.ResetOnClose(int32(c)) // behind the back of the events
	unix.Close(c)
	if taken := d.deal(); taken != 2 {
		t.Fatalf("%d are taken", taken)
	}
	d.hears(t, b, "bye")
	d.hears(t, b, "")
}

// A ping is no byte of the tunnel's, by whatever way it comes.
func TestAPingInABatchMovesNothing(t *testing.T) {
	d := drive(t, true, slog.DiscardHandler)
	c1, b1 := d.tunnelOf(t)
	c2, b2 := d.layeredTunnelOf(t, websocket.New(1<<20))
	defer unix.Close(c2)
	defer unix.Close(b2)
	d.poll()
	d.deal()
	moved := make(map[*tunnel]int64)
	for _, tun := range d.slots {
		moved[tun] = tun.movedAt
	}
	sys.Send(int32(c1), []byte("hello"))
	sys.Send(int32(c2), []byte(harness.Masked(0x89, "ping")))
	d.reactor.Tick()
	d.poll()
	if taken := d.deal(); taken != 2 {
		t.Fatalf("%d are taken", taken)
	}
	for _, tun := range d.slots {
		if tun.state == stateOpen && (tun.movedAt == moved[tun]) != (tun.layer != nil) {
			t.Errorf("moved at %d, at %d before; layer: %v", tun.movedAt, moved[tun], tun.layer != nil)
		}
	}
	for fd, want := range map[int]string{b1: "hello", c2: "\x8a\x04ping"} {
		d.hears(t, fd, want)
	}
}

// A filter that comes late, or memory that runs out: what was queued goes the
// other way, and nothing is lost.
func TestARingThatFailsLosesNothing(t *testing.T) {
	needRing(t)
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	backend := startEcho(t)
	var clients []*net.TCPConn
	for range 20 {
		clients = append(clients, openTunnel(t, g.addr, backend))
	}
	for round := range 3 {
		release := hold(t, l)
		for i, c := range clients {
			send(t, c, fmt.Sprint("message ", i, " of round ", round, ";"))
		}
		if round == 1 {
			var err error
			l.reactor.Post(func() { err = refuse(unix.SYS_IO_URING_ENTER, unix.EPERM) })
			release()
			inLoop(t, l, func() {})
			if err != nil {
				t.Skip("no seccomp here: ", err)
			}
		} else {
			release()
		}
		for i, c := range clients {
			expect(t, c, fmt.Sprint("message ", i, " of round ", round, ";"))
		}
	}
	line := g.log.waitLine(t, "io_uring fails: messages cost more from now on", 1)
	if !strings.Contains(line["err"].(string), "not permitted") {
		t.Errorf("%v", line)
	}
	for _, c := range clients {
		finish(t, c)
	}
	wantAtRest(t, g)
}

// hookedLayer is a WebSocket that does something between a batch's two calls.
type hookedLayer struct {
	layer.Transform
	between func()
}

func (h *hookedLayer) In(b []byte) ([]byte, layer.State) { h.between(); return h.Transform.In(b) }

func TestARingThatFailsBetweenItsTwoCallsLosesNothing(t *testing.T) {
	d := drive(t, true, slog.DiscardHandler)
	runtime.LockOSThread() // for ever: the thread ends with this
	var err error
	c1, b1 := d.layeredTunnelOf(t, &hookedLayer{websocket.New(1 << 20), func() { err = refuse(unix.SYS_IO_URING_ENTER, unix.EPERM) }})
	c2, b2 := d.tunnelOf(t)
	c3, b3 := d.layeredTunnelOf(t, websocket.New(1<<20))
	for _, fd := range []int{c1, b1, c3, b3} {
		defer unix.Close(fd)
	}
	sys.Send(int32(c1), []byte(harness.Masked(harness.BinaryFrame, "hello")))
	sys.Send(int32(c2), []byte("hello"))
	sys.Send(int32(b2), []byte("hello"))
	sys.Send(int32(b3), []byte("hello"))
	d.poll()
	if taken := d.deal(); taken != 4 {
		t.Fatalf("%d are taken", taken)
	}
	if err != nil {
		t.Skip("no seccomp here: ", err)
	}
	if d.batch.ring != nil {
		t.Fatal("the ring has not failed")
	}
	for fd, want := range map[int]string{b1: "hello", b2: "hello", c2: "hello", c3: harness.Frame(harness.BinaryFrame, "hello")} {
		d.hears(t, fd, want)
	}
	for _, tun := range d.slots {
		if n := tun.progress(); tun.state == stateOpen && n != 5 && n != 10 {
			t.Errorf("%d bytes have moved", n)
		}
	}
}

func TestWhereIOURingIsRefusedTheLogSaysSoAndMessagesGoOneByOne(t *testing.T) {
	for _, tt := range []struct {
		call  uint32
		errno unix.Errno
		want  string
	}{
		{unix.SYS_IO_URING_SETUP, unix.ENOSYS, "io_uring_setup: function not implemented"},
		{unix.SYS_IO_URING_SETUP, unix.EPERM, "io_uring_setup: operation not permitted"},
		{unix.SYS_IO_URING_ENTER, unix.EPERM, "io_uring_enter: operation not permitted"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			cmd := gatewayCommand(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json", "-loops=2", "-io-uring=1")
			var p *process
			var err error
			onThread(func() { // which the process inherits its filter from
				if err = refuse(tt.call, tt.errno); err == nil {
					p = launch(t, cmd)
				}
			})
			if err != nil {
				t.Skip("no seccomp here: ", err)
			}
			line := p.log.waitLine(t, "no io_uring here: messages cost more (-io-uring=0 does not ask for it)", 1)
			if line["level"] != "WARN" || !strings.Contains(line["err"].(string), tt.want) {
				t.Errorf("%v", line)
			}
			p.addr = p.log.waitLine(t, "listening", 1)["addr"].(string)
			manyTalk(t, p.addr)
		})
	}
}

func TestTheLogSaysByWhatMessagesAreRelayed(t *testing.T) {
	needRing(t)
	for _, tt := range []struct {
		flags []string
		rings int
		want  string
	}{
		{nil, 2, "io_uring"},
		{[]string{"-io-uring=1"}, 2, "io_uring"},
		{[]string{"-io-uring=0"}, 0, "epoll"},
		{[]string{"-loops=-1"}, 0, "goroutines"},
	} {
		p := startProcess(t, append([]string{"-loops=2"}, tt.flags...)...)
		line := p.log.waitLine(t, "listening", 1)
		if got := ringsOf(t, p.cmd.Process.Pid); got != tt.rings || line["relay"] != tt.want {
			t.Errorf("%v: %d rings, want %d; log:\n%s", tt.flags, got, tt.rings, p.Log.String())
		}
		manyTalk(t, p.addr)
	}
}

// manyTalk has some clients say something at once, again and again.
func manyTalk(t testing.TB, gateway string) {
	t.Helper()
	backend := startEcho(t)
	var clients []*net.TCPConn
	for range 16 {
		clients = append(clients, openTunnel(t, gateway, backend))
	}
	for round := range 50 {
		for i, c := range clients {
			io.WriteString(c, fmt.Sprint(round, " from ", i, ";"))
		}
		for i, c := range clients {
			expect(t, c, fmt.Sprint(round, " from ", i, ";"))
		}
	}
	for _, c := range clients {
		finish(t, c)
	}
}

// onThread runs f on a thread of its own that ends with it.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}
