package kcp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

func TestEverythingArrivesOverALossyPath(t *testing.T) {
	none, _ := kcpgo.NewNoneBlockCrypt(nil)
	for _, test := range []struct {
		name  string
		part  float64
		size  int
		set   func(*Options)
		block func(*Transport) kcpgo.BlockCrypt
	}{
		{"clear, 5 %", .05, 1 << 20, func(o *Options) {}, nil},
		{"clear, 20 %", .20, 256 << 10, func(o *Options) {}, nil},
		{"normal mode", .05, 256 << 10, func(o *Options) { o.Mode = "normal" }, nil},
		{"clear in kcptun's frame", .10, 256 << 10, func(o *Options) {}, func(*Transport) kcpgo.BlockCrypt { return none }},
		{"aes", .10, 256 << 10, func(o *Options) { o.Crypt, o.Key = "aes", "secret" }, aes},
		{"error correction", .10, 256 << 10, func(o *Options) { o.DataShards, o.ParityShards = 10, 3 }, nil},
		{"aes with error correction", .10, 256 << 10, func(o *Options) {
			o.Crypt, o.Key, o.DataShards, o.ParityShards = "aes", "secret", 10, 3
		}, aes},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			o := options()
			test.set(&o)
			up, upHash := random(1, test.size)
			down, downHash := random(2, test.size)
			hash, closed := make(chan [32]byte, 1), make(chan error, 1)
			l := listen(t, o, func(c *Conn) {
				var both sync.WaitGroup
				both.Go(func() {
					h := sha256.New()
					io.CopyN(h, c, int64(len(up)))
					hash <- [32]byte(h.Sum(nil))
				})
				c.Write(down)
				both.Wait()
				closed <- c.Close()
			})
			var block kcpgo.BlockCrypt
			if test.block != nil {
				block = test.block(transport(t, o))
			}
			s := dialPlain(t, lossy(t, l.Addr().String(), test.part), block, o.DataShards, o.ParityShards)
			s.SetNoDelay(1, 10, 2, 1)
			s.SetWindowSize(512, 512)
			var both sync.WaitGroup
			both.Go(func() { s.Write(up) })
			s.SetReadDeadline(time.Now().Add(time.Minute))
			h := sha256.New()
			if n, err := io.CopyN(h, s, int64(len(down))); err != nil || [32]byte(h.Sum(nil)) != downHash {
				t.Fatalf("down: %d bytes, %v, or another hash", n, err)
			}
			both.Wait()
			if got := <-hash; got != upHash {
				t.Fatal("up: another hash")
			}
			if err := <-closed; err != nil {
				t.Error("not everything was acknowledged:", err)
			}
		})
	}
}

// line is a request of the shortest kind.
const line = "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=\n"

func aes(t *Transport) kcpgo.BlockCrypt {
	block, err := kcpgo.NewAESBlockCrypt(t.key)
	if err != nil {
		panic(err)
	}
	return block
}

// More than may be unproven at once: the others come in by the challenge. The
// goroutines and descriptors that are left over are TestMain's to find.
func TestACrowdOfHonestClientsAllGetIn(t *testing.T) {
	o := options()
	o.Mode = "normal" // the clocks of 600 sessions in this process are enough
	o.IdleTimeout = time.Minute
	l := listen(t, o, echo)
	var done sync.WaitGroup
	for i := range maxUnproven + 88 {
		s := dialPlain(t, l.Addr().String(), nil, 0, 0)
		done.Go(func() {
			text := fmt.Sprint("line ", i)
			got := make([]byte, len(text))
			io.WriteString(s, text)
			s.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadFull(s, got); err != nil || string(got) != text {
				t.Errorf("session %d: got %q, %v", i, got, err)
			}
		})
	}
	done.Wait()
	eventually(t, "all are proven", func() bool { return l.Stats().Unproven == 0 })
}

