package roaming

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
)

// Resumable tunnels move to the process that replaces theirs, with their clients and
// without.

// talker says something through a tunnel to an echo, all the time, and checks the answers.
type talker struct {
	conn *tunnel.Conn
	way  *cutter
	stop chan struct{}
	done sync.WaitGroup
}

func startTalker(t *testing.T, gateway, backend string, seed uint64) *talker {
	k := &talker{way: new(cutter), stop: make(chan struct{})}
	k.conn, _ = open(t, &tunnel.Dialer{Gateways: []string{k.way.listen(t, gateway)}}, backend)
	k.conn.SetDeadline(time.Now().Add(10 * harness.Patience))
	k.done.Go(func() {
		r := rand.New(rand.NewPCG(seed, 1))
		for {
			select {
			case <-k.stop:
				return
			default:
			}
			both(t, k.conn, r.Uint64(), 1+r.IntN(200_000))
			if r.IntN(2) == 0 {
				time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
			}
		}
	})
	return k
}

// end finishes the tunnel, which ends on both sides.
func (k *talker) end(t *testing.T) {
	close(k.stop)
	k.done.Wait()
	if t.Failed() {
		return
	}
	k.conn.CloseWrite()
	harness.ExpectAll(t, k.conn, "")
	<-k.conn.Done()
}

func TestTunnelsMoveThroughSeveralUpgradesWithCutsInBetween(t *testing.T) {
	upgrades, n := 6, 12
	if testing.Short() {
		upgrades, n = 3, 6
	}
	u := harness.StartUpgradable(t, "-resume=1", "-resume-hold=60s", "-resume-buffer=65536")
	b := startCounted(t, echo)
	var all []*talker
	for i := range n {
		all = append(all, startTalker(t, u.Addr, b.addr, uint64(i)))
	}
	stop := make(chan struct{})
	var cutting sync.WaitGroup
	cutting.Go(func() { // at any moment of an upgrade
		r := rand.New(rand.NewPCG(9, 9))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
			}
			switch k := all[r.IntN(n)]; r.IntN(3) {
			case 0:
				k.way.cut()
				time.AfterFunc(time.Duration(r.IntN(50))*time.Millisecond, k.way.up)
			default:
				k.conn.Reconnect()
			}
		}
	})
	for range upgrades {
		old := u.Main
		u.Upgrade(t)
		harness.WaitGone(t, old) // nothing has stayed
	}
	close(stop)
	cutting.Wait()
	resumes := 0
	for _, k := range all {
		k.way.up()
		k.end(t)
		resumes += k.conn.Resumes()
	}
	t.Logf("%d resumes", resumes)
	for _, line := range u.Log.Lines("refused") {
		if line["reason"] != "used" && line["reason"] != "moving" { // a newer one has won; or it is tried again
			t.Errorf("logged %v", line)
		}
	}
	if t.Failed() {
		return
	}
	if got := b.conns.Load(); got != int32(n) || resumes < n {
		t.Errorf("the backend saw %d connections of %d tunnels, which were resumed %d times", got, n, resumes)
	}
	u.Log.WaitLine(t, "tunnel", n)
	for _, line := range u.Log.Lines("tunnel") {
		if line["how"] != "fin" || line["up"] != line["down"] || line["session"] == nil {
			t.Errorf("logged %v", line)
		}
	}
	u.EndMain(t)
}

// What both sides have said, and where they have ended, goes along.
func TestATunnelWithoutItsClientMoves(t *testing.T) {
	u := harness.StartUpgradable(t, "-resume=1", "-resume-hold=60s")
	const size = 300_000 // more than sockets and buffers take
	heard := make(chan []byte, 1)
	away := make(chan struct{})
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.Expect(t, c, "hello")
		<-away
		c.Write(harness.Noise(1, size))
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		heard <- got
	})
	k := new(cutter)
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, u.Addr)}}, backend)
	harness.Send(t, c, "hello")
	k.cut()
	u.Log.WaitLine(t, "detached", 1)
	upgrade := func() {
		t.Helper()
		old := u.Main
		u.Upgrade(t)
		harness.WaitGone(t, old)
	}
	upgrade()
	close(away)
	var writing sync.WaitGroup
	writing.Go(func() {
		c.Write(harness.Noise(2, size))
		c.CloseWrite()
	})
	upgrade()
	upgrade()
	k.up()
	got, err := io.ReadAll(c)
	writing.Wait()
	if err != nil || !bytes.Equal(got, harness.Noise(1, size)) {
		t.Errorf("the client got %d bytes, %v", len(got), err)
	}
	if got := <-heard; !bytes.Equal(got, harness.Noise(2, size)) {
		t.Errorf("the backend got %d bytes", len(got))
	}
	<-c.Done()
	u.Log.WaitLine(t, "tunnel", 1)
	if line := u.Log.Lines("tunnel")[0]; line["how"] != "fin" || line["up"] != size+5.0 || line["down"] != size+0.0 {
		t.Errorf("logged %v", line)
	}
	u.EndMain(t)
}

