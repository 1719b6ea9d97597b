package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable in the environment makes this program one of its own helpers.
const roleVariable = "BENCH_ROLE"

const (
	roleLoad    = "load"
	roleFlood   = "flood"
	roleLayered = "layered" // the load generator for TLS and WebSockets
	roleBackend = "backend" // ADDRESS
	roleIOCopy  = "io.Copy" // ADDRESS BACKEND...
	// The same with the certificate in FOLDER: ADDRESS FOLDER BACKEND...
	roleIOCopyTLS = "io.Copy-TLS"
)

// play is the life of a helper.
func play(role string, args []string) error {
	switch role {
	case roleLoad:
		keepQuiet()
		l, err := newLoad()
		if err != nil {
			return err
		}
		return serveSteps(os.Stdin, os.Stdout, l.do)
	case roleFlood:
		keepQuiet()
		return serveSteps(os.Stdin, os.Stdout, flood)
	case roleLayered:
		return serveSteps(os.Stdin, os.Stdout, new(layered).do)
	case roleBackend:
		keepQuiet()
		if err := unix.SetNonblock(0, true); err != nil {
			return err
		}
		return serveBackend(args[0], 0, os.Stdout)
	case roleIOCopy, roleIOCopyTLS:
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		ln, err := lc.Listen(context.Background(), "tcp4", args[0])
		if err != nil {
			return err
		}
		if role == roleIOCopy {
			return ioCopyProxy(ln, args[1:])
		}
		cert, err := tls.LoadX509KeyPair(certificateIn(args[1]))
		if err != nil {
			return err
		}
		return ioCopyProxy(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}}), args[2:])
	}
	return fmt.Errorf("no such role: %q", role)
}

// keepQuiet has the runtime stay out of the way of a single thread that makes
// raw calls: no second P, and no collection unless memory is really wanted.
func keepQuiet() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
}

// serveSteps has a load generator do the steps that requests asks for.
func serveSteps(requests io.Reader, replies io.Writer, do func(loadRequest) loadReply) error {
	in, out := json.NewDecoder(requests), json.NewEncoder(replies)
	for {
		var req loadRequest
		if err := in.Decode(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(do(req)); err != nil {
			return err
		}
	}
}

// helper is a running load generator or backend.
type helper struct {
	*process
	in  *os.File
	out *os.File
	rd  *bufio.Reader
}

// startHelper starts this program in a role.
func startHelper(f *fleet, role string, args ...string) (*helper, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer theirOut.Close()
	cmd := roleCommand(role, args...)
	cmd.Stdin, cmd.Stdout = theirIn, theirOut
	p, err := f.start(cmd, role)
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	return &helper{p, in, out, bufio.NewReader(out)}, nil
}

// send and receive are the two halves of a question. A helper that does not
// answer in time is broken, which ends the run.
func (h *helper) send(question any) error {
	text, err := json.Marshal(question)
	if err != nil {
		return err
	}
	_, err = h.in.Write(append(text, '\n'))
	return err
}

func (h *helper) receive(answer any, within time.Duration) error {
	h.out.SetReadDeadline(time.Now().Add(within))
	line, err := h.rd.ReadString('\n')
	if err != nil {
		return fmt.Errorf("the %s does not answer (%w): %s", h.name, err, h.lastWords())
	}
	return json.NewDecoder(strings.NewReader(line)).Decode(answer)
}
