package backends

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// The servers of a route, which die and come back, and the clients that meet them.

// target is a backend that says its name, one letter, and sends back what it
// gets. It can die, and come back where it was.
type target struct {
	name     string
	addr     string
	accepted atomic.Int64

	mu      sync.Mutex
	ln      net.Listener // nil: dead
	conns   map[net.Conn]struct{}
	serving sync.WaitGroup
}

// startTarget starts a target that ends with the test.
func startTarget(t testing.TB, name string) *target {
	t.Helper()
	b := &target{name: name, addr: harness.ClosedPort(t), conns: make(map[net.Conn]struct{})}
	if err := b.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.kill)
	return b
}

// startTargets starts several, by the letters of names.
func startTargets(t testing.TB, names string) (all []*target) {
	t.Helper()
	for _, name := range names {
		all = append(all, startTarget(t, string(name)))
	}
	return all
}

func (b *target) listen() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	ln, err := net.Listen("tcp", b.addr)
	for until := time.Now().Add(harness.Patience); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(until); {
		time.Sleep(time.Millisecond) // a process that is being started holds what was closed
		ln, err = net.Listen("tcp", b.addr)
	}
	if err != nil {
		return err
	}
	b.ln = ln
	b.serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.accepted.Add(1)
			b.mu.Lock()
			if b.conns[c] = struct{}{}; b.ln != ln {
				c.(*net.TCPConn).SetLinger(0) // too late
				c.Close()
			}
			b.mu.Unlock()
			b.serving.Go(func() { b.serve(c) })
		}
	})
	return nil
}

func (b *target) serve(c net.Conn) {
	io.WriteString(c, b.name)
	io.Copy(c, struct{ io.Reader }{c})
	c.Close()
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
}

// comeBack ends being dead.
func (b *target) comeBack(t testing.TB) {
	t.Helper()
	if err := b.listen(); err != nil {
		t.Fatal(err)
	}
}

// stop has nobody listen; tunnels go on.
func (b *target) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ln != nil {
		b.ln.Close()
		b.ln = nil
		// A process that another test is starting holds the listener until it runs its program.
		for until := time.Now().Add(harness.Patience); harness.IsListening(b.addr) && time.Now().Before(until); {
			time.Sleep(time.Millisecond)
		}
	}
}

// kill also resets the tunnels, as when a process dies.
func (b *target) kill() {
	b.stop()
	b.cut()
	b.serving.Wait()
}

// cut resets the tunnels.
func (b *target) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// routeTo returns a route in that order.
func routeTo(targets ...*target) string {
	var addrs []string
	for _, b := range targets {
		addrs = append(addrs, b.addr)
	}
	return strings.Join(addrs, ",")
}

// meet has a client go to a target and returns its name. line is empty where
// the gateway forwards; from is the client's IP address, or empty. A status is
// returned as an error.
func meet(from, gateway, line string) (name string, err error) {
	d := net.Dialer{Timeout: harness.Patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial("tcp", gateway)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.Patience))
	if line != "" {
		if _, err := io.WriteString(c, line); err != nil {
			return "", err
		}
		status := make([]byte, 3)
		if _, err := io.ReadFull(c, status); err != nil {
			return "", err
		}
		if string(status) != "200" {
			return "", errors.New(string(status))
		}
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return "", fmt.Errorf("%w: %w", errLost, err)
	}
	return string(b), nil
}

// errLost is what becomes of a client that was connected when its target died.
var errLost = errors.New("no name")
