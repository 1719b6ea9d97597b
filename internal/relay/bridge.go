package relay

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gateway/internal/layer"
	"gateway/internal/sockopt"
)

// bridgeTime bounds how long a client is read behind the last that it was sent.
const bridgeTime = time.Second

// bridgePatience is how long a client may take nothing that the other end of its bridge has
// left, once or twice that.
const bridgePatience = 2 * time.Second

// Bridge moves bytes between a client and a local socket, until nobody is at the other end
// of that any more, or the client is gone. abort ends the client's connection at once.
func (r *Relay) Bridge(client, local net.Conn, abort func()) {
	w := &leftWriter{Writer: client, local: layer.RawConn(local), abort: abort}
	w.timer = time.AfterFunc(time.Hour, w.look)
	w.timer.Stop()
	var down sync.WaitGroup
	down.Go(func() {
		r.Pump(w, struct{ io.Reader }{local})
		layer.CloseWrite(client)
		// It has the last to read; not every connection has deadlines that strike who
		// waits already.
		client.SetDeadline(time.Now().Add(bridgeTime))
		time.AfterFunc(bridgeTime+bridgeTime/4, abort)
	})
	r.Pump(local, struct{ io.Reader }{client})
	local.Close() // as if it were the client's socket
	down.Wait()
	abort()
}

// leftWriter writes to a client, and gives up one that takes nothing while the local socket
// has been left: who has gone on by another connection may have left this one to silence,
// and the kernel would try for a quarter of an hour. Only a write that lasts is looked
// after: the timer is set once in a while, and not for each.
type leftWriter struct {
	io.Writer
	local syscall.RawConn
	abort func()
	timer *time.Timer

	writes atomic.Uint64 // begun and done: while one lasts it is odd
	looks  atomic.Bool   // the timer is set
	seen   uint64        // writes at the last look
}

func (w *leftWriter) Write(b []byte) (int, error) {
	w.writes.Add(1)
	w.watch()
	n, err := w.Writer.Write(b)
	w.writes.Add(1)
	return n, err
}

func (w *leftWriter) watch() {
	if !w.looks.Load() && !w.looks.Swap(true) {
		w.timer.Reset(bridgePatience)
	}
}

// look is the timer's.
func (w *leftWriter) look() {
	now := w.writes.Load()
	switch {
	case now%2 == 0:
		w.looks.Store(false)
		if w.writes.Load()%2 != 0 { // begun meanwhile
			w.watch()
		}
	case now == w.seen && w.local != nil && sockopt.HungUp(w.local):
		w.abort()
	default:
		w.seen = now
		w.timer.Reset(bridgePatience)
	}
}
