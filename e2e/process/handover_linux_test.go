package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// Live tunnels move to the process that replaces theirs, and nobody notices.

// crowd is tunnels through a gateway, each with a backend's end in this process. What
// a client says first tells the backend which of the kinds it is.
type crowd struct {
	t        *testing.T
	gateway  string
	backend  string
	stopping chan struct{}
	working  sync.WaitGroup

	mu      sync.Mutex
	members map[string]*member // by the client's address
	trips   []time.Duration    // of messages, of kind echo
}

// member is one tunnel.
type member struct {
	kind     byte
	seed     uint64
	c        *net.TCPConn
	began    time.Time
	ended    time.Time
	up, down atomic.Int64 // what the log is to say
	how      string
}

// The kinds of tunnels.
const (
	echo     = 'e' // messages, back and forth
	download = 'd' // bulk from the backend to a client that reads slowly
	upload   = 'u' // bulk to a backend that reads slowly
	stalled  = 's' // bulk from the backend to a client that reads nothing until the end
	half     = 'h' // the client has finished, and the backend goes on
	breaking = 'r' // messages, and at the end the client's reset
)

const (
	chunk = 64 << 10
	// stalledBytes is more than a pipe and all buffers hold.
	stalledBytes = 12 << 20
	// longest is how long a crowd may live.
	longest = 10 * time.Minute
)

func newCrowd(t *testing.T, gateway string) *crowd {
	cr := &crowd{t: t, gateway: gateway, stopping: make(chan struct{}), members: make(map[string]*member)}
	cr.backend = harness.StartBackend(t, cr.serve)
	return cr
}

func (cr *crowd) stopped() bool {
	select {
	case <-cr.stopping:
		return true
	default:
		return false
	}
}

// pause waits, but not beyond the end.
func (cr *crowd) pause(d time.Duration) {
	select {
	case <-cr.stopping:
	case <-time.After(d):
	}
}

// noise is an endless stream of bytes that a seed determines.
type noise struct {
	whole []byte
	at    int
}

func newNoise(seed uint64) *noise { return &noise{whole: harness.Noise(seed%16, 1<<20)} }

func (n *noise) next(size int) []byte {
	if n.at+size > len(n.whole) {
		n.at = 0
	}
	b := n.whole[n.at : n.at+size]
	n.at += size
	return b
}

// serve is the backend's end of a tunnel.
func (cr *crowd) serve(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(longest))
	var first [9]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		cr.t.Errorf("the backend reads no beginning: %v", err)
		return
	}
	kind, seed := first[0], binary.BigEndian.Uint64(first[1:])
	what := fmt.Sprintf("backend of %c %d", kind, seed)
	switch kind {
	case echo, breaking:
		buf := make([]byte, 4<<10)
		for {
			n, err := c.Read(buf)
			if err == nil {
				_, err = c.Write(buf[:n])
			}
			if err == nil {
				continue
			}
			if kind == echo && err != io.EOF || kind == breaking && !harness.IsReset(err) {
				cr.t.Errorf("%s: %v", what, err)
			}
			break
		}
	case download, stalled:
		// The end is the client's to know: the last byte of all is 1.
		n := newNoise(seed)
		for sent := 0; kind == download && !cr.stopped() || kind == stalled && sent < stalledBytes; sent += chunk {
			if err := send(c, 0, n.next(chunk)); err != nil {
				cr.t.Errorf("%s, after %d: %v", what, sent, err)
				return
			}
		}
		if err := send(c, 1, nil); err != nil {
			cr.t.Errorf("%s, at the end: %v", what, err)
		}
	case upload:
		n := newNoise(seed)
		for buf, last := make([]byte, chunk), false; !last; {
			var err error
			if last, err = receive(c, buf, n); err != nil {
				cr.t.Errorf("%s: %v", what, err)
				return
			}
			cr.pause(100 * time.Millisecond)
		}
	case half:
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			cr.t.Errorf("%s reads %d bytes, %v", what, len(rest), err)
		}
		for n := newNoise(seed); !cr.stopped(); cr.pause(20 * time.Millisecond) {
			if err := send(c, 0, n.next(100)); err != nil {
				cr.t.Errorf("%s: %v", what, err)
				return
			}
		}
		send(c, 1, nil)
	}
	c.CloseWrite()
	if kind != breaking {
		io.Copy(io.Discard, struct{ io.Reader }{c})
	}
}

// send writes a piece, with its length and whether it is the last before it.
func send(c net.Conn, last byte, b []byte) error {
	var head [5]byte
	head[0] = last
	binary.BigEndian.PutUint32(head[1:], uint32(len(b)))
	_, err := c.Write(append(head[:], b...))
	return err
}

