package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// suite is one way of running: all contenders, all workloads, all rounds.
type suite struct {
	opt      *options
	fleet    *fleet
	threads  int // CPUs that each contender may use
	files    int
	backends []*helper
	loads    []*helper
	serving  []string // the backends' addresses
	entrants []*entrant
	table    *table
}

// entrant is a contender in this run.
type entrant struct {
	*contender
	lines  []string // sealed, one for each backend address; nil: no handshake
	tokens []string // the same; nil: it knows none
	*instance
}

// instance is a contender's running process.
type instance struct {
	process *process // nil: direct
	targets []string // where clients connect
}

// addresses is over how many addresses each of the two legs is spread: every
// short connection leaves a port in TIME_WAIT on both, and a pair of addresses
// has only so many.
const addresses = 8

// patience bounds what is not measured: starting, stopping, settling. On a busy
// machine each may take long, and only what is broken waits till the end.
const patience = time.Minute

// newSuite starts load generators, backends and contenders. Contenders that do
// not start are left out, and the table says why.
func newSuite(opt *options, all []*contender, f *fleet, threads, files int, pinned bool, say func(string, ...any)) (*suite, error) {
	s := &suite{opt: opt, fleet: f, threads: threads, files: files}
	s.table = &table{Pinned: pinned, CPUs: threads, Rounds: opt.rounds, Time: opt.time}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	for i := range addresses {
		s.serving = append(s.serving, fmt.Sprintf("127.0.1.%d:%d", i+1, port))
	}
	// One of each saturates the contenders on one CPU; on many, more do.
	for range max(1, threads/4) {
		backend, err := startHelper(f, roleBackend, fmt.Sprintf("0.0.0.0:%d", port))
		if err != nil {
			return nil, err
		}
		if err := backend.receive(new(backendReply), patience); err != nil {
			return nil, err
		}
		s.backends = append(s.backends, backend)
		load, err := startHelper(f, roleLoad)
		if err != nil {
			return nil, err
		}
		s.loads = append(s.loads, load)
	}
	for _, c := range all {
		e := &entrant{contender: c}
		say("starting %s", c.name)
		if err := s.enter(e); err != nil {
			s.table.cell("all workloads", c.name).Failure = err.Error()
			say("%s does not take part: %v", c.name, err)
			continue
		}
		s.entrants = append(s.entrants, e)
		s.table.Contenders = append(s.table.Contenders, c.name)
	}
	return s, nil
}

func (s *suite) enter(e *entrant) (err error) {
	if e.seal != nil {
		for _, addr := range s.serving {
			line, err := e.seal(addr)
			if err != nil {
				return fmt.Errorf("sealing an address: %w", err)
			}
			e.lines = append(e.lines, line)
		}
	}
	if e.token != nil {
		for _, addr := range s.serving {
			token, err := e.token(addr)
			if err != nil { // an older gateway
				e.tokens = nil
				break
			}
			e.tokens = append(e.tokens, token)
		}
	}
	if e.instance, err = s.launch(e, e.command); err == nil {
		e.rest()
	}
	return err
}

func (in *instance) rest() {
	if in.process != nil {
		in.process.rest()
	}
}

func (in *instance) awake() {
	if in.process != nil {
		in.process.awake()
	}
}

// launch starts a process of e by one of its commands and sees that bytes pass
// through it unharmed.
func (s *suite) launch(e *entrant, command func(site) (*exec.Cmd, error)) (*instance, error) {
	if command == nil {
		in := &instance{targets: s.serving}
		return in, s.prove(e, in)
	}
	in, err := s.launchUnproven(e, command)
	if err != nil {
		return nil, err
	}
	if err := s.prove(e, in); err != nil {
		in.process.kill()
		return nil, fmt.Errorf("%w: %s", err, in.process.lastWords())
	}
	return in, nil
}

// launchUnproven starts a process of e by one of its commands.
func (s *suite) launchUnproven(e *entrant, command func(site) (*exec.Cmd, error)) (*instance, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.fleet.dir, e.name+"-")
	if err != nil {
		return nil, err
	}
	in := new(instance)
	for i := range addresses {
		in.targets = append(in.targets, fmt.Sprintf("127.0.0.%d:%d", i+1, port))
	}
	cmd, err := command(site{
		path: e.path, dir: dir, listen: "0.0.0.0:" + strconv.Itoa(port), targets: in.targets,
		backends: s.serving, threads: s.threads, files: s.files,
	})
	if err != nil {
		return nil, err
	}
	cmd.Dir = dir
	if in.process, err = s.fleet.start(cmd, filepath.Base(e.name)); err != nil {
		return nil, err
	}
	return in, nil
}

