//go:build !linux

package web

import "testing"

// blackhole would return an address where connects get no answer.
func blackhole(t *testing.T) string { return closedPort(t) }
