// Package ask puts questions to a service of the operator's, over HTTP: where does
// a name lead today, and what is this ticket worth? It is what nginx calls
// auth_request, Traefik ForwardAuth and Envoy ext_authz.
//
// A question is one POST of JSON (Question), the answer a 200 with JSON (Answer).
// Answers for a name are kept as long as they say, and longer while the service is
// out of order. Whatever the service does, a question costs bounded time and
// memory, and a service that is down costs next to nothing.
package ask

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// Why there is no answer. What the caller gets may hold more, and wraps one of
// these, or is ctx's cause.
var (
	ErrDenied  = errors.New("the service says no")                     // 403 or 404
	ErrLimited = errors.New("the service says that it is too much")    // 429
	ErrDown    = errors.New("the service is out of order")             // 5xx, or not to be had
	ErrSilent  = errors.New("the service has not answered in time")    // beyond Options.Timeout
	ErrBad     = errors.New("the service's answer is not understood")  // neither of the above
	ErrBusy    = errors.New("too many questions wait for the service") // beyond maxWaiting
)

// Question is what the service is told. Either Name or Ticket is set.
type Question struct {
	Name     string            `json:"name,omitempty"`     // what stood behind "ask:"
	Ticket   string            `json:"ticket,omitempty"`   // what stood behind "?"
	Client   string            `json:"client"`             // IP:port, as believed
	Listener string            `json:"listener,omitempty"` // the address that it came to
	Form     string            `json:"form"`               // line, binary, prefixed, http, websocket or forward
	TLS      bool              `json:"tls"`
	SNI      string            `json:"sni,omitempty"`
	KCP      bool              `json:"kcp"`
	Gateway  string            `json:"gateway"`           // which process asks
	Method   string            `json:"method,omitempty"`  // of HTTP, as the next two
	Path     string            `json:"path,omitempty"`    // with its query
	Headers  map[string]string `json:"headers,omitempty"` // several of a name are joined by ", "
}

// Options say whom to ask. The zero values of the bounds are the defaults.
type Options struct {
	// URL is http://…, https://… or unix:PATH, for which the request is "POST /".
	URL string
	// Timeout bounds one question from the moment it is sent. 0 is 1 s.
	Timeout time.Duration
	// Stale is how long after its time the last answer for a name still serves
	// while the service gives none. 0 is not at all.
	Stale time.Duration
	// CAFile holds the certificates (PEM) that the service's is checked with; ""
	// is the system's.
	CAFile string
	// TokenFile holds a bearer token that the service is shown; "" is none.
	TokenFile string
	// Log is told when the service goes out of order, and when it is back. Nil is
	// slog.Default().
	Log *slog.Logger
}

// Service is asked by any number of goroutines. It must be closed.
type Service struct {
	url            string
	timeout, stale time.Duration
	wire           *wire
	*book
	*account
	asking  chan struct{} // as many as maxAsking
	waiting *atomic.Int64 // for a place in asking
}

// book is what is known of a service and of what it has said.
type book struct {
	circuit circuit
	names   names
	tickets tickets
}

// account is what was counted.
type account struct {
	counts  [len(results)]atomic.Int64
	hits    atomic.Int64 // answers that were known
	stale   atomic.Int64 // of those, the ones that were out of date
	observe atomic.Pointer[func(time.Duration)]
}

const (
	defaultTimeout = time.Second
	// maxAsking bounds the questions that the service has at a time, and so the
	// connections to it.
	maxAsking = 64
	// maxWaiting bounds the questions that wait for one of those to end.
	maxWaiting = 4096
)

// New returns a service. It does not ask anything yet. Its errors name the file or
// the part of the URL at fault.
func New(o Options) (*Service, error) {
	w, err := newWire(o)
	if err != nil {
		return nil, err
	}
	log := o.Log
	if log == nil {
		log = slog.Default()
	}
	return &Service{
		url:     o.URL,
		timeout: cmp.Or(o.Timeout, defaultTimeout),
		stale:   o.Stale,
		wire:    w,
		book: &book{
			circuit: circuit{log: log},
			names:   names{known: make(map[string]*name)},
			tickets: tickets{known: make(map[ticketKey]kept)},
		},
		account: &account{},
		asking:  make(chan struct{}, maxAsking),
		waiting: new(atomic.Int64),
	}, nil
}

