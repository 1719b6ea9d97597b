// Package directory lists the targets of services. [resolve] knows of DNS, and [balance] of
// whose turn it is; this tells the one what the other found.
package directory

import (
	"context"
	"sync"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/resolve"
)

// maxKnown bounds the services that are known. Each is cheap to make anew.
const maxKnown = 4096

// Directory finds the targets of services. Its methods may be called by several goroutines.
type Directory struct {
	find func(ctx context.Context, name string) ([]resolve.Service, error)

	mu    sync.Mutex
	known map[string]service
}

// service is what DNS lists, and the same in balance's words. Both are
// replaced when the list changes, and never change themselves.
type service struct {
	found   []resolve.Service
	targets []balance.Target
}

// New returns a directory of what find finds, as [resolve.Resolver.Services] does: at least
// one, and the same slice as long as the list is the same.
func New(find func(ctx context.Context, name string) ([]resolve.Service, error)) *Directory {
	return &Directory{find: find, known: make(map[string]service)}
}

// Find returns what DNS lists under a name, at least one target: the same slice
// as long as the list is the same, which saves internal/balance work.
func (d *Directory) Find(ctx context.Context, name string) ([]balance.Target, error) {
	found, err := d.find(ctx, name)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.known[name]
	if len(s.found) != len(found) || &s.found[0] != &found[0] {
		s = service{found: found}
		for _, f := range found {
			s.targets = append(s.targets, balance.Target{Addr: f.Addr, Weight: f.Weight, Priority: f.Priority})
		}
		if len(d.known) >= maxKnown {
			clear(d.known)
		}
		d.known[name] = s
	}
	return s.targets, nil
}

// Routes returns the routes to all services that are known.
func (d *Directory) Routes() (all []address.Route) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.known {
		if r, err := address.ParseRoute("srv:" + name); err == nil {
			all = append(all, r)
		}
	}
	return all
}
