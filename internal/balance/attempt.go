package balance

import "gateway/internal/address"

// Attempt is one client's way through the targets of a group. It holds the
// target that Next returned, which counts as a connection, until Failed,
// Release or the next Next gives it up. Whoever holds an attempt must call
// Release when the connection or the attempt is over; calling it again does no
// harm. An Attempt is for one goroutine at a time, and must not be copied while
// it holds a target.
type Attempt struct {
	list   *list
	client uint64 // its hash
	tried  uint64 // bits by the place in the list

	held *server
	// seen is the held server's state when its dial began, which is the state
	// that a failure changes. With failures in it, others skip the server until
	// this attempt knows.
	seen health
}

// Next picks the next target and holds it. No target comes twice in one
// attempt, and false comes when none is left. Targets that are skipped come
// when all others have failed.
func (a *Attempt) Next(now int64) (address.Address, bool) {
	a.Release()
	place := 0
	for _, lv := range a.list.levels {
		set := lv.usable(lv.all()&^(a.tried>>place), now)
		for set != 0 {
			i := lv.pick(set, a.client)
			s := lv.members[i].server
			if a.hold(s, health(s.health.Load()), now) {
				a.tried |= 1 << (place + i)
				return a.held.addr, true
			}
			set &^= 1 << i // another client is trying it
		}
		place += len(lv.members)
	}
	place = 0
	for _, lv := range a.list.levels {
		if set := lv.all() &^ (a.tried >> place); set != 0 {
			i := lv.pick(set, a.client)
			a.tried |= 1 << (place + i)
			// Not its state, so that a failure, which is no news, does not count.
			a.take(lv.members[i].server, health(0))
			return a.held.addr, true
		}
		place += len(lv.members)
	}
	return address.Address{}, false
}

// hold takes a server that was seen in a state, unless it is skipped. Of all
// clients that see a penalty over, one takes the server.
func (a *Attempt) hold(s *server, seen health, now int64) bool {
	if seen.skipped(now) {
		return false
	}
	if seen.failures() > 0 {
		probed := seen.probed(now)
		if !s.health.CompareAndSwap(int64(seen), int64(probed)) {
			return false
		}
		seen = probed
	}
	a.take(s, seen)
	return true
}

func (a *Attempt) take(s *server, seen health) {
	s.live.Add(1)
	a.held, a.seen = s, seen
}

// Failed says that the held target could not be reached, and gives it up. It is
// for what the target is to blame for: not for a client that broke off, or a
// gateway without descriptors.
func (a *Attempt) Failed(now int64) {
	if a.held == nil {
		return
	}
	a.held.health.CompareAndSwap(int64(a.seen), int64(a.seen.failed(now)))
	a.drop()
}

// Succeeded says that the held target was reached. The attempt goes on holding
// it.
func (a *Attempt) Succeeded(now int64) {
	if a.held == nil {
		return
	}
	if health(a.held.health.Load()).failures() > 0 {
		a.held.health.Store(int64(healthy(now)))
	}
}

// Release gives up the held target, if any: its connection is over, or it was
// not found out whether it can be reached.
func (a *Attempt) Release() {
	if a.held == nil {
		return
	}
	if a.seen.failures() > 0 { // in vain after a success, which changed the state
		a.held.health.CompareAndSwap(int64(a.seen), int64(a.seen.unproved()))
	}
	a.drop()
}

func (a *Attempt) drop() {
	a.held.live.Add(-1)
	a.held = nil
}
