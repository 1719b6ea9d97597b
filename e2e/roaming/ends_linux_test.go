package roaming

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/resume"
)

// What clients, backends and networks do at bad moments.

// count passes on what has come, without looking at it.
func (r *raw) count() uint64 {
	r.Take(make([]byte, r.Buffered()))
	r.Pass(false, 0)
	return r.Received()
}

// Whoever aborts in the middle of a download has said so in front of a reset, and what is
// on its way to him comes to nothing: its backend is told at once all the same.
func TestACloseIsHeardBehindWhichTheConnectionIsReset(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		g := harness.Start(t, "-resume=1", "-resume-hold=1h", way)
		flood := harness.StartBackendProcess(t, harness.RoleFlood)
		const n = 30
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				r := openRaw(t, harness.Connect(t, g.Addr), flood)
				r.read(t, func() bool { return r.count() > uint64(100_000+i*1000) })
				r.CloseNow(resume.ByApplication)
				harness.Send(t, r.conn, string(r.Output(nil, 1000, 0)))
				harness.Reset(r.conn)
			})
		}
		all.Wait()
		g.Log.WaitLine(t, "tunnel", n)
		if lines := g.Log.Lines("detached"); len(lines) > 0 {
			t.Errorf("%d tunnels are held: %v", len(lines), lines[0])
		}
	})
}

// A backend that closes has finished at first. What its client says then reaches nobody,
// and the client hears of that.
func TestAClientHearsThatItsBackendIsGoneWhichHasFinished(t *testing.T) {
	for _, way := range []string{"-io-uring=0", "-io-uring=1"} {
		g := harness.Start(t, "-resume=1", way)
		backend := harness.StartBackend(t, func(c *net.TCPConn) { harness.Send(t, c, "bye") })
		c, _ := open(t, through(g), backend)
		harness.ExpectAll(t, c, "bye")
		var err error
		harness.Eventually(t, "a write fails", func() bool {
			_, err = c.Write([]byte("is there anybody?"))
			return err != nil
		})
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("it fails by %v", err)
		}
		<-c.Done()
		g.Log.WaitLine(t, "tunnel", 1)
	}
}

// Whoever has gone away by silence, in the middle of a download, has the connection that he
// left closed when he comes back, and does not leave it to the kernel to find out.
func TestAResumeEndsTheConnectionThatTakesNothing(t *testing.T) {
	flags, trusting := harness.TLSFlags(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		a := harness.NewAdmin(t)
		g := harness.Start(t, append(flags, "-resume=1", "-resume-buffer=67108864", a.Flag, way)...)
		flood := harness.StartBackendProcess(t, harness.RoleFlood)
		harness.Finish(t, harness.OpenTunnel(t, g.Addr, harness.StartEcho(t)))
		g.Log.WaitLine(t, "tunnel", 1)
		rest := harness.Descriptors(g.PID())
		const n = 5
		for i := range n {
			stuck := harness.Connect(t, g.Addr)
			r := openRaw(t, tls.Client(stuck, trusting), flood)
			r.read(t, func() bool { return r.count() > 200_000 })
			moved := 0.0
			harness.Eventually(t, "the way is full, since it takes nothing", func() bool {
				before := moved
				time.Sleep(100 * time.Millisecond) // of nothing
				moved = a.Metrics(t).Sum("gateway_bytes_total")
				return moved == before
			})
			r.Detach()
			line := string(r.Reattach(r.ticket))
			r.conn = harness.Connect(t, g.Addr)
			harness.Send(t, r.conn, line)
			harness.Expect(t, r.conn, "200")
			from := r.Received()
			harness.Send(t, r.conn, string(r.Output(nil, 1000, 0)))
			r.read(t, func() bool { return r.count() > from+100_000 })
			g.Log.WaitLine(t, "resumed", i+1)
			r.CloseNow(resume.ByApplication) // so that nothing moves
			harness.Send(t, r.conn, string(r.Output(nil, 1000, 0)))
			g.Log.WaitLine(t, "tunnel", i+2)
		}
		harness.Eventually(t, "only the listener and the admin have descriptors", func() bool { return harness.Descriptors(g.PID()) <= rest+1 })
	})
}
