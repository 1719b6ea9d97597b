//go:build !linux

package handover

import "net"

// Refuse keeps the other process's tunnels where they are. It owns the stream.
func Refuse(conn *net.UnixConn, _ string) { conn.Close() }
