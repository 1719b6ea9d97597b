// Package suite runs every client kit through the same scenarios.
package suite

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// A scenario is what a gateway does, and what a kit makes of it.
type scenario struct {
	name string
	test func(t *testing.T, k *kit, command []string)
}

// resuming are the scenarios for which the gateway has to resume tunnels.
var resuming = []string{"WebSocket", "resumable", "resume at every offset", "session gone"}

// resumes tells whether the gateway does.
func resumes(t *testing.T) bool {
	help, _, _ := harness.Run(t, nil, "-help")
	return strings.Contains(help, "-resume=0|1")
}

const ms = "20000"

var scenarios = []scenario{
	{"statuses", func(t *testing.T, k *kit, command []string) {
		for status, want := range map[string]string{
			"400": "error 400 reconnect",
			"401": "error 401 new line",
			"502": "error 502 new line or later",
			"504": "error 504 new line or later",
			"":    "error 0 reconnect",
			"2":   "error 0 reconnect",
			"HTT": "error 0 reconnect",
		} {
			gateway := answer(t, func(c *net.TCPConn, _ string) { io.WriteString(c, status) })
			expect(t, want, run(t, "", command, "talk", gateway, "line", ms, "hello"))
		}
		expect(t, "error 0 reconnect", run(t, "", command, "talk", harness.ClosedPort(t), "line", ms, "hello"))
	}},
	{"byte dribble", func(t *testing.T, k *kit, command []string) {
		gateway := answer(t, func(c *net.TCPConn, _ string) {
			for _, b := range []byte("200welcome") {
				c.Write([]byte{b})
				time.Sleep(2 * time.Millisecond) // lets a segment go
			}
			echo(c)
		})
		expect(t, "ok plain welcomehello", run(t, "", command, "talk", gateway, "line", ms, "hello"))
	}},
	{"early bytes", func(t *testing.T, k *kit, command []string) {
		gateway := answer(t, func(c *net.TCPConn, _ string) {
			io.WriteString(c, "200welcome")
			echo(c)
		})
		expect(t, "ok plain welcomehello", run(t, "", command, "talk", gateway, "line", ms, "hello"))
	}},
	{"half-close", func(t *testing.T, k *kit, command []string) {
		gateway := answer(t, func(c *net.TCPConn, _ string) {
			io.WriteString(c, "200")
			all, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes: %s", len(all), all)
		})
		expect(t, "ok plain 5 bytes: hello", run(t, "", command, "talk", gateway, "line", ms, "hello"))
	}},
	{"time-out", func(t *testing.T, k *kit, command []string) {
		for _, said := range []string{"", "20"} {
			gateway := answer(t, func(c *net.TCPConn, _ string) {
				io.WriteString(c, said)
				io.Copy(io.Discard, c)
			})
			expect(t, "error 0 reconnect", run(t, "", command, "talk", gateway, "line", "300", "hello"))
		}
	}},
	{"several gateways", func(t *testing.T, k *kit, command []string) {
		bad := answer(t, func(c *net.TCPConn, _ string) { io.WriteString(c, "502") })
		good := answer(t, func(c *net.TCPConn, _ string) { io.WriteString(c, "200"); echo(c) })
		expect(t, "ok plain hello",
			run(t, "", command, "talk", strings.Join([]string{harness.ClosedPort(t), bad, good}, ","), "line", ms, "hello"))
	}},
	{"new line", func(t *testing.T, k *kit, command []string) {
		gateway := answer(t, func(c *net.TCPConn, line string) {
			if line != "fresh" {
				io.WriteString(c, "401")
				return
			}
			io.WriteString(c, "200")
			echo(c)
		})
		expect(t, "ok plain hello", run(t, "", command, "talk", gateway, "stale,fresh", ms, "hello"))
		expect(t, "error 401 new line", run(t, "", command, "talk", gateway, "stale,stale", ms, "hello"))
	}},
	{"real gateway", func(t *testing.T, k *kit, command []string) {
		gateway := harness.Start(t).Addr
		line := harness.Sealed(greeter(t))
		expect(t, "ok plain welcomehello", run(t, "", command, "talk", gateway, line, ms, "hello"))
		expect(t, "error 401 new line", run(t, "", command, "talk", gateway, "nonsense", ms, "hello"))
		expect(t, "error 502 new line or later",
			run(t, "", command, "talk", gateway, harness.Sealed(harness.ClosedPort(t)), ms, "hello"))
	}},
	{"WebSocket", func(t *testing.T, k *kit, command []string) {
		gateway := "ws://" + harness.Start(t, "-resume=1").Addr
		line := harness.Sealed(greeter(t))
		expect(t, "ok plain welcomehello", run(t, "", command, "talk", gateway, line, ms, "hello"))
		expect(t, "ok resumable welcomehello", run(t, "", command, "resume", gateway, line, ms, "hello"))
		expect(t, "error 401 new line", run(t, "", command, "talk", gateway, "nonsense", ms, "hello"))
		if k.miniGame {
			expect(t, "ok resumable welcomehello",
				run(t, "", command, "resume", "wx"+strings.TrimPrefix(gateway, "ws"), line, ms, "hello"))
		}
	}},
	{"old gateway", func(t *testing.T, k *kit, command []string) {
		gateway := harness.Start(t).Addr // does not resume
		expect(t, "ok plain welcomehello",
			run(t, "", command, "resume", gateway, harness.Sealed(greeter(t)), ms, "hello"))
	}},
	{"resumable", func(t *testing.T, k *kit, command []string) {
		gateway := harness.Start(t, "-resume=1").Addr
		expect(t, "ok resumable welcomehello",
			run(t, "", command, "resume", gateway, harness.Sealed(greeter(t)), ms, "hello"))
	}},
	{"resume at every offset", func(t *testing.T, k *kit, command []string) {
		gateway := harness.Start(t, "-resume=1").Addr
		cuts := 120
		if k.slow {
			cuts = 40
		}
		// The n-th connection is cut n bytes behind what opens it, in one direction
		// and then in the other.
		for _, down := range []bool{true, false} {
			proxy, n := cutter(t, gateway, func(conn int) (up, to int) {
				switch {
				case conn == 0:
					return 8000, 8000
				case conn > cuts:
					return -1, -1
				case down:
					return -1, 3 + conn
				}
				return 230 + conn, -1
			})
			expect(t, "ok 65536 resumed",
				run(t, "", command, "bulk", proxy, harness.Sealed(harness.StartEcho(t)), ms, "65536"))
			if got := n(); got < cuts/2 {
				t.Errorf("%d connections, want more", got)
			}
		}
	}},
	{"session gone", func(t *testing.T, k *kit, command []string) {
		gateway := harness.Start(t, "-resume=1", "-resume-hold=1s").Addr
		proxy, _ := cutter(t, gateway, func(conn int) (up, down int) {
			if conn == 0 {
				return 8000, 8000
			}
			return gone, 0
		})
		expect(t, "error 410 start anew",
			run(t, "", command, "bulk", proxy, harness.Sealed(harness.StartEcho(t)), ms, "65536"))
	}},
	{"vectors", testVectors},
}

