package kcp

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// flood sends the openings of forged clients, each from another address of
// 127.0.0.0/8, until stop is closed, and returns how many.
func flood(t testing.TB, l *Listener, perSecond int, stop <-chan struct{}) (sent int) {
	socket, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer socket.Close()
	c := ipv4.NewPacketConn(socket)
	rng := rand.New(rand.NewPCG(3, 4))
	batch := make([]ipv4.Message, 50)
	tick := time.NewTicker(time.Second * time.Duration(len(batch)) / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return sent
		case <-tick.C:
		}
		for i := range batch {
			source := net.IPv4(127, byte(1+rng.IntN(200)), byte(rng.IntN(256)), byte(1+rng.IntN(250)))
			batch[i] = ipv4.Message{
				Buffers: [][]byte{opening(rng.Uint32(), line)},
				Addr:    l.Addr(),
				OOB:     (&ipv4.ControlMessage{Src: source}).Marshal(),
			}
		}
		if _, err := c.WriteBatch(batch, 0); err != nil {
			t.Error(err)
			return sent
		}
		sent += len(batch)
	}
}

func TestHonestClientsGetInDuringAFlood(t *testing.T) {
	const clients, perSecond = 20, 5000
	l := listen(t, options(), func(c *Conn) {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		io.ReadFull(c, make([]byte, len(line)))
		io.WriteString(c, "200")
		echo(c)
	})
	exhaust(l) // as the flood would
	stop := make(chan struct{})
	began, sent := time.Now(), 0
	var flooder, done sync.WaitGroup
	flooder.Go(func() { sent = flood(t, l, perSecond, stop) })
	eventually(t, "the flood", func() bool { return l.Stats().Challenged > 100 })
	var soon atomic.Int32
	for range clients {
		s := dialPlain(t, l.Addr().String(), nil, 0, 0)
		s.SetNoDelay(1, 10, 2, 1)
		done.Go(func() {
			asked := time.Now()
			io.WriteString(s, line)
			s.SetReadDeadline(asked.Add(time.Minute))
			if _, err := io.ReadFull(s, make([]byte, 3)); err != nil {
				t.Error("a client did not get in:", err)
			}
			if time.Since(asked) < time.Second {
				soon.Add(1)
			}
		})
	}
	done.Wait()
	close(stop)
	flooder.Wait()
	t.Logf("%d of %d clients were in within a second, during %.0f datagrams a second; %+v",
		soon.Load(), clients, float64(sent)/time.Since(began).Seconds(), l.Stats())
}

func TestWithoutBatchesDatagramsAreReadOneByOne(t *testing.T) {
	socket := silent(t)
	b := newBatch(socket)
	var asked int
	b.receive = func([]ipv4.Message, int) (int, error) {
		asked++
		return 0, &net.OpError{Op: "read", Err: unix.EPERM} // as a sandbox may say
	}
	c, err := net.Dial("udp", socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, text := range []string{"one", "two"} {
		io.WriteString(c, text)
		d, source, err := b.read()
		if err != nil || string(d) != text || source.String() != c.LocalAddr().String() {
			t.Errorf("got %q from %v, %v", d, source, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times for a batch", asked)
	}
}
