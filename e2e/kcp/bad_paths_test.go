package kcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/kcp"
)

// KCP over paths that lose, double, delay and dawdle.

// badPath is a path to a UDP address that drops, doubles and delays a part each
// of the datagrams, both ways. A delayed one comes behind those that follow it.
func badPath(t testing.TB, to string, part float64) string {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var pumps sync.WaitGroup
	backs := make(map[netip.AddrPort]net.Conn)
	rng := rand.New(rand.NewPCG(1, 2))
	pass := func(d []byte, send func([]byte)) {
		mu.Lock()
		fate := rng.Float64() / part
		mu.Unlock()
		switch {
		case fate < 1: // lost
		case fate < 2:
			send(d)
			send(d)
		case fate < 3:
			d = bytes.Clone(d)
			pumps.Add(1)
			time.AfterFunc(20*time.Millisecond, func() { defer pumps.Done(); send(d) })
		default:
			send(d)
		}
	}
	// pump passes on what read brings until that fails.
	pump := func(read func([]byte) (int, func([]byte), error)) {
		pumps.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, send, err := read(buf)
				if err != nil {
					return
				}
				pass(buf[:n], send)
			}
		})
	}
	pump(func(buf []byte) (int, func([]byte), error) {
		n, source, err := front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return 0, nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		back := backs[source]
		if back == nil {
			if back, err = net.Dial("udp", to); err != nil {
				t.Error(err)
				return 0, nil, err
			}
			backs[source] = back
			pump(func(buf []byte) (int, func([]byte), error) {
				n, err := back.Read(buf)
				return n, func(d []byte) { front.WriteToUDPAddrPort(d, source) }, err
			})
		}
		return n, func(d []byte) { back.Write(d) }, nil
	})
	t.Cleanup(func() {
		front.Close()
		mu.Lock()
		for _, back := range backs {
			back.Close()
		}
		mu.Unlock()
		pumps.Wait()
	})
	return front.LocalAddr().String()
}

func TestEverythingArrivesOverABadPath(t *testing.T) {
	t.Parallel()
	shards := kcpCode{data: 10, parity: 3}
	for _, test := range []struct {
		name string
		part float64
		code kcpCode
	}{
		{"5 %", .05, kcpCode{}},
		{"10 %", .10, kcpCode{}},
		{"20 %", .20, kcpCode{}},
		{"20 % with error correction", .20, shards},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tcp, backend := harness.StartEcho(t), startKCPBackend(t, test.code, kcpEcho)
			g := startKCP(t, fmt.Sprint("-kcp-datashard=", test.code.data), fmt.Sprint("-kcp-parityshard=", test.code.parity),
				"-timeout="+harness.Patience.String())
			var both sync.WaitGroup
			for c, line := range map[net.Conn]string{
				dialKCP(t, badPath(t, g.kcp, test.part), test.code): harness.Line(tcp),
				harness.Connect(t, g.Addr):                          harness.Line("kcp://" + badPath(t, backend[len("kcp://"):], test.part)),
			} {
				both.Go(func() {
					io.WriteString(c, line+"early")
					if got := make([]byte, 8); !reads(c, got) || string(got) != "200early" {
						t.Errorf("read %q", got)
						return
					}
					echoByHash(t, c, 1<<20)
				})
			}
			both.Wait()
		})
	}
}

// reads tells whether b could be filled.
func reads(c net.Conn, b []byte) bool {
	_, err := io.ReadFull(c, b)
	return err == nil
}

// slowPath is a path to a UDP address that brings one datagram in each pause
// from there, and loses those that repeat what is already on its way; and every
// copy of one segment until its turn has come.
func slowPath(t testing.TB, to string, pause time.Duration, loses uint32) string {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	var onItsWay sync.Map // by the number of a datagram's first segment
	var turn atomic.Bool
	client, queue := make(chan net.Addr, 1), make(chan []byte, 1000)
	pumps.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := front.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case client <- from:
			default:
			}
			back.Write(buf[:n])
		}
	})
	pumps.Go(func() {
		defer close(queue)
		for {
			buf := make([]byte, 2048)
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			if binary.LittleEndian.Uint32(buf[12:]) == loses && !turn.Load() {
				continue
			}
			if _, again := onItsWay.LoadOrStore(string(buf[12:16]), true); !again {
				queue <- buf[:n]
			}
		}
	})
	pumps.Go(func() {
		to := <-client
		for d := range queue {
			onItsWay.Delete(string(d[12:16]))
			if binary.LittleEndian.Uint32(d[12:]) == loses-1 {
				turn.Store(true)
			}
			if _, err := front.WriteTo(d, to); err == nil {
				time.Sleep(pause)
			}
		}
	})
	t.Cleanup(func() {
		front.Close()
		back.Close()
		pumps.Wait()
	})
	return front.LocalAddr().String()
}

// As long as the client acknowledges something it is there, however long its
// path takes for what its backend has left behind.
func TestAKCPClientOnASlowPathGetsEverything(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	const idle = 6 * time.Second
	text := harness.Noise(5, 78<<10) // 61 packets, whose path takes 11 s
	backend := harness.StartBackend(t, func(c *net.TCPConn) { c.Write(text) })
	// With all packets on the path at once, what is lost would be sent again
	// only after several times as long.
	g := startKCP(t, "-kcp-idle-timeout="+idle.String(), fmt.Sprint("-kcp-sndwnd=", kcp.MinWindow))
	s := openKCP(t, slowPath(t, g.kcp, 180*time.Millisecond, 52), backend)
	began, got := time.Now(), make([]byte, len(text))
	s.SetReadDeadline(began.Add(3 * harness.Patience))
	if n, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, text) {
		t.Errorf("read %d bytes of %d, %v, or others", n, len(text), err)
	}
	if took := time.Since(began); took < idle+idle/2 {
		t.Errorf("it took no longer than %v: a test of nothing", took)
	}
}
