package main

import (
	"fmt"
	"time"
)

// One measurement: what is asked of the load generators and backends, and what
// is read of the contender before and after.

// brokenError says that a helper, not a contender, has failed.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// load has the load generators perform a step together.
func (s *suite) load(req loadRequest) (loadReply, *histogram, error) {
	return perform(s.loads, req)
}

// perform has load generators perform a step together, and adds up what they
// report. Tunnels are divided among them.
func perform(loads []*helper, req loadRequest) (loadReply, *histogram, error) {
	delays := new(histogram)
	sum, tunnels := loadReply{}, req.Tunnels
	var asked []*helper
	for i, h := range loads {
		req.Tunnels = tunnels / len(loads)
		if i < tunnels%len(loads) {
			req.Tunnels++
		}
		if err := h.send(req); err != nil {
			return sum, nil, &brokenError{err}
		}
		asked = append(asked, h)
	}
	var failure error
	for _, h := range asked {
		var reply loadReply
		// It bounds itself; this is for when it is broken.
		if err := h.receive(&reply, req.Time+3*time.Minute); err != nil {
			return sum, nil, &brokenError{err}
		}
		if reply.Err != "" {
			failure = fmt.Errorf("%s", reply.Err)
		}
		sum.Units += reply.Units
		sum.Sent += reply.Sent
		sum.Rcvd += reply.Rcvd
		sum.Elapsed = max(sum.Elapsed, reply.Elapsed)
		if reply.Congestion != "" {
			sum.Congestion = reply.Congestion
		}
		delays.addPairs(reply.Latencies)
	}
	return sum, delays, failure
}

// backend adds up what the backends have seen so far.
func (s *suite) backend() (backendReply, error) {
	var sum backendReply
	for _, h := range s.backends {
		var reply backendReply
		if err := h.send(nil); err != nil {
			return sum, &brokenError{err}
		}
		if err := h.receive(&reply, patience); err != nil {
			return sum, &brokenError{err}
		}
		sum.In += reply.In
		sum.Out += reply.Out
		sum.Conns += reply.Conns
		sum.Open += reply.Open
		sum.Resets += reply.Resets
	}
	return sum, nil
}

// settle waits until the backends have no connection left, so that no
// measurement pays for the end of another.
func (s *suite) settle() (backendReply, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		seen, err := s.backend()
		if err != nil || seen.Open == 0 {
			return seen, err
		}
		if time.Now().After(deadline) {
			return seen, fmt.Errorf("%d connections to the backend were left open", seen.Open)
		}
	}
}

// spent is the CPU time of the three sides.
type spent struct{ proxy, load, backend time.Duration }

func (s *suite) spent(in *instance) (spent, error) {
	var sp spent
	var err error
	if in.process != nil {
		if sp.proxy, err = in.process.cpuTime(); err != nil {
			return sp, err
		}
	}
	for i := range s.loads {
		l, err := s.loads[i].cpuTime()
		if err != nil {
			return sp, &brokenError{err}
		}
		b, err := s.backends[i].cpuTime()
		if err != nil {
			return sp, &brokenError{err}
		}
		sp.load += l
		sp.backend += b
	}
	return sp, nil
}

// timing is what came of a step.
type timing struct {
	loadReply
	delays *histogram
	units  float64
	spent  spent
}

