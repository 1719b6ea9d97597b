package web

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

const (
	close1000 = "\x03\xe8"
	close1001 = "\x03\xe9"
	close1002 = "\x03\xea"
	close1009 = "\x03\xf1"
	close1011 = "\x03\xf3"
)

func TestAClientSeesHowItsBackendEnded(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(*net.TCPConn)
		code websocket.StatusCode
	}{
		"finished": {func(c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) }, websocket.StatusNormalClosure},
		"reset":    {func(c *net.TCPConn) { c.SetLinger(0) }, websocket.StatusInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, testOptions, sealed(tcpBackend(t, func(c *net.TCPConn) {
				io.WriteString(c, "last words")
				io.ReadFull(c, make([]byte, 3))
				tt.end(c)
			})))
			c := f.ws(t, "/?x-cipher-origin=plain")
			expect(t, c, "last words")
			send(t, c, websocket.MessageText, "bye")
			expectClose(t, c, tt.code)
			receive(t, f.relayed)
		})
	}
}

func TestReadTellsHowTheClientEnded(t *testing.T) {
	for name, tt := range map[string]struct {
		frames string
		want   error
		answer string // the Close frame that the client gets
	}{
		"1000":         {frame(0x88, close1000), nil, close1000},
		"1001":         {frame(0x88, close1001+"leaving"), nil, close1001 + "leaving"},
		"no code":      {frame(0x88, ""), nil, ""},
		"its own code": {frame(0x88, "\x0f\xa0"), nil, "\x0f\xa0"},
		"failure":      {frame(0x88, close1011), errFailed, close1011},
		"bad code":     {frame(0x88, "\x03\xed"), errProtocol, "-"},
		"bad opcode":   {frame(0x83, "x"), errProtocol, "-"},
		"unmasked":     {"\x82\x01x", errProtocol, "none"},
		"vanished":     {"", errVanished, "none"},
		"half a frame": {frame(0x82, "half")[:8], errVanished, "none"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, testOptions, sealed(tcpBackend(t, echo)))
			c, br := f.rawWS(t, "/?x-cipher-origin=plain", frame(0x82, "data")+tt.frames)
			if tt.want != errVanished && tt.answer != "none" {
				b, err := io.ReadAll(dropData(br))
				if err != nil {
					t.Fatal(err)
				}
				if got := string(b); tt.answer != "-" && got != tt.answer || tt.answer == "-" && !strings.HasPrefix(got, close1002) {
					t.Errorf("the client got %q, want %q", got, tt.answer)
				}
			} else {
				c.CloseWrite()
			}
			if err := receive(t, f.relayed); err != tt.want {
				t.Errorf("Read ended by %v, want %v", err, tt.want)
			}
		})
	}
	for _, err := range []error{errVanished, errFailed} {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v is not taken for a reset", err)
		}
	}
}

// dropData returns the payload of the Close frame behind all data, and what
// follows it.
func dropData(br *bufio.Reader) io.Reader {
	for {
		head := make([]byte, 2)
		if _, err := io.ReadFull(br, head); err != nil || head[0] == frameClose {
			return br
		}
		br.Discard(int(head[1]))
	}
}

func TestTooLargeAMessageIsRefused(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })))
	c := f.ws(t, "/?x-cipher-origin=plain")
	go c.Write(t.Context(), websocket.MessageBinary, make([]byte, MessageMax+1))
	expectClose(t, c, websocket.StatusMessageTooBig)
	if err := receive(t, f.relayed); err != errTooBig {
		t.Error(err)
	}
	c = f.ws(t, "/?x-cipher-origin=plain")
	send(t, c, websocket.MessageBinary, strings.Repeat("x", MessageMax))
	c.Close(websocket.StatusNormalClosure, "")
	if err := receive(t, f.relayed); err != nil {
		t.Error(err)
	}
}

