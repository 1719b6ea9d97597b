package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// memoryServer is set in the environment of a process that does nothing but
// serve, so that its memory is that of its clients.
const memoryServer = "WEB_TEST_MEMORY_SERVER"

func init() {
	otherProcess = func() bool {
		if os.Getenv(memoryServer) == "" {
			return false
		}
		serveForMemory()
		return true
	}
}

// serveForMemory is that process. For each line of its standard input it has the
// memory freed that nothing needs, answers with a line, and it ends with it.
func serveForMemory() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	g := &fakeGate{served: make(chan Exchange)}
	go func() {
		for range g.served {
		}
	}()
	s := NewServer(g, testOptions)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.ServeConn(context.Background(), c, nil)
		}
	}()
	fmt.Println(ln.Addr())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		debug.FreeOSMemory()
		fmt.Println("freed")
	}
}

func residentMemory(t *testing.T, pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// A client that has proven nothing costs little, whatever it has sent.
func TestAnUnprovenClientCostsAtMost16KB(t *testing.T) {
	if harness.RaceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	const clients = 2000
	long := "GET / HTTP/1.1\r\nHost: h\r\nPad: "
	long += strings.Repeat("a", testOptions.HeaderMax-len(long)-len("\r\n\r\n"))
	for name, tt := range map[string]struct {
		send    string
		answers int // lines of the answer's head
	}{
		"nothing":                       {"", 0},
		"the beginning of a head":       {"GET / HTTP/1.1\r\nHost: h\r\n", 0},
		"a head but for its end":        {long, 0},
		"empty lines":                   {strings.Repeat("\r\n", testOptions.HeaderMax/2), 0},
		"a WebSocket":                   {handshake("/"), 1},
		"a WebSocket and a ping":        {handshake("/") + frame(0x89, strings.Repeat("p", 125)), 1},
		"a WebSocket with a long head":  {handshake("/", "Pad", strings.Repeat("a", testOptions.HeaderMax-300)), 1},
		"a WebSocket and half a line":   {handshake("/") + frame(0x01, strings.Repeat("a", testOptions.LineMax)), 1},
		"a WebSocket and a large frame": {handshake("/") + frame(0x02, strings.Repeat("a", 70000))[:1000], 1},
		"a request that was refused":    {"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 1},
		"one that was, and half a head": {"GET / HTTP/1.1\r\nHost: h\r\n\r\n" + long, 1},
		"a body that was refused":       {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody", 1},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), memoryServer+"=1")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer stdin.Close()
			lines := bufio.NewReader(stdout)
			addr, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			resident := func() int {
				io.WriteString(stdin, "\n")
				if _, err := lines.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				return residentMemory(t, cmd.Process.Pid)
			}
			visit := func() net.Conn {
				c, err := net.Dial("tcp", strings.TrimSpace(addr))
				if err != nil {
					t.Fatal(err)
				}
				c.SetDeadline(time.Now().Add(patience))
				if _, err := io.WriteString(c, tt.send); err != nil {
					t.Fatal(err)
				}
				if tt.answers > 0 {
					if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
						t.Fatal(err)
					}
				}
				return c
			}
			conns := make([]net.Conn, 0, clients)
			for range 10 { // what the first ones cost is the server's
				conns = append(conns, visit())
			}
			before := resident()
			for range clients {
				conns = append(conns, visit())
			}
			peak := residentMemory(t, cmd.Process.Pid)
			each := (resident() - before) / clients
			t.Logf("%s: %d bytes each, %d with what was to be collected", name, each, (peak-before)/clients)
			if each > 17<<10 { // of which one is for pages that are not full
				t.Errorf("%d bytes each", each)
			}
			for _, c := range conns {
				c.Close()
			}
		})
	}
}
