package main

import (
	"fmt"
	"slices"
	"strings"
)

// kind is what a workload does.
type kind string

const (
	bulkUp   kind = "bulk up"   // the clients send as fast as they can
	bulkDown kind = "bulk down" // the backend does
	echo     kind = "echo"      // each client has one message under way
	echoWS   kind = "echo WS"   // the same by WebSockets that end at the gateway
	echoPass kind = "echo pass" // … that go through to the backend
	echoRoam kind = "echo roam" // by resumable tunnels
	short    kind = "short"     // connect, one echo, close; again
	upTLS    kind = "TLS up"    // bulk, whose clients speak TLS
	downTLS  kind = "TLS down"
	echoTLS  kind = "echo TLS"
	shortTLS kind = "short TLS" // each with a full handshake
	stalled  kind = "stalled"   // echo, beside readers that do not read
	beside   kind = "flood"     // echo, beside a flood
	byToken  kind = "token"     // short, opened by a token
	badToken kind = "bad token" // connect, bring a token that does not open; again
	bySRV    kind = "srv"       // short, by a name that DNS knows
	byAsk    kind = "ask"       // short, by a name that the operator's service knows
	byTicket kind = "ticket"    // short, by a ticket that it is asked for each time
	byNew    kind = "lookup"    // short, by a host name that is looked up, since it is new
	byNewSRV kind = "new srv"   // the same by the name of a service
	idle     kind = "idle"      // many tunnels rest
	idleTLS  kind = "idle TLS"  // the same, whose clients speak TLS
	idleWS   kind = "idle WS"   // WebSockets
	idleWSS  kind = "idle WSS"  // or both
)

// rests tells whether memory is judged, and no work.
func (k kind) rests() bool { return k == idle || k.layer() != "" }

// layer is what clients speak on top of TCP.
type layer string

const (
	overTLS layer = "tls"
	overWS  layer = "ws"
	overWSS layer = "wss"
)

// layer returns the layer that a workload is about, which is one for gateways
// alone; none otherwise.
func (k kind) layer() layer {
	return map[kind]layer{idleTLS: overTLS, idleWS: overWS, idleWSS: overWSS}[k]
}

// alone tells whether each measurement has a process of its own.
func (k kind) alone() bool { return k.rests() || k == beside || k.insideTLS() != "" }

// insideTLS returns what a workload does whose clients speak TLS; empty for any other.
func (k kind) insideTLS() kind {
	return map[kind]kind{upTLS: bulkUp, downTLS: bulkDown, echoTLS: echo, shortTLS: short}[k]
}

// ofTokens tells whether it is for gateways alone, because it takes tokens.
func (k kind) ofTokens() bool { return k == byToken || k == badToken }

// ofNames tells whether it is for gateways alone, because it takes names or tickets.
func (k kind) ofNames() bool { return k == bySRV || k == byAsk || k == byTicket || k.isNew() }

// isNew tells whether each connection brings a name that nobody has brought before.
func (k kind) isNew() bool { return k == byNew || k == byNewSRV }

// workload is one row of the tables.
type workload struct {
	key     string // names it in -workloads and in the JSON
	title   string
	kind    kind
	tunnels int
	size    int // of a message, in bytes
}

// Some workloads fill a second row: the idle ones with the same tunnels after a
// burst went through each, stalled and floods with the same tunnels without what is
// beside them.
const (
	afterBurst     = "-burst" // behind the workload's key
	idleBurst      = "idle" + afterBurst
	withoutStalled = "stalled-without"
	withoutFlood   = "flood-without"
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
		{"ws-64B-64", "64 B echo, 64 WebSockets", echoWS, 64, 64},
		{"ws-64B-1000", "64 B echo, 1000 WebSockets", echoWS, 1000, 64},
		{"roam-64B-64", "64 B echo, 64 resumable tunnels", echoRoam, 64, 64},
		{"roam-64B-1000", "64 B echo, 1000 resumable tunnels", echoRoam, 1000, 64},
		{"through-64B-64", "64 B echo, 64 WebSockets passed through", echoPass, 64, 64},
		{"through-64B-1000", "64 B echo, 1000 WebSockets passed through", echoPass, 1000, 64},
		{"tls-up-8", "bulk up over TLS, 8 streams", upTLS, 8, 1},
		{"tls-down-8", "bulk down over TLS, 8 streams", downTLS, 8, 1},
		{"tls-64B-1", "64 B echo over TLS, 1 tunnel", echoTLS, 1, 64},
		{"tls-64B-64", "64 B echo over TLS, 64 tunnels", echoTLS, 64, 64},
		{"tls-64B-1000", "64 B echo over TLS, 1000 tunnels", echoTLS, 1000, 64},
		{"tls-short", "short connections over TLS", shortTLS, shortClients, 64},
		{"short", "short connections", short, shortClients, 64},
		{"token", "short connections, by token", byToken, shortClients, 64},
		{"token-bad", "refused: a forged token", badToken, shortClients, 64},
		{"srv", "short connections, by srv:", bySRV, shortClients, 64},
		{"ask", "short connections, by ask:", byAsk, shortClients, 64},
		{"ticket", "short connections, by ticket", byTicket, shortClients, 64},
		{"lookup", "short connections, by new names", byNew, shortClients, 64},
		{"lookup-srv", "short connections, by new srv:", byNewSRV, shortClients, 64},
		{"stalled", fmt.Sprintf("beside %d stalled readers", stalledReaders), stalled, 100, 64},
	}
	for _, flood := range []struct{ key, title string }{
		{"lines", "bad lines"}, {"tokens", "forged tokens"}, {"tls", "ClientHellos"}, {"http", "HTTP without an address"}, {"silent", "silent connects"},
	} {
		list = append(list, workload{"flood-" + flood.key, "beside a flood of " + flood.title, beside, 100, 64})
	}
	tunnels := fmt.Sprintf(", %d tunnels", idleTunnels)
	return append(list,
		workload{"idle", "idle" + tunnels, idle, idleTunnels, 64},
		workload{"idle-tls", "idle over TLS" + tunnels, idleTLS, idleTunnels, 64},
		workload{"idle-ws", "idle WebSockets" + tunnels, idleWS, idleTunnels, 64},
		workload{"idle-wss", "idle WebSockets over TLS" + tunnels, idleWSS, idleTunnels, 64})
}

// rows is what the tables show of the workloads: themselves, and the second
// rows of those that have one.
func rows(list []workload) []workload {
	var all []workload
	for _, w := range list {
		if w.kind == beside && !slices.ContainsFunc(all, func(w workload) bool { return w.key == withoutFlood }) {
			without := w
			without.key, without.title = withoutFlood, "64 B echo, 100 tunnels, with limits"
			all = append(all, without)
		}
		if w.kind == stalled {
			without := w
			without.key, without.title = withoutStalled, "64 B echo, 100 tunnels"
			all = append(all, without)
		}
		all = append(all, w)
		if w.kind.rests() {
			what, _, _ := strings.Cut(w.title, ",")
			w.key, w.title = w.key+afterBurst, what+", after 256 KiB each"
			all = append(all, w)
		}
	}
	return all
}
