package main

import (
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// descriptorsAtRest waits until a gateway's descriptors are down to want.
func descriptorsAtRest(t *testing.T, p *process, want int) {
	t.Helper()
	n := 0
	defer func() {
		if t.Failed() {
			t.Logf("%d descriptors, want at most %d", n, want)
		}
	}()
	eventually(t, "the gateway's descriptors are closed", func() bool {
		n = descriptorsOf(p.cmd.Process.Pid)
		return n <= want
	})
}

func TestARestingTunnelHoldsTwoDescriptors(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	const tunnels = 60
	p := startProcess(t)
	backend := startEcho(t)
	openTunnel(t, p.addr, backend).Close() // the runtime opens its own first
	p.log.waitLine(t, "tunnel", 1)
	before := descriptorsOf(p.cmd.Process.Pid)
	burst := string(noise(8, 1<<20))
	for range tunnels {
		c := openTunnel(t, p.addr, backend)
		go io.WriteString(c, burst)
		expect(t, c, burst)
	}
	descriptorsAtRest(t, p, before+2*tunnels+2*maxIdlePipes)
}

// churn runs work n times, some at once.
func churn(n, atOnce int, work func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				work(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func TestNothingStaysOfTunnelsHoweverTheyEnd(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	p := startProcess(t, "-timeout=1s")
	pid := p.cmd.Process.Pid
	echo := startEcho(t)
	resets := startBackend(t, func(b *net.TCPConn) { io.ReadFull(b, make([]byte, 2)); b.SetLinger(0) })
	closes := startBackend(t, func(b *net.TCPConn) {})
	hole := blackhole(t, "127.0.0.1", 0).String()
	endings := []func(c *net.TCPConn){
		func(c *net.TCPConn) { // both sides finish
			io.WriteString(c, sealed(t, echo)+"hello")
			c.CloseWrite()
			io.Copy(io.Discard, c)
		},
		func(c *net.TCPConn) { // a burst, then gone with it under way
			io.WriteString(c, sealed(t, echo))
			c.Write(make([]byte, 200<<10))
		},
		func(c *net.TCPConn) { // the client resets
			io.WriteString(c, sealed(t, echo)+"hello")
			io.ReadFull(c, make([]byte, 5))
			c.SetLinger(0)
		},
		func(c *net.TCPConn) { // the backend resets
			io.WriteString(c, sealed(t, resets)+"hello")
			io.Copy(io.Discard, c)
		},
		func(c *net.TCPConn) { // the backend closes at once
			io.WriteString(c, sealed(t, closes)+"hello")
			io.Copy(io.Discard, c)
		},
		func(c *net.TCPConn) { // gone while the backend is dialed
			io.WriteString(c, sealed(t, hole))
			c.SetLinger(0)
		},
		func(c *net.TCPConn) { io.WriteString(c, "half a li") },
		func(c *net.TCPConn) { c.SetLinger(0) },
		func(c *net.TCPConn) { // the client's end, then its reset
			io.WriteString(c, sealed(t, echo)+"hello")
			c.CloseWrite()
			c.SetLinger(0)
		},
	}
	round := func() {
		churn(1000, 50, func(i int) {
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			endings[i%len(endings)](c.(*net.TCPConn))
		})
		// One that the dial of a blackholed backend ends.
		c := connect(t, p.addr)
		send(t, c, sealed(t, hole))
		expectAll(t, c, "504")
	}
	before := descriptorsOf(pid)
	round()
	descriptorsAtRest(t, p, before+3+2*maxIdlePipes)
	round()
	descriptorsAtRest(t, p, before+3+2*maxIdlePipes)
	// Goroutines are counted by TestMain for gateways in this process; here,
	// the process ends by itself, with nothing left to wait for.
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestATunnelWithoutDescriptorsToHandOverIsRelayedAllTheSame(t *testing.T) {
	names := resolver(t, func(q []byte) []byte { return answer(q, noError, "127.0.0.1") })
	var old unix.Rlimit
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 1 }, func(g *Gateway) { g.dialer.resolver = names })
	backend := startEcho(t)
	_, port, _ := net.SplitHostPort(backend)
	c := openTunnel(t, g.addr, "game.test:"+port) // all that is opened once is open
	c.Close()
	g.log.waitLine(t, "tunnel", 1)

	client, here := pairOfConns(t)
	there, far := pairOfConns(t)
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// No descriptor number is free below the limit.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	g.ledger.begin()
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		g.runTunnel(&connection{Conn: here, socket: here}, there, []byte("early "))
	}()
	expect(t, far, "early ")
	restore()
	send(t, client, "hello")
	expect(t, far, "hello")
	send(t, far, "hello yourself")
	expect(t, client, "hello yourself")
	client.CloseWrite()
	expectAll(t, far, "")
	far.Close()
	<-ran
	g.log.waitLine(t, "tunnel", 2)
}

// pairOfConns returns both ends of a connection.
func pairOfConns(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a = connect(t, ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, c.(*net.TCPConn)
}