// prove sends a pattern through a contender as soon as it listens, finishes
// sending, and compares what comes back until the end.
func (s *suite) prove(e *entrant, in *instance) error {
	deadline := time.Now().Add(patience)
	var conn net.Conn
	for {
		var err error
		if conn, err = net.DialTimeout("tcp4", in.targets[0], time.Second); err == nil {
			break
		}
		if in.process != nil && !in.process.isAlive() {
			return errors.New("it has ended")
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it does not listen: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	if e.lines != nil {
		answer := make([]byte, len(statusOK))
		if _, err := io.WriteString(conn, e.lines[0]+"\n"); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != statusOK {
			return fmt.Errorf("it answered %q (%v)", answer, err)
		}
	}
	pattern := make([]byte, 4<<20)
	for i := range pattern {
		pattern[i] = byte(i * 7 >> 3)
	}
	pattern[0] = modeEcho
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(pattern)
		conn.(*net.TCPConn).CloseWrite()
		sent <- err
	}()
	back, err := io.ReadAll(conn)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("echoing a pattern: %w", err)
	}
	if !bytes.Equal(back, pattern) {
		return fmt.Errorf("of a pattern of %d bytes, %d came back, or others", len(pattern), len(back))
	}
	return nil
}

// freePort returns a port that nobody uses at the moment. Like any server's it
// is below those that the kernel hands out to clients, so none of these gets it
// in between, and no proxy has to fear that it has connected to itself.
func freePort() (int, error) {
	const from, to = 4000, 10_000
	var err error
	for range 100 {
		var ln net.Listener
		port := from + rand.IntN(to-from)
		if ln, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			return port, ln.Close()
		}
	}
	return 0, err
}

// run has all contenders take their turns. What a contender fails at once is
// not tried again; an error means that nothing more can be measured.
func (s *suite) run(progress func(done, total int, what string)) error {
	all := s.opt.workloads()
	done, total := 0, s.opt.rounds*len(all)*len(s.entrants)
	for round := range s.opt.rounds {
		for _, w := range all {
			for i := range s.entrants {
				// Nobody is always the one behind the same other.
				e := s.entrants[(i+round)%len(s.entrants)]
				progress(done, total, fmt.Sprintf("round %d: %s, %s", round+1, w.title, e.name))
				done++
				if err := s.turn(round, w, e); err != nil {
					return err
				}
			}
		}
	}
	progress(total, total, "done")
	return nil
}

// turn is one contender's at one workload.
func (s *suite) turn(round int, w workload, e *entrant) error {
	switch {
	case w.kind == idle && e.command == nil,
		w.kind.layer() != "" && e.layered == nil,
		w.kind.ofTokens() && e.token == nil,
		w.kind.ofNames() && e.named == nil,
		(w.kind == echoWS || w.kind == echoRoam) && e.seal == nil,
		w.kind.insideTLS() != "" && e.secured == nil,
		w.kind == echoPass && e.seal == nil && e.through == nil,
		w.kind == beside && e.flooded == nil:
		return nil
	}
	cell := s.table.cell(w.key, e.name)
	if cell.Failure != "" {
		return nil
	}
	if e.instance == nil && !w.kind.alone() { // it failed before
		in, err := s.launch(e, e.command)
		if err != nil {
			cell.Failure = err.Error()
			return nil
		}
		e.instance = in
	}
	var err error
	switch {
	case w.kind.rests():
		err = s.measureIdle(round, w, e)
	case w.kind == beside:
		err = s.measureFlood(round, w, e)
	case w.kind.insideTLS() != "":
		err = s.measureTLS(round, w, e)
	default:
		e.awake()
		if w.kind == stalled {
			err = s.measureStalled(round, w, e)
		} else if w.kind.upgrade() != "" {
			err = s.measureUpgrades(round, w, e)
		} else {
			err = s.measure(round, w, e)
		}
		e.rest()
	}
	if broken := new(brokenError); errors.As(err, &broken) {
		return err
	}
	if err != nil {
		cell.Failure = err.Error()
		if !w.kind.alone() && e.process != nil { // who knows what state it is in
			e.process.kill()
			e.instance = nil
		}
	}
	return nil
}