// receive reads a piece, which is to be the next of n.
func receive(c net.Conn, buf []byte, n *noise) (last bool, err error) {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return false, err
	}
	size := int(binary.BigEndian.Uint32(head[1:]))
	if size > len(buf) {
		return false, fmt.Errorf("a piece of %d bytes: the stream is out of order", size)
	}
	if _, err := io.ReadFull(c, buf[:size]); err != nil {
		return false, err
	}
	if size > 0 && !bytes.Equal(buf[:size], n.next(size)) {
		return false, fmt.Errorf("%d bytes are not those that were sent", size)
	}
	return head[0] == 1, nil
}

// join adds tunnels of a kind, and starts what they do.
func (cr *crowd) join(kind byte, count int) {
	cr.t.Helper()
	for range count {
		m := &member{kind: kind, seed: rand.Uint64(), began: time.Now(), how: "fin"}
		m.c = harness.OpenTunnel(cr.t, cr.gateway, cr.backend)
		m.c.SetDeadline(time.Now().Add(longest))
		first := binary.BigEndian.AppendUint64([]byte{kind}, m.seed)
		harness.Send(cr.t, m.c, string(first))
		m.up.Add(int64(len(first)))
		cr.mu.Lock()
		cr.members[harness.AddrPort(m.c.LocalAddr()).String()] = m
		cr.mu.Unlock()
		cr.working.Go(func() {
			if err := cr.work(m); err != nil {
				cr.t.Errorf("client of %c %d: %v", m.kind, m.seed, err)
			}
			m.ended = time.Now()
			m.c.Close()
		})
	}
}

// work is the client's end of a tunnel, until the crowd is to end.
func (cr *crowd) work(m *member) error {
	switch m.kind {
	case echo, breaking:
		return cr.talk(m)
	case download, half:
		if m.kind == half {
			m.c.CloseWrite()
		}
		return cr.read(m, 100*time.Millisecond)
	case stalled:
		<-cr.stopping
		return cr.read(m, 0)
	}
	for n := newNoise(m.seed); !cr.stopped(); {
		if err := send(m.c, 0, n.next(chunk)); err != nil {
			return err
		}
		m.up.Add(5 + chunk)
	}
	if err := send(m.c, 1, nil); err != nil {
		return err
	}
	m.up.Add(5)
	return finish(m.c)
}

// finish ends a tunnel whose other end has no more to say.
func finish(c *net.TCPConn) error {
	c.CloseWrite()
	rest, err := io.ReadAll(c)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes too many", len(rest))
	}
	return err
}

// read reads what the backend sends until its FIN.
func (cr *crowd) read(m *member, pace time.Duration) error {
	n, buf := newNoise(m.seed), make([]byte, chunk)
	for {
		before := n.at
		last, err := receive(m.c, buf, n)
		if err != nil {
			return err
		}
		m.down.Add(5)
		if last {
			return finish(m.c)
		}
		size := n.at - before
		if size <= 0 { // round again
			size = n.at
		}
		m.down.Add(int64(size))
		cr.pause(pace)
	}
}

// talk has messages come back.
func (cr *crowd) talk(m *member) error {
	r := rand.New(rand.NewPCG(m.seed, 0))
	n, buf := newNoise(m.seed), make([]byte, 2000)
	var trips []time.Duration
	for !cr.stopped() {
		msg := n.next(1 + r.IntN(len(buf)))
		at := time.Now()
		if _, err := m.c.Write(msg); err != nil {
			return err
		}
		m.up.Add(int64(len(msg)))
		if _, err := io.ReadFull(m.c, buf[:len(msg)]); err != nil {
			return err
		}
		trips = append(trips, time.Since(at))
		m.down.Add(int64(len(msg)))
		if !bytes.Equal(buf[:len(msg)], msg) {
			return fmt.Errorf("what comes back is not what was sent")
		}
		cr.pause(time.Duration(r.IntN(100)) * time.Millisecond)
	}
	cr.mu.Lock()
	cr.trips = append(cr.trips, trips...)
	cr.mu.Unlock()
	if m.kind == breaking {
		m.how = "reset"
		harness.Reset(m.c)
		return nil
	}
	return finish(m.c)
}

