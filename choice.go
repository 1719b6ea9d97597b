package main

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/handshake"
	"gateway/internal/limit"
	"gateway/internal/resolve"
)

// upstream is the backend's end of what a client asks for: of a tunnel, or of
// one exchange of an HTTP client. It is given up by release.
type upstream struct {
	backend address.Address // the one to dial; zero until one is known
	choice  *choice         // among several; nil: there is one
	left    int             // dials that may still be tried
	tries   uint8           // dials that were, as far as they are counted
	began   time.Duration   // the last of them, by the ledger's clock
	dialed  *netip.AddrPort // where the backend's name led to; nil for a literal
	id      string          // told to the backend; empty without a PROXY header of version 2
	preface int32           // bytes of ours that lead what the client sends
	seat    *seat           // among the tunnels that its backend may have; nil: none
}

// seats count the tunnels of each backend.
type seats = limit.Seats[address.Address]

// seat is a tunnel's part in that.
type seat struct {
	seats *seats
	at    address.Address
}

var errBackendFull = &refusal{status: handshake.BadGateway, reason: "full", cause: errors.New("the backend has as many tunnels as -max-tunnels-per-backend allows")}

// sit counts the tunnel among those of the backend that is to be dialed, of which
// there may be most; 0 is any number, and none is counted.
func (u *upstream) sit(s *seats, most int) error {
	u.rise()
	if most == 0 {
		return nil
	}
	if !s.Take(u.backend, most) {
		return errBackendFull
	}
	u.seat = &seat{s, u.backend}
	return nil
}

// rise undoes sit.
func (u *upstream) rise() {
	if u.seat != nil {
		u.seat.seats.Give(u.seat.at)
		u.seat = nil
	}
}

// joined is what a tunnel joins, as internal/relay keeps it.
type joined struct {
	session  *session
	upstream *upstream
}

// choice is the way through several backends.
type choice struct {
	group   *balance.Group
	attempt balance.Attempt
	service bool // whom DNS lists
	spares  int  // backends that have not had their turn
	passed  bool // one has had it that was not dialed, by errSlowLookup
}

// errNoTarget is a service without targets.
var errNoTarget = &refusal{status: handshake.BadGateway, reason: "no_target", cause: errors.New("the service has no targets")}

// errSlowLookup says that a backend was passed over for others, since its name is
// being looked up for long. It comes wrapped, with a time-out.
var errSlowLookup = errors.New("the lookup takes long")

var processStart = time.Now()

// balanceClock is the time that internal/balance is told, in nanoseconds.
func balanceClock() int64 { return int64(time.Since(processStart)) }

// choose finds the first backend of a route. Where the route is a service, ctx
// bounds the lookup; its cause is the error then. Others are a *refusal.
func (u *upstream) choose(ctx context.Context, r *rules, s *session, route address.Route) error {
	u.left = r.attempts
	if addr, ok := route.Single(); ok {
		u.backend = addr
		return nil
	}
	group := r.routes.Group(route, balanceClock())
	if name := route.Service(); name != "" {
		targets, err := r.services.find(ctx, name)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return dialFailure(err)
		}
		group.Update(targets)
	}
	u.choice = &choice{group: group, attempt: group.Start(s.client.Addr()), spares: group.Len() - 1, service: route.Service() != ""}
	u.left = max(u.left, group.Len())
	if !u.next() {
		return errNoTarget
	}
	return nil
}

// next goes on to another backend. It reports false if each has had its turn.
func (u *upstream) next() bool {
	if u.choice == nil {
		return false
	}
	addr, ok := u.choice.attempt.Next(balanceClock())
	if ok {
		u.backend = addr
	}
	return ok
}

// again begins another round through the backends, each of which has failed the
// client.
func (u *upstream) again(s *session) bool {
	if u.choice == nil {
		return true // the only one
	}
	u.choice.attempt = u.choice.group.Start(s.client.Addr())
	return u.next()
}

// connected says that the backend that was dialed has answered.
func (u *upstream) connected() {
	if u.choice != nil {
		u.choice.attempt.Succeeded(balanceClock())
	}
}

// retry says why the backend that was dialed has not answered, and reports
// whether to dial once more: then u.backend says whom. Each backend has one
// turn. After that only a time-out is worth another round: who refuses now will
// refuse at once again. There is one more round if a backend was passed over.
func (u *upstream) retry(s *session, why *refusal) bool {
	u.rise()
	c := u.choice
	if c != nil {
		if why.blamesBackend {
			c.attempt.Failed(balanceClock())
		}
		c.spares--
		c.passed = c.passed || errors.Is(why, errSlowLookup)
	}
	u.left--
	switch {
	case u.left > 0 && u.next():
		return true
	case c != nil && c.passed:
		c.passed, c.spares, u.left = false, 0, max(u.left, c.group.Len())
		return u.again(s)
	}
	return u.left > 0 && why.status == handshake.GatewayTimeout && u.again(s)
}

// hasSpare tells whether there is a backend that has not had its turn.
func (u *upstream) hasSpare() bool { return u.choice != nil && u.choice.spares > 0 }

// release gives up the backend that was chosen.
func (u *upstream) release() {
	u.rise()
	if u.choice != nil {
		u.choice.attempt.Release()
	}
}

// hostLookup looks up backends' names, in net's words.
type hostLookup struct{ *resolve.Resolver }

func (l hostLookup) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	return l.Addresses(ctx, host)
}

// services finds the targets of services. internal/resolve knows of DNS, and
// internal/balance of whose turn it is; this tells the one what the other found.
type services struct {
	resolver *resolve.Resolver

	mu    sync.Mutex
	known map[string]knownService
}

// knownService is what DNS lists, and the same in balance's words. Both are
// replaced when the list changes, and never change themselves.
type knownService struct {
	found   []resolve.Service
	targets []balance.Target
}

// maxServices bounds those that are known. Each is cheap to make anew.
const maxServices = 4096

func newServices(r *resolve.Resolver) *services {
	return &services{resolver: r, known: make(map[string]knownService)}
}

// find returns what DNS lists under a name, at least one target: the same slice
// as long as the list is the same, which saves internal/balance work.
func (s *services) find(ctx context.Context, name string) ([]balance.Target, error) {
	found, err := s.resolver.Services(ctx, name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.known[name]
	if len(k.found) != len(found) || &k.found[0] != &found[0] {
		k = knownService{found: found}
		for _, f := range found {
			k.targets = append(k.targets, balance.Target{Addr: f.Addr, Weight: f.Weight, Priority: f.Priority})
		}
		if len(s.known) >= maxServices {
			clear(s.known)
		}
		s.known[name] = k
	}
	return k.targets, nil
}

// routes returns the routes to all services that were found.
func (s *services) routes() (all []address.Route) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.known {
		if r, err := address.ParseRoute("srv:" + name); err == nil {
			all = append(all, r)
		}
	}
	return all
}
