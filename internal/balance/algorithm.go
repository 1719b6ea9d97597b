// Package balance picks one of several targets for a connection, and remembers
// which of them failed. It does no input or output and has no clock: the caller
// dials, and says what came of it and when.
//
// A [Table] keeps a [Group] for each route. An [Attempt] is one client's way
// through a group's targets:
//
//	a := table.Group(route, now).Start(client)
//	for addr, ok := a.Next(now()); ok; addr, ok = a.Next(now()) {
//		if dial(addr) fails {
//			a.Failed(now())
//			continue
//		}
//		a.Succeeded(now())
//		relay
//		break
//	}
//	a.Release()
//
// A target that failed is skipped for 1 s, counted from the failure, then for
// 2 s, 4 s and so on up to 60 s; one success clears it. To be skipped is to be
// tried last, so no client is turned away while a target is left that it has
// not tried. When the time is over, one client tries the target, and the others
// skip it until that one knows.
//
// Picking takes no lock and allocates nothing. Times are nanoseconds since any
// moment that all callers share, never negative, from a clock that is not set
// back; it may be coarse.
package balance

import (
	"errors"
	"slices"
)

// Algorithm is how one of several equal targets is picked. The names and
// meanings are HAProxy's.
type Algorithm uint8

const (
	// First takes the targets of a written route in order, whatever their
	// weights. Targets of one priority in DNS have no order; one is drawn at
	// random by weight (RFC 2782, "The format of the SRV RR").
	First Algorithm = iota
	// RoundRobin takes turns by weight, spread evenly: a*5,b,c gives
	// a a b a c a a, as nginx does.
	RoundRobin
	// Random draws by weight.
	Random
	// LeastConn takes the target with the fewest connections for its weight,
	// dials in progress included, and takes turns among several such.
	LeastConn
	// Source takes the target that the client's address hashes to, ports left
	// out. When a target comes or goes, only those clients move that it wins or
	// leaves; so it is when one is skipped. Every gateway hashes alike. Of an
	// IPv6 address the first 64 bits count: the others are the client's own to
	// change, and systems do so daily (RFC 8981).
	Source
)

var algorithms = [...]string{"first", "roundrobin", "random", "leastconn", "source"}

// ErrAlgorithm says which names ParseAlgorithm takes.
var ErrAlgorithm = errors.New("want first, roundrobin, random, leastconn or source")

// ParseAlgorithm returns the algorithm of a name, or ErrAlgorithm.
func ParseAlgorithm(name string) (Algorithm, error) {
	i := slices.Index(algorithms[:], name)
	if i < 0 {
		return 0, ErrAlgorithm
	}
	return Algorithm(i), nil
}

func (a Algorithm) String() string { return algorithms[a] }
