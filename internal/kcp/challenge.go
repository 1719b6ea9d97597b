package kcp

import "cmp"

// A stranger is a client that gets a challenge instead of a session.
type stranger struct {
	who    conversation
	framed bool
}

// ask has a stranger challenged, unless too many wait for that already; the
// client sends its first data again by itself.
func (g *guard) ask(who conversation, framed bool) {
	select {
	case g.strangers <- stranger{who, framed}:
		g.challenged.Add(1)
	default:
		g.refused.Add(1)
	}
}

// challengeStrangers sends their challenges, beside kcp-go's reader: sending
// costs several times what reading does, and the datagrams of players must not
// wait for those of a flood. It ends when the channel is closed.
func (g *guard) challengeStrangers() {
	own := newFrame(g.transport.key)
	for s := range g.strangers {
		f := own
		if !s.framed {
			f = nil
		}
		g.send(s.who.source, f, g.baker.bake(s.who, sinceStart()).challenge(s.who.conv))
	}
}

// challenge asks a client with a session to prove its address, before there is
// data for it.
func (g *guard) challenge(c *Conn) {
	f := c.frame
	if f != nil { // which the session may be using
		f = cmp.Or(g.frame, g.clear)
	}
	packet := c.cookie.challenge(c.who.conv)
	if c.affords(len(packet) + f.overhead()) {
		g.sendTo(c, f, packet)
	}
}
