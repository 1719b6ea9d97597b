package main

import "fmt"

// kind is what a workload does.
type kind string

const (
	bulkUp   kind = "bulk up"   // the clients send as fast as they can
	bulkDown kind = "bulk down" // the backend does
	echo     kind = "echo"      // each client has one message under way
	short    kind = "short"     // connect, one echo, close; again
	stalled  kind = "stalled"   // echo, beside readers that do not read
	byToken  kind = "token"     // short, opened by a token
	badToken kind = "bad token" // connect, bring a token that does not open; again
	idle     kind = "idle"      // many tunnels rest
)

// ofTokens tells whether it is for gateways alone, because it takes tokens.
func (k kind) ofTokens() bool { return k == byToken || k == badToken }

// workload is one row of the tables.
type workload struct {
	key     string // names it in -workloads and in the JSON
	title   string
	kind    kind
	tunnels int
	size    int // of a message, in bytes
}

// Two workloads fill a second row: idle with the same tunnels after a burst
// went through each, stalled with the same tunnels without the stalled readers.
const (
	idleBurst      = "idle-burst"
	withoutStalled = "stalled-without"
)

const (
	// stalledReaders is how many clients ask for a stream and do not read it.
	stalledReaders = 100

	burstBytes = 256 << 10
	// shortClients is how many clients connect, talk and close side by side.
	shortClients = 16
)

// workloads returns all of them. idleTunnels is -idle.
func workloads(idleTunnels int) []workload {
	list := []workload{
		{"bulk-up-1", "bulk up, 1 stream", bulkUp, 1, 1},
		{"bulk-down-1", "bulk down, 1 stream", bulkDown, 1, 1},
		{"bulk-up-8", "bulk up, 8 streams", bulkUp, 8, 1},
		{"bulk-down-8", "bulk down, 8 streams", bulkDown, 8, 1},
		{"echo-64B-1", "64 B echo, 1 tunnel", echo, 1, 64},
		{"echo-64B-64", "64 B echo, 64 tunnels", echo, 64, 64},
		{"echo-64B-1000", "64 B echo, 1000 tunnels", echo, 1000, 64},
		{"echo-1KiB-64", "1 KiB echo, 64 tunnels", echo, 64, 1024},
		{"short", "short connections", short, shortClients, 64},
		{"token", "short connections, by token", byToken, shortClients, 64},
		{"token-bad", "refused: a forged token", badToken, shortClients, 64},
		{"stalled", fmt.Sprintf("beside %d stalled readers", stalledReaders), stalled, 100, 64},
	}
	title := fmt.Sprintf("idle, %d tunnels", idleTunnels)
	return append(list, workload{"idle", title, idle, idleTunnels, 64})
}

// rows is what the tables show of the workloads: themselves, and the second
// rows of those that have one.
func rows(list []workload) []workload {
	var all []workload
	for _, w := range list {
		if w.kind == stalled {
			without := w
			without.key, without.title = withoutStalled, "64 B echo, 100 tunnels"
			all = append(all, without)
		}
		all = append(all, w)
		if w.kind == idle {
			w.key, w.title = idleBurst, "idle, after 256 KiB each"
			all = append(all, w)
		}
	}
	return all
}
