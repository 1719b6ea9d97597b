//go:build !linux

package admin

import "net"

// credentials tells who is at the other end of a Unix socket, where that can be told.
func credentials(*net.UnixConn) string { return "" }