// timed has the load generators perform a step between two looks at what the
// three sides have spent.
func (s *suite) timed(e *entrant, run loadRequest) (*timing, error) {
	before, err := s.spent(e.instance)
	if err != nil {
		return nil, err
	}
	got, delays, err := s.load(run)
	if err != nil {
		return nil, s.abandon(err)
	}
	if run.Op == opShort || run.Op == opRefuse {
		// The ends of the last connections belong to it.
		if _, err := s.settle(); err != nil {
			return nil, s.abandon(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	after, err := s.spent(e.instance)
	if err != nil {
		return nil, err
	}
	units := float64(got.Units)
	if run.Op == opUp || run.Op == opDown {
		units = float64(max(got.Sent, got.Rcvd)) / (1 << 20)
	}
	if units == 0 || got.Elapsed == 0 {
		return nil, fmt.Errorf("nothing was done in %v", s.opt.time)
	}
	return &timing{got, delays, units, spent{
		after.proxy - before.proxy, after.load - before.load, after.backend - before.backend,
	}}, nil
}

// record adds a timing to a row of the table.
func (s *suite) record(row string, round int, e *entrant, t *timing) {
	s.table.cell(row, e.name).add(sample{
		Round:       round + 1,
		Cost:        float64(t.spent.proxy) / t.units,
		Rate:        t.units / t.Elapsed.Seconds(),
		P50:         time.Duration(t.delays.percentile(50)),
		P99:         time.Duration(t.delays.percentile(99)),
		P999:        time.Duration(t.delays.percentile(99.9)),
		LoadCost:    float64(t.spent.load) / t.units,
		BackendCost: float64(t.spent.backend) / t.units,
	}, t.delays.pairs())
}

// begin waits until nothing is left of former measurements, and opens tunnels
// unless Op is another.
func (s *suite) begin(open loadRequest) (backendReply, error) {
	seen, err := s.settle()
	if err != nil {
		return seen, &brokenError{err} // it is not this contender's doing
	}
	if open.Op == opOpen {
		opened, _, err := s.load(open)
		if err != nil {
			return seen, s.abandon(err)
		}
		if opened.Congestion != "" {
			s.table.Congestion = opened.Congestion
		}
	}
	return seen, nil
}

// compare closes all tunnels and compares what clients and backend, which had
// seen something before, have counted. All that was sent must have arrived.
func (s *suite) compare(seen backendReply, got loadReply) error {
	if _, _, err := s.load(loadRequest{Op: opClose}); err != nil {
		return err
	}
	end, err := s.settle()
	if err != nil {
		return s.abandon(err)
	}
	if in, out := end.In-seen.In, end.Out-seen.Out; in != got.Sent || out != got.Rcvd {
		return fmt.Errorf("the clients sent %d bytes and received %d, but the backend received %d and sent %d",
			got.Sent, got.Rcvd, in, out)
	}
	if resets := end.Resets - seen.Resets; resets > 0 {
		return fmt.Errorf("%d connections to the backend were reset", resets)
	}
	return nil
}

// measure measures e on bulk, messages or short connections.
func (s *suite) measure(round int, w workload, e *entrant) error {
	lines, err := e.asks(w, s.opt.time)
	if err != nil {
		return err
	}
	open := loadRequest{Op: opOpen, Targets: e.targets, Lines: lines, Tunnels: w.tunnels, Size: w.size}
	run := loadRequest{Time: s.opt.time, Tunnels: w.tunnels}
	if inside := w.kind.insideTLS(); inside != "" {
		w.kind, open.Via = inside, overTLS
	}
	switch w.kind {
	case bulkUp:
		open.Mode, run.Op = modeSink, opUp
	case bulkDown:
		open.Mode, run.Op = modeSource, opDown
	case echo, echoWS, echoPass, echoRoam:
		open.Mode, run.Op, open.Upgrade = modeEcho, opEcho, w.kind.upgrade()
	case short, byToken, badToken, bySRV, byAsk, byTicket, byNew, byNewSRV:
		// Each connection is opened while the clock runs.
		open.Op, open.Mode, open.Time = opShort, modeEcho, s.opt.time
		if w.kind == badToken {
			open.Op = opRefuse
		}
		run = open
	}
	seen, err := s.begin(open)
	if err != nil {
		return err
	}
	t, err := s.timed(e, run)
	if err != nil {
		return err
	}
	if w.kind == badToken {
		now, err := s.backend()
		if err != nil {
			return err
		}
		if n := now.Conns - seen.Conns; n > 0 {
			return fmt.Errorf("%d connections came to the backend, and none should", n)
		}
	}
	if err := s.compare(seen, t.loadReply); err != nil {
		return err
	}
	s.record(w.key, round, e, t)
	return nil
}

// measureStalled measures messages twice on the same tunnels: before others
// stall beside them, and after. At the end these read what they have left, so
// that its bytes are compared too.
func (s *suite) measureStalled(round int, w workload, e *entrant) error {
	seen, err := s.begin(loadRequest{Op: opOpen, Targets: e.targets, Lines: e.lines,
		Tunnels: w.tunnels, Mode: modeEcho, Size: w.size})
	if err != nil {
		return err
	}
	run := loadRequest{Op: opEcho, Time: s.opt.time, Tunnels: w.tunnels}
	without, err := s.timed(e, run)
	if err != nil {
		return err
	}
	if _, _, err := s.load(loadRequest{Op: opStall, Tunnels: stalledReaders}); err != nil {
		return s.abandon(err)
	}
	if err := s.standStill(e.instance); err != nil {
		return s.abandon(err)
	}
	with, err := s.timed(e, run)
	if err != nil {
		return err
	}
	drained, _, err := s.load(loadRequest{Op: opDrain})
	if err != nil {
		return s.abandon(err)
	}
	if err := s.compare(seen, drained); err != nil {
		return err
	}
	s.record(withoutStalled, round, e, without)
	s.record(w.key, round, e, with)
	return nil
}

// standStill waits until the backends can send no more to stalled readers. Each
// look is a turn of theirs. The proxy must have nothing to do at any of them:
// with no CPU to do it on, it only seems to stand still.
func (s *suite) standStill(in *instance) error {
	const pause, looks = 10 * time.Millisecond, 10
	var sent int64
	still := 0 // looks at which nothing had moved
	for deadline := time.Now().Add(patience); still < looks; time.Sleep(pause) {
		seen, err := s.backend()
		if err != nil {
			return err
		}
		if rests := in.process == nil || in.process.atRest(); rests && seen.Out == sent {
			still++
		} else {
			sent, still = seen.Out, 0
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("what stalled readers do not read is still taken after %v", patience)
		}
	}
	return nil
}

// abandon closes what a failed measurement has left, and returns its error.
func (s *suite) abandon(err error) error {
	if _, _, closing := s.load(loadRequest{Op: opClose}); closing != nil {
		return closing
	}
	return err
}

// warmTunnels are opened and closed before idle tunnels are counted, so that
// what a contender needs once is not counted with them.
const warmTunnels = 64

// measureIdle measures what resting tunnels cost, on a new process: one that
// has worked before has memory to spare.
func (s *suite) measureIdle(round int, w workload, e *entrant) error {
	loads, command := s.loads, e.command
	if w.kind.layer() != "" {
		layered, err := startHelper(s.fleet, roleLayered)
		if err != nil {
			return &brokenError{err}
		}
		defer layered.kill()
		loads, command = []*helper{layered}, e.layered
	}
	in, err := s.launch(e, command)
	if err != nil {
		return err
	}
	defer in.process.kill()
	err = s.measureResting(round, w, e.name, in, func(req loadRequest) error {
		req.Targets, req.Lines, req.Via = in.targets, e.lines, w.kind.layer()
		req.Mode, req.Size = modeEcho, w.size
		_, _, err := perform(loads, req)
		return err
	})
	if _, _, closing := perform(loads, loadRequest{Op: opClose}); closing != nil {
		return closing
	}
	return err
}

// measureResting is measureIdle for an instance and its clients, which do what
// they are asked.
func (s *suite) measureResting(round int, w workload, name string, in *instance, do func(loadRequest) error) error {
	if _, err := s.settle(); err != nil {
		return err
	}
	if err := do(loadRequest{Op: opOpen, Tunnels: warmTunnels}); err != nil {
		return err
	}
	if err := do(loadRequest{Op: opClose}); err != nil {
		return err
	}
	if _, err := s.settle(); err != nil {
		return err
	}
	rss, fds, err := s.holds(in)
	if err != nil {
		return err
	}
	if err := do(loadRequest{Op: opOpen, Tunnels: w.tunnels}); err != nil {
		return err
	}
	for _, row := range []string{w.key, w.key + afterBurst} {
		if row != w.key {
			if err := do(loadRequest{Op: opBurst}); err != nil {
				return err
			}
		}
		r, f, err := s.holds(in)
		if err != nil {
			return err
		}
		s.table.cell(row, name).add(sample{
			Round:       round + 1,
			Cost:        max(float64(r-rss)/float64(w.tunnels), 0),
			Resident:    float64(r),
			Descriptors: float64(f-fds) / float64(w.tunnels),
		}, nil)
	}
	return nil
}

// holds reads memory and descriptors of a process once they have come to rest.
func (s *suite) holds(in *instance) (rss int64, fds int, err error) {
	const pause, drift = 50 * time.Millisecond, 16 << 10
	var was int64 = -1
	var open int
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(pause) {
		rests := in.process.atRest()
		if rss, err = in.process.rss(); err != nil {
			return 0, 0, err
		}
		if fds, err = in.process.descriptors(); err != nil {
			return 0, 0, err
		}
		moved := rss - was
		rests = rests && was >= 0 && fds == open && -drift <= moved && moved <= drift
		if rests || time.Now().After(deadline) {
			return rss, fds, nil
		}
		was, open = rss, fds
	}
}
