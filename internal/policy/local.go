package policy

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// localTTL is how long an answer about an address holds. An address that this
// machine gets or loses is noticed so much later.
const localTTL = time.Second

// localCache remembers which addresses are this machine's. Gateways that listen
// on their backends' port number need that on every dial, and asking takes
// some ten microseconds. Addresses that share a slot drive each other out, so
// its memory is bounded. The zero value is empty.
type localCache struct {
	slots [256]atomic.Pointer[answer]
}

type answer struct {
	ip    netip.Addr
	local bool
	until time.Time
}

// isLocal tells whether a connection to ip stays on this machine. It asks where
// no answer is remembered, and remembers no failure.
func (c *localCache) isLocal(ip netip.Addr, ask func(netip.Addr) (bool, error)) (bool, error) {
	// 127.0.0.2 has the source address 127.0.0.1 and stands on no interface.
	if ip.IsLoopback() {
		return true, nil
	}
	now := time.Now()
	slot := &c.slots[slotOf(ip)]
	if a := slot.Load(); a != nil && a.ip == ip && now.Before(a.until) {
		return a.local, nil
	}
	local, err := ask(ip)
	if err != nil {
		return false, err
	}
	slot.Store(&answer{ip, local, now.Add(localTTL)})
	return local, nil
}

// slotOf spreads addresses over the slots (Fibonacci hashing).
func slotOf(ip netip.Addr) uint8 {
	b := ip.As16()
	x := binary.BigEndian.Uint64(b[:8]) ^ binary.BigEndian.Uint64(b[8:])
	return uint8(x * 0x9e3779b97f4a7c15 >> 56)
}

// askSystem tells whether a connection to ip stays on this machine. An error
// means that the system could not be asked.
func askSystem(ip netip.Addr) (bool, error) {
	if local, ok := lookUp(ip); ok {
		return local, nil
	}
	return isOwnSource(ip)
}

// isOwnSource tells whether ip is the source address of what is sent to it,
// which holds for the addresses of this machine's interfaces alone. It sends
// nothing: connecting a UDP socket only looks up the route. Sandboxes that leave
// a process nothing but TCP and UDP can be asked in this way too.
func isOwnSource(ip netip.Addr) (bool, error) {
	const discard = 9 // any port will do
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, discard)))
	if err != nil {
		return false, ignoreNoRoute(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap() == ip, nil
}

// ignoreNoRoute returns nil for an error that connect returned: where no route
// leads is no address of this machine. Other errors are of the socket.
func ignoreNoRoute(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) && call.Syscall == "connect" {
		return nil
	}
	return err
}
