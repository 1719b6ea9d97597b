package kcp

import (
	"fmt"
	"sync"
	"syscall"
	"testing"

	"gateway/internal/harness"
)

// Sessions stay in the process that they began in, and get sockets of their own there;
// the port is the next one's.
func TestSessionsOutlastUpgrades(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	u := harness.StartUpgradable(t, "-kcp=127.0.0.1:0", "-drain=0")
	addr := fmt.Sprint("127.0.0.1:", harness.PortOf(kcpAddr(t, u.Process)))
	var old []int
	var sessions []*session
	stop := make(chan struct{})
	var talking sync.WaitGroup
	for range 3 {
		for range 5 {
			s := openKCP(t, addr, backend)
			sessions = append(sessions, s)
			talking.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						echoByHash(t, s, 64<<10)
					}
				}
			})
		}
		old = append(old, u.Main)
		u.Upgrade(t)
	}
	close(stop)
	talking.Wait()
	for _, s := range sessions {
		harness.Echo(t, s, "still here")
	}
	last := openKCP(t, addr, backend)
	harness.Echo(t, last, "hello")
	for _, pid := range old {
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("process %d, which has sessions: %v", pid, err)
		}
	}
	u.SignalMain(t, syscall.SIGTERM)
	for _, pid := range append(old, u.Main) {
		harness.WaitGone(t, pid) // it says so to the one before, and so on
	}
}
