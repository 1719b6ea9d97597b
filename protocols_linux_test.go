package main

import (
	"crypto/tls"
	"net"
	"testing"
)

func TestEachFormTellsOfATimeOut(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, append(flags, "-timeout=100ms")...)
	hole := blackhole(t, "127.0.0.1", 0).String()
	inEachTongue(t, trusting, func(t *testing.T, v tongue, config *tls.Config) {
		var conns []net.Conn
		for _, write := range deliveries {
			c := connectWith(t, p.addr, config)
			write(t, c, v.text(t, hole))
			conns = append(conns, c)
		}
		for _, c := range conns {
			expectRefusal(t, c, v, "504", "")
		}
	})
}
