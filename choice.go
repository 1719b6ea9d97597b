package main

import (
	"context"
	"errors"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
)

// choice is a session's way through the several backends of its route. It is
// given up at the session's end (frontend.finish).
type choice struct {
	group   *balance.Group
	attempt balance.Attempt
}

// release gives up the backend that was chosen.
func (c *choice) release() {
	if c != nil {
		c.attempt.Release()
	}
}

// len returns the number of backends to choose from.
func (c *choice) len() int {
	if c == nil {
		return 1
	}
	return c.group.Len()
}

var processStart = time.Now()

// balanceClock is the time that internal/balance is told, in nanoseconds.
func balanceClock() int64 { return int64(time.Since(processStart)) }

// choose finds a session's first backend. Where the route is a service, ctx
// bounds the lookup; its cause is the error then. Others are a *dialError.
func (f *frontend) choose(ctx context.Context, s *session, route address.Route) error {
	if addr, ok := route.Single(); ok {
		s.backend = addr
		return nil
	}
	now := balanceClock()
	group := f.routes.Group(route, now)
	if name := route.Service(); name != "" {
		targets, err := f.services.find(ctx, name)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return classify(err)
		}
		group.Update(targets)
	}
	s.choice = &choice{group, group.Start(s.client.Addr())}
	if !f.chooseNext(s) {
		return errNoTarget
	}
	return nil
}

// chooseNext goes on to another backend. It reports false if each has had its
// turn.
func (f *frontend) chooseNext(s *session) bool {
	if s.choice == nil {
		return false
	}
	addr, ok := s.choice.attempt.Next(balanceClock())
	if ok {
		s.backend = addr
	}
	return ok
}

// chosen says what came of dialing the backend that was chosen.
func (s *session) chosen(err error) {
	if s.choice == nil {
		return
	}
	var de *dialError
	switch {
	case err == nil:
		s.choice.attempt.Succeeded(balanceClock())
	case errors.As(err, &de) && de.blamesBackend():
		s.choice.attempt.Failed(balanceClock())
	}
}

// chooseAgain begins another round through the backends, each of which has
// failed the client.
func (f *frontend) chooseAgain(s *session) bool {
	if s.choice == nil {
		return true // the only one
	}
	s.choice.attempt = s.choice.group.Start(s.client.Addr())
	return f.chooseNext(s)
}
