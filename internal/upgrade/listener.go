package upgrade

import (
	"fmt"
	"net"
	"os"
)

// Listener makes a listener, or a socket for datagrams, of a descriptor, which it
// owns.
func Listener(fd int) (net.Listener, *net.UDPConn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	// Both make a copy.
	ln, err := net.FileListener(f)
	if err == nil {
		return ln, nil, nil
	}
	packets, perr := net.FilePacketConn(f)
	if udp, ok := packets.(*net.UDPConn); ok {
		return nil, udp, nil
	} else if perr == nil {
		packets.Close()
	}
	return nil, nil, fmt.Errorf("it does not listen: %w", err)
}
