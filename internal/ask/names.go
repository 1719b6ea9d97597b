package ask

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"
)

// What is known of names and tickets. An answer serves everybody who brings the
// same name for as long as it says (TTL), so that of many clients that come at once
// one asks and the others wait for the same answer. An answer without a time is for
// the client that was asked about, and for nobody else.

// maxNames and maxTickets bound those that are known.
const (
	maxNames   = 4096
	maxTickets = 4096
)

type names struct {
	mu    sync.Mutex
	known map[string]*name
}

type name struct {
	kept
	flight *flight // the question that is on its way, or nil
	alone  bool    // the last answer had no time: each client asks for itself
}

// kept is an answer and until when it serves.
type kept struct {
	answer *Answer
	until  time.Time
}

func (k kept) serves(now time.Time) bool { return k.answer != nil && now.Before(k.until) }

// flight is a question whose answer several wait for. done is closed when the rest
// is set.
type flight struct {
	done   chan struct{}
	answer *Answer
	err    error
}

func (s *Service) askName(ctx context.Context, q *Question) (*Answer, error) {
	now := time.Now()
	s.names.mu.Lock()
	n := s.names.get(q.Name, now)
	if n.serves(now) {
		answer := n.answer
		s.names.mu.Unlock()
		s.hits.Add(1)
		return answer, nil
	}
	if n.alone {
		s.names.mu.Unlock()
		answer, err := s.put(ctx, q)
		return s.learn(q.Name, nil, answer, err)
	}
	f, first := n.flight, false
	if f == nil {
		f, first = &flight{done: make(chan struct{})}, true
		n.flight = f
		// It goes on when this client leaves: others wait for it.
		go s.fly(context.WithoutCancel(ctx), f, q)
	}
	s.names.mu.Unlock()
	var enough <-chan time.Time
	if s.circuit.isOpen() {
		t := time.NewTimer(patience)
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-f.done:
	case <-enough:
		return s.meanwhile(q.Name)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if first || failed(f.err) || f.err == nil && f.answer.TTL > 0 {
		return f.answer, f.err
	}
	return s.put(ctx, q) // that answer was about the other client
}

// patience is how long a client waits for the question that tries whether a service
// is back that has been out of order: a service that is will answer by then.
const patience = 50 * time.Millisecond

// meanwhile returns what to tell a client that does not wait for such a question.
func (s *Service) meanwhile(of string) (*Answer, error) {
	return s.learn(of, nil, nil, fmt.Errorf("%w, and is being tried", ErrDown))
}

// fly puts the question that several wait for.
func (s *Service) fly(ctx context.Context, f *flight, q *Question) {
	// A place may be long in coming, but nobody waits longer than for this.
	ctx, cancel := context.WithTimeoutCause(ctx, 2*s.timeout, ErrBusy)
	defer cancel()
	answer, err := s.put(ctx, q)
	f.answer, f.err = s.learn(q.Name, f, answer, err)
	close(f.done)
}

// learn keeps an answer for a name, which f, if it is not nil, has brought. It returns what to tell the client: where the
// service has failed, the answer from before if it is not too old.
func (s *Service) learn(of string, f *flight, answer *Answer, err error) (*Answer, error) {
	now := time.Now()
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	n := s.names.get(of, now)
	if f != nil && n.flight == f {
		n.flight = nil
	}
	switch {
	case err == nil:
		n.kept = kept{answer, now.Add(answer.TTL)}
		n.alone = answer.TTL == 0
		if n.alone {
			n.answer = nil
		}
	case failed(err):
		if n.answer != nil && now.Before(n.until.Add(s.stale)) {
			s.account.stale.Add(1)
			return n.answer, nil
		}
	default:
		n.kept = kept{} // it is not so any more
	}
	return answer, err
}

// failed tells whether an error says nothing about what was asked.
func failed(err error) bool {
	return err != nil && !errors.Is(err, ErrDenied) && !errors.Is(err, ErrLimited)
}

// get returns what is known of a name, which is nothing if it is new. mu is held.
func (ns *names) get(of string, now time.Time) *name {
	n := ns.known[of]
	if n == nil {
		if len(ns.known) >= maxNames {
			ns.forget(now)
		}
		n = new(name)
		ns.known[of] = n
	}
	return n
}

// forget makes room: first for what serves nobody any more.
func (ns *names) forget(now time.Time) {
	for of, n := range ns.known {
		if n.flight == nil && !n.serves(now) {
			delete(ns.known, of)
		}
	}
	for of, n := range ns.known {
		if len(ns.known) < maxNames {
			return
		}
		if n.flight == nil {
			delete(ns.known, of)
		}
	}
}

// tickets are those whose answers say that they may be kept. Only their hashes are.
type tickets struct {
	mu    sync.Mutex
	known map[ticketKey]kept
}

type ticketKey [sha256.Size]byte

func (s *Service) askTicket(ctx context.Context, q *Question) (*Answer, error) {
	key := ticketKey(sha256.Sum256([]byte(q.Ticket)))
	now := time.Now()
	s.tickets.mu.Lock()
	k := s.tickets.known[key]
	s.tickets.mu.Unlock()
	if k.serves(now) {
		s.hits.Add(1)
		return k.answer, nil
	}
	answer, err := s.put(ctx, q)
	if err == nil && answer.TicketTTL > 0 {
		s.tickets.keep(key, kept{answer, time.Now().Add(answer.TicketTTL)})
	}
	return answer, err
}

func (ts *tickets) keep(key ticketKey, k kept) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.known) >= maxTickets {
		now := time.Now()
		for other, k := range ts.known {
			if !k.serves(now) {
				delete(ts.known, other)
			}
		}
		if len(ts.known) >= maxTickets {
			clear(ts.known)
		}
	}
	ts.known[key] = k
}
