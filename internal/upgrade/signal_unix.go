//go:build unix

package upgrade

import (
	"os"
	"syscall"
)

// Signal asks a process for an upgrade.
var Signal os.Signal = syscall.SIGUSR2
