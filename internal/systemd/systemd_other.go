//go:build !linux

package systemd

// monotonic is for systemd, which runs on Linux only.
func monotonic() string { return "MONOTONIC_USEC=0" }

// Socket is one that the process was started with.
type Socket struct {
	Name string
	FD   int
}

// Sockets returns none.
func Sockets() ([]Socket, error) { return nil, nil }
