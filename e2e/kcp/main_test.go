// Package kcp tests the gateway's clients and backends that speak KCP, by kcp-go's
// own client and server.
package kcp

import (
	"testing"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
