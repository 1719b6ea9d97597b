// Package sockopt asks the operating system for what package net does not
// offer: sharing a port, telling what waits or that a peer has reset without
// reading, counting the bytes a peer has not acknowledged, and giving up a peer
// that acknowledges nothing. Where a system lacks one of them, the function
// says so or does the nearest thing.
package sockopt

import "time"

// The most that Linux takes, in whole units; it refuses a longer keepalive and
// cuts off the upper bits of a longer user timeout.
const (
	MaxKeepalive   = 9 * time.Hour   // 32767 s
	MaxUserTimeout = 596 * time.Hour // 1<<31 - 1 ms
)
