package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/kcp"
	"gateway/internal/layer"
)

// dialer turns an opened address into a connected backend, for who can wait. Its
// methods are safe for concurrent use.
type dialer struct {
	// kcp dials backends whose scheme is kcp.
	kcp *kcp.Transport
	// resolver looks up names; *net.Resolver is one.
	resolver interface {
		LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	}
	// base has the options of a connected backend's socket.
	base net.Dialer
}

func newDialer(cfg *Config) *dialer {
	d := &dialer{kcp: cfg.kcp}
	d.base.KeepAlive, d.base.KeepAliveConfig = cfg.keepalive()
	d.base.Control = func(_, _ string, c syscall.RawConn) error {
		return cfg.liveness().SetUserTimeout(c)
	}
	return d
}

// connect dials the backends of a route until one answers; see upstream.retry
// for which. The caller closes the connection. Every error is a *refusal, but
// for the cause of a ctx that ends.
func (d *dialer) connect(ctx context.Context, r *rules, s *session, u *upstream, route address.Route) (net.Conn, error) {
	if err := u.choose(ctx, r, s, route); err != nil {
		return nil, err
	}
	for {
		backend, err := d.dial(ctx, r, u.backend)
		if err == nil {
			u.connected()
			if !u.backend.IP.IsValid() {
				dialed := layer.AddrPort(backend.RemoteAddr())
				u.dialed = &dialed
			}
			return backend, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		why := dialFailure(err)
		if !u.retry(s, why) {
			return nil, why
		}
	}
}

// dial connects to addr, once: it tries each IP address of a name in turn, all
// within one timeout. Cancelling ctx ends it at once, with ctx's cause.
func (d *dialer) dial(ctx context.Context, r *rules, addr address.Address) (net.Conn, error) {
	conn, err := d.dialEach(ctx, r, addr)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, dialFailure(err)
}

func (d *dialer) dialEach(ctx context.Context, r *rules, addr address.Address) (net.Conn, error) {
	deadline := time.Now().Add(r.timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()

	ips := []netip.Addr{addr.IP}
	if !addr.IP.IsValid() {
		var err error
		if ips, err = d.resolver.LookupNetIP(ctx, "ip", addr.Host); err != nil {
			return nil, err
		}
	}
	left := 0 // that are to be dialed
	for _, ip := range ips {
		if r.permit(netip.AddrPortFrom(ip.Unmap(), addr.Port)) == nil {
			left++
		}
	}
	var firstErr, denied error
	for _, ip := range ips {
		to := netip.AddrPortFrom(ip.Unmap(), addr.Port)
		// Asked for each address right before it is dialed, so that no name leads
		// where a literal may not.
		err := r.permit(to)
		if err == nil && addr.Scheme == "kcp" {
			err = r.permitBroadcast(to)
		}
		if err != nil {
			denied = err
			continue
		}
		// An equal share of what is left for each address, so that one that
		// swallows packets leaves time for the next.
		now := time.Now()
		share := deadline.Sub(now) / time.Duration(max(left, 1))
		left--
		conn, err := d.dialOne(ctx, addr.Scheme, to, now.Add(share))
		if err == nil {
			return conn, nil
		}
		if mayBeBroadcast(err) {
			if derr := r.permitBroadcast(to); derr != nil {
				denied = derr
				continue
			}
		}
		// A time-out tells more than a refusal: trying again may help.
		if firstErr == nil || layer.IsTimeout(err) && !layer.IsTimeout(firstErr) {
			firstErr = err
		}
	}
	if firstErr == nil && denied != nil {
		return nil, denied
	}
	if firstErr == nil {
		firstErr = fmt.Errorf("%s has no address", addr.Host)
	}
	return nil, firstErr
}

// dialOne dials one IP address until a deadline.
func (d *dialer) dialOne(ctx context.Context, scheme string, to netip.AddrPort, deadline time.Time) (net.Conn, error) {
	if scheme != "kcp" {
		nd := d.base
		nd.Deadline = deadline
		return nd.DialContext(ctx, "tcp", to.String())
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := d.kcp.Dial(ctx, to.String())
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// mayBeBroadcast tells whether this is how a kernel refuses to connect TCP to a
// network's broadcast address.
func mayBeBroadcast(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EACCES)
}
