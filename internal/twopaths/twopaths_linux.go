// Package twopaths makes a phone of a network namespace: it has two ways to where the
// gateways are, by two addresses, each of which can fall silent or be pulled out. Tests
// and the demo use it.
package twopaths

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Network is the phone's namespace and its two paths to the caller's, which must be one
// of its own. It is not for concurrent use, but for Dial.
type Network struct {
	do chan func() // run in the phone's namespace
}

// Server and Phone are the ends of a path, 0 or 1.
func Server(path int) string { return fmt.Sprintf("10.7%d.0.1", path+1) }

// Phone is the phone's address on a path.
func Phone(path int) string { return fmt.Sprintf("10.7%d.0.2", path+1) }

// New makes the network. The caller closes it.
func New() (*Network, error) {
	n := &Network{do: make(chan func())}
	tid := make(chan int)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		failed <- unix.Unshare(unix.CLONE_NEWNET)
		tid <- unix.Gettid()
		for f := range n.do {
			f()
		}
	}()
	err, id := <-failed, <-tid
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("a network namespace: %w", err)
	}
	steps := []string{"link set lo up"}
	for p := range 2 {
		steps = append(steps,
			fmt.Sprintf("link add s%d type veth peer name p%d netns /proc/%d/ns/net", p, p, id),
			fmt.Sprintf("address add %s/24 dev s%d", Server(p), p),
			fmt.Sprintf("link set s%d up", p))
	}
	for _, s := range steps {
		if err := ip(s); err != nil {
			n.Close()
			return nil, err
		}
	}
	for p := range 2 {
		err := n.ip(fmt.Sprintf("address add %s/24 dev p%d", Phone(p), p))
		if err == nil {
			err = n.ip(fmt.Sprintf("link set p%d up", p))
		}
		if err != nil {
			n.Close()
			return nil, err
		}
	}
	return n, nil
}

// Close ends the phone; its namespace goes when nothing is left in it.
func (n *Network) Close() { close(n.do) }

func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// in runs f in the phone's namespace.
func (n *Network) in(f func()) {
	done := make(chan struct{})
	n.do <- func() { defer close(done); f() }
	<-done
}

func (n *Network) ip(args string) (err error) {
	n.in(func() { err = ip(args) })
	return err
}

// Dial connects from the phone. The address is a literal one.
func (n *Network) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	n.in(func() { c, err = new(net.Dialer).DialContext(ctx, network, address) })
	return c, err
}

// DialMPTCP is Dial with MPTCP, over both paths once SpreadMPTCP was called.
func (n *Network) DialMPTCP(ctx context.Context, address string) (c net.Conn, err error) {
	var d net.Dialer
	d.SetMultipathTCP(true)
	n.in(func() { c, err = d.DialContext(ctx, "tcp", address) })
	return c, err
}

// SpreadMPTCP has the connections of DialMPTCP use the other path too: the servers' side
// tells its address there, and the phone connects to it. Servers have to listen on both.
func (n *Network) SpreadMPTCP() error {
	for _, s := range []string{"mptcp limits set subflow 4 add_addr_accepted 4",
		"mptcp endpoint add " + Server(1) + " dev s1 signal"} {
		if err := ip(s); err != nil {
			return err
		}
	}
	return n.ip("mptcp limits set subflow 4 add_addr_accepted 4")
}

// Silence has a path swallow everything, both ways, and tell nobody: frames go to a
// hardware address that is not there.
func (n *Network) Silence(path int) error {
	const nobody = "lladdr 02:00:00:00:00:99 nud permanent"
	p := strconv.Itoa(path)
	if err := ip("neigh replace " + Phone(path) + " dev s" + p + " " + nobody); err != nil {
		return err
	}
	return n.ip("neigh replace " + Server(path) + " dev p" + p + " " + nobody)
}

// Speak ends Silence.
func (n *Network) Speak(path int) error {
	p := strconv.Itoa(path)
	if err := ip("neigh del " + Phone(path) + " dev s" + p); err != nil {
		return err
	}
	return n.ip("neigh del " + Server(path) + " dev p" + p)
}

// Down takes a path's interface away from the phone, and Up brings it back.
func (n *Network) Down(path int) error { return n.ip("link set p" + strconv.Itoa(path) + " down") }

// Up is the opposite of Down.
func (n *Network) Up(path int) error { return n.ip("link set p" + strconv.Itoa(path) + " up") }
