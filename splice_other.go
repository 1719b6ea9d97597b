//go:build !linux

package main

// defaultPump is the portable pump where there is no splice(2).
var defaultPump pumpFunc = copyPump

// pipePool is empty: there are no pipes to keep.
type pipePool struct{}

func (*pipePool) close() {}
