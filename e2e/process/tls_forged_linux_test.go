package process

import (
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// A client that asks for new keys and does not read is owed answers of TLS that have no
// room on the way to it. It is gone in time all the same.
func TestWhoAsksForNewKeysAndDoesNotReadIsGoneInTime(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, slices.Concat(flags, []string{"-handshake-timeout=8s"})...)
	// As from a network, whose segments are small: loopback's have room for a lot.
	small := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1400)
			syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10)
		})
	}}
	c, err := small.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := harness.Forge(t, c, trusting)
	_, err = c.Write(f.Record(harness.ApplicationRecord, "GET / HTTP/1.1\r\nX: "))
	for n := 0; err == nil && n < 7000; n++ { // less than -http-header-max
		var b []byte
		for range 16 { // crypto/tls takes no more in a row
			b = append(b, f.Update(harness.KeyUpdateRequest)...)
		}
		c.SetWriteDeadline(time.Now().Add(time.Second))
		_, err = c.Write(append(b, f.Record(harness.ApplicationRecord, "A")...))
	}
	p.Log.WaitClient(t, "refused", c.LocalAddr().String())
}
