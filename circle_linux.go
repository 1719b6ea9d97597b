package main

import (
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/relay"
	"gateway/internal/sys"
)

// Two gateways that forward to each other by mistake pass a client on and on,
// until one of them is full. Then the last connection stands in the queue of a
// listener that does not accept, and nothing ever ends; or the client leaves, and
// its end never catches up with a beginning that runs before it. Where PROXY
// headers of version 2 go with connections, hops are counted (maxHops). Else a
// circle shows by this: a gateway is full of tunnels that it forwards, that come
// from the host to which they lead, and through which never a byte came back.

const (
	// circleShare is the part of a loop's connections that have to look like a
	// circle before they are taken for one: one in so many. A backend's own host
	// may be a client too, and some wait for an answer at any time.
	circleShare = 4
	// circleTime is how long a host is then suspected.
	circleTime = time.Minute
)

// circles remember the last circle that was broken. The zero value knows of none.
// Its methods may be called from any thread.
type circles struct{ last atomic.Pointer[circle] }

type circle struct {
	host  netip.Addr // that passes connections back to this gateway
	until time.Time
}

// holds tells whether a client that is to be forwarded is part of a circle.
func (c *circles) holds(client netip.Addr) bool {
	last := c.last.Load()
	return last != nil && last.host == client && time.Now().Before(last.until)
}

// breakUp ends the tunnels of a circle, if a loop has one. It is for a gateway that
// is full, and for the loop's own thread. What it resets here comes apart
// everywhere, and what is passed on meanwhile is refused.
func (c *circles) breakUp(l *tunnels) {
	var found []*tunnel
	var host netip.Addr
	for _, t := range l.slots {
		if from, ok := isCircular(t); ok {
			found, host = append(found, t), from
		}
	}
	if len(found) == 0 || len(found) < int(l.load.Load())/circleShare {
		return
	}
	c.last.Store(&circle{host, time.Now().Add(circleTime)})
	l.log.Warn("full of tunnels that end nowhere, cutting them: does the backend forward to this gateway?",
		"tunnels", len(found), "backend", found[0].upstream.backend.String())
	for _, t := range found {
		l.current = t
		t.end.Note(relay.Gateway, relay.Failure)
		l.reset(t)
	}
	l.current = nil
}

// isCircular tells whether a tunnel looks like a part of a circle, and which host
// it comes from and leads to.
func isCircular(t *tunnel) (host netip.Addr, ok bool) {
	down := &t.flows[backendSide]
	if t.state != stateOpen || t.session.forward == nil || down.moved > 0 || down.holds() {
		return host, false
	}
	var from, to unix.RawSockaddrAny
	if sys.Getpeername(t.sockets[clientSide].fd, &from) != nil || sys.Getpeername(t.sockets[backendSide].fd, &to) != nil {
		return host, false
	}
	host = sys.AddrPort(&from).Addr()
	return host, host == sys.AddrPort(&to).Addr()
}
