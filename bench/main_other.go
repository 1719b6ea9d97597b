//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it needs Linux (epoll, CPU affinity, network namespaces)")
	os.Exit(2)
}
