//go:build !linux

package upgrade

import (
	"context"
	"net"
	"os"
	"time"
)

// Supported tells whether processes can hand over sockets here.
const Supported = false

// Program is what to start.
type Program struct {
	Path string
	Args []string
	Env  []string
	Dir  string
}

// Successor is the new process, of which there is none here.
type Successor struct{}

// Start returns [ErrUnsupported].
func Start(Program, []Socket) (*Successor, error) { return nil, ErrUnsupported }

func (*Successor) Ready(context.Context) (string, error) { return "", ErrUnsupported }
func (*Successor) Serve(context.Context) error           { return ErrUnsupported }
func (*Successor) Never()                                {}
func (*Successor) Yield() error                          { return ErrUnsupported }
func (*Successor) PID() int                              { return 0 }
func (*Successor) Took(string) bool                      { return false }
func (*Successor) Conn() *net.UnixConn                   { return nil }
func (*Successor) Gone() <-chan struct{}                 { return nil }
func (*Successor) Stops() <-chan struct{}                { return nil }
func (*Successor) Left() <-chan struct{}                 { return nil }
func (*Successor) InOrder() bool                         { return false }
func (*Successor) How(time.Duration) string              { return "" }
func (*Successor) End() error                            { return ErrUnsupported }
func (*Successor) Signal(os.Signal) error                { return ErrUnsupported }
func (*Successor) Kill()                                 {}
func (*Successor) Close()                                {}

// Predecessor is the old process, of which there is none here.
type Predecessor struct{ PID int }

// Inherit returns nil: there is no old process.
func Inherit() (*Predecessor, error) { return nil, nil }

func (*Predecessor) Take(string) (int, bool) { return -1, false }
func (*Predecessor) Names() []string         { return nil }
func (*Predecessor) Elders() []Socket        { return nil }
func (*Predecessor) Ready(string) error      { return ErrUnsupported }
func (*Predecessor) Serving() error          { return ErrUnsupported }
func (*Predecessor) Settled() error          { return ErrUnsupported }
func (*Predecessor) Conn() *net.UnixConn     { return nil }
func (*Predecessor) Bye() error              { return nil }

// Stop returns a closed channel.
func (*Predecessor) Stop() <-chan struct{} {
	gone := make(chan struct{})
	close(gone)
	return gone
}
