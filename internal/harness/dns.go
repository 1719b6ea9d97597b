package harness

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
)

// StartDNS starts a name server that answers every question for an IPv4 address
// with the given one, and has no other records. It returns its address, for the
// gateway's -resolver.
func StartDNS(t testing.TB, ip string) string {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 1500); ; {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(answerDNS(buf[:n], netip.MustParseAddr(ip)), from)
		}
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return server.LocalAddr().String()
}

// answerDNS makes the response to a query of one question (RFC 1035 section 4).
func answerDNS(query []byte, ip netip.Addr) []byte {
	end := 12 // of the header; then labels
	for query[end] != 0 {
		end += 1 + int(query[end])
	}
	qtype := binary.BigEndian.Uint16(query[end+1:])
	end += 5 // the root label, type, class

	msg := append([]byte(nil), query[:end]...)
	msg[2], msg[3] = 0x84, 0 // a response, authoritative, no error
	clear(msg[6:12])         // no records
	if qtype == 1 {          // A
		msg[7] = 1
		msg = append(msg, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4) // the name, A, IN, 60 s
		msg = append(msg, ip.AsSlice()...)
	}
	return msg
}
