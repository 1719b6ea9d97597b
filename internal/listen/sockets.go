// Package listen is about addresses to listen on: how they are written, how their sockets
// are opened, taken from systemd or from the process before this one, and kept for the
// next; and what to do where an address cannot be had.
package listen

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"gateway/internal/address"
	"gateway/internal/sockopt"
)

// Sockets are the listening sockets of this process: those that it opens, and those
// that it was given by the process before it, or by systemd.
type Sockets struct {
	before Predecessor
	copies bool // are kept for the next process
	open   []Outlet
	given  map[string]net.Listener // by systemd, for the operator; by their kind
}

// Descriptor is a listening socket that another process gives.
type Descriptor struct {
	Name string
	FD   int
}

// Predecessor is the process before this one, which hands its sockets over.
type Predecessor interface {
	Names() []string
	// Take returns the socket of a name, once; it is the caller's.
	Take(name string) (fd int, ok bool)
}

// privateKinds are the sockets that are not for clients.
var privateKinds = []string{"admin", "pprof"}

// Outlet is an open listening socket, under the name by which the next process gets
// it.
type Outlet struct {
	Address
	Listener net.Listener
	name     string
	fd       int // a copy, since who serves the listener may close it; -1: none
}

// add takes note of an open socket.
func (s *Sockets) add(name string, ln net.Listener, a Address) error {
	o := Outlet{a, ln, name, -1}
	if socket, ok := ln.(syscall.Conn); ok && s.copies {
		var err error
		if o.fd, err = sockopt.Dup(socket); err != nil {
			return fmt.Errorf("cannot copy the socket of %s: %w", ln.Addr(), err)
		}
	}
	s.open = append(s.open, o)
	return nil
}

// givenPrefix begins the names of sockets that systemd has given.
const givenPrefix = "systemd "

// New returns the sockets that were given: by systemd those of list, which replace what
// would be opened, see Activate; and those of before. copies says that there can be a next
// process.
func New(before Predecessor, list []Descriptor, copies bool) (s *Sockets, given []Address, err error) {
	s = &Sockets{before: before, copies: copies, given: make(map[string]net.Listener)}
	for _, name := range before.Names() {
		if rest, ok := strings.CutPrefix(name, givenPrefix); ok {
			fd, _ := before.Take(name)
			list = append(list, Descriptor{rest, fd})
		}
	}
	for _, g := range list {
		a := Address{Setting: "addr", Given: g.Name}
		if a.ln, a.packets, err = adopt(g.FD); err != nil {
			return nil, nil, fmt.Errorf("socket %q of systemd: %w", g.Name, err)
		}
		switch {
		case a.ln != nil && s.given[g.Name] != nil:
			return nil, nil, fmt.Errorf("systemd gives two sockets of the name %q: want one", g.Name)
		case a.ln != nil && slices.Contains(privateKinds, g.Name):
			s.given[g.Name] = a.ln
			if err := s.add(givenPrefix+g.Name, a.ln, Address{}); err != nil {
				return nil, nil, err
			}
			continue
		case a.ln != nil && a.ln.Addr().Network() != "tcp":
			return nil, nil, fmt.Errorf("socket %q of systemd is for %s: want TCP, or UDP for KCP", g.Name, a.ln.Addr().Network())
		case a.ln != nil:
			a.Addr = a.ln.Addr().String()
		default:
			a.Addr, a.KCP, a.Setting = a.packets.LocalAddr().String(), true, "kcp"
		}
		given = append(given, a)
	}
	return s, given, nil
}

// Activate returns where to listen if some sockets were given. They replace what would be
// opened: those of -listen with the same address, -kcp, and all others -addr, which leads
// to forward.
func Activate(list, given []Address, forward *address.Route) []Address {
	var rest []Address
	for _, g := range given {
		i := slices.IndexFunc(list, func(a Address) bool {
			return a.Given == "" && a.Setting == "listen" && !g.KCP && (a.Addr == g.Given || sameAddress(a.Addr, g.Addr))
		})
		if i < 0 {
			rest = append(rest, g)
			continue
		}
		g.Addr, g.Forward, g.Setting = list[i].Addr, list[i].Forward, "listen"
		list[i] = g
	}
	for _, kcp := range []bool{true, false} {
		of := slices.DeleteFunc(slices.Clone(rest), func(a Address) bool { return a.KCP != kcp })
		if len(of) == 0 {
			continue
		}
		for i := range of {
			of[i].Forward = forward
			if kcp {
				of[i].Forward = nil
			}
		}
		replaced := func(a Address) bool { return a.Setting == of[0].Setting && a.Given == "" }
		list = append(of, slices.DeleteFunc(list, replaced)...)
	}
	return list
}

// sameAddress tells whether an address to listen on is that of a socket.
func sameAddress(configured, addr string) bool {
	want, err1 := net.ResolveTCPAddr("tcp", configured)
	have, err2 := net.ResolveTCPAddr("tcp", addr)
	if err1 != nil || err2 != nil || want.Port != have.Port {
		return false
	}
	unspecified := func(ip net.IP) bool { return ip == nil || ip.IsUnspecified() }
	return want.IP.Equal(have.IP) || unspecified(want.IP) && unspecified(have.IP)
}

