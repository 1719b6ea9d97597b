//go:build !unix

package upgrade

import (
	"os"
	"syscall"
)

// Signal asks a process for an upgrade. Here none does.
var Signal os.Signal = syscall.Signal(-1)
