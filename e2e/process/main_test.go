// Package process tests the gateway as an operator sees it: flags, signals, the
// log, the pid file, the listeners, and what it bears.
package process

import (
	"testing"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