func TestASessionEndsWhenNoByteMoves(t *testing.T) {
	t.Parallel()
	o := options()
	o.IdleTimeout = 3 * time.Second
	ends := make(chan error, 1)
	l := listen(t, o, func(c *Conn) {
		_, err := io.Copy(onlyWriter{c}, onlyReader{c})
		ends <- err
	})
	for _, test := range []struct {
		name string
		dial func() net.Conn
	}{
		{"kcp-go's client", func() net.Conn { return dialPlain(t, l.Addr().String(), nil, 0, 0) }},
		{"ours", func() net.Conn { return dial(t, o, l.Addr().String()) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := test.dial()
			roundTrip(t, c, "hello")
			began := time.Now()
			if err := <-ends; err != ErrIdle {
				t.Fatalf("the session ended with %v", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			// The listener is told a moment after the reader.
			eventually(t, "the listener counts it no more", func() bool { return l.Stats().Sessions == 0 })
			if c, ours := c.(*Conn); ours {
				c.SetReadDeadline(time.Time{})
				if _, err := c.Read(make([]byte, 1)); err != ErrIdle {
					t.Errorf("the dialer's end ended with %v", err)
				}
			}
		})
	}
}

func TestBytesKeepASessionAlive(t *testing.T) {
	t.Parallel()
	o := options()
	o.IdleTimeout = 3 * time.Second
	l := listen(t, o, echo)
	s := dialPlain(t, l.Addr().String(), nil, 0, 0)
	for began := time.Now(); time.Since(began) < o.IdleTimeout*3/2; {
		roundTrip(t, s, "tick")
	}
	if l.Stats().Sessions != 1 {
		t.Error("it has ended")
	}
}

func TestAVanishedPeerEndsItsSessionThoughWeKeepWriting(t *testing.T) {
	t.Parallel()
	o := options()
	o.IdleTimeout = 3 * time.Second
	o.SendWindow = MaxWindow // never full, so that the writer never blocks
	ended := make(chan error, 1)
	l := listen(t, o, func(c *Conn) {
		io.ReadFull(c, make([]byte, 5))
		for {
			if _, err := io.WriteString(c, "state"); err != nil {
				ended <- err
				return
			}
			select {
			case <-c.ended:
			case <-time.After(time.Millisecond):
			}
		}
	})
	s := dialPlain(t, l.Addr().String(), nil, 0, 0)
	s.SetWindowSize(128, MaxWindow)
	io.WriteString(s, "hello")
	expect(t, s, "state")
	eventually(t, "the client's acknowledgement", func() bool { return l.Stats().Unproven == 0 })
	s.Close()
	select {
	case err := <-ended:
		if err != ErrIdle {
			t.Errorf("the session ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the session goes on")
	}
}

func TestCloseDeliversEverythingFirst(t *testing.T) {
	t.Parallel()
	o := options()
	sent, want := random(3, 64<<10)
	closed := make(chan error, 1)
	l := listen(t, o, func(c *Conn) {
		io.ReadFull(c, make([]byte, len(line)))
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		c.Write(sent)
		c.SetWriteDeadline(time.Unix(1, 0)) // of no concern to Close
		closed <- c.Close()
	})
	// A client of small windows and slow clock, over a path so bad that the
	// last packets cannot all arrive at once.
	s := dialPlain(t, lossy(t, l.Addr().String(), .3), nil, 0, 0)
	s.SetNoDelay(0, 40, 2, 1)
	io.WriteString(s, line)
	s.SetReadDeadline(time.Now().Add(time.Minute))
	h := sha256.New()
	if n, err := io.CopyN(h, s, int64(len(sent))); err != nil || [32]byte(h.Sum(nil)) != want {
		t.Fatalf("%d bytes, %v, or another hash", n, err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if n := l.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions after Close", n)
	}
}

func TestCloseGivesUpOnAVanishedPeer(t *testing.T) {
	t.Parallel()
	o := options()
	o.IdleTimeout = 3 * time.Second // shorter than Linger
	closed := make(chan error, 1)
	gone := make(chan struct{})
	l := listen(t, o, func(c *Conn) {
		io.ReadFull(c, make([]byte, 5))
		io.WriteString(c, "200")
		<-gone
		io.WriteString(c, "more")
		closed <- c.Close()
	})
	s := dialPlain(t, l.Addr().String(), nil, 0, 0)
	io.WriteString(s, "hello")
	expect(t, s, "200")
	eventually(t, "the client's acknowledgement", func() bool { return l.Stats().Unproven == 0 })
	s.Close()
	close(gone)
	if err := <-closed; err == nil {
		t.Error("Close says that all was acknowledged")
	}
}

func TestAbortInterruptsEveryCall(t *testing.T) {
	l := listen(t, options(), func(c *Conn) { <-c.ended })
	for name, call := range map[string]func(*Conn) error{
		"Read":  func(c *Conn) error { _, err := c.Read(make([]byte, 1)); return err },
		"Write": func(c *Conn) error { _, err := c.Write(make([]byte, 8<<20)); return err },
		"Close": func(c *Conn) error { c.Write([]byte("x")); c.Abort(); return c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, options(), l.Addr().String())
			done := make(chan error)
			go func() { done <- call(c) }()
			c.Abort()
			if err := <-done; err != net.ErrClosed {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestADeadlineIsATimeout(t *testing.T) {
	l := listen(t, options(), echo)
	c := dial(t, options(), l.Addr().String())
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	c.SetDeadline(time.Time{})
	roundTrip(t, c, "and it goes on")
}

func TestAReaderThatStallsHoldsTheSenderBack(t *testing.T) {
	t.Parallel()
	o := options()
	o.ReceiveWindow, o.SendWindow = 32, 32
	read := make(chan struct{})
	_, want := random(4, 1<<20)
	hash := make(chan [32]byte, 1)
	l := listen(t, o, func(c *Conn) {
		<-read
		h := sha256.New()
		io.CopyN(h, c, 1<<20)
		hash <- [32]byte(h.Sum(nil))
	})
	c := dial(t, o, l.Addr().String())
	sent, _ := random(4, 1<<20)
	// Once the writer blocks it stays blocked: 100 ms are ten ticks of KCP.
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := c.Write(sent)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes: %v", n, err)
	}
	// Both windows and two portions.
	if limit := (32+32)*o.MTU + 2*writePortion; n > limit {
		t.Errorf("wrote %d bytes, want at most %d", n, limit)
	}
	close(read)
	c.SetWriteDeadline(time.Time{})
	if _, err := c.Write(sent[n:]); err != nil {
		t.Fatal(err)
	}
	if got := <-hash; got != want {
		t.Error("another hash")
	}
}

func TestAListenerThatClosesLetsItsSessionsGoOn(t *testing.T) {
	l := listen(t, options(), echo)
	c := dial(t, options(), l.Addr().String())
	roundTrip(t, c, "before")
	l.Close()
	roundTrip(t, c, "after")
	if _, err := l.Accept(); err != net.ErrClosed {
		t.Errorf("Accept: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if s := dialPlain(t, l.Addr().String(), nil, 0, 0); s != nil {
		io.WriteString(s, "too late")
	}
	<-ctx.Done()
	if n := l.Stats().Sessions; n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

func TestSessionsThatNobodyAcceptsEndWithTheListener(t *testing.T) {
	l, err := transport(t, options()).Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		io.WriteString(dialPlain(t, l.Addr().String(), nil, 0, 0), "hello")
	}
	eventually(t, "ten sessions", func() bool { return l.Stats().Sessions == 10 })
	l.Close()
	eventually(t, "none", func() bool { return l.Stats().Sessions == 0 })
}

func TestOptionsAreCheckedAndTheErrorNamesTheFlag(t *testing.T) {
	for _, test := range []struct {
		flag string
		set  func(*Options)
	}{
		{"", func(o *Options) {}},
		{"", func(o *Options) { o.Mode = "normal" }},
		{"", func(o *Options) { o.Crypt, o.Key = "aes", "k" }},
		{"", func(o *Options) { o.DataShards, o.ParityShards = MaxShards, MaxShards }},
		{"", func(o *Options) { o.MTU = MaxMTU }},
		{"-kcp-mode", func(o *Options) { o.Mode = "faster" }},
		{"-kcp-sndwnd", func(o *Options) { o.SendWindow = MinWindow - 1 }},
		{"-kcp-rcvwnd", func(o *Options) { o.ReceiveWindow = MaxWindow + 1 }},
		{"-kcp-mtu", func(o *Options) { o.MTU = MaxMTU + 1 }},
		{"-kcp-mtu", func(o *Options) { o.MTU = MinMTU - 1 }},
		{"-kcp-datashard", func(o *Options) { o.DataShards = -1 }},
		{"-kcp-parityshard", func(o *Options) { o.DataShards = 10 }},
		{"-kcp-parityshard", func(o *Options) { o.ParityShards = MaxShards + 1 }},
		{"-kcp-crypt", func(o *Options) { o.Crypt = "tea" }},
		{"-kcp-key", func(o *Options) { o.Crypt = "aes" }},
		{"-kcp-key", func(o *Options) { o.Key = "secret" }},
		{"-kcp-idle-timeout", func(o *Options) { o.IdleTimeout = 0 }},
	} {
		o := options()
		test.set(&o)
		_, err := New(o)
		switch {
		case test.flag == "" && err != nil:
			t.Error(err)
		case test.flag != "" && (err == nil || !strings.HasPrefix(err.Error(), test.flag+":") || strings.Contains(err.Error(), "\n")):
			t.Errorf("want a line about %s, got %v", test.flag, err)
		}
	}
}

// The largest datagrams must fit kcp-go's buffers, whatever surrounds them.
func TestTheMTUBoundsTheDatagram(t *testing.T) {
	for _, mtu := range []int{MinMTU, MaxMTU} {
		o := options()
		o.MTU, o.Crypt, o.Key, o.DataShards, o.ParityShards = mtu, "aes", "secret", 4, 2
		l := listen(t, o, echo)
		c := dial(t, o, l.Addr().String())
		text, _ := random(5, 64<<10)
		go c.Write(text)
		expect(t, c, string(text))
	}
}

func TestTheKeyIsDerivedAsKcptunDoes(t *testing.T) {
	o := options()
	o.Crypt, o.Key = "aes", "it's a secrect" // kcptun's default
	if got := fmt.Sprintf("%x", transport(t, o).key); got != "25d7d7bd51050742d8d791f2b653c6c8b2366b7e25a124cf7a2e12eaf4ffa444" {
		t.Errorf("got %s", got)
	}
}
