//go:build !linux

package main

import (
	"errors"
	"net"

	"gateway/internal/address"
)

const loopsSupported = false

// loops do not exist where there is neither epoll nor splice: the portable
// relay serves everything.
type loops struct{ relayer }

func newLoops(*Config, relayConfig, *frontend, *relay, func(int, *session, []byte)) (*loops, error) {
	return nil, errors.New("not supported by this operating system")
}

func (*loops) serve(*net.TCPListener, *address.Route, <-chan struct{}) error { panic("no loops") }
