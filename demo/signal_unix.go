//go:build unix

package main

import (
	"strconv"
	"syscall"
)

// sigUpgrade asks a gateway for an upgrade.
const sigUpgrade = syscall.SIGUSR2

func signalTo(pid string, sig syscall.Signal) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	return syscall.Kill(n, sig)
}
