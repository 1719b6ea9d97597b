package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gateway/internal/sys"
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

// Two tunnels end in the middle of a batch, and their accounts fail.
func TestABugInABatchEndsOnlyThatTunnel(t *testing.T) {
	var bug accountBug
	var log logBuffer
	bug.Handler = slog.NewJSONHandler(&log, nil)
	d := drive(t, true, &bug)
	const n = 5
	var clients, backends [n]int
	for i := range n {
		clients[i], backends[i] = d.tunnelOf(t)
	}
	for _, fd := range backends {
		sys.Send(int32(fd), []byte("bye"))
	}
	d.poll()
	for _, i := range []int{1, 3} { // behind the back of the events, which seem plain
		sys.ResetOnClose(int32(clients[i]))
		unix.Dup3(d.listener, clients[i], unix.O_CLOEXEC) // closes it; the test closes the number
	}
	bug.on.Store(true)
	if taken := d.deal(); taken != n {
		t.Errorf("%d are taken, want %d", taken, n)
	}
	bug.on.Store(false)
	if got := len(log.lines("panic")); got != 2 {
		t.Errorf("%d accounts fail, want 2", got)
	}
	for _, i := range []int{0, 2, 4} {
		buf := make([]byte, 10)
		if got, err := sys.Recv(int32(clients[i]), buf); err != nil || string(buf[:got]) != "bye" {
			t.Errorf("the client of tunnel %d reads %q, %v", i, buf[:got], err)
		}
	}
	d.says(t, map[[2]int]string{{clients[0], backends[0]}: "still here", {clients[4], backends[4]}: "so am I"})
}

// A panic between the two calls leaves tunnels of which nobody knows what was
// received. They are cut; the others, and the loop, go on without a ring.
func TestABugInAnExchangeEndsOnlyTheTunnelsOfThatBatch(t *testing.T) {
	var log logBuffer
	d := drive(t, true, slog.NewJSONHandler(&log, nil))
	c1, b1 := d.tunnelOf(t)
	c2, b2 := d.tunnelOf(t)
	c3, b3 := d.tunnelOf(t)
	sys.Send(int32(c1), []byte("hello"))
	sys.Send(int32(c2), []byte("hello"))
	d.batch.ring.Close() // so that the next use panics
	d.poll()
	d.deal()
	for _, fd := range []int{c1, b1, c2, b2} {
		buf := make([]byte, 10)
		if n, err := sys.Recv(int32(fd), buf); err != unix.ECONNRESET {
			t.Errorf("an end of a tunnel of the batch reads %d bytes, %v", n, err)
		}
	}
	c4, b4 := d.tunnelOf(t)
	if taken := d.says(t, map[[2]int]string{{c3, b3}: "still here", {c4, b4}: "new", {b3, c3}: "yes"}); taken != 0 {
		t.Errorf("%d are taken without a ring", taken)
	}
	if n := len(log.lines("panic")); n != 1 {
		t.Errorf("%d panics", n)
	}
	log.waitLine(t, "io_uring fails: messages cost more from now on", 1)
}

// A filter that comes late, or memory that runs out: what was queued goes the
// other way, and nothing is lost.
func TestARingThatFailsLosesNothing(t *testing.T) {
	needRing(t)
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
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
			l.reactor.post(func() { err = refuse(unix.SYS_IO_URING_ENTER, unix.EPERM) })
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

func TestNoRingOutlivesItsLoop(t *testing.T) {
	needRing(t)
	before := ringsOf(t, os.Getpid())
	for range 3 {
		g := startLoops(t, 3, nil)
		if n := ringsOf(t, os.Getpid()); n != before+3 {
			t.Errorf("%d rings of 3 loops", n-before)
		}
		manyTalk(t, g.addr)
		g.Close()
		eventually(t, "the rings are closed and unmapped", func() bool { return ringsOf(t, os.Getpid()) == before })
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

// ringsOf counts the rings of a process by their descriptors, and fails if there
// are mappings of others.
func ringsOf(t testing.TB, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if name, _ := os.Readlink(dir + "fd/" + fd.Name()); strings.Contains(name, "io_uring") {
			n++
		}
	}
	maps, err := os.ReadFile(dir + "maps")
	if err != nil {
		t.Fatal(err)
	}
	if mapped := strings.Count(string(maps), "io_uring"); mapped != 2*n {
		t.Logf("%d mappings of %d rings", mapped, n)
		return -1 // one is being opened or closed
	}
	return n
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
