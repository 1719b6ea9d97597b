// Package protocols tests what clients may speak to the gateway and what backends
// are told, through a gateway that runs as a process.
package protocols

import (
	"testing"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
