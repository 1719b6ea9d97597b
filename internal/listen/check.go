package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"gateway/internal/sockopt"
)

// errBound is how Check keeps net from going on.
var errBound = errors.New("bound")

// Check binds a socket of a network, "tcp4" or "udp" for instance, to an address for a
// moment, and returns why it cannot be. It does not listen: of who shares a port, it
// would get clients, and lose them. reuse says that others may have the port too.
func Check(network, addr string, reuse bool) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	lc.Control = func(network, address string, c syscall.RawConn) error {
		if reuse {
			if err := sockopt.ReusePort(network, address, c); err != nil {
				return err
			}
		}
		ok, err := sockopt.Bind(network, address, c)
		if ok && err == nil {
			err = errBound
		}
		return err
	}
	var socket io.Closer
	var err error
	if strings.HasPrefix(network, "udp") {
		socket, err = lc.ListenPacket(context.Background(), network, addr)
	} else {
		socket, err = lc.Listen(context.Background(), network, addr)
	}
	switch {
	case errors.Is(err, errBound):
		return nil
	case err != nil:
		return err
	}
	return socket.Close() // bound otherwise
}

// Check sees whether the address could be listened on.
func (a *Address) Check(reuse bool) error {
	network := "tcp"
	if a.KCP {
		network = "udp"
	}
	if err := Check(Network(network, a.Addr), a.Addr, reuse); err != nil {
		return fmt.Errorf("-%s: %w", a.Setting, Remedy(err, reuse))
	}
	return nil
}

// Remedy adds to an error of listening what to do about it; reuse says whether the port
// was asked for together with others.
func Remedy(err error, reuse bool) error {
	var dnsErr *net.DNSError
	remedy := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && !reuse:
		remedy = "stop who uses it, or start all with -reuse=1"
	case errors.Is(err, syscall.EACCES):
		remedy = "a port below 1024 takes root, CAP_NET_BIND_SERVICE (setcap, or AmbientCapabilities= in a unit), or a lower net.ipv4.ip_unprivileged_port_start"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		remedy = "no interface of this machine has the address; :port is all of them"
	case errors.As(err, &dnsErr):
		remedy = "want an address of this machine, or a name for one; :port is all of them"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, remedy)
}

// PrivateRemedy says of an error of listening, for what each process has to itself,
// what to do about it; nil for none.
func PrivateRemedy(setting string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("-%s: %w (stop who uses it, or give each process a -%s of its own: -reuse=1 does not share it)", setting, err, setting)
	}
	if isPath(err) && errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("-%s: %w (name a path in a folder that this user may write to)", setting, err)
	}
	return fmt.Errorf("-%s: %w", setting, Remedy(err, true))
}

// isPath tells whether an error is about a Unix socket, or what is to become one.
func isPath(err error) bool {
	var file *fs.PathError
	var op *net.OpError
	return errors.As(err, &file) || errors.As(err, &op) && op.Net == "unix"
}
