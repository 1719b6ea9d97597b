//go:build unix

package logwriter

import (
	"os"
	"syscall"
)

// Signal asks a process to open its log file once more, as nginx has it.
var Signal os.Signal = syscall.SIGUSR1