// end ends all tunnels, and sees whether the log has an end of each, with its totals.
func (cr *crowd) end(u *harness.Upgraded) {
	cr.t.Helper()
	close(cr.stopping)
	cr.working.Wait()
	u.Log.WaitLine(cr.t, "tunnel", len(cr.members))
	seen := make(map[string]bool)
	for _, line := range u.Log.Lines("tunnel") {
		client := line["client"].(string)
		m := cr.members[client]
		if m == nil {
			continue
		}
		if seen[client] {
			cr.t.Errorf("%c has two ends: %v", m.kind, line)
		}
		seen[client] = true
		if up, down := int64(line["up"].(float64)), int64(line["down"].(float64)); up != m.up.Load() || down != m.down.Load() {
			cr.t.Errorf("%c: %d up and %d down, want %d and %d: %v", m.kind, up, down, m.up.Load(), m.down.Load(), line)
		}
		if how := line["how"]; how != m.how {
			cr.t.Errorf("%c ended by %v, want %s: %v", m.kind, how, m.how, line)
		}
		// A connect takes a moment, and so does the end to be seen.
		took := time.Duration(line["duration_ms"].(float64)) * time.Millisecond
		if want := m.ended.Sub(m.began); took < want-harness.Patience/4 || took > want+harness.Patience/4 {
			cr.t.Errorf("%c took %v, want about %v: %v", m.kind, took, want, line)
		}
	}
	if len(seen) != len(cr.members) {
		cr.t.Errorf("%d tunnels have an end in the log, want %d", len(seen), len(cr.members))
	}
	slices.Sort(cr.trips)
	if n := len(cr.trips); n > 0 {
		cr.t.Logf("%d messages, p50 %v, p99 %v, max %v", n, cr.trips[n/2], cr.trips[n*99/100], cr.trips[n-1])
	}
}

// startUpgradableWithin starts a gateway that may have so many descriptors.
func startUpgradableWithin(t *testing.T, limit int, args ...string) *harness.Upgraded {
	t.Helper()
	cmd := harness.Command(t, nil, append([]string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-log-format=json",
		"-timeout=" + harness.Patience.String()}, args...)...)
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return harness.Adopt(t, harness.StartCommand(t, cmd))
}

func TestTwentyUpgradesMoveACrowdOfTunnelsAndLoseNoByte(t *testing.T) {
	t.Parallel()
	upgrades, share := 20, 1
	if testing.Short() {
		upgrades, share = 5, 10
	}
	const limit = 5000
	u := startUpgradableWithin(t, limit, "-half-close-timeout=10m")
	cr := newCrowd(t, u.Addr)
	cr.join(echo, 1000/share)
	cr.join(breaking, 50/share)
	cr.join(download, 100/share)
	cr.join(upload, 100/share)
	cr.join(stalled, 50/share)
	cr.join(half, 100/share)
	for i := range upgrades {
		old := u.Main
		u.Upgrade(t)
		for _, pid := range []int{old, u.Main} {
			if n := harness.Descriptors(pid); n > limit {
				t.Errorf("upgrade %d: process %d has %d descriptors", i, pid, n)
			}
		}
		if i%2 == 0 || i == upgrades-1 { // else the next one comes while this one goes on
			harness.WaitGone(t, old)
		}
	}
	cr.end(u)
	for _, msg := range []string{"cannot accept, trying again", "panic", "tunnels stay in this process until they end"} {
		if lines := u.Log.Lines(msg); len(lines) > 0 {
			t.Errorf("logged: %v", lines[0])
		}
	}
	moved := 0
	for _, line := range u.Log.Lines("tunnels taken over") {
		moved += int(line["tunnels"].(float64))
	}
	if want := upgrades * len(cr.members); moved < want {
		t.Errorf("%d tunnels have moved, want %d", moved, want)
	}
	u.EndMain(t)
}

// faulty returns the file of a gateway that dies where a file says.
func faulty(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateway")
	args := []string{"build", "-tags", "faults", "-o", file}
	if harness.RaceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "gateway")...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return file
}

// faults are the steps of a batch at which one of the two processes is killed, or
// stopped for a while.
var faults = []struct {
	step  string
	ofOld bool
	stop  bool
	lost  bool // the tunnels of that batch
}{
	{step: "received"},                          // the new one has all of it
	{step: "take"},                              // … and can read it
	{step: "taken", lost: true},                 // … and has said so: they are its own
	{step: "send", ofOld: true, lost: true},     // nobody else knows of them
	{step: "sent", ofOld: true},                 // the new one has all of it
	{step: "answered", ofOld: true},             // … and has said so
	{step: "received", stop: true},              // the old one waits in vain
	{step: "take", stop: true},                  //
	{step: "answered", ofOld: true, stop: true}, // nobody waits for it
}

