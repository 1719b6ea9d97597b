// Package suite runs every client kit through the same scenarios.
package suite

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
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
var resuming = []string{"WebSocket", "resumable", "resume at every offset",
	"cut behind the answer", "reconnect at once", "stuck", "pauses", "session gone", "TLS", "KCP"}

// resumes tells whether the gateway does.
func resumes(t *testing.T) bool {
	help, _, _ := harness.Run(t, nil, "-help")
	return strings.Contains(help, "-resume=0|1")
}

// ms is for a gateway to answer: much, for a runtime that begins with TLS on a busy
// machine.
const ms = "60000"

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
		// A HELLO that does not end: each of its bytes comes in time.
		givenUp := make(chan bool, 1)
		gateway := answer(t, func(c *net.TCPConn, _ string) {
			io.WriteString(c, "200\x00\x00\x06\xff\xff")
			for range 200 {
				if _, err := c.Write([]byte{0}); err != nil {
					givenUp <- true
					return
				}
				time.Sleep(50 * time.Millisecond) // the pace of what is tested
			}
			givenUp <- false
		})
		expect(t, "error 0 reconnect", run(t, "", command, "resume", gateway, "line", "300", "hello"))
		if !<-givenUp {
			t.Error("the kit waits for a HELLO for longer than its time-out")
		}
	}},
	{"several gateways", func(t *testing.T, k *kit, command []string) {
		bad := answer(t, func(c *net.TCPConn, _ string) { io.WriteString(c, "502") })
		good := answer(t, func(c *net.TCPConn, _ string) { io.WriteString(c, "200"); echo(c) })
		expect(t, "ok plain hello",
			run(t, "", command, "talk", strings.Join([]string{harness.ClosedPort(t), bad, good}, ","), "line", ms, "hello"))
	}},
	{"IPv6", func(t *testing.T, k *kit, command []string) {
		ln, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Skip(err)
		}
		ln.Close()
		gateway := harness.Start(t, "-addr=[::1]:0").Addr
		expect(t, "ok plain welcomehello", run(t, "", command, "talk", gateway, harness.Sealed(greeter(t)), ms, "hello"))
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
		proxy, _ := cutter(t, strings.TrimPrefix(gateway, "ws://"), func(conn int) (up, down int) {
			if conn > 4 {
				return -1, -1
			}
			return 12000 + 1000*conn, -1
		})
		expect(t, "ok 65536 resumed", run(t, "", command, "bulk", "ws://"+proxy, harness.Sealed(harness.StartEcho(t)), ms, "65536"))
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
	{"cut behind the answer", func(t *testing.T, k *kit, command []string) {
		// The backend ends after the gateway, which holds the tunnels that nobody has got.
		line := harness.Sealed(harness.StartEcho(t))
		gateway := harness.Start(t, "-resume=1").Addr
		step, times := 1, 3
		if k.slow {
			step = 9 // of the opening: each attempt has a key of its own
		}
		hello := helloSize(t, gateway, line)
		opening := (hello + step - 1) / step // the connection that brings all of HELLO
		proxy, n := cutter(t, gateway, func(conn int) (up, down int) {
			if conn <= opening {
				return -1, len("200") + min(hello, step*conn)
			}
			// An ACK, and into the data; each some times in a row. Then something gets
			// through, else the kit's pauses grow.
			behind, at := (conn-opening-1)/(times+1), (conn-opening-1)%(times+1)
			switch {
			case behind > 12:
				return -1, -1
			case at == times:
				return -1, len("200") + 200
			}
			return -1, len("200") + behind
		})
		gateways := strings.TrimSuffix(strings.Repeat(proxy+",", opening+1), ",")
		expect(t, "ok 65536 resumed", run(t, "", command, "bulk", gateways, line, ms, "65536"))
		if got := n(); got < opening+1+13*(times+1) {
			t.Errorf("%d connections, want more", got)
		}
	}},
	{"reconnect at once", func(t *testing.T, k *kit, command []string) {
		line := harness.Sealed(harness.StartEcho(t))
		gateway := harness.Start(t, "-resume=1").Addr
		expect(t, "ok 65536 resumed", run(t, "", command, "again", gateway, line, ms, "65536"))
	}},
	{"stuck", testStuck},
	{"pauses", testFlapping},
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
	{"TLS", func(t *testing.T, k *kit, command []string) {
		certFile, keyFile, _ := harness.TLSFiles(t)
		gateway := harness.Start(t, "-resume=1", "-handshake-timeout=60s", "-tls-cert="+certFile, "-tls-key="+keyFile).Addr
		line := harness.Sealed(greeter(t))
		trusting := func(name string) []string {
			return append([]string{"env", "CA=" + certFile, "CA_NAME=" + name}, command...)
		}
		expect(t, "ok resumable welcomehello",
			run(t, "", trusting("play.example.com"), "resume", "tls://"+gateway, line, ms, "hello"))
		_, port, _ := net.SplitHostPort(gateway)
		expect(t, "error 0 reconnect", // not the certificate's name
			run(t, "", trusting("localhost"), "resume", "tls://localhost:"+port, line, ms, "hello"))
		expect(t, "error 0 reconnect", // not an authority of this machine's
			run(t, "", append([]string{"env", "CA_NAME=play.example.com"}, command...), "resume", "tls://"+gateway, line, ms, "hello"))
		proxy, _ := cutter(t, gateway, func(conn int) (up, down int) {
			switch {
			case conn > 5:
				return -1, -1
			case conn%2 == 0:
				return -1, 12000 + 100*conn
			}
			return 12000 + 100*conn, -1
		})
		expect(t, "ok 65536 resumed",
			run(t, "", trusting("play.example.com"), "bulk", "tls://"+proxy, harness.Sealed(harness.StartEcho(t)), ms, "65536"))
	}},
	{"KCP", testKCP},
	{"vectors", testVectors},
	{"README", testExample},
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
					if !slices.Contains(k.without, s.name) && (s.name != "KCP" || k.kcp) {
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
		for _, readme := range readmes {
			checkReadme(t, readme, table)
		}
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

// helloSize returns how long the gateway's HELLO is, in bytes.
func helloSize(t *testing.T, gateway, line string) int {
	t.Helper()
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.Patience))
	public := base64.RawURLEncoding.EncodeToString(append([]byte{9}, make([]byte, 31)...))
	fmt.Fprintf(c, "~1N %s %s\n", public, line)
	head := make([]byte, len("200")+5)
	if _, err := io.ReadFull(c, head); err != nil || string(head[:6]) != "200\x00\x00\x06" {
		t.Fatalf("%q, %v, want the head of a HELLO", head, err)
	}
	return 5 + int(binary.BigEndian.Uint16(head[6:]))
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
