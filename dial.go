package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/kcp"
)

// dialer turns an opened address into a connected backend. Its methods are
// safe for concurrent use.
type dialer struct {
	// attempts is how often a dial is tried in all, at least once. Only a
	// time-out is tried again: who refuses now will refuse at once again.
	attempts int
	// timeout bounds one attempt, the name lookup and all addresses of the
	// name included.
	timeout time.Duration
	// permit is asked for each address right before it is dialed, so that no
	// name leads where a literal may not.
	permit func(netip.AddrPort) error
	// permitBroadcast is permit's other half, see frontend; nil permits.
	permitBroadcast func(netip.AddrPort) error
	// kcp dials backends whose scheme is kcp.
	kcp *kcp.Transport
	// resolver looks up names; *net.Resolver is one.
	resolver interface {
		LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	}
	// base has the options of a connected backend's socket.
	base net.Dialer
}

func newDialer(cfg *Config, permit func(netip.AddrPort) error) *dialer {
	d := &dialer{attempts: cfg.Retry, timeout: cfg.Timeout, permit: permit}
	d.base.KeepAlive, d.base.KeepAliveConfig = cfg.keepalive()
	d.base.Control = func(_, _ string, c syscall.RawConn) error {
		return cfg.liveness().SetUserTimeout(c)
	}
	return d
}

// dialError is why a backend could not be reached.
type dialError struct {
	status status
	reason string // one word for the log
	err    error
}

// blamesBackend tells whether the backend, and nobody else, is why.
func (e *dialError) blamesBackend() bool {
	switch e.reason {
	case "timeout", "refused", "unreachable", "connect_failed", "unknown_host", "lookup_failed":
		return true
	}
	return false
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// Why a connection ended before its dial did. Nobody waits for an answer.
var (
	errClientGone = &dialError{"", "client_gone", errors.New("the client broke the connection while its backend was dialed")}
	errShutdown   = &dialError{"", "shutdown", errors.New("the gateway ended")}
	errNoTarget   = &dialError{statusBadGateway, "no_target", errors.New("the service has no targets")}
	errInternal   = &dialError{"", "internal", errors.New("a bug or a failure of the gateway itself; the log says more")}
)

// dial connects to addr, once: it tries each IP address of a name in turn, all
// within one timeout. The caller closes the connection. Every error is a
// *dialError. Cancelling ctx ends the dial at once, with ctx's cause.
func (d *dialer) dial(ctx context.Context, addr address.Address) (net.Conn, error) {
	conn, err := d.dialEach(ctx, addr)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, classify(err)
}

func (d *dialer) dialEach(ctx context.Context, addr address.Address) (net.Conn, error) {
	deadline := time.Now().Add(d.timeout)
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
		if d.permit(netip.AddrPortFrom(ip.Unmap(), addr.Port)) == nil {
			left++
		}
	}
	var firstErr, denied error
	for _, ip := range ips {
		to := netip.AddrPortFrom(ip.Unmap(), addr.Port)
		err := d.permit(to)
		if err == nil && addr.Scheme == "kcp" {
			err = d.notBroadcast(to)
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
		conn, err := d.connect(ctx, addr.Scheme, to, now.Add(share))
		if err == nil {
			return conn, nil
		}
		if mayBeBroadcast(err) {
			if derr := d.notBroadcast(to); derr != nil {
				denied = derr
				continue
			}
		}
		// A time-out tells more than a refusal: trying again may help.
		if firstErr == nil || isTimeout(err) && !isTimeout(firstErr) {
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

// connect dials one IP address until a deadline.
func (d *dialer) connect(ctx context.Context, scheme string, to netip.AddrPort, deadline time.Time) (net.Conn, error) {
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

func (d *dialer) notBroadcast(to netip.AddrPort) error {
	if d.permitBroadcast == nil {
		return nil
	}
	return d.permitBroadcast(to)
}

// mayBeBroadcast tells whether this is how a kernel refuses to connect TCP to a
// network's broadcast address.
func mayBeBroadcast(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EACCES)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// classify gives a failed dial its status and its word in the log.
func classify(err error) *dialError {
	if de, ok := err.(*dialError); ok {
		return de
	}
	if isTimeout(err) {
		return &dialError{statusGatewayTimeout, "timeout", err}
	}
	reason := "connect_failed"
	var dnsErr *net.DNSError
	switch {
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		reason = "unknown_host"
	case errors.As(err, &dnsErr):
		reason = "lookup_failed"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		reason = "unreachable"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		reason = "no_descriptors"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		reason = "no_local_port"
	}
	return &dialError{statusBadGateway, reason, err}
}
