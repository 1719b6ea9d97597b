package suite

import (
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"gateway/internal/harness"
)

// testKCP has a kit talk by KCP: with the gateway, and by a way that loses and doubles
// datagrams, and ends.
func testKCP(t *testing.T, _ *kit, command []string) {
	if ikcp == "" {
		t.Skip("IKCP names no folder with ikcp.c (make test-clients)")
	}
	gateway := harness.Start(t, "-resume=1", "-kcp=127.0.0.1:0", "-drain=0", "-kcp-idle-timeout=1s", "-resume-hold=5s")
	addr := "kcp://" + gateway.Listeners(t, 2)[1]["addr"].(string)
	line := harness.Sealed(greeter(t))
	expect(t, "ok plain welcomehello", run(t, "", command, "talk", addr, line, ms, "hello"))
	expect(t, "ok resumable welcomehello", run(t, "", command, "resume", addr, line, ms, "hello"))
	expect(t, "error 401 new line", run(t, "", command, "talk", addr, "nonsense", ms, "hello"))
	expect(t, "error 502 new line or later", run(t, "", command, "talk", addr, harness.Sealed(harness.ClosedPort(t)), ms, "hello"))
	// Nobody has the port, and somebody has it who says nothing.
	silent := listenUDP(t)
	expect(t, "error 0 reconnect", run(t, "", command, "talk", "kcp://"+harness.ClosedPort(t), line, ms, "hello"))
	expect(t, "error 0 reconnect", run(t, "", command, "talk", "kcp://"+silent.LocalAddr().String(), line, "300", "hello"))

	to := strings.TrimPrefix(addr, "kcp://")
	heard := make(chan string, 1)
	patient := harness.StartBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, "welcome")
		all := make([]byte, len("hellobye"))
		n, _ := io.ReadFull(c, all[:5])
		c.Write(all[:n])
		m, _ := io.ReadFull(c, all[n:])
		heard <- string(all[:n+m])
	})
	expect(t, "ok plain welcomehello", run(t, "", command, "talk", "kcp://"+lossy(t, to, 3, 0), harness.Sealed(patient), ms, "hello"))
	expect(t, "hellobye", <-heard)

	ways := "kcp://" + lossy(t, to, 7, 40) + ",kcp://" + lossy(t, to, 7, 0)
	expect(t, "ok 65536 resumed", run(t, "", command, "bulk", ways, harness.Sealed(harness.StartEcho(t)), ms, "65536"))
}

func listenUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// lossy relays the datagrams of a client to a gateway and back, each way all but one
// of so many, and one of five twice. Behind so many of the gateway's its port is closed; 0:
// never.
func lossy(t *testing.T, gateway string, lost, ends int) string {
	in := listenUDP(t)
	to, err := net.Dial("udp", gateway)
	if err != nil {
		t.Fatal(err)
	}
	var relaying sync.WaitGroup
	t.Cleanup(func() {
		in.Close()
		to.Close()
		relaying.Wait()
	})
	pass := func(dice *rand.Rand, send func()) {
		if dice.IntN(lost) == 0 {
			return
		}
		if send(); dice.IntN(5) == 0 {
			send()
		}
	}
	var mu sync.Mutex
	var client *net.UDPAddr
	relaying.Go(func() {
		dice := rand.New(rand.NewPCG(1, 2))
		for b := make([]byte, 2048); ; {
			size, from, err := in.ReadFromUDP(b)
			if err != nil {
				return
			}
			mu.Lock()
			client = from
			mu.Unlock()
			pass(dice, func() { to.Write(b[:size]) })
		}
	})
	relaying.Go(func() {
		dice := rand.New(rand.NewPCG(3, 4))
		for n, b := 0, make([]byte, 2048); ends == 0 || n < ends; n++ {
			size, err := to.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			back := client
			mu.Unlock()
			pass(dice, func() { in.WriteToUDP(b[:size], back) })
		}
		in.Close()
	})
	return in.LocalAddr().String()
}