func TestPingsOfTheClientAreAnswered(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	_, br := f.rawWS(t, "/?x-cipher-origin=plain", frame(0x01, "a")+frame(0x89, "ping")+frame(0x80, "b")+
		frame(0x8a, "unasked for"))
	got := ""
	for len(got) < len("apingb") {
		head := make([]byte, 2)
		if _, err := io.ReadFull(br, head); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, head[1])
		io.ReadFull(br, p)
		got += string(p)
	}
	if got != "apingb" && got != "pingab" && got != "abping" {
		t.Errorf("%q", got)
	}
}

func TestASilentClientIsPingedAndGivenUp(t *testing.T) {
	o := testOptions
	o.PingInterval = 100 * time.Millisecond
	f := start(t, o, sealed(tcpBackend(t, echo)))
	t.Run("answers", func(t *testing.T) {
		c, br := f.rawWS(t, "/?x-cipher-origin=plain", "")
		for range 4 {
			expectFrame(t, br, framePing, "")
			io.WriteString(c, frame(framePong, ""))
		}
		io.WriteString(c, frame(0x82, "alive"))
		for {
			head, err := br.Peek(2)
			if err != nil {
				t.Fatal(err)
			}
			if head[0] != framePing {
				break
			}
			br.Discard(2)
		}
		expectFrame(t, br, 0x82, "alive")
		io.WriteString(c, frame(0x88, close1000))
		if err := receive(t, f.relayed); err != nil {
			t.Error(err)
		}
	})
	t.Run("is mute", func(t *testing.T) {
		_, br := f.rawWS(t, "/?x-cipher-origin=plain", "")
		expectFrame(t, br, framePing, "")
		if err := receive(t, f.relayed); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Error(err)
		}
	})
}

// A backend that takes nothing must not cost the client its WebSocket: its
// pongs stand behind data that nobody reads.
func TestAClientOfAStalledBackendIsNotGivenUp(t *testing.T) {
	o := testOptions
	o.PingInterval = 250 * time.Millisecond // long enough for a client on a busy machine to answer
	resume := make(chan bool)
	f := start(t, o, sealed(tcpBackend(t, func(c *net.TCPConn) {
		<-resume
		io.Copy(io.Discard, c)
	})))
	c := f.ws(t, "/?x-cipher-origin=plain")
	go c.Read(t.Context()) // answers pings
	stalled, sent := time.AfterFunc(5*o.PingInterval, func() { resume <- true }), 0
	defer stalled.Stop()
	chunk := strings.Repeat("x", 1<<20)
	for ; sent < 32; sent++ {
		send(t, c, websocket.MessageBinary, chunk)
	}
	c.Close(websocket.StatusNormalClosure, "")
	if err := receive(t, f.relayed); err != nil {
		t.Error(err)
	}
}

// A client that does not read while it pings is slow, not dead.
func TestPingsOfAClientThatDoesNotReadStopNothing(t *testing.T) {
	stalled, got := make(chan bool), make(chan string)
	f := start(t, testOptions, sealed(tcpBackend(t, func(c *net.TCPConn) {
		for {
			c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				break
			}
		}
		stalled <- true
		b := make([]byte, 4)
		io.ReadFull(c, b)
		got <- string(b)
	})))
	c, _ := f.rawWS(t, "/?x-cipher-origin=plain", "")
	receive(t, stalled)
	began := time.Now()
	io.WriteString(c, frame(0x89, "one")+frame(0x89, "two")+frame(0x82, "data"))
	if s := receive(t, got); s != "data" || time.Since(began) > 4*time.Second {
		t.Errorf("%q after %v", s, time.Since(began))
	}
}