// Succeed has s go on in place of another, with other options: it takes over what was
// counted and what is under way, and what is known if both ask the same URL. It is
// called before s is asked, and closes the other; that may be asked on, by whoever
// has it. nil is none.
func (s *Service) Succeed(other *Service) {
	if other == nil {
		return
	}
	s.account, s.asking, s.waiting = other.account, other.asking, other.waiting
	if s.url == other.url {
		s.book = other.book
	}
	other.Close()
}

// Observe has observe called with how long each question took that was put.
func (s *Service) Observe(observe func(time.Duration)) { s.account.observe.Store(&observe) }

// Close gives up the connections to the service.
func (s *Service) Close() { s.wire.close() }

// Known returns the answer for a name that can be had without a wait, or nil.
func (s *Service) Known(of string) *Answer {
	now := time.Now()
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	n := s.names.known[of]
	if n == nil || !n.serves(now) {
		return nil
	}
	s.hits.Add(1)
	return n.answer
}

// Ask returns the service's answer, which the caller must not change. ctx bounds
// the wait for it; its cause is the error then.
func (s *Service) Ask(ctx context.Context, q *Question) (*Answer, error) {
	if q.Name != "" {
		return s.askName(ctx, q)
	}
	return s.askTicket(ctx, q)
}

// put puts one question, if the circuit is closed, once there is a place. Every
// question that is really put counts.
func (s *Service) put(ctx context.Context, q *Question) (*Answer, error) {
	if err := s.circuit.enter(time.Now()); err != nil {
		return nil, s.count(err)
	}
	if err := s.place(ctx); err != nil {
		s.circuit.leave(time.Now(), givenUp, nil)
		return nil, s.count(err)
	}
	defer func() { <-s.asking }()
	within, cancel := context.WithTimeoutCause(ctx, s.timeout, ErrSilent)
	defer cancel()
	began := time.Now()
	answer, err := s.wire.post(within, q)
	if observe := s.observe.Load(); observe != nil {
		(*observe)(time.Since(began))
	}
	how := alive
	switch {
	case errors.Is(err, ErrSilent) && context.Cause(within) != ErrSilent:
		how, err = givenUp, context.Cause(ctx)
	case errors.Is(err, ErrSilent):
		how, err = dead, fmt.Errorf("%w (%v)", ErrSilent, s.timeout)
	case errors.Is(err, ErrDown):
		how = dead
	}
	s.circuit.leave(time.Now(), how, err)
	return answer, s.count(err)
}

// place waits for one of maxAsking places, which is given back by a receive.
func (s *Service) place(ctx context.Context) error {
	select {
	case s.asking <- struct{}{}:
		return nil
	default:
	}
	defer s.waiting.Add(-1)
	if s.waiting.Add(1) > maxWaiting {
		return ErrBusy
	}
	select {
	case s.asking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// results are the ways in which a question ends, for Counts.
var results = [...]struct {
	name string
	err  error
}{
	{"answered", nil}, {"denied", ErrDenied}, {"limited", ErrLimited}, {"down", ErrDown},
	{"silent", ErrSilent}, {"bad", ErrBad}, {"busy", ErrBusy},
	{"given_up", nil}, // by the client; the last
}

func (s *Service) count(err error) error {
	last := len(results) - 1
	for i, r := range results {
		if i == last || r.err == nil && err == nil || r.err != nil && errors.Is(err, r.err) {
			s.counts[i].Add(1)
			break
		}
	}
	return err
}

// Stats are what was counted since the first of the services that have succeeded each
// other, and how this one is.
type Stats struct {
	// Results is how many questions have ended in which way: answered, denied, limited,
	// down (those that were not put for that included), silent, bad, busy or given_up.
	Results map[string]int64
	// Hits is how many answers were known already, and Stale how many more were out of
	// date, and given since the service gave none.
	Hits, Stale int64
	// Open tells whether the circuit is: the service is asked only now and then.
	Open bool
	// Asking is how many questions the service has, and Waiting how many wait for that.
	Asking, Waiting int
}

// Stats returns them. A nil service has none.
func (s *Service) Stats() Stats {
	if s == nil {
		return Stats{}
	}
	st := Stats{
		Results: make(map[string]int64, len(results)),
		Hits:    s.hits.Load(), Stale: s.account.stale.Load(),
		Open: s.circuit.isOpen(), Asking: len(s.asking), Waiting: int(s.waiting.Load()),
	}
	for i, r := range results {
		st.Results[r.name] = s.counts[i].Load()
	}
	return st
}
