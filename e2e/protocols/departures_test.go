package protocols

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"gateway/internal/harness"
)

// Clients that leave in the middle, in every form: nothing of them may stay.

// leaving is how a client leaves.
var leaving = []func(net.Conn){
	func(c net.Conn) { harness.Socket(c).Close() },
	func(c net.Conn) { harness.Reset(c) },
}

var nameCount atomic.Int64

// leaveEarly has a client leave at each stage of its way.
func leaveEarly(t testing.TB, gateway string, config *tls.Config, v harness.Form, backend, silent string) {
	request := v.Text(backend)
	for _, leave := range leaving {
		for _, n := range []int{0, 1, 3, 4, 10, len(request) / 2, len(request) - 1} {
			c := harness.ConnectWith(t, gateway, config)
			harness.Send(t, c, request[:n])
			leave(c)
		}
		c := harness.ConnectWith(t, gateway, config) // while the backend is dialed, or right after
		harness.Send(t, c, request)
		leave(c)
		c = harness.ConnectWith(t, gateway, config) // while the backend's name is looked up; net would share a lookup
		harness.Send(t, c, v.Text(fmt.Sprintf("game-%d.test:80", nameCount.Add(1))))
		leave(c)
		c = harness.ConnectWith(t, gateway, config) // while it is answered
		harness.Send(t, c, request+v.Say)
		io.ReadFull(c, make([]byte, 3))
		leave(c)
		c = harness.ConnectWith(t, gateway, config) // before it is answered
		harness.Send(t, c, v.Text(silent)+v.Say)
		leave(c)
		c = harness.ConnectWith(t, gateway, config) // in the middle of what it says
		harness.Send(t, c, request+v.Say[:len(v.Say)-2])
		if !v.HTTP {
			harness.ExpectAnswer(t, c, v.Welcome)
		}
		leave(c)
	}
}

func TestNothingStaysOfClientsThatLeaveInTheMiddle(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	echo := harness.StartEcho(t)
	silent := harness.StartBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, struct{ io.Reader }{c}) })
	answers := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // the gateway keeps no connection to it
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	resolver, err := net.ListenPacket("udp", "127.0.0.1:0") // which never answers
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, append(flags, way, harness.WithPprof, "-resolver="+resolver.LocalAddr().String(),
			"-timeout=2s", "-half-close-timeout=2s")...)
		harness.OpenTunnel(t, p.Addr, echo).Close()
		visitHTTP(t, p.Addr, nil).Close()
		p.Log.WaitLine(t, "tunnel", 1)
		rest := p.Rest(t)

		hello := clientHello(t, trusting)
		for _, leave := range leaving { // in the middle of TLS's own handshake
			for _, n := range []int{2, 3, 5, len(hello) / 2, len(hello)} {
				c := harness.Connect(t, p.Addr)
				harness.Send(t, c, hello[:n])
				leave(c)
			}
		}
		t.Run("storm", func(t *testing.T) {
			inEachForm(t, trusting, func(t *testing.T, v harness.Form, config *tls.Config) {
				backend := echo
				if v.HTTP {
					backend = answers
				}
				leaveEarly(t, p.Addr, config, v, backend, silent)
			})
		})
		p.WaitForRest(t, rest)
		harness.Echo(t, harness.OpenTunnel(t, p.Addr, echo), "still served")
	})
}
