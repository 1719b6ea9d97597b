package main

import (
	"crypto/tls"
	"fmt"
	"gateway/internal/layer"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// Clients that leave in the middle, in every form: nothing of them may stay.

// leaving is how a client leaves.
var leaving = []func(net.Conn){
	func(c net.Conn) { layer.Socket(c).Close() },
	func(c net.Conn) { layer.ResetOnClose(c); layer.Socket(c).Close() },
}

var nameCount atomic.Int64

// leaveEarly has a client leave at each stage of its way.
func leaveEarly(t testing.TB, gateway string, config *tls.Config, v tongue, backend, silent string) {
	request := v.text(t, backend)
	for _, leave := range leaving {
		for _, n := range []int{0, 1, 3, 4, 10, len(request) / 2, len(request) - 1} {
			c := connectWith(t, gateway, config)
			send(t, c, request[:n])
			leave(c)
		}
		c := connectWith(t, gateway, config) // while the backend is dialed, or right after
		send(t, c, request)
		leave(c)
		c = connectWith(t, gateway, config) // while the backend's name is looked up; net would share a lookup
		send(t, c, v.text(t, fmt.Sprintf("game-%d.test:80", nameCount.Add(1))))
		leave(c)
		c = connectWith(t, gateway, config) // while it is answered
		send(t, c, request+v.say)
		io.ReadFull(c, make([]byte, 3))
		leave(c)
		c = connectWith(t, gateway, config) // before it is answered
		send(t, c, v.text(t, silent)+v.say)
		leave(c)
		c = connectWith(t, gateway, config) // in the middle of what it says
		send(t, c, request+v.say[:len(v.say)-2])
		if !v.http {
			expectAnswer(t, c, v.welcome)
		}
		leave(c)
	}
}

func TestNothingStaysOfClientsThatLeaveInTheMiddle(t *testing.T) {
	certFile, keyFile, trusting := tlsFiles(t)
	echo := startEcho(t)
	silent := startBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, struct{ io.Reader }{c}) })
	answers := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // the gateway keeps no connection to it
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	for _, loops := range []int{0, -1} {
		t.Run(fmt.Sprintf("-loops=%d", loops), func(t *testing.T) {
			r, _, release := stuckLookup()
			defer release()
			g := startConfigured(t, func(cfg *Config) {
				cfg.TLSCert, cfg.TLSKey, cfg.Loops = certFile, keyFile, loops
				cfg.Timeout, cfg.HalfCloseTimeout = 500*time.Millisecond, 500*time.Millisecond
			}, func(g *Gateway) { g.dialer.resolver = r })
			openTunnel(t, g.addr, echo).Close()
			visitHTTP(t, g.addr, nil).Close()
			g.log.waitLine(t, "tunnel", 1)
			var goroutines, descriptors int
			eventually(t, "all is quiet", func() bool {
				lastG, lastD := goroutines, descriptors
				goroutines, descriptors = runtime.NumGoroutine(), openDescriptors()
				return lastG == goroutines && lastD == descriptors
			})

			hello := clientHello(t, trusting)
			for _, leave := range leaving { // in the middle of TLS's own handshake
				for _, n := range []int{2, 3, 5, len(hello) / 2, len(hello)} {
					c := connect(t, g.addr)
					send(t, c, hello[:n])
					leave(c)
				}
			}
			t.Run("storm", func(t *testing.T) {
				inEachTongue(t, trusting, func(t *testing.T, v tongue, config *tls.Config) {
					backend := echo
					if v.http {
						backend = answers
					}
					leaveEarly(t, g.addr, config, v, backend, silent)
				})
			})
			var now, open int
			defer func() {
				if t.Failed() {
					stacks := make([]byte, 1<<20)
					t.Logf("%d goroutines, %d before; %d descriptors, %d before\n%s",
						now, goroutines, open, descriptors, stacks[:runtime.Stack(stacks, true)])
				}
			}()
			eventually(t, "nothing stays", func() bool {
				now, open = runtime.NumGoroutine(), openDescriptors()
				return now <= goroutines && open <= descriptors
			})
			echoes := openTunnel(t, g.addr, echo)
			send(t, echoes, "still served")
			expect(t, echoes, "still served")
		})
	}
}
