package harness

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// StartBackend listens on a free port of 127.0.0.1, runs serve for each
// connection and closes it afterwards. It returns the address.
func StartBackend(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * Patience)) // ends what a failed test left
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// StartEcho starts a backend that sends back what it gets, until FIN.
func StartEcho(t testing.TB) string {
	return StartBackend(t, func(c *net.TCPConn) {
		io.Copy(c, struct{ io.Reader }{c})
		c.CloseWrite()
	})
}

// StartGreeter starts a backend that speaks first, and then sends back what it gets.
func StartGreeter(t testing.TB, greeting string) string {
	return StartBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, greeting)
		io.Copy(c, struct{ io.Reader }{c})
	})
}

// StartHTTP starts a backend that speaks HTTP.
func StartHTTP(t testing.TB, handle http.HandlerFunc) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handle}
	served := make(chan struct{})
	go func() {
		s.Serve(ln)
		close(served)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return ln.Addr().String()
}

// ClosedPort returns an address of 127.0.0.1 where nobody listens, by TCP or UDP,
// and nobody will but who has got the address.
func ClosedPort(t testing.TB) string {
	t.Helper()
	for range portsEach {
		// The kernel gives nobody a port below 32768, and these are for this
		// process, unless it is one of very many.
		port := firstPort + os.Getpid()%portBlocks*portsEach + int(nextPort().Add(1))%portsEach
		addr := fmt.Sprint("127.0.0.1:", port)
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		ln.Close()
		if c, err := net.ListenPacket("udp", addr); err == nil {
			c.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

// The ports of ClosedPort.
const (
	firstPort  = 10000
	portBlocks = 20
	portsEach  = 1000
)

// nextPort returns the count of ports that were given out, which begins anywhere.
var nextPort = sync.OnceValue(func() *atomic.Int64 {
	var n atomic.Int64
	n.Store(rand.Int64N(portsEach))
	return &n
})

// backendRole in the environment makes a test binary with Main a backend.
const backendRole = "TEST_BACKEND"

// What a backend that is a process does with each connection.
const (
	RoleEcho  = "echo"  // sends back what it gets
	RoleFlood = "flood" // writes without end
)

// StartBackendProcess runs a backend, which is to have descriptors of its own, as
// a process until the test ends, and returns its address. The TestMain must be Main.
func StartBackendProcess(t testing.TB, role string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{backendRole + "=" + role}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

// runBackend is the backend's process. It does not return.
func runBackend(role string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(ln.Addr())
	for {
		c, err := ln.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serveRole(role, c)
	}
}

func serveRole(role string, c net.Conn) {
	defer c.Close()
	for buf, n := make([]byte, 64<<10), 64<<10; ; {
		var err error
		if role == RoleEcho {
			n, err = c.Read(buf)
		}
		if err == nil {
			_, err = c.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