func TestEveryKitRunsEveryScenario(t *testing.T) {
	if !needKits {
		harness.Long(t)
	}
	without := !resumes(t)
	var mu sync.Mutex
	results := make(map[string]string)
	t.Run("kits", func(t *testing.T) {
		for _, k := range kits {
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				command := k.build(t)
				for _, s := range scenarios {
					mark := "–"
					if without && slices.Contains(resuming, s.name) {
						continue
					}
					if !slices.Contains(k.without, s.name) {
						mark = "**no**"
						if t.Run(s.name, func(t *testing.T) { s.test(t, &k, command) }) {
							mark = "yes"
						}
					}
					mu.Lock()
					results[k.name+"/"+s.name] = mark
					mu.Unlock()
				}
			})
		}
	})
	table := table(results)
	fmt.Print(table)
	if len(results) == len(kits)*len(scenarios) && !t.Failed() {
		checkReadme(t, table)
	}
}

func expect(t *testing.T, want, got string) {
	t.Helper()
	if got != want {
		t.Errorf("the driver prints %q, want %q", got, want)
	}
}

// output runs a command and returns what it prints, without spaces around it.
func output(t *testing.T, cmd *exec.Cmd, input string) string {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &errs
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v\n%s%s", err, out, errs.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// answer is a scripted gateway: serve gets each connection and the line that it has
// brought.
func answer(t *testing.T, serve func(c *net.TCPConn, line string)) string {
	return harness.StartBackend(t, func(c *net.TCPConn) {
		var line []byte
		for b := make([]byte, 1); len(line) < 4096; line = append(line, b[0]) {
			if _, err := io.ReadFull(c, b); err != nil || b[0] == '\n' {
				break
			}
		}
		serve(c, string(line))
		c.CloseWrite()
		io.Copy(io.Discard, c)
	})
}

func echo(c *net.TCPConn) { io.Copy(c, struct{ io.Reader }{c}) }

// greeter is a backend that says welcome, then echoes, and finishes when its client
// does.
func greeter(t *testing.T) string {
	return harness.StartBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, "welcome")
		echo(c)
		c.CloseWrite()
	})
}

// gone as up has a connection answered by 410.
const gone = -2

// cutter is a proxy in front of a gateway that cuts connections after so many bytes
// from and to the client; -1: never. It returns its address, and how many connections
// there were.
func cutter(t *testing.T, gateway string, after func(conn int) (up, down int)) (addr string, conns func() int) {
	var n atomic.Int64
	addr = harness.StartBackend(t, func(c *net.TCPConn) {
		up, down := after(int(n.Add(1)) - 1)
		if up == gone {
			io.WriteString(c, "410")
			c.CloseWrite()
			io.Copy(io.Discard, c)
			return
		}
		g, err := net.Dial("tcp", gateway)
		if err != nil {
			t.Error(err)
			return
		}
		var copying sync.WaitGroup
		answered := make(chan struct{}) // the client has its status
		one := func(to, from net.Conn, n int) {
			if n < 0 {
				io.Copy(to, struct{ io.Reader }{from})
				to.(*net.TCPConn).CloseWrite()
				return
			}
			if got, _ := io.CopyN(to, struct{ io.Reader }{from}, int64(n)); got < int64(n) {
				to.(*net.TCPConn).CloseWrite()
				return
			}
			if from == net.Conn(c) {
				<-answered
			}
			g.Close()
			// Not by a reset, which could take the status along.
			c.CloseWrite()
			io.Copy(io.Discard, c)
		}
		copying.Go(func() {
			io.CopyN(c, g, int64(len("200")))
			close(answered)
			one(c, g, max(-1, down-len("200")))
		})
		copying.Go(func() { one(g, c, up) })
		copying.Wait()
		g.Close()
	})
	return addr, func() int { return int(n.Load()) }
}
