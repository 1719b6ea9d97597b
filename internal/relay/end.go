package relay

import (
	"errors"
	"syscall"
	"time"

	"gateway/internal/layer"
)

// End is the account of a finished tunnel.
type End struct {
	Up, Down int64 // bytes from client to backend, and back
	Ending
	Limit     Limit         // that it came to
	FirstByte time.Duration // from its beginning until the first byte of the backend had moved, if one had
	Idle      time.Duration // since a byte last moved, as far as was looked
}

// Limit is a bound that ends tunnels.
type Limit uint8

const (
	NoLimit     Limit = iota
	Idle              // Bounds.Idle
	HalfClose         // Bounds.HalfClosed
	Drain             // it outlived the relay
	UserTimeout       // the kernel's, of what a peer did not acknowledge: TCP_USER_TIMEOUT, or many retransmissions
	Keepalive         // the kernel's, of a peer that answers no probe
)

func (l Limit) String() string {
	return [...]string{"", "idle", "half_close", "drain", "user_timeout", "keepalive"}[l]
}

// KernelLimit is the limit of a peer that the kernel has given up, by how many of the
// bytes that were sent it had not acknowledged (SIOCOUTQ counts them to the end).
func KernelLimit(unacked int) Limit {
	if unacked > 0 {
		return UserTimeout
	}
	return Keepalive
}

// LimitOf returns the limit that a tunnel came to that ended so, and was half-closed
// or not.
func (e Ending) LimitOf(halfClosed bool) Limit {
	switch {
	case e.By != Gateway:
		return NoLimit
	case e.How == Shutdown:
		return Drain
	case e.How == Timeout && halfClosed:
		return HalfClose
	case e.How == Timeout:
		return Idle
	}
	return NoLimit
}

// Ending tells who ended a tunnel and how.
type Ending struct {
	By  Side
	How How
}

// Side is one of those who may end a tunnel.
type Side uint8

const (
	Client Side = iota
	Backend
	Gateway
)

func (s Side) String() string { return [...]string{"client", "backend", "gateway"}[s] }

// How is a way in which a tunnel ends.
type How uint8

const (
	unended  How = iota
	FIN          // it finished, and so did the other side
	Reset        // it broke the connection
	Timeout      // silent for too long, or its host is gone
	Shutdown     // cut because the relay was closed
	Cut          // cut by an operator
	Failure      // anything else
)

func (h How) String() string {
	return [...]string{"", "fin", "reset", "timeout", "shutdown", "cut", "error"}[h]
}

// ParseEnding returns the Ending of these words; what is unknown is an error.
func ParseEnding(by, how string) (e Ending) {
	for e.By = Client; e.By < Gateway && e.By.String() != by; e.By++ {
	}
	for e.How = unended; e.How < Failure && e.How.String() != how; e.How++ {
	}
	return e
}

// Note records who ended the tunnel and how. The first reset, time-out or cut
// tells more than a FIN, before or after it.
func (e *Ending) Note(by Side, how How) {
	if e.How == unended || e.How == FIN && how != FIN {
		e.By, e.How = by, how
	}
}

// HowOf tells what the error of a read or a write says about the peer.
func HowOf(err error) How {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, syscall.ETIMEDOUT), layer.IsTimeout(err),
		// What the network said last, and the kernel says when it gives up.
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Timeout // keepalive, retransmission or KCP gave up
	default:
		return Failure
	}
}
