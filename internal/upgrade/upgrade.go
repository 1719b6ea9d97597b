// Package upgrade puts a new process in the place of this one, which hands its
// sockets over: the same sockets, and not others on the same port, so that what
// waits in their queues waits on. It knows nothing of what is served.
//
// The old process calls [Start], the new one [Inherit]. What they say to each other,
// over a pair of sockets that the new one is born with:
//
//	old: offer   the sockets that there are, by name
//	new: ready   it can serve; these it has taken
//	old: serve
//	new: serving from here on both accept from the same queues
//	old: yours   it has stopped accepting
//	old: never   it serves on, and the new one is to end; in the place of its next word
//	new: bye     it has a successor of its own
//	new: stop    it ends in order, and the old one is to end too
//
// Whatever fails before "yours", the end of a process included, leaves the sockets
// to the other one. After it the old one keeps its copies, and may serve again if the
// new one ends without either.
//
// An old process may have an old one too, which still lives, and so on: elders. Their
// sockets go to the new process with those that serve, for it to say "stop" to all of them
// although those in between have ended.
//
// A second pair of sockets is for whatever else changes hands, see [Successor.Conn].
package upgrade

import (
	"errors"
	"fmt"
)

// Version is that of the messages. Who is offered another one refuses.
const Version = 1

// Variable in the environment says that a process has a predecessor, and holds the
// [Version].
const Variable = "UPGRADE_OF_GATEWAY"

// The descriptors that a new process is born with, besides the standard ones.
const (
	controlFD = 3 + iota
	tunnelsFD
	firstSocketFD
)

// Socket is one that changes hands.
type Socket struct {
	Name string // tells the new process what it is for
	FD   int    // Start leaves it to its caller, Inherit gives it to its own
}

// ErrOldEnded is what the new process learns where the old one has ended without a
// word, killed for instance. Nobody else has the sockets then: the new one is to go on.
// Had the old one changed its mind, it would have said so: [ErrNever].
var ErrOldEnded = errors.New("the old process has ended before it handed over")

// ErrNever is what the new process learns where the old one has changed its mind, since
// it took too long for instance. The old one serves on, and the new one is to end.
var ErrNever = errors.New("the old process serves on: this one came too late, or has failed")

// ErrUnsupported is what Start returns where processes cannot hand over sockets.
var ErrUnsupported = errors.New("upgrades need Linux: end this process and start the new one")

// The words of a message.
const (
	offer   = "offer"
	refuse  = "refuse"
	ready   = "ready"
	serve   = "serve"
	serving = "serving"
	yours   = "yours"
	never   = "never"
	bye     = "bye"
	stop    = "stop"
)

// elder is the name of the sockets to processes before the old one.
const elder = "elder"

// maxSaid bounds what is believed that a new process has to say, in bytes: it may be any
// program.
const maxSaid = 1 << 20

// message is what one process says to the other: a line of JSON.
type message struct {
	Word    string
	Version int      `json:",omitempty"`
	PID     int      `json:",omitempty"`
	Sockets []string `json:",omitempty"` // offered
	Taken   []string `json:",omitempty"` // of those
	Program string   `json:",omitempty"` // the name and version of who is ready
	Why     string   `json:",omitempty"` // it refuses
}

// ended says how the new process ended, and at which point.
func ended(how string, at string) error {
	return fmt.Errorf("the new process ended %s (%s); its own lines in the log say more, if it is a gateway", at, how)
}
