package roaming

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
)

// One of two processes is killed in the middle of an upgrade. No tunnel is in both then, with
// its client or without, and none in neither but those of one batch, whose clients are told.
func TestAProcessThatDiesDuringAnUpgradeLosesAtMostOneBatchOfTunnels(t *testing.T) {
	harness.Long(t)
	file := filepath.Join(t.TempDir(), "gateway")
	args := []string{"build", "-tags", "faults", "-o", file}
	if harness.RaceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "gateway")...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	const tunnels, away, batch = 100, 40, 64 // two batches
	for _, f := range []struct {
		step        string
		ofOld, lost bool // see e2e/process
	}{
		{step: "received"}, {step: "take"}, {step: "taken", lost: true},
		{step: "send", ofOld: true, lost: true}, {step: "sent", ofOld: true}, {step: "answered", ofOld: true},
	} {
		t.Run(f.step, func(t *testing.T) {
			fault := filepath.Join(t.TempDir(), "fault")
			cmd := harness.Command(t, []string{"HANDOVER_FAULT=" + fault}, "-secret="+harness.Secret, "-addr=127.0.0.1:0",
				"-log-format=json", "-loops=1", "-resume=1", "-resume-hold=5m", "-timeout="+harness.Patience.String())
			cmd.Path = file
			u := harness.Adopt(t, harness.StartCommand(t, cmd))
			b := startCounted(t, echo)
			ways := make([]cutter, away)
			var conns []*tunnel.Conn
			for i := range tunnels {
				addr := u.Addr
				if i%5 < 2 {
					addr = ways[i/5*2+i%5].listen(t, u.Addr)
				}
				c, _ := open(t, &tunnel.Dialer{Gateways: []string{addr}}, b.addr)
				c.SetDeadline(time.Now().Add(3 * harness.Patience))
				harness.Echo(t, c, "before")
				conns = append(conns, c)
			}
			for i := range ways {
				ways[i].cut()
			}
			u.Log.WaitLine(t, "detached", away)
			for _, c := range conns {
				harness.Send(t, c, "meanwhile")
			}
			old, number := u.Main, 1
			if f.ofOld {
				number = 2
			}
			harness.WriteFile(t, fault, fmt.Sprintf("%s:%d:%d", f.step, number, syscall.SIGKILL))
			u.SignalMain(t, syscall.SIGUSR2)
			if victim := int(u.Log.WaitLine(t, "fault", 1)["pid"].(float64)); (victim == old) != f.ofOld {
				t.Fatal("the wrong process")
			}
			if !f.ofOld {
				u.Log.WaitLine(t, "the new process has ended: this one serves again", 1)
			}
			for i := range ways {
				ways[i].up()
			}
			lost := 0
			for i, c := range conns {
				io.WriteString(c, "after")
				got := make([]byte, len("meanwhileafter"))
				n, err := io.ReadFull(c, got)
				switch {
				case err == nil && string(got) == "meanwhileafter":
				case errors.Is(err, tunnel.ErrGone) && (n == 0 || string(got[:n]) == "meanwhile"):
					lost++
				default:
					t.Errorf("client %d reads %q, %v", i, got[:n], err)
				}
			}
			if f.lost != (lost > 0) || lost > batch {
				t.Errorf("%d of %d tunnels are lost", lost, tunnels)
			}
			if n := b.conns.Load(); n != tunnels {
				t.Errorf("the backend saw %d connections", n)
			}
			if !f.ofOld {
				u.Upgrade(t) // the next one gets what is left
				harness.WaitGone(t, old)
			}
			for _, c := range conns {
				if c.Err() == nil {
					harness.Echo(t, c, "at last")
				}
			}
		})
	}
}