func TestAProcessThatDiesDuringAHandoverLosesAtMostOneBatch(t *testing.T) {
	t.Parallel()
	harness.Long(t)
	file := faulty(t)
	const tunnels, batch = 100, 64 // two batches
	for _, f := range faults {
		name := fmt.Sprintf("the new one is killed at %s", f.step)
		if f.ofOld {
			name = fmt.Sprintf("the old one is killed at %s", f.step)
		}
		if f.stop {
			name = strings.Replace(name, "killed", "stopped", 1)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fault := filepath.Join(t.TempDir(), "fault")
			cmd := harness.Command(t, []string{"HANDOVER_FAULT=" + fault}, "-secret="+harness.Secret, "-addr=127.0.0.1:0",
				"-log-format=json", "-loops=1", "-timeout="+harness.Patience.String())
			cmd.Path = file
			u := harness.Adopt(t, harness.StartCommand(t, cmd))
			backend := harness.StartBackend(t, func(c *net.TCPConn) {
				c.SetDeadline(time.Now().Add(longest))
				io.Copy(c, struct{ io.Reader }{c})
			})
			var clients []*net.TCPConn
			for range tunnels {
				c := harness.OpenTunnel(t, u.Addr, backend)
				c.SetDeadline(time.Now().Add(longest))
				clients = append(clients, c)
			}
			old, number, sig := u.Main, 1, syscall.SIGKILL
			if f.ofOld {
				number = 2 // what is left of its tunnels ends with it
			}
			if f.stop {
				sig = syscall.SIGSTOP
			}
			harness.WriteFile(t, fault, fmt.Sprintf("%s:%d:%d", f.step, number, sig))
			u.SignalMain(t, syscall.SIGUSR2)
			victim := int(u.Log.WaitLine(t, "fault", 1)["pid"].(float64))
			if (victim == old) != f.ofOld {
				t.Fatalf("the wrong process")
			}
			switch {
			case f.stop && !f.ofOld:
				u.Log.WaitLine(t, "tunnels stay in this process until they end", 1)
				syscall.Kill(victim, syscall.SIGCONT)
				u.Log.WaitLine(t, "the old process keeps what tunnels it has left", 1)
			case f.stop:
				syscall.Kill(victim, syscall.SIGCONT)
			case !f.ofOld:
				u.Log.WaitLine(t, "the new process has ended: this one serves again", 1)
			}
			lost := 0
			for i, c := range clients {
				if _, err := io.WriteString(c, "still here"); err == nil {
					got := make([]byte, len("still here"))
					if n, err := io.ReadFull(c, got); err == nil && string(got) == "still here" {
						continue
					} else if n > 0 {
						t.Errorf("client %d reads %q, %v", i, got[:n], err)
					}
				}
				lost++
			}
			switch {
			case !f.lost && lost > 0, lost > batch:
				t.Errorf("%d of %d tunnels are lost", lost, tunnels)
			case f.lost && lost == 0:
				t.Error("nothing is lost: did the fault happen?")
			}
			harness.Finish(t, harness.OpenTunnel(t, u.Addr, backend))
			if !f.ofOld && !f.stop {
				u.Upgrade(t) // the next one gets what is left
				u.Log.WaitLine(t, "tunnels handed over", 1)
				harness.WaitGone(t, old)
			}
			for _, c := range clients {
				c.Close()
			}
		})
	}
}

func TestAProcessWhoseTunnelsHaveMovedIsGoneWithinASecond(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t)
	backend := harness.StartEcho(t)
	c := harness.OpenTunnel(t, u.Addr, backend)
	old := u.Main
	u.Upgrade(t)
	u.Log.WaitLine(t, "stopped", 1)
	harness.WaitGone(t, old)
	line := u.Log.WaitLine(t, "handed over", 1)
	gone := u.Log.WaitLine(t, "stopped", 1)
	began, err1 := time.Parse(time.RFC3339Nano, line["time"].(string))
	ended, err2 := time.Parse(time.RFC3339Nano, gone["time"].(string))
	if err1 != nil || err2 != nil || ended.Sub(began) > time.Second && !harness.RaceEnabled {
		t.Errorf("it took %v, %v, %v", ended.Sub(began), err1, err2)
	}
	harness.Echo(t, c, "still here")
	harness.Finish(t, c)
	u.EndMain(t)
}

