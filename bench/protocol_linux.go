package main

import "time"

// What the benchmark and its load generator and backend say to each other: a
// JSON value a line, on the standard input and output of the two.

// The first byte of a connection's first message says what the backend is to
// do with everything behind that message. The message itself is echoed always,
// so that its return proves the whole way.
const (
	modeEcho   = 'e' // send it back
	modeSink   = 'u' // drop it
	modeSource = 'd' // at the next byte, send until the client has finished
	modeFinite = 'f' // the same, but no more than streamBytes
)

// streamBytes is far more than the kernel takes between a proxy and a client
// with small segments that does not read; the rest is the proxy's to keep or to
// leave. Without an end, a receive buffer that the kernel has enlarged takes
// many times that, and a hundred of them are more than some machines have for
// all connections.
const streamBytes = 2 << 20

// A loadRequest asks the load generator for one step of a measurement.
type loadRequest struct {
	Op string

	// Of opOpen, opShort and opRefuse. The tunnels take the entries in turn, and the
	// same one of both lists.
	Targets []string    // addresses to connect to
	Lines   []string    // sealed lines or tokens; none where no handshake is made
	Via     layer       // of opOpen, for the layered load generator
	Upgrade upgradeKind // of opOpen: what becomes of WebSockets; empty: there are none
	Tunnels int         // of opStall too
	Mode    byte
	Size    int // of the messages

	Time time.Duration // of opEcho, opUp, opDown and opShort
}

const (
	opOpen   = "open"   // open tunnels; each echoes a first message
	opEcho   = "echo"   // on each tunnel, one message after the other
	opUp     = "up"     // send, finish, wait for the backend to finish
	opDown   = "down"   // have the backend send until the client finishes
	opShort  = "short"  // connect, echo once, close; without tunnels that are open
	opRefuse = "refuse" // connect, be refused, close; the same
	opBurst  = "burst"  // on each tunnel, echo burstBytes
	opStall  = "stall"  // open more tunnels; have the backend send, and do not read
	opDrain  = "drain"  // these finish, and read all that was sent
	opClose  = "close"  // the tunnels
)

// A loadReply is what came of it.
type loadReply struct {
	Err        string        `json:",omitempty"`
	Units      int64         // round trips or connections
	Sent, Rcvd int64         // bytes of payload since opOpen or opShort
	Elapsed    time.Duration // until the last answer or byte
	Latencies  []uint32      `json:",omitempty"` // histogram.pairs
	Congestion string        `json:",omitempty"` // in force on a socket, of opOpen
}

// A backendReply is the backend's answer to any line: what it has seen so far.
type backendReply struct {
	In, Out int64 // bytes
	Conns   int64 // accepted
	Open    int64 // now
	Resets  int64 // connections that ended otherwise than by FIN
}
