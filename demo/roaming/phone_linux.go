package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"syscall"

	"gateway/internal/twopaths"
)

const inside = "ROAMING_INSIDE"

// inNamespace runs the program again, in a network namespace of its own, if that can be
// had and it is not there already.
func inNamespace() (done bool, err error) {
	if os.Getenv(inside) != "" {
		return false, nil
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, nil
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if cmd.Start() != nil {
		return false, nil
	}
	return true, cmd.Wait()
}

// newPhone returns a phone in a namespace, or one whose sockets are cut.
func newPhone() phone {
	if os.Getenv(inside) == "" {
		return &sockets{}
	}
	exec.Command("ip", "link", "set", "lo", "up").Run()
	n, err := twopaths.New()
	if err != nil {
		say("no namespaces here (%v): sockets are cut instead", err)
		return &sockets{}
	}
	return &roamer{net: n}
}

// roamer is a phone in a namespace.
type roamer struct {
	net *twopaths.Network
	now int
}

func (r *roamer) dial(ctx context.Context, port string) (net.Conn, error) {
	return r.net.Dial(ctx, "tcp", net.JoinHostPort(twopaths.Server(r.now), port))
}

// pull has the path fall silent, as a radio that is out of reach does.
func (r *roamer) pull() error {
	if err := r.net.Silence(r.now); err != nil {
		return err
	}
	r.now = 1 - r.now
	r.net.Speak(r.now) // it may have been silent before; else there is nothing to undo
	return nil
}

func (r *roamer) network() string { return networks[r.now] + ", " + twopaths.Phone(r.now) }
func (r *roamer) close()          { r.net.Close() }
