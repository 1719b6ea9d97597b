package main

import (
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// roleFaulty is a proxy for the tests that does wrong to clients that do not
// read: ADDRESS BACKEND FAULT.
const roleFaulty = "faulty"

const (
	losesAByte = "loses a byte"
	breaksOff  = "breaks off"
)

func faultyProxy(addr, backend, fault string) error {
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		server, err := net.Dial("tcp4", backend)
		if err != nil {
			return err
		}
		client := conn.(*net.TCPConn)
		go func() {
			io.Copy(server, client)
			server.(*net.TCPConn).CloseWrite()
		}()
		go func() {
			defer client.Close()
			first := make([]byte, 1)
			io.ReadFull(server, first)
			client.Write(first)
			if fault == losesAByte && first[0] == modeFinite {
				io.CopyN(client, server, 100_000)
				server.Read(first)
			}
			if fault == losesAByte {
				io.Copy(client, server)
				return
			}
			for buf := make([]byte, 64<<10); ; {
				n, err := server.Read(buf)
				if err != nil {
					return
				}
				if first[0] != modeFinite { // a client that has to wait for its turn is not a stalled one
					client.Write(buf[:n])
					continue
				}
				client.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
				if _, err := client.Write(buf[:n]); err != nil {
					client.SetLinger(0)
					server.Close()
					return
				}
			}
		}()
	}
}

func faulty(fault string) *contender {
	return &contender{name: "faulty", command: func(at site) (*exec.Cmd, error) {
		return roleCommand(roleFaulty, at.listen, at.backends[0], fault), nil
	}}
}

// few is the workload with hardly anybody busy.
var few = workload{"stalled", "stalled", stalled, 4, 64}

func TestStalledReadersAreMeasuredAgainstNone(t *testing.T) {
	s := testSuite(t, plainProxy)
	if err := s.turn(0, few, s.entrants[0]); err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{few.key, withoutStalled} {
		got := s.table.at(row, ioCopyName)
		if got == nil || len(got.Samples) != 1 || got.Failure != "" || got.Samples[0].Cost <= 0 || got.Samples[0].Rate <= 0 {
			t.Errorf("%s: %+v", row, got)
		}
	}
}

func TestHarmToStalledReadersIsNoticed(t *testing.T) {
	for fault, want := range map[string]string{
		losesAByte: "but the backend received",
		breaksOff:  "a stalled reader was broken off",
	} {
		t.Run(fault, func(t *testing.T) {
			s := testSuite(t, faulty(fault))
			if err := s.turn(0, few, s.entrants[0]); err != nil {
				t.Fatal(err)
			}
			if got := s.outcome(t, few.key, "faulty"); !strings.Contains(got.Failure, want) {
				t.Errorf("got %+v", got)
			}
			if got := s.table.at(withoutStalled, "faulty"); got != nil {
				t.Errorf("half of a measurement counts: %+v", got)
			}
		})
	}
}

func TestTheLoadReallyStalls(t *testing.T) {
	s := testSuite(t)
	before, err := s.backend()
	if err != nil {
		t.Fatal(err)
	}
	l := testLoad(t)
	const busy, stalling = 3, 5
	l.mustDo(t, loadRequest{Op: opOpen, Targets: s.serving, Tunnels: busy, Mode: modeEcho, Size: 64})
	stuck := l.mustDo(t, loadRequest{Op: opStall, Tunnels: stalling})
	if err := s.standStill(&instance{}); err != nil {
		t.Fatal(err)
	}
	seen, err := s.backend()
	if err != nil {
		t.Fatal(err)
	}
	if sent := seen.Out - before.Out; sent <= stuck.Rcvd || sent >= stalling*streamBytes {
		t.Errorf("the backend could send %d bytes of %d", sent, stalling*streamBytes)
	}
	if reply := l.mustDo(t, loadRequest{Op: opEcho, Time: time.Millisecond}); reply.Units < busy || reply.Rcvd-stuck.Rcvd != 64*reply.Units {
		t.Errorf("got %+v", reply)
	}
	drained := l.mustDo(t, loadRequest{Op: opDrain})
	l.mustDo(t, loadRequest{Op: opClose})
	after, err := s.settle()
	if err != nil {
		t.Fatal(err)
	}
	if in, out := after.In-before.In, after.Out-before.Out; in != drained.Sent || out != drained.Rcvd || out <= seen.Out-before.Out {
		t.Errorf("sent %d and received %d, but the backend has %d and %d", drained.Sent, drained.Rcvd, in, out)
	}
	if after.Resets != before.Resets {
		t.Errorf("%d resets", after.Resets-before.Resets)
	}
}

func TestMoreLoadGeneratorsThanTunnelsDoNoHarm(t *testing.T) {
	s := testSuite(t, plainProxy)
	_, port, err := net.SplitHostPort(s.serving[0])
	if err != nil {
		t.Fatal(err)
	}
	backend, err := startHelper(s.fleet, roleBackend, "0.0.0.0:"+port)
	if err != nil {
		t.Fatal(err)
	}
	if err := backend.receive(new(backendReply), patience); err != nil {
		t.Fatal(err)
	}
	load, err := startHelper(s.fleet, roleLoad)
	if err != nil {
		t.Fatal(err)
	}
	s.loads, s.backends = append(s.loads, load), append(s.backends, backend)
	w := workload{"echo-64B-1", "echo", echo, 1, 64}
	if err := s.turn(0, w, s.entrants[0]); err != nil {
		t.Fatal(err)
	}
	if got := s.outcome(t, w.key, ioCopyName); got.Failure != "" || len(got.Samples) != 1 {
		t.Errorf("got %+v", got)
	}
}
