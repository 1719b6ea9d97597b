package main

import (
	"net"
	"testing"
	"time"
)

func TestFloodsAreMeasuredBesideEstablishedTunnels(t *testing.T) {
	gateway, err := buildGateway(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	all := []*contender{gatewayContender(gatewayName, gateway, nil)}
	if path, err := find("haproxy"); err == nil {
		all = append(all, haproxyContender(haproxyName, "as packaged", path, ""))
	}
	s := testSuite(t, all...)
	for _, w := range workloads(1) {
		if w.kind != beside {
			continue
		}
		for _, e := range s.entrants {
			if err := s.turn(0, w, e); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{w.key, withoutFlood} {
				if got := s.table.at(key, e.name); got == nil || got.Failure != "" || got.P99 == 0 {
					t.Errorf("%s of %s: %v", key, e.name, got)
				}
			}
		}
	}
}

func TestAFloodBringsTheSameOverAndOver(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan string)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(got)
				return
			}
			buf := make([]byte, 100)
			n, _ := c.Read(buf)
			if c.RemoteAddr().(*net.TCPAddr).IP.String() != floodFrom {
				n = copy(buf, "from "+c.RemoteAddr().String())
			}
			c.Close()
			select {
			case got <- string(buf[:n]):
			default:
			}
		}
	}()
	done := make(chan loadReply)
	go func() {
		done <- flood(loadRequest{Targets: []string{ln.Addr().String()}, Lines: []string{"flood"}, Time: time.Second})
	}()
	for range 10 {
		if text := <-got; text != "flood" && text != "" {
			t.Errorf("it brings %q", text)
		}
	}
	if reply := <-done; reply.Err != "" || reply.Units < 10 {
		t.Errorf("it says %+v", reply)
	}
}
