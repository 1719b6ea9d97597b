package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// The services of deploy/ask, over each store, with load, restarts and kills.

// keeper is a store, which can die and come back with what it knows.
type keeper struct {
	flag string // of the service
	put  func(key, answer string) error
	// server starts what has the store; nil for a file, which has none.
	server func() *exec.Cmd
}

func newFileStore(t *testing.T) *keeper {
	path := filepath.Join(t.TempDir(), "routes.json")
	answers := make(map[string]json.RawMessage)
	k := &keeper{flag: "file:" + path}
	k.put = func(key, answer string) error {
		answers[key] = json.RawMessage(answer)
		text, err := json.Marshal(answers)
		if err == nil {
			if err = os.WriteFile(path+".new", text, 0o600); err == nil {
				err = os.Rename(path+".new", path)
			}
		}
		return err
	}
	return k
}

func newEtcd(t *testing.T) *keeper {
	program := harness.FindServer(t, "etcd", os.Getenv("NEED_ASK") != "", "test-ask")
	dir, client, peer := t.TempDir(), "http://"+harness.ClosedPort(t), "http://"+harness.ClosedPort(t)
	return &keeper{
		flag: "etcd:" + client,
		put: func(key, answer string) error {
			body, err := json.Marshal(map[string][]byte{"key": []byte("/ask/" + key), "value": []byte(answer)})
			if err != nil {
				return err
			}
			resp, err := http.Post(client+"/v3/kv/put", "application/json", bytes.NewReader(body))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s, %v", resp.Status, err)
			}
			return nil
		},
		server: func() *exec.Cmd {
			return exec.Command(program, "--data-dir="+dir, "--unsafe-no-fsync", "--listen-client-urls="+client, "--advertise-client-urls="+client,
				"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer, "--log-level=error")
		},
	}
}

func newRedisStore(t *testing.T) *keeper {
	program := harness.FindServer(t, "redis-server", os.Getenv("NEED_ASK") != "", "test-ask")
	dir, addr := t.TempDir(), harness.ClosedPort(t)
	return &keeper{
		flag: "redis:" + addr,
		put: func(key, answer string) error {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(harness.Patience))
			fmt.Fprintf(c, "*3\r\n$3\r\nSET\r\n$%d\r\nask:%s\r\n$%d\r\n%s\r\n", len("ask:"+key), key, len(answer), answer)
			ok := make([]byte, 5)
			if _, err := io.ReadFull(c, ok); err != nil || string(ok) != "+OK\r\n" {
				return fmt.Errorf("%q, %v", ok, err)
			}
			return nil
		},
		server: func() *exec.Cmd {
			return exec.Command(program, "--port", harness.PortOf(addr), "--bind", "127.0.0.1", "--dir", dir,
				"--save", "", "--appendonly", "yes", "--appendfsync", "no")
		},
	}
}

// buildAsk builds the service in Go, which is a module of its own.
func buildAsk(t *testing.T) string {
	program := filepath.Join(t.TempDir(), "ask")
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Dir = filepath.Join("ask", "go")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

func TestTheServicesOfAskOutliveRestartsAndKills(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	program := buildAsk(t)
	python := harness.LookPath(t, "python3")
	for language, command := range map[string][]string{"Go": {program}, "Python": {python, filepath.Join("ask", "ask.py")}} {
		for name, open := range map[string]func(*testing.T) *keeper{"file": newFileStore, "etcd": newEtcd, "redis": newRedisStore} {
			t.Run(language+" over "+name, func(t *testing.T) {
				t.Parallel()
				outlive(t, command, open(t))
			})
		}
	}
}

// players is a load of clients that go to a name each, none of which may be lost.
type players struct {
	gateway string
	stop    chan struct{}
	served  atomic.Int64
	all     sync.WaitGroup
}

func startPlayers(t *testing.T, gateway string, lines []string) *players {
	p := &players{gateway: gateway, stop: make(chan struct{})}
	for _, line := range lines {
		p.all.Go(func() {
			for {
				select {
				case <-p.stop:
					return
				default:
				}
				if _, err := met(gateway, line); err != nil {
					t.Errorf("a player was lost: %v", err)
					return
				}
				p.served.Add(1)
			}
		})
	}
	return p
}

// goOn waits until so many more were served.
func (p *players) goOn(t *testing.T, n int64) {
	t.Helper()
	before := p.served.Load()
	harness.Eventually(t, "players are served", func() bool { return t.Failed() || p.served.Load() >= before+n })
}

// met has a client ask, and returns what the backend says, one letter.
func met(gateway, line string) (string, error) {
	c, err := net.DialTimeout("tcp", gateway, harness.Patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.Patience))
	if _, err := io.WriteString(c, line); err != nil {
		return "", err
	}
	got := make([]byte, 4)
	if n, err := io.ReadFull(c, got); err != nil {
		return "", fmt.Errorf("%q, %w", got[:n], err)
	}
	if string(got[:3]) != "200" {
		return "", errors.New(string(got[:3]))
	}
	return string(got[3:]), nil
}

