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

// load has the load generators perform a step together, and adds up what they
// report. Tunnels are divided among them.
func (s *suite) load(req loadRequest) (loadReply, *histogram, error) {
	delays := new(histogram)
	sum, tunnels := loadReply{}, req.Tunnels
	var asked []*helper
	for i, h := range s.loads {
		req.Tunnels = tunnels / len(s.loads)
		if i < tunnels%len(s.loads) {
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

// measure measures e on a workload other than idle.
func (s *suite) measure(round int, w workload, e *entrant) error {
	seen, err := s.settle()
	if err != nil {
		return &brokenError{err} // it is not this contender's doing
	}
	open := loadRequest{Op: opOpen, Targets: e.targets, Lines: e.lines, Tunnels: w.tunnels, Size: w.size}
	run := loadRequest{Time: s.opt.time, Tunnels: w.tunnels}
	switch w.kind {
	case bulkUp:
		open.Mode, run.Op = modeSink, opUp
	case bulkDown:
		open.Mode, run.Op = modeSource, opDown
	case echo:
		open.Mode, run.Op = modeEcho, opEcho
	case short:
		// Each connection is opened while the clock runs.
		run = open
		run.Op, run.Mode, run.Time = opShort, modeEcho, s.opt.time
	}
	if w.kind != short {
		opened, _, err := s.load(open)
		if err != nil {
			return s.abandon(err)
		}
		s.table.Congestion = opened.Congestion
	}
	before, err := s.spent(e.instance)
	if err != nil {
		return err
	}
	got, delays, err := s.load(run)
	if err != nil {
		return s.abandon(err)
	}
	if w.kind == short {
		// The ends of the last connections belong to it.
		if _, err := s.settle(); err != nil {
			return s.abandon(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	after, err := s.spent(e.instance)
	if err != nil {
		return err
	}
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
	units := float64(got.Units)
	if w.kind == bulkUp || w.kind == bulkDown {
		units = float64(max(got.Sent, got.Rcvd)) / (1 << 20)
	}
	if units == 0 || got.Elapsed == 0 {
		return fmt.Errorf("nothing was done in %v", s.opt.time)
	}
	s.table.cell(w.key, e.name).add(sample{
		Round:       round + 1,
		Cost:        float64(after.proxy-before.proxy) / units,
		Rate:        units / got.Elapsed.Seconds(),
		P50:         time.Duration(delays.percentile(50)),
		P99:         time.Duration(delays.percentile(99)),
		P999:        time.Duration(delays.percentile(99.9)),
		LoadCost:    float64(after.load-before.load) / units,
		BackendCost: float64(after.backend-before.backend) / units,
	}, delays.pairs())
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
	in, err := s.launch(e)
	if err != nil {
		return err
	}
	defer in.process.kill()
	open := loadRequest{Op: opOpen, Targets: in.targets, Lines: e.lines, Mode: modeEcho, Size: w.size}

	for _, tunnels := range []int{warmTunnels, w.tunnels} {
		if _, _, err := s.load(loadRequest{Op: opClose}); err != nil {
			return err
		}
		if _, err := s.settle(); err != nil {
			return s.abandon(err)
		}
		if tunnels == warmTunnels {
			open.Tunnels = tunnels
			if _, _, err := s.load(open); err != nil {
				return s.abandon(err)
			}
		}
	}
	rss, fds, err := s.holds(in)
	if err != nil {
		return s.abandon(err)
	}
	open.Tunnels = w.tunnels
	if _, _, err := s.load(open); err != nil {
		return s.abandon(err)
	}
	for _, row := range []string{w.key, idleBurst} {
		if row == idleBurst {
			if _, _, err := s.load(loadRequest{Op: opBurst}); err != nil {
				return s.abandon(err)
			}
		}
		r, f, err := s.holds(in)
		if err != nil {
			return s.abandon(err)
		}
		s.table.cell(row, e.name).add(sample{
			Round:       round + 1,
			Cost:        max(float64(r-rss)/float64(w.tunnels), 0),
			Descriptors: float64(f-fds) / float64(w.tunnels),
		}, nil)
	}
	return s.abandon(nil)
}

// holds reads memory and descriptors of a process once they have come to rest.
func (s *suite) holds(in *instance) (rss int64, fds int, err error) {
	const pause, drift = 50 * time.Millisecond, 16 << 10
	var was int64 = -1
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(pause) {
		if rss, err = in.process.rss(); err != nil {
			return 0, 0, err
		}
		if fds, err = in.process.descriptors(); err != nil {
			return 0, 0, err
		}
		if moved := rss - was; was >= 0 && -drift <= moved && moved <= drift || time.Now().After(deadline) {
			return rss, fds, nil
		}
		was = rss
	}
}