func TestAHoldGoesOnInTheNextProcess(t *testing.T) {
	u := harness.StartUpgradable(t, "-resume=1", "-resume-hold=3s")
	how := make(chan error, 1)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.Send(t, c, "x")
		_, err := io.ReadAll(c)
		how <- err
	})
	k := new(cutter)
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, u.Addr)}}, backend)
	harness.Expect(t, c, "x")
	k.cut()
	u.Log.WaitLine(t, "detached", 1)
	old := u.Main
	u.Upgrade(t)
	harness.WaitGone(t, old)
	if err := <-how; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend's read ended with %v", err)
	}
	u.Log.WaitLine(t, "not resumed", 1)
	u.Log.WaitLine(t, "tunnel", 1)
	line := u.Log.Lines("not resumed")[0]
	if ms := line["detached_ms"].(float64); line["reason"] != "hold" || ms < 3000 || ms > 3000+harness.Patience.Seconds()*1000 {
		t.Errorf("logged %v", line)
	}
	if line := u.Log.Lines("tunnel")[0]; line["how"] != "timeout" || line["ended_by"] != "client" {
		t.Errorf("logged %v", line)
	}
	u.EndMain(t)
}

// Whoever is inside TLS or a WebSocket stays by the old process, until he comes back; the
// tunnel is the new one's at once.
func TestAClientInsideAnotherLayerStaysWhereItsTunnelGoes(t *testing.T) {
	flags, trusting := harness.TLSFlags(t)
	u := harness.StartUpgradable(t, append(flags, "-resume=1")...)
	b := startCounted(t, echo)
	for _, dial := range []func(ctx context.Context) (net.Conn, error){
		overTLS(u.Addr, trusting), overWebSocket("ws://"+u.Addr, nil), overWebSocket("wss://"+u.Addr, trusting),
	} {
		w := &ways{dials: []func(ctx context.Context) (net.Conn, error){dial}}
		c, _ := open(t, &tunnel.Dialer{Gateways: []string{u.Addr}, DialContext: w.dial}, b.addr)
		both(t, c, 1, 200_000)
		old := u.Main
		moved := len(u.Log.Lines("tunnels handed over"))
		u.Upgrade(t)
		u.Log.WaitLine(t, "tunnels handed over", moved+1)
		if line := u.Log.Lines("tunnels handed over")[moved]; line["tunnels"] != 1.0 {
			t.Errorf("logged %v", line)
		}
		both(t, c, 2, 200_000)
		if c.Resumes() != 0 {
			t.Error("the client has noticed")
		}
		reconnect(t, c)
		harness.WaitGone(t, old)
		both(t, c, 3, 200_000)
		c.CloseWrite()
		harness.ExpectAll(t, c, "")
		<-c.Done()
	}
	if n := b.conns.Load(); n != 3 {
		t.Errorf("the backend saw %d connections", n)
	}
	u.Log.WaitLine(t, "tunnel", 3)
	for _, line := range u.Log.Lines("tunnel") {
		if line["how"] != "fin" || line["up"] != 600_000.0 || line["down"] != 600_000.0 {
			t.Errorf("logged %v", line)
		}
	}
	u.EndMain(t)
}

func TestAnotherGatewayFindsTheNextProcessOfAnOwner(t *testing.T) {
	peers := []string{"-resume=1", "-resume-peers=127.0.0.0/8"}
	owner := harness.StartUpgradable(t, append(peers, "-resume-peer="+harness.ClosedPort(t))...)
	other := harness.Start(t, append(peers, "-resume-peer="+harness.ClosedPort(t))...)
	b := startCounted(t, echo)
	d := &tunnel.Dialer{Gateways: []string{owner.Addr, other.Addr}}
	c, _ := open(t, d, b.addr)
	for i := range uint64(3) {
		both(t, c, i, 100_000)
		old := owner.Main
		owner.Upgrade(t)
		harness.WaitGone(t, old)
		reconnect(t, c) // at the other one, and back
	}
	both(t, c, 9, 100_000)
	if n := b.conns.Load(); n != 1 {
		t.Errorf("the backend saw %d connections", n)
	}
}

func TestWithoutHandOverTunnelsStayInTheOldProcess(t *testing.T) {
	u := harness.StartUpgradable(t, "-resume=1", "-handover=0", "-resume-hold=1h", "-hard-stop-after=3s")
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{u.Addr}}, harness.StartEcho(t))
	harness.Echo(t, c, "x")
	u.Upgrade(t)
	harness.Echo(t, c, "y")
	c.SetReadDeadline(time.Now().Add(harness.Patience / 2)) // it is told, and need not wait
	c.Reconnect()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("the client's read ended with %v", err)
	}
}
