//go:build !linux

package main

import (
	"context"
	"errors"
	"net"
	"time"

	"gateway/internal/address"
)

// loops do not exist where there is no epoll: goroutines serve everything. A nil
// *loops takes nothing.
type loops struct{}

func newLoops(*Config, *ledger, func(int, *rules, session, []byte)) (*loops, error) {
	return nil, errors.New("not supported by this operating system")
}

func (*loops) serve(*net.TCPListener, *address.Route, <-chan struct{}, func() *rules) error {
	panic("no loops")
}

func (*loops) take(*session, *upstream, net.Conn, net.Conn, []byte) bool { return false }
func (*loops) elsewhere() func()                                         { return func() {} }
func (*loops) answer(time.Duration) bool                                 { return true }
func (*loops) retime(*Config)                                            {}
func (*loops) kind() string                                              { return "" }
func (*loops) close()                                                    {}
func (*loops) handOver(_ context.Context, conn *net.UnixConn, _ func(int, time.Duration)) error {
	return conn.Close()
}
func (*loops) takeOver(conn *net.UnixConn, _ func() *rules, _ func(bool)) (int, error) {
	return 0, conn.Close()
}
func (*loops) refuse(conn *net.UnixConn, _ string) { conn.Close() }
func (*loops) moved() (spliced, copied int64)      { return 0, 0 }
