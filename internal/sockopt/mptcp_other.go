//go:build !linux

package sockopt

import "net"

// IsMPTCP reports that nothing is known of MPTCP here.
func IsMPTCP(net.Listener) bool { return false }
