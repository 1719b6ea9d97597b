package admin

import (
	"net"
	"sync"
)

// maxConns bounds the connections that are served at a time: whoever reaches the address
// must not be able to take the descriptors that players need.
const maxConns = 128

// limited is a listener of which no more than maxConns connections are open.
type limited struct {
	net.Listener
	places chan struct{}
}

func newLimited(ln net.Listener) *limited {
	return &limited{ln, make(chan struct{}, maxConns)}
}

// Accept waits for a connection, and for a place.
func (l *limited) Accept() (net.Conn, error) {
	l.places <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placed{Conn: c, leave: sync.OnceFunc(func() { <-l.places })}, nil
}

// placed is a connection that has a place.
type placed struct {
	net.Conn
	leave func()
}

func (c *placed) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
