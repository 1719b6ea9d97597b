// Package handover moves live tunnels to another process: their sockets, by
// SCM_RIGHTS (unix(7)), and what is known of them. It knows nothing of who relays.
//
// The two processes share a pair of stream sockets. The old one has a [Sender], the
// new one a [Receiver]:
//
//	old: hello  the version of its encoding
//	new: agree, or refuse and why
//	old: state  anything else that is to be known first, by name
//	old: batch  tunnels, with all their descriptors
//	new: taken, or busy: not now
//	…
//	old: idle   it has no more for now
//
// A batch changes hands as a whole, and when it does is never in doubt: once "taken"
// is in the old one's queue, it is the new one's. An old process that does not want to
// wait any longer says "never mind" and closes its queue; then "taken" cannot come to
// stand there. The new one, when it fails to say "taken", looks whether it was told
// so. If not, the old one has died, and the tunnels are the new one's: nobody
// else has them.
//
// Descriptors on their way count against the limit of who sends (RLIMIT_NOFILE, or
// the error is ETOOMANYREFS), so there is one batch at a time.
package handover

import (
	"errors"
	"net/netip"
	"time"
)

// Version is that of the encoding. Whoever changes the encoding in any way counts it
// up and goes on to read the last one: testdata has a file of each.
const Version = 3

// oldest is the least version that is still read.
const oldest = 1

// MaxDescriptors is how many descriptors a batch may have (SCM_MAX_FD in the
// kernel).
const MaxDescriptors = 253

// Side is one of the two sockets of a tunnel.
type Side struct {
	FD int
	// Hung says that the peer has been seen to end or break the connection, so
	// that reads go on until they tell so.
	Hung bool
	// Stalled says that the peer has once been slow to take what was sent.
	Stalled bool
}

// Flow is one of the two directions of a tunnel.
type Flow struct {
	Moved  int64  // bytes that the receiver's kernel has taken
	Unsent []byte // read of the source, and to be sent before anything else
	// Pipe holds InPipe bytes that come after those, if InPipe is more than 0.
	Pipe   Pipe
	InPipe int
	Bulk   bool // what it moved last was large
	Large  bool // … or too large to be moved along with others
	Ended  bool // the source has sent FIN, which is to be passed on
	Done   bool // that is done, or the receiver is gone
}

// Pipe is the two ends of one.
type Pipe struct{ R, W int }

// Tunnel is a live tunnel. All descriptors in it are those of whoever has the value.
type Tunnel struct {
	Client, Backend Side
	Up, Down        Flow
	Deaf            bool   // the backend takes no more: what the client sends is dropped
	Optioned        bool   // the options that find a peer gone are set
	EndedBy, How    string // so far, in the words of the log

	Age       time.Duration // since the client was accepted
	Idle      time.Duration // since a byte has moved
	Rest      time.Duration // the same, or since one side has finished, as far as somebody has watched
	Addr      netip.AddrPort
	Local     netip.AddrPort // where the client connected to, if a trusted proxy has told; or invalid
	Name      string         // of the connection, in the log and for the backend
	Listener  string         // by which it came; or empty
	Forward   string         // the route to which its listener leads; or empty
	Form      string         // in which it said where it wants to go
	Secure    bool
	Proxied   bool
	Hops      uint8
	Header    int // bytes
	Target    string
	Dialed    netip.AddrPort // where the name of Target led to; or invalid
	Route     string         // among whose targets it was chosen; or empty
	Preface   int            // bytes that were sent to the backend before the client's
	FirstByte time.Duration  // from the beginning of the tunnel to the first byte of the backend
	Dialing   time.Duration  // that the dials took
	Tries     uint8          // how many there were
	Failed    string         // backends that did not answer, with commas between; or empty
	Label     string         // what it is called in the log; or empty

	Layer Layer // on the client's socket

	// Detached says that there is no client's socket: a layer waits for another one.
	// Versions before 3 have none such.
	Detached bool
}

// Layer is what is between the client's socket and the tunnel. Versions before 2 have
// none.
type Layer struct {
	Name     string        // its kind; empty: there is none
	State    []byte        // as it says itself
	Owed     int           // of the bytes to be sent to the client, how many are its own
	Finished bool          // the client has: what is for it is dropped
	Wait     time.Duration // until the client is not waited for any more; 0: no bound
}

// fds returns where the descriptors of a tunnel stand, in the order in which they
// travel.
func (t *Tunnel) fds() []*int {
	list := make([]*int, 0, 6)
	if !t.Detached {
		list = append(list, &t.Client.FD)
	}
	list = append(list, &t.Backend.FD)
	for _, f := range []*Flow{&t.Up, &t.Down} {
		if f.InPipe > 0 {
			list = append(list, &f.Pipe.R, &f.Pipe.W)
		}
	}
	return list
}

// Descriptors returns how many descriptors a tunnel has.
func (t *Tunnel) Descriptors() int {
	n := 2
	if t.Detached {
		n = 1
	}
	if t.Up.InPipe > 0 {
		n += 2
	}
	if t.Down.InPipe > 0 {
		n += 2
	}
	return n
}

var (
	// ErrRefused says that the other process takes no tunnels.
	ErrRefused = errors.New("the new process takes no tunnels")
	// ErrSilent says that the other process has not said a word.
	ErrSilent = errors.New("the new process does not answer to the offer of tunnels")
	// ErrBusy says that the other process does not take a batch now.
	ErrBusy = errors.New("the new process has no room for now")
	// ErrUnreadable says that bytes are not what [Append] has made.
	ErrUnreadable = errors.New("these are no tunnels")
)
