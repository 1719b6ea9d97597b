//go:build !linux

package web

import (
	"gateway/internal/harness"
	"testing"
)

// blackhole would return an address where connects get no answer.
func blackhole(t *testing.T) string { return harness.ClosedPort(t) }
