//go:build !unix

package main

import (
	"errors"
	"syscall"
)

const sigUpgrade = syscall.Signal(-1)

func signalTo(string, syscall.Signal) error {
	return errors.New("this system has no SIGUSR2: upgrades need Linux")
}
