// Command roaming shows a player who changes networks: it starts two gateways (the
// binary named by its argument) and a chat server, talks through one of them, and pulls
// the network away under the conversation. Where namespaces are to be had, the phone is
// one of its own, with two paths; else its sockets are cut.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gateway/clients/go/tunnel"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// phone is where the player is.
type phone interface {
	dial(ctx context.Context, port string) (net.Conn, error)
	pull() error // takes the network away by which the phone is connected, for another one
	network() string
	close()
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: roaming PATH-OF-THE-GATEWAY-BINARY")
	}
	if done, err := inNamespace(); done {
		return err
	}
	p := newPhone()
	defer p.close()

	var conns atomic.Int32
	chat, err := startChat(&conns)
	if err != nil {
		return err
	}
	defer chat.Close()
	secret := rand.Text()
	var ports []string
	for _, name := range []string{"A", "B"} {
		peer, err := freeAddress()
		if err != nil {
			return err
		}
		g, err := startGateway(name, args[0], secret, peer)
		if err != nil {
			return err
		}
		defer g.stop()
		ports = append(ports, g.port)
	}
	sealed, err := exec.Command(args[0], "-secret="+secret, "-seal="+chat.Addr().String()).Output()
	if err != nil {
		return err
	}

	title("A player and a chat server; between them gateway A, and another one, B.")
	said := make(chan tunnel.Event, 100)
	dials := 0
	d := tunnel.Dialer{
		Gateways: []string{"the balancer's"},
		DialContext: func(ctx context.Context, _ string) (net.Conn, error) {
			dials++
			return p.dial(ctx, ports[(dials-1)%len(ports)])
		},
		OnEvent: func(e tunnel.Event) { said <- e },
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, strings.TrimSpace(string(sealed)))
	if err != nil {
		return err
	}
	defer c.Abort()
	say("the player is connected by %s", p.network())
	lines := bufio.NewScanner(c)
	longest := time.Duration(0)
	for i := range 60 {
		if i == 15 || i == 35 {
			title("The phone loses %s.", p.network())
			if err := p.pull(); err != nil {
				return err
			}
			say("the system tells of %s", p.network())
			c.Reconnect()
		}
		start := time.Now()
		fmt.Fprintf(c, "message %d\n", i)
		if !lines.Scan() {
			return fmt.Errorf("the chat has ended: %v", lines.Err())
		}
		took := time.Since(start)
		longest = max(longest, took)
		for len(said) > 0 {
			switch e := <-said; e.Kind {
			case tunnel.Reconnecting:
				say("reconnecting")
			case tunnel.Back:
				say("back after %v", e.After.Round(100*time.Microsecond))
			}
		}
		if want := fmt.Sprintf("%d: message %d", i+1, i); lines.Text() != want {
			return fmt.Errorf("the chat says %q, want %q", lines.Text(), want)
		}
		if i%10 == 5 || took > 10*time.Millisecond {
			say("%-20s in %v", lines.Text(), took.Round(100*time.Microsecond))
		}
		time.Sleep(20 * time.Millisecond)
	}
	title("What came of it")
	say("60 messages, each answered once and in order; the longest took %v", longest.Round(100*time.Microsecond))
	say("the tunnel was resumed %d times", c.Resumes())
	say("the chat server saw %d connection", conns.Load())
	if conns.Load() != 1 || c.Resumes() < 2 {
		return errors.New("that is not what was to be shown")
	}
	return nil
}

func title(format string, args ...any) { fmt.Printf("\n"+format+"\n", args...) }

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// startChat starts a server that counts the lines that it is sent.
func startChat(conns *atomic.Int32) (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go func() {
				defer c.Close()
				for n, lines := 1, bufio.NewScanner(c); lines.Scan(); n++ {
					fmt.Fprintf(c, "%d: %s\n", n, lines.Text())
				}
			}()
		}
	}()
	return ln, nil
}

// freeAddress returns an address where nobody listens just now.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

type gateway struct {
	cmd  *exec.Cmd
	port string
}

func (g *gateway) stop() {
	g.cmd.Process.Kill()
	g.cmd.Wait()
}

// startGateway starts one, and prints what it logs of clients that come and go.
func startGateway(name, binary, secret, peer string) (*gateway, error) {
	cmd := exec.Command(binary, "-addr=0.0.0.0:0", "-pidfile=", "-log-format=json", "-resume=1",
		"-resume-peer="+peer, "-resume-peers=127.0.0.0/8")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GATEWAY_") }), "GATEWAY_SECRET="+secret)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	addr := make(chan string, 1)
	go func() {
		defer close(addr)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			var entry struct{ Msg, Addr, Client, Before, Protocol string }
			if json.Unmarshal(lines.Bytes(), &entry) != nil {
				continue
			}
			switch entry.Msg {
			case "listening":
				if entry.Protocol == "" {
					addr <- entry.Addr
				}
			case "resumed":
				say("gateway %s: %s goes on as %s", name, entry.Before, entry.Client)
			}
		}
		io.Copy(io.Discard, stderr)
	}()
	select {
	case a := <-addr:
		_, port, err := net.SplitHostPort(a)
		if err != nil {
			cmd.Process.Kill()
			return nil, fmt.Errorf("gateway %s did not start: is a port in use?", name)
		}
		return &gateway{cmd, port}, nil
	case <-time.After(10 * time.Second):
		cmd.Process.Kill()
		return nil, fmt.Errorf("gateway %s does not start", name)
	}
}

// sockets is a phone whose sockets are cut.
type sockets struct {
	conn net.Conn
	now  int
}

func (s *sockets) dial(ctx context.Context, port string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+port)
	s.conn = c
	return c, err
}

func (s *sockets) pull() error {
	s.now = 1 - s.now
	return s.conn.Close()
}

func (s *sockets) network() string { return networks[s.now] }
func (s *sockets) close()          {}

var networks = []string{"Wi-Fi", "mobile data"}
