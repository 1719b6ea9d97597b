//go:build !linux

package suite

import (
	"net"
	"testing"
)

// narrow would listen so that little is on the way to it.
func narrow(t *testing.T) net.Listener {
	t.Skip("how much a socket takes is bounded on Linux alone")
	return nil
}