func TestAReadDeadlineWakesReadAndCanBeLifted(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	buf := make([]byte, 10)
	wake := func() {
		t.Helper()
		time.AfterFunc(10*time.Millisecond, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		if n, err := c.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d, %v", n, err)
		}
		c.SetReadDeadline(time.Time{})
	}
	read := func(want string) {
		t.Helper()
		if n, err := io.ReadAtLeast(c, buf, len(want)); string(buf[:n]) != want || err != nil {
			t.Fatalf("%q, %v; want %q", buf[:n], err, want)
		}
	}
	wake()
	io.WriteString(client, frame(0x02, "one"))
	read("one")
	wake() // between fragments
	io.WriteString(client, frame(0x89, ""))
	wake() // behind a control frame
	io.WriteString(client, frame(0x80, "two")+frame(0x8a, ""))
	read("two")
	wake()
	io.WriteString(client, frame(0x82, "three")+frame(0x82, "1234567890")[:9])
	read("three")
	wake() // within a frame
	io.WriteString(client, frame(0x82, "1234567890")[9:])
	if n, err := c.Read(buf); n != 0 || err != errBroken {
		t.Fatalf("%d, %v; want %v", n, err, errBroken)
	}
	c.finish()
}

func TestWhatIsWrittenToAClientThatHasClosedIsDropped(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	io.WriteString(client, frame(0x88, close1000))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	if n, err := c.Write([]byte("late")); n != 4 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	c.dropUntil = time.Now().Add(-time.Second)
	if _, err := c.Write([]byte("later")); !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
	c.finish()
}

// Whichever of the two directions comes to it first.
func TestAClientThatKeepsToNoRulesIsSaidToByReadAndWrite(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	io.WriteString(client, frame(0x02, "x")+frame(0x82, "a message within a message"))
	for range 2 { // the first is well
		_, err := c.Read(make([]byte, 1))
		if err != nil && err != errProtocol {
			t.Fatal(err)
		}
	}
	if _, err := c.Write([]byte("late")); err != errProtocol {
		t.Errorf("%v, want %v", err, errProtocol)
	}
	c.finish()
}

func TestWhatComesAfterCloseWriteIsStillRead(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	br := bufio.NewReader(client)
	c.CloseWrite()
	c.CloseWrite()
	expectFrame(t, br, frameClose, close1000)
	io.WriteString(client, frame(0x82, "under way")+frame(0x89, "ping")+frame(0x88, close1000))
	if b, err := io.ReadAll(c); string(b) != "under way" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
	c.finish()
	if b, err := io.ReadAll(br); len(b) > 0 || err != nil {
		t.Errorf("behind the Close frame came %q, %v", b, err)
	}
}

func TestAClientThatDoesNotAnswerACloseFrameIsNotWaitedForLong(t *testing.T) {
	_, server := loopback(t)
	c := pipeConn(server)
	c.FailWrite()
	c.mu.Lock()
	c.closeBy = time.Now().Add(10 * time.Millisecond)
	c.setReadDeadline()
	c.mu.Unlock()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
	c.finish()
}

func TestCloseEndsReadAndWriteAtOnce(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	ended := make(chan error, 2)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				ended <- err
				return
			}
		}
	}()
	eventually(t, "reading", c.wire.reading.Load)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := receive(t, ended); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	client.Close()
	c.finish()
}

func TestAMessageIsWrittenInOneFrame(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	br := bufio.NewReader(client)
	for range 3 {
		if n, err := c.Write([]byte("message")); n != 7 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := c.Write(nil); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		expectFrame(t, br, 0x82, "message")
	}
	client.Close()
	c.finish()
}

func TestAMessageCostsNoAllocationToRead(t *testing.T) {
	client, server := loopback(t)
	c := pipeConn(server)
	one := []byte(frame(0x82, "message"))
	buf := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		client.Write(one)
		if n, err := c.Read(buf); n != 7 || err != nil {
			t.Fatal(n, err)
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		c.Write(buf[:7])
	}); n > 1 {
		t.Errorf("%v allocations to write", n)
	}
	client.Close()
	c.finish()
}

// loopback returns the ends of a TCP connection.
func loopback(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	ln := listen(t)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}
