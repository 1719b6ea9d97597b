//go:build !linux

package listen

import "net"

// listens takes it for granted: no other process gives sockets here.
func listens(net.Listener) bool { return true }
