package main

import "testing"

func TestASealedLineBecomesATunnel(t *testing.T) {
	g := startGateway(t, nil)
	c := openTunnel(t, g.addr, startEcho(t))
	send(t, c, "hello")
	expect(t, c, "hello")
	c.CloseWrite()
	expectAll(t, c, "")
	line := g.log.waitLine(t, "tunnel", 1)
	if line["up"] != 5.0 || line["down"] != 5.0 || line["ended_by"] != "client" || line["how"] != "fin" {
		t.Errorf("account: %v", line)
	}
}
