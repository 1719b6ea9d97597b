// Package descriptors says how many connections and pipes the descriptors of a process
// are enough for.
package descriptors

// MaxPipes bounds all pipes of the process, and with them the memory that stalled readers
// can pin: MaxPipes × 1 MiB. Beyond it, tunnels copy. Where descriptors are few there may
// be less; see Divide.
const MaxPipes = 256

// Divide divides so many descriptors: two for each connection, two for each pipe, and some
// put by for everything else. Few descriptors mean few pipes: a tunnel can do without, and
// not a client.
func Divide(limit uint64) (conns, pipes int32) {
	const putBy = 128
	n := int32(min(limit, 1<<30))
	pipes = min(MaxPipes, n/8)
	return max(16, (n-putBy)/2-pipes), pipes
}

// Conns returns for how many connections the descriptors of this process suffice, or 0
// where that is not known: accepting fails then, and is tried again.
func Conns() int32 {
	limit, ok := Limit()
	if !ok {
		return 0
	}
	conns, _ := Divide(limit)
	return conns
}
