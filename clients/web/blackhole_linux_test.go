package web

import (
	"testing"

	"gateway/internal/harness"
)

// blackhole returns an address where connects get no answer.
func blackhole(t *testing.T) string { return harness.Blackhole(t) }
