package harness

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
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
