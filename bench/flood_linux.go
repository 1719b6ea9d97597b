package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Established tunnels beside a flood of strangers, from an address of their own. The
// contenders have equal limits for each address: floodRate connections a second and
// floodConns at a time. What they cannot tell apart, HAProxy passes on to the backend,
// as it would to a game server.

const (
	floodRate  = 1000
	floodConns = 200
	floodFrom  = "127.0.3.1"
	// floodOpen is how many connections a flood keeps: the oldest is reset for the next.
	floodOpen = 256
	// floodLead is how long it runs before anything is measured.
	floodLead = 100 * time.Millisecond
)

// bringsOf returns what each connection of a flood sends; nothing says nothing.
func (e *entrant) bringsOf(flood string) (string, error) {
	switch flood {
	case "lines":
		return "this is no sealed line, and as long as many of them are: " + string(bytes.Repeat([]byte{'x'}, 50)) + "\n", nil
	case "tokens":
		if len(e.tokens) > 0 {
			return forge(e.tokens[0]) + "\n", nil
		}
		return "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAAAAAAAAAAAAAA." + string(bytes.Repeat([]byte{'A'}, 120)) + ".AAAAAAAAAAAAAAAAAAAAAA\n", nil
	case "tls":
		hello, err := clientHello()
		return string(hello), err
	case "http":
		return "GET / HTTP/1.1\r\nHost: bench\r\n\r\n", nil
	case "silent":
		return "", nil
	}
	return "", fmt.Errorf("there is no flood of %s", flood)
}

// clientHello returns what a client that speaks TLS sends first.
func clientHello() ([]byte, error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: "bench"}).Handshake()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	return buf[:n], err
}

// limited adds the limits to the command of a gateway.
func limited(command func(site) (*exec.Cmd, error)) func(site) (*exec.Cmd, error) {
	return func(s site) (*exec.Cmd, error) {
		cmd, err := command(s)
		if err == nil {
			cmd.Args = append(cmd.Args, fmt.Sprintf("-rate-per-ip=%d/s", floodRate), fmt.Sprintf("-max-conns-per-ip=%d", floodConns),
				"-handshake-timeout=5s", "-log-level=error")
		}
		return cmd, err
	}
}

// haproxyLimits are the same limits in HAProxy's words.
var haproxyLimits = fmt.Sprintf(`	stick-table type ip size 64k expire 60s store conn_rate(1s),conn_cur
	tcp-request connection track-sc0 src
	tcp-request connection reject if { sc0_conn_rate gt %d }
	tcp-request connection reject if { sc0_conn_cur gt %d }
`, floodRate, floodConns)

// measureFlood measures messages twice on the same tunnels of a new process with
// limits: by themselves, and beside a flood.
func (s *suite) measureFlood(round int, w workload, e *entrant) error {
	brings, err := e.bringsOf(strings.TrimPrefix(w.key, "flood-"))
	if err != nil {
		return err
	}
	in, err := s.launch(e, e.flooded)
	if err != nil {
		return err
	}
	defer in.process.kill()
	limited := *e
	limited.instance = in
	flood, err := startHelper(s.fleet, roleFlood)
	if err != nil {
		return &brokenError{err}
	}
	defer flood.kill()

	if _, err := s.begin(loadRequest{Op: opOpen, Targets: in.targets, Lines: e.lines, Tunnels: w.tunnels, Mode: modeEcho, Size: w.size}); err != nil {
		return err
	}
	run := loadRequest{Op: opEcho, Time: s.opt.time, Tunnels: w.tunnels}
	without, err := s.timed(&limited, run)
	if err != nil {
		return err
	}
	if err := flood.send(loadRequest{Targets: in.targets, Lines: []string{brings}, Time: floodLead + s.opt.time}); err != nil {
		return &brokenError{err}
	}
	time.Sleep(floodLead)
	with, err := s.timed(&limited, run)
	if err != nil {
		return err
	}
	var came loadReply
	if err := flood.receive(&came, s.opt.time+patience); err != nil {
		return &brokenError{err}
	}
	if came.Err != "" || came.Units == 0 {
		return &brokenError{fmt.Errorf("the flood came to %d connections: %s", came.Units, came.Err)}
	}
	if _, _, err := s.load(loadRequest{Op: opClose}); err != nil {
		return err
	}
	in.process.kill()
	if _, err := s.settle(); err != nil {
		return s.abandon(err)
	}
	s.record(withoutFlood, round, e, without)
	s.record(w.key, round, e, with)
	return nil
}

// flood opens connections as fast as it can, each of which brings the same, and looks
// at nothing that comes back.
func flood(req loadRequest) loadReply {
	n, err := pour(req)
	reply := loadReply{Units: n}
	if err != nil {
		reply.Err = err.Error()
	}
	return reply
}

func pour(req loadRequest) (n int64, err error) {
	targets, err := endpointsOf(req.Targets)
	if err != nil {
		return 0, err
	}
	from, err := endpointsOf([]string{floodFrom + ":0"})
	if err != nil {
		return 0, err
	}
	source := &unix.SockaddrInet4{Addr: from[0].Addr}
	brings := []byte(req.Lines[0])
	open := make([]int, 0, floodOpen)
	hangUp := func(fd int) {
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		closeSocket(fd)
	}
	defer func() {
		for _, fd := range open {
			hangUp(fd)
		}
	}()
	for end := now() + int64(req.Time); now() < end; n++ {
		fd, err := newSocket()
		if err != nil {
			return n, fmt.Errorf("socket: %w", err)
		}
		// The port is found at connect, by the pair of addresses.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(fd, source); err != nil {
			closeSocket(fd)
			return n, fmt.Errorf("bind: %w", err)
		}
		if err := connect(fd, targets[int(n)%len(targets)]); err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
			closeSocket(fd)
			return n, fmt.Errorf("connect: %w", err)
		}
		if len(brings) > 0 {
			send(fd, brings) // it may have been reset, or wait in a queue
		}
		if len(open) < floodOpen {
			open = append(open, fd)
			continue
		}
		i := int(n) % floodOpen
		hangUp(open[i])
		open[i] = fd
	}
	return n, nil
}
