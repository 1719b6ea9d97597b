package balance

import (
	"context"
	"sync"

	"gateway/internal/address"
)

// maxKnown bounds the services that a [Directory] knows. Each is cheap to make anew.
const maxKnown = 4096

// Directory finds the targets of services, which something else lists in its own words S:
// DNS, for instance. Its methods may be called by several goroutines.
type Directory[S any] struct {
	find   func(ctx context.Context, name string) ([]S, error)
	target func(S) Target

	mu    sync.Mutex
	known map[string]service[S]
}

// service is what is listed, and the same as targets. Both are replaced when the list
// changes, and never change themselves.
type service[S any] struct {
	found   []S
	targets []Target
}

// NewDirectory returns a directory of what find finds, which is at least one, and the same
// slice as long as the list is the same.
func NewDirectory[S any](find func(ctx context.Context, name string) ([]S, error), target func(S) Target) *Directory[S] {
	return &Directory[S]{find: find, target: target, known: make(map[string]service[S])}
}

// Find returns what is listed under a name, at least one target: the same slice as long as
// the list is the same, which saves [Table] work.
func (d *Directory[S]) Find(ctx context.Context, name string) ([]Target, error) {
	found, err := d.find(ctx, name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.known[name]
	if len(s.found) != len(found) || &s.found[0] != &found[0] {
		s = service[S]{found: found}
		for _, f := range found {
			s.targets = append(s.targets, d.target(f))
		}
		if len(d.known) >= maxKnown {
			clear(d.known)
		}
		d.known[name] = s
	}
	return s.targets, nil
}

// Routes returns the routes to all services that are known.
func (d *Directory[S]) Routes() (all []address.Route) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.known {
		if r, err := address.ParseRoute("srv:" + name); err == nil {
			all = append(all, r)
		}
	}
	return all
}
