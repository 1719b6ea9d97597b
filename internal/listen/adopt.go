package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// adopt makes a listener, or a socket for datagrams, of a descriptor, which it
// owns.
func adopt(fd int) (net.Listener, *net.UDPConn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	// Both make a copy.
	ln, err := net.FileListener(f)
	if err == nil && !listens(ln) { // which package net does not look at
		ln.Close()
		return nil, nil, errors.New("it does not listen: it is a connection, or was not told to (with Accept=yes systemd gives connections)")
	}
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
