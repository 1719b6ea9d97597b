package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

// Ports below 32768 are given to nobody by the kernel. Of those, each test process
// has a block of its own, whose first port it listens on to say so.
const (
	firstPort  = 10000
	portBlocks = 20
	portsEach  = 1000
)

var (
	portBlock net.Listener // closed in the end
	lastPort  atomic.Int64
)

// takePorts returns the first port of a block that is this process's.
var takePorts = sync.OnceValues(func() (first int, err error) {
	for i := range portBlocks {
		first = firstPort + (os.Getpid()+i)%portBlocks*portsEach
		if portBlock, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", first)); err == nil {
			return first, nil
		}
	}
	return 0, fmt.Errorf("too many test processes for their ports: %w", err)
})

// ClosedPort returns an address of 127.0.0.1 where nobody listens, by TCP or UDP,
// and nobody will but who has got the address.
func ClosedPort(t testing.TB) string {
	t.Helper()
	first, err := takePorts()
	if err != nil {
		t.Fatal(err)
	}
	for range portsEach {
		addr := fmt.Sprint("127.0.0.1:", first+1+int(lastPort.Add(1))%(portsEach-1))
		ln, tcpErr := net.Listen("tcp", addr)
		c, udpErr := net.ListenPacket("udp", addr)
		if udpErr == nil {
			c.Close()
		}
		if tcpErr == nil {
			ln.Close()
		}
		if errors.Join(tcpErr, udpErr) == nil {
			// A process that another test is starting holds the sockets, too, until
			// it runs its program: if it has the UDP socket, then the listener, too.
			WaitRefused(t, addr)
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

func giveBackPorts() error {
	if portBlock == nil {
		return nil
	}
	return portBlock.Close()
}
