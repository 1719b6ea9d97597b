package kcp

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copyOf returns another socket of the kernel's same one, as another process has it.
func copyOf(t *testing.T, l *Listener) *net.UDPConn {
	t.Helper()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var f *os.File
	raw.Control(func(fd uintptr) {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f = os.NewFile(uintptr(n), "")
	})
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

func TestSessionsOutlastTheHandOverOfTheirSocket(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(addr, func(t *testing.T) {
			tr := transport(t, options())
			first, err := tr.Listen(addr)
			if err != nil {
				t.Skip(err)
			}
			port := first.Addr().(*net.UDPAddr).Port
			to := fmt.Sprintf("127.0.0.1:%d", port)
			if addr == "[::1]:0" {
				to = fmt.Sprintf("[::1]:%d", port)
			}
			serve := func(l *Listener) *sync.WaitGroup {
				var all sync.WaitGroup
				all.Go(func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						all.Go(func() { echo(c) })
					}
				})
				return &all
			}
			served := serve(first)
			const sessions = 20
			talk := func(c *Conn, text string) {
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.WriteString(c, text); err != nil {
					t.Error(err)
					return
				}
				b := make([]byte, len(text))
				if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
					t.Errorf("%q, %v; want %q", b, err, text)
				}
			}
			open := func() *Conn {
				c, err := tr.Dial(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				talk(c, "hello")
				return c
			}
			var clients []*Conn
			for range sessions {
				clients = append(clients, open())
			}
			// They talk all the time, through three changes of hands.
			stop := make(chan struct{})
			var talking sync.WaitGroup
			for i, c := range clients {
				talking.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
							talk(c, fmt.Sprintf("message %d of session %d", n, i))
						}
					}
				})
			}
			current := first
			listeners := []*Listener{first}
			groups := []*sync.WaitGroup{served}
			for range 3 {
				shared := copyOf(t, current)
				if err := current.Detach(); err != nil {
					t.Fatal(err)
				}
				if n, err := unix.GetsockoptInt(fdOf(t, shared), unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || n != 0 {
					t.Errorf("anybody may bind the port: %d, %v", n, err)
				}
				next, err := tr.Serve(shared)
				if err != nil {
					t.Fatal(err)
				}
				groups = append(groups, serve(next))
				before := len(clients)
				clients = append(clients, open())
				if n := next.Stats().Sessions; n < 1 {
					t.Errorf("%d sessions in the new process after %d clients", n, before+1)
				}
				listeners, current = append(listeners, next), next
			}
			close(stop)
			talking.Wait()
			if n := first.Stats().Sessions; n != sessions {
				t.Errorf("%d sessions in the first process, want %d", n, sessions)
			}
			current.Close()
			for _, c := range clients {
				talk(c, "still here")
				c.Abort()
			}
			for _, l := range listeners {
				l.guard.mu.Lock()
				for _, c := range l.guard.sessions {
					defer c.Abort()
				}
				l.guard.mu.Unlock()
			}
			_ = groups
		})
	}
}

func fdOf(t *testing.T, socket *net.UDPConn) (n int) {
	t.Helper()
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { n = int(fd) })
	return n
}
