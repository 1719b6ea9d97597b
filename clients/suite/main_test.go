package suite

import (
	"testing"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
