// Package backends tests where the gateway takes clients: routes, balancing,
// failover, discovery, and the policy that forbids some of it.
package backends

import (
	"testing"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