func outlive(t *testing.T, command []string, k *keeper) {
	var store *harness.Process
	startStore := func() {
		if k.server != nil {
			store = harness.Launch(t, k.server())
		}
	}
	put := func(key, answer string) {
		t.Helper()
		var err error
		deadline := time.Now().Add(harness.Patience)
		for err = k.put(key, answer); err != nil && time.Now().Before(deadline); err = k.put(key, answer) {
			time.Sleep(20 * time.Millisecond) // it starts
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	startStore()
	a, b := harness.StartGreeter(t, "a"), harness.StartGreeter(t, "b")
	var lines []string
	for i := range 4 {
		put(fmt.Sprintf("name/room-%d", i), fmt.Sprintf(`{"backend": %q, "ttl": 0.02, "label": "room-%d"}`, a, i))
		lines = append(lines, harness.Line(fmt.Sprintf("ask:room-%d", i)))
	}
	put("ticket/golden", fmt.Sprintf(`{"backend": %q}`, b))

	token := filepath.Join(t.TempDir(), "token")
	harness.WriteFile(t, token, "t0ken\n")
	addr := harness.ClosedPort(t)
	prefix := "-"
	if len(command) > 1 {
		prefix = "--"
	}
	var service *harness.Process
	startService := func() {
		service = harness.Launch(t, exec.Command(command[0], append(command[1:len(command):len(command)],
			prefix+"listen="+addr, prefix+"store="+k.flag, prefix+"token-file="+token)...))
		harness.Eventually(t, "the service listens", func() bool {
			if !service.Runs() {
				t.Fatal("the service has ended")
			}
			return harness.IsListening(addr)
		})
	}
	startService()
	g := harness.Start(t, "-ask=http://"+addr, "-ask-token-file="+token, "-ask-stale=1h", "-ask-tickets=1")
	for _, line := range lines {
		harness.Eventually(t, "each name has been asked for", func() bool { _, err := met(g.Addr, line); return err == nil })
	}
	if got, err := met(g.Addr, "?golden\n"); got != "b" {
		t.Errorf("the ticket: %q, %v", got, err)
	}
	for _, unknown := range []string{"?silver\n", harness.Line("ask:elsewhere")} {
		if _, err := met(g.Addr, unknown); err == nil || err.Error() != `"401", unexpected EOF` {
			t.Errorf("what is unknown: %v", err)
		}
	}
	p := startPlayers(t, g.Addr, lines)
	p.goOn(t, 50)
	service.Signal(t, syscall.SIGTERM) // in good order
	service.Kill()
	p.goOn(t, 50)
	startService()
	p.goOn(t, 50)
	service.Kill()
	p.goOn(t, 50)
	startService()
	p.goOn(t, 50)
	if store != nil {
		store.Kill()
		p.goOn(t, 50)
		startStore()
	}
	// Where the names lead now is known to all soon.
	for i := range lines {
		put(fmt.Sprintf("name/room-%d", i), fmt.Sprintf(`{"backend": %q, "ttl": 0.02}`, b))
	}
	for _, line := range lines {
		harness.Eventually(t, "the new backend is used", func() bool { got, _ := met(g.Addr, line); return got == "b" })
	}
	p.goOn(t, 50)
	close(p.stop)
	p.all.Wait()
}
