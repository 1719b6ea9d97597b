package protocols

import (
	"crypto/tls"
	"net"
	"testing"

	"gateway/internal/harness"
)

func TestEachFormTellsOfATimeOut(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-timeout=100ms")...)
	hole := harness.Blackhole(t)
	inEachForm(t, trusting, func(t *testing.T, v harness.Form, config *tls.Config) {
		var conns []net.Conn
		for _, write := range deliveries {
			c := harness.ConnectWith(t, p.Addr, config)
			write(t, c, v.Text(hole))
			conns = append(conns, c)
		}
		for _, c := range conns {
			expectRefusal(t, c, v, "504", "")
		}
	})
}
