package kcp

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"
)

// conversation is what a session is known by: its client's address and the
// number that the client has chosen, which may be 0.
type conversation struct {
	source netip.AddrPort
	conv   uint32
}

// A cookie proves a client's address. KCP has none of its own; but whoever
// gets a segment of data acknowledges it with its sn and ts, and does nothing
// else with ts. So a ts that cannot be guessed, in what is sent to an unproven
// client, comes back only from where it was sent.
//
// Where there is no session to send data, there is a challenge: a segment
// without data whose sn lies before the client's first. Every KCP takes that
// for a copy of what it has had, and acknowledges it again, as the first
// acknowledgement may have been lost. Then sn is a part of the secret too, and
// nothing need be kept: the cookie can be computed again.
//
// What the numbers must not do is confuse kcp-go when they come back. An sn
// before all that we have sent is no acknowledgement to it, and a ts that lies
// ahead no round-trip time.
type cookie struct{ sn, ts uint32 }

const (
	// cookieBits of sn and of ts are secret. The others keep both of them a
	// quarter of their range away from now, which for ts is 6 days.
	cookieBits = 30
	cookieMask = 1<<cookieBits - 1
	pastSN     = 1<<31 + 1<<29
	aheadTS    = 1 << 29

	// cookieTime is for how long a challenge can be answered, at least; at most
	// it is twice that.
	cookieTime = 10 * time.Second
)

// A baker makes cookies. The zero baker's can be guessed.
type baker struct{ secret [32]byte }

func newBaker() (b baker) {
	rand.Read(b.secret[:])
	return b
}

// bake returns the cookie of a conversation at a time, by sinceStart.
func (b *baker) bake(who conversation, now int64) cookie {
	slot := now / int64(cookieTime)
	in := make([]byte, 0, 64)
	in = append(in, b.secret[:]...)
	address := who.source.Addr().As16()
	in = append(in, address[:]...)
	in = binary.LittleEndian.AppendUint16(in, who.source.Port())
	in = binary.LittleEndian.AppendUint32(in, who.conv)
	in = binary.LittleEndian.AppendUint64(in, uint64(slot))
	sum := sha256.Sum256(in)
	base := uint32(slot * cookieTime.Milliseconds())
	return cookie{
		sn: pastSN + binary.LittleEndian.Uint32(sum[:])&cookieMask,
		ts: base + aheadTS + binary.LittleEndian.Uint32(sum[4:])&cookieMask,
	}
}

// answered tells whether a datagram acknowledges the conversation's challenge.
func (b *baker) answered(who conversation, s *summary, now int64) bool {
	if s.parity || s.cmd != cmdAck {
		return false
	}
	fresh, old := b.bake(who, now), b.bake(who, now-int64(cookieTime))
	for seg := range s.all() {
		got := cookie{seg.sn(), seg.ts()}
		if seg.cmd() == cmdAck && (got == fresh || got == old) {
			return true
		}
	}
	return false
}

// challenge returns the segment that only the owner of an address can answer.
func (c cookie) challenge(conv uint32) segment {
	seg := control(conv, cmdPush, unprovenWindow)
	seg.setSN(c.sn)
	seg.setTS(c.ts)
	return seg
}

// stamp marks the data in a packet of ours, so that its acknowledgement is
// proof.
func (c cookie) stamp(s *summary) {
	for seg := range s.all() {
		if seg.cmd() == cmdPush {
			seg.setTS(c.ts)
		}
	}
}

// echoed tells whether a datagram acknowledges a segment before next that was
// stamped, or the challenge; and how many acknowledgements are neither.
func (c cookie) echoed(s *summary, next uint32) (ok bool, wrong int) {
	for seg := range s.all() {
		switch {
		case seg.cmd() != cmdAck:
		case seg.ts() == c.ts && (seg.sn() == c.sn || after(next, seg.sn())):
			ok = true
		default:
			wrong++
		}
	}
	return ok, wrong
}
