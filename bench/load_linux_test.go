package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// silent is a server that accepts and never answers.
func silent(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func TestTheLoadDoesNotWaitForEver(t *testing.T) {
	l := testLoad(t)
	l.patience = 20 * time.Millisecond
	reply := l.do(loadRequest{Op: opOpen, Targets: []string{silent(t)}, Tunnels: 3, Mode: modeEcho, Size: 64})
	if !strings.Contains(reply.Err, "3 of 3 tunnels got no answer") {
		t.Errorf("got %+v", reply)
	}
}

// answering is a server that gives each connection the same answer to its
// first bytes, and closes.
func answering(t *testing.T, answer string) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return answerOn(t, ln, answer)
}

func answerOn(t *testing.T, ln net.Listener, answer string) string {
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			c.Read(make([]byte, 4096))
			io.WriteString(c, answer)
			c.Close()
		}
	}()
	return ln.Addr().String()
}

// testLoad is a load that ends with the test.
func testLoad(t *testing.T) *load {
	t.Helper()
	l, err := newLoad()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeSocket(l.fd) })
	return l
}

// mustDo takes a step that must succeed.
func (l *load) mustDo(t *testing.T, req loadRequest) loadReply {
	t.Helper()
	reply := l.do(req)
	if reply.Err != "" {
		t.Fatalf("%s: %s", req.Op, reply.Err)
	}
	return reply
}

// deaf is an address that is taken, so that nobody else gets it, and refuses
// every connection.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeSocket(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
}

func TestTheLoadIsHardToPlease(t *testing.T) {
	for _, test := range []struct {
		name, target string
		lines        []string
		want         string
	}{
		{"an error status", answering(t, "401"), []string{"line"}, `answered "401", not "200"`},
		{"the end instead of a status", answering(t, ""), []string{"line"}, "closed the connection"},
		{"another echo", answering(t, strings.Repeat("x", 64)), nil, `answered "xxx`},
		{"half an echo", answering(t, "e......."), nil, "closed the connection"},
		{"nobody", deaf(t), nil, "connection refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := testLoad(t)
			reply := l.do(loadRequest{Op: opOpen, Targets: []string{test.target}, Lines: test.lines, Tunnels: 1, Mode: modeEcho, Size: 64})
			if !strings.Contains(reply.Err, test.want) {
				t.Errorf("got %q, want %q", reply.Err, test.want)
			}
		})
	}
}

func TestTheLoadAndTheBackendCountTheSame(t *testing.T) {
	s := testSuite(t)
	before, err := s.backend()
	if err != nil {
		t.Fatal(err)
	}
	l := testLoad(t)
	for _, test := range []struct {
		mode  byte
		steps []string
	}{
		{modeEcho, []string{opEcho, opBurst, opEcho}},
		{modeSink, []string{opUp}},
		{modeSource, []string{opDown}},
		{modeEcho, []string{opShort}},
	} {
		open := loadRequest{Op: opOpen, Targets: s.serving, Tunnels: 20, Mode: test.mode, Size: 64, Time: 5 * time.Millisecond}
		reply := loadReply{}
		if test.steps[0] != opShort {
			l.mustDo(t, open)
		}
		for _, step := range test.steps {
			open.Op = step
			reply = l.mustDo(t, open)
		}
		l.mustDo(t, loadRequest{Op: opClose})
		after, err := s.settle()
		if err != nil {
			t.Fatal(err)
		}
		if in, out := after.In-before.In, after.Out-before.Out; in != reply.Sent || out != reply.Rcvd || in == 0 || out == 0 {
			t.Errorf("%v: sent %d and received %d, but the backend has %d and %d", test.steps, reply.Sent, reply.Rcvd, in, out)
		}
		if after.Resets != before.Resets {
			t.Errorf("%v: %d resets", test.steps, after.Resets-before.Resets)
		}
		before = after
	}
}
