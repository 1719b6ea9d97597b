// Mock is a gateway for the tests of games: any line leads to one backend, without
// secrets, and faults come on demand. It speaks the line protocol; a request for a
// resumable tunnel gets 401, and the kits go on with a plain one.
//
//	go run ./clients/mock -addr=127.0.0.1:8000 -backend=127.0.0.1:4000
//
// A line that begins with "fault:" asks for faults of that connection, several by
// commas: status=401 answers that and closes; silent never answers; delay=2s answers
// later; dribble sends the status byte by byte; cut=1000 breaks the connection, by a
// reset, after so many bytes from the backend. -fault has the same for every line.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxLine is what a gateway takes of a line by default, with its newline.
const maxLine = 1024 + 2

type mock struct {
	backend string
	fault   string // of every connection
	log     *log.Logger
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("mock", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:8000", "where to listen")
	m := &mock{log: log.New(stderr, "", log.LstdFlags)}
	flags.StringVar(&m.backend, "backend", "", "where every line leads, host:port")
	flags.StringVar(&m.fault, "fault", "", "faults of every connection, e.g. status=502 or delay=2s,dribble")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	_, err := parse(m.fault)
	if _, _, split := net.SplitHostPort(m.backend); err == nil && split != nil {
		err = fmt.Errorf("-backend=%q: give the game server's host:port", m.backend)
	}
	if err != nil || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "mock:", firstOf(err, errors.New("there are flags only")))
		return 2
	}
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		fmt.Fprintln(stderr, "mock:", err)
		return 1
	}
	fmt.Fprintln(stdout, ln.Addr())
	m.serve(ln)
	return 0
}

func firstOf(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// serve takes connections until the listener is closed.
func (m *mock) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			m.log.Print(err)
			time.Sleep(10 * time.Millisecond) // there may be no descriptors for now
			continue
		}
		go m.handle(c.(*net.TCPConn))
	}
}

// faults are those of one connection.
type faults struct {
	status  string
	delay   time.Duration
	silent  bool
	dribble bool
	cut     int64 // -1: never
}

var statuses = []string{"200", "400", "401", "410", "502", "504"}

func parse(text string) (f faults, err error) {
	f = faults{status: "200", cut: -1}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "":
		case "status":
			if f.status = value; !slices.Contains(statuses, value) {
				err = fmt.Errorf("fault %q: a status is one of %v", part, statuses)
			}
		case "delay":
			f.delay, err = time.ParseDuration(value)
		case "silent":
			f.silent = true
		case "dribble":
			f.dribble = true
		case "cut":
			if f.cut, err = strconv.ParseInt(value, 10, 64); err == nil && f.cut < 0 {
				err = fmt.Errorf("fault %q: give a number of bytes", part)
			}
		default:
			err = fmt.Errorf("fault %q: there are status, delay, silent, dribble and cut", part)
		}
		if err != nil {
			return f, err
		}
	}
	return f, nil
}

func (m *mock) handle(c *net.TCPConn) {
	defer c.Close()
	in := bufio.NewReaderSize(c, maxLine)
	line, err := in.ReadSlice('\n')
	text := strings.TrimRight(string(line), "\r\n")
	f, bad := parse(m.fault)
	if asked, ok := strings.CutPrefix(text, "fault:"); ok {
		f, bad = parse(asked)
	}
	switch {
	case err != nil:
		f.status = "400"
	case bad != nil:
		m.log.Print(bad)
		f.status = "400"
	case strings.HasPrefix(text, "~1"):
		f = faults{status: "401", cut: -1}
	}
	time.Sleep(f.delay)
	if f.silent {
		io.Copy(io.Discard, c) // until the client gives up
		return
	}
	var backend net.Conn
	if f.status == "200" {
		if backend, err = net.DialTimeout("tcp", m.backend, 3*time.Second); err != nil {
			m.log.Print(err)
			f.status = "502"
		} else {
			defer backend.Close()
		}
	}
	m.log.Printf("%s: %s", c.RemoteAddr(), f.status)
	if err := answer(c, f); err != nil {
		return
	}
	if backend == nil {
		c.CloseWrite()
		c.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, c) // a close with unread bytes would reset the status away
		return
	}
	relay(c, in, backend.(*net.TCPConn), f.cut)
}

func answer(c net.Conn, f faults) error {
	if !f.dribble {
		_, err := io.WriteString(c, f.status)
		return err
	}
	for _, b := range []byte(f.status) {
		if _, err := c.Write([]byte{b}); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// relay passes bytes both ways until both sides have finished, or cut bytes have come
// from the backend.
func relay(c *net.TCPConn, in io.Reader, backend *net.TCPConn, cut int64) {
	up := make(chan struct{})
	go func() {
		defer close(up)
		if _, err := io.Copy(backend, in); err != nil {
			backend.Close() // the client has reset
			return
		}
		backend.CloseWrite()
	}()
	if cut >= 0 {
		io.CopyN(c, backend, cut)
		c.SetLinger(0)
		c.Close()
	} else {
		io.Copy(c, backend)
		c.CloseWrite()
	}
	<-up
}
