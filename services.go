package main

import (
	"context"
	"net/netip"
	"sync"

	"gateway/internal/balance"
	"gateway/internal/resolve"
)

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