func TestWithoutHandoverTunnelsEndInTheOldProcess(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t, "-handover=0")
	c := harness.OpenTunnel(t, u.Addr, harness.StartEcho(t))
	old := u.Main
	u.Upgrade(t)
	harness.Echo(t, c, "still here")
	if err := syscall.Kill(old, 0); err != nil {
		t.Errorf("the old process: %v", err)
	}
	harness.Finish(t, c)
	harness.WaitGone(t, old)
	if lines := u.Log.Lines("tunnels handed over"); len(lines) > 0 {
		t.Errorf("logged: %v", lines)
	}
	u.EndMain(t)
}

func TestThousandsOfIdleTunnelsMoveAndBusyOnesHardlyWait(t *testing.T) {
	harness.Long(t)
	// As many as the limit of descriptors has room for, of 20,000.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	idle := int(min(20_000, (limit.Cur-2000)/2))
	u := harness.StartUpgradable(t)
	backend := harness.StartBackendProcess(t, harness.RoleEcho)
	line := harness.Line(backend)
	var opening sync.WaitGroup
	clients := make([]*net.TCPConn, idle)
	for i := range 8 {
		opening.Go(func() {
			for j := i; j < idle; j += 8 {
				c, err := net.Dial("tcp", u.Addr)
				if err == nil {
					clients[j] = c.(*net.TCPConn)
					_, err = io.WriteString(c, line)
				}
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 3))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	opening.Wait()
	defer func() {
		for _, c := range clients {
			if c != nil {
				harness.Reset(c)
			}
		}
	}()
	cr := newCrowd(t, u.Addr)
	cr.join(echo, 20)
	for range 3 {
		old := u.Main
		u.Upgrade(t)
		harness.WaitGone(t, old)
	}
	for _, line := range u.Log.Lines("tunnels handed over") {
		if n, took := line["tunnels"].(float64), line["took_ms"].(float64); int(n) < idle || took > 2000 {
			t.Errorf("logged: %v", line)
		} else {
			t.Logf("%v tunnels in %v ms", n, took)
		}
	}
	cr.end(u)
}

func TestTheAdminInterfaceHasTheTunnelsThatMoved(t *testing.T) {
	t.Parallel()
	a := harness.NewAdmin(t)
	u := harness.StartUpgradable(t, a.Flag)
	backend := harness.StartEcho(t)
	c := harness.OpenTunnel(t, u.Addr, backend)
	harness.Echo(t, c, "hello")
	old := u.Main
	u.Upgrade(t)
	harness.WaitGone(t, old)
	var list struct {
		Tunnels []struct {
			Client, Backend, Listener, Form, State string
			Up, Down                               int64
		}
	}
	a.JSON(t, "GET", "/api/tunnels", "", &list)
	if len(list.Tunnels) != 1 {
		t.Fatalf("listed: %+v", list)
	}
	if got := list.Tunnels[0]; got.Client != harness.AddrPort(c.LocalAddr()).String() || got.Backend != backend || got.Listener != u.Addr ||
		got.Form != "line" || got.State != "open" || got.Up != 5 || got.Down != 5 {
		t.Errorf("listed: %+v", got)
	}
	wait(t, a, "gateway_tunnels_active", 1)
	harness.Echo(t, c, "still here")
	harness.Finish(t, c)
	wait(t, a, "gateway_tunnels_active", 0)
	u.EndMain(t)
}

// filtered copies the lines about connections of a log that grows, until it is told to
// stop.
func filtered(from *harness.Log) (to *harness.Log, stop func()) {
	to = &harness.Log{}
	at := 0
	copyNew := func() {
		text := from.String()
		for {
			line, _, whole := strings.Cut(text[at:], "\n")
			if !whole {
				return
			}
			at += len(line) + 1
			for _, msg := range []string{`"msg":"tunnel"`, `"msg":"refused"`, `"msg":"request"`} {
				if strings.Contains(line, msg) {
					io.WriteString(to, line+"\n")
				}
			}
		}
	}
	stopping := make(chan struct{})
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			copyNew()
			select {
			case <-stopping:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return to, func() { close(stopping); copying.Wait() }
}

func TestThousandsOfTunnelsLoseNothingDuringUpgrades(t *testing.T) {
	harness.Long(t)
	storm := harness.NewStorm(t, 1000, true)
	u := harness.StartUpgradable(t, "-resolver="+storm.Resolver)
	log, stop := filtered(&u.Log)
	defer stop()
	over := make(chan struct{})
	var upgrading sync.WaitGroup
	upgrades := 0
	upgrading.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
				u.Upgrade(t)
				upgrades++
			}
		}
	})
	storm.Run(t, u.Addr, log)
	close(over)
	upgrading.Wait()
	t.Logf("%d upgrades", upgrades)
	u.EndMain(t)
}