// OpenAll opens all listening sockets that were not given.
func (s *Sockets) OpenAll(all []Address, o Options) ([]net.Listener, error) {
	var list []net.Listener
	for _, l := range all {
		ln, name, err := s.listen(l, o)
		if err == nil {
			list = append(list, ln)
			err = s.add(name, ln, l)
		}
		if err != nil {
			CloseAll(list)
			return nil, fmt.Errorf("-%s: %w", l.Setting, Remedy(err, o.Reuse))
		}
	}
	return list, nil
}

// listen opens a listening socket, unless it was given, and returns its name.
func (s *Sockets) listen(a Address, o Options) (net.Listener, string, error) {
	name := "tcp " + a.Addr
	if a.KCP {
		name = "udp " + a.Addr
	}
	if a.Given != "" {
		name = givenPrefix + a.Given
	} else if fd, ok := s.before.Take(name); ok {
		var err error
		if a.ln, a.packets, err = adopt(fd); err != nil {
			return nil, name, err
		}
	}
	switch {
	case a.packets != nil:
		ln, err := o.KCP(a.packets)
		return ln, name, err
	case a.ln != nil:
		return a.ln, name, nil
	}
	ln, err := Open(a, o)
	return ln, name, err
}

// Private returns a listener that is for the operator, and is handed over as the
// others are: one that was given, or what open returns, which may be nil for host:port.
// kind is its flag, and its FileDescriptorName= in systemd; with addr empty and nothing
// given there is none, and it returns nil.
func (s *Sockets) Private(kind, addr string, open func(addr string) (net.Listener, error)) (net.Listener, error) {
	if given := s.given[kind]; given != nil {
		return given, nil
	}
	if addr == "" {
		return nil, nil
	}
	var ln net.Listener
	var err error
	name := kind + " " + addr
	if fd, ok := s.before.Take(name); ok {
		ln, _, err = adopt(fd)
	} else if open != nil {
		ln, err = open(addr)
	} else {
		ln, err = OpenPrivate(kind, addr)
	}
	if err == nil {
		err = s.add(name, ln, Address{})
	}
	return ln, err
}

// Systemds tells whether the socket of a kind that Private opens is one that systemd gave.
func (s *Sockets) Systemds(kind string) bool {
	return s.has(kind, func(name string) bool { return name == givenPrefix+kind })
}

// Took tells whether another process has taken the socket of a kind that Private opens;
// took tells of a name.
func (s *Sockets) Took(kind string, took func(name string) bool) bool { return s.has(kind, took) }

func (s *Sockets) has(kind string, which func(name string) bool) bool {
	return slices.ContainsFunc(s.open, func(o Outlet) bool {
		return (o.name == givenPrefix+kind || strings.HasPrefix(o.name, kind+" ")) && which(o.name)
	})
}

// All returns what a new process gets: copies that stay with s.
func (s *Sockets) All() (list []Descriptor) {
	for _, o := range s.open {
		if o.fd >= 0 {
			list = append(list, Descriptor{o.name, o.fd})
		}
	}
	return list
}

// Drop closes the copies of those sockets for which which returns true. A socket of
// which nobody else has a copy refuses clients from here on.
func (s *Sockets) Drop(which func(name string) bool) {
	for i := range s.open {
		if o := &s.open[i]; o.fd >= 0 && which(o.name) {
			os.NewFile(uintptr(o.fd), "").Close()
			o.fd = -1
		}
	}
}

// DropAll is Drop for all: who serves a listener is about to close it.
func (s *Sockets) DropAll() { s.Drop(func(string) bool { return true }) }

// Reopen makes listeners anew in the place of those that were closed: of the copies,
// or others where there is none. What fails is for the log: nobody else serves.
func (s *Sockets) Reopen(how Options, log *slog.Logger) (list []Outlet) {
	open := s.open
	s.open = nil
	for _, o := range open {
		ln, err := o.again(how)
		if err == nil {
			err = s.add(o.name, ln, o.Address)
		}
		if err != nil {
			log.Error("cannot listen again", "addr", o.Listener.Addr().String(), "err", err)
			continue
		}
		if o.Listener = ln; o.Setting != "" {
			list = append(list, o)
			continue
		}
		// Private finds it here.
		kind, _, _ := strings.Cut(strings.TrimPrefix(o.name, givenPrefix), " ")
		s.given[kind] = ln
	}
	return list
}

// again returns another listener at the same address. It uses the copy up.
func (o *Outlet) again(how Options) (net.Listener, error) {
	if o.fd >= 0 {
		ln, packets, err := adopt(o.fd)
		if packets != nil {
			return how.KCP(packets)
		}
		return ln, err
	}
	if o.Setting == "" || o.Given != "" {
		return nil, errors.New("the socket has not been kept")
	}
	a := o.Address
	a.Addr = o.Listener.Addr().String() // with its port, where any would have done
	return Open(a, how)
}

// CloseAll closes listeners.
func CloseAll(list []net.Listener) {
	for _, ln := range list {
		ln.Close()
	}
}
