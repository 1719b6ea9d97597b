//go:build !linux

package main

import (
	"context"
	"errors"
	"net"
	"time"

	"gateway/internal/relay"
)

// loops do not exist where there is no epoll: goroutines serve everything. A nil
// *loops takes nothing.
type loops struct{}

func newLoops(*Config, *ledger, func(int, *rules, session, []byte)) (*loops, error) {
	return nil, errors.New("not supported by this operating system")
}

// connBudget is not known here: accepting fails, and is tried again.
func connBudget() int32 { return 0 }

func (*loops) serve(*net.TCPListener, *entrance, <-chan struct{}, func() *rules) error {
	panic("no loops")
}

func (*loops) take(*session, *upstream, net.Conn, net.Conn, []byte) bool   { return false }
func (*loops) pipeCount() (made, limit int)                                { return 0, 0 }
func (*loops) work(func(busy, longest time.Duration, conns, awaiting int)) {}
func (*loops) retime(*Config)                                              {}
func (*loops) answer(context.Context) error                                { return nil }
func (*loops) visit(context.Context, func(*session, *upstream, relay.Pulse) bool, func()) error {
	return nil
}
func (*loops) close()                                {}
func (*loops) moved() (spliced, copied int64)        { return 0, 0 }
func (*loops) movedFrom() (spliced, copied [2]int64) { return spliced, copied }
func (*loops) kind() string                          { return "" }
func (*loops) handOver(_ context.Context, conn *net.UnixConn, _ map[string][]byte, _ func(int, time.Duration)) error {
	return conn.Close()
}
func (*loops) takeOver(conn *net.UnixConn, _ func() *rules, _ func(string, []byte), _ func(bool)) (int, error) {
	return 0, conn.Close()
}
func (*loops) refuse(conn *net.UnixConn, _ string) { conn.Close() }
