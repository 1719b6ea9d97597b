package sockopt

// Awaited is why AwaitBytes has returned.
type Awaited int

const (
	Enough Awaited = iota // the bytes are there
	Full                  // they are not, and the kernel has no room for them: read those that are there
	Ended                 // the peer has finished, the connection is broken, or its read deadline has passed
)
