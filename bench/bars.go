package main

import (
	"cmp"
	"fmt"
	"slices"
)

// The names of the contenders.
const (
	gatewayName = "gateway"
	forwardName = "forward"
	epollName   = "gateway-epoll"
	haproxyName = "haproxy"
	splicedName = "haproxy-splice"
	nginxName   = "nginx"
	ioCopyName  = "go-io.Copy"
	directName  = "direct"
)

// quantity is what a bar is about.
type quantity string

const (
	cost        quantity = "cost"        // the least CPU or memory per unit
	rate        quantity = "rate"        // the highest
	descriptors quantity = "descriptors" // the median; of one alone
)

// bar is what the gateway has to reach, pinned to one CPU: its figure as a
// ratio to the peer's is at most the limit; for a rate, at least.
type bar struct {
	Contender string // the gateway, with or without its handshake or io_uring
	Workload  string
	Peer      string // empty: the figure itself
	Than      string `json:",omitempty"` // the peer's workload, if it is another
	Quantity  quantity
	Limit     float64
}

// bars lists them all.
func bars() []bar {
	webSockets := []bar{
		{gatewayName, "ws-64B-64", gatewayName, "echo-64B-64", cost, 1.25},
		{gatewayName, "ws-64B-1000", gatewayName, "echo-64B-1000", cost, 1.25},
		{gatewayName, "roam-64B-64", gatewayName, "echo-64B-64", cost, 1.15},
		{gatewayName, "roam-64B-1000", gatewayName, "echo-64B-1000", cost, 1.15},
	}
	for _, w := range []string{"through-64B-64", "through-64B-1000"} {
		webSockets = append(webSockets, bar{gatewayName, w, haproxyName, "", cost, .95}, bar{gatewayName, w, nginxName, "", cost, 1.00})
	}
	overTLS := []bar{
		{gatewayName, "tls-64B-64", haproxyName, "", cost, .90},
		{gatewayName, "tls-64B-1000", haproxyName, "", cost, .95},
		{gatewayName, "tls-up-8", haproxyName, "", cost, 1.00},
		{gatewayName, "tls-down-8", haproxyName, "", cost, 1.00},
		{gatewayName, "tls-short", haproxyName, "", cost, 1.10},
	}
	// HAProxy has no handshake to make.
	batched := messageCosts{one: .92, many: .45, thousand: .45, nginxMany: .45, nginxThousand: .45}
	alone := messageCosts{one: .94, many: .87, thousand: .78, nginxMany: .95, nginxThousand: .93}
	return slices.Concat(webSockets, overTLS,
		barsOf(gatewayName, .80, batched),
		barsOf(forwardName, .80, batched),
		barsOf(epollName, 1.08, alone),
		// What the operator's service knows costs about as much as what DNS knows.
		[]bar{{gatewayName, "ask", gatewayName, "srv", cost, 1.10}, {epollName, "ask", epollName, "srv", cost, 1.10}},
		// To ask for a ticket costs no more than to look up a name.
		[]bar{{gatewayName, "ticket", gatewayName, "lookup", cost, 1.00}, {epollName, "ticket", epollName, "lookup", cost, 1.00}})
}

// messageCosts are bars on the cost of messages: on one tunnel, on 64, whatever
// the size, and on 1000; to HAProxy, and to nginx.
type messageCosts struct{ one, many, thousand, nginxMany, nginxThousand float64 }

// barsOf lists one contender's; shortCost is its bar on short connections.
func barsOf(contender string, shortCost float64, message messageCosts) []bar {
	var list []bar
	add := func(q quantity, peer string, limit float64, workloads ...string) {
		for _, w := range workloads {
			list = append(list, bar{contender, w, peer, "", q, limit})
		}
	}
	one := []string{"bulk-up-1", "bulk-down-1"}
	eight := []string{"bulk-up-8", "bulk-down-8"}
	bulk := append(append([]string(nil), one...), eight...)

	add(cost, haproxyName, .16, bulk...)
	add(cost, splicedName, 1.04, one...)
	add(cost, splicedName, .95, eight...)

	add(cost, haproxyName, message.one, "echo-64B-1")
	add(cost, haproxyName, message.many, "echo-64B-64", "echo-1KiB-64")
	add(cost, haproxyName, message.thousand, "echo-64B-1000")
	add(cost, nginxName, 1.00, "echo-64B-1")
	add(cost, nginxName, message.nginxMany, "echo-64B-64", "echo-1KiB-64")
	add(cost, nginxName, message.nginxThousand, "echo-64B-1000")

	add(cost, haproxyName, shortCost, "short")

	add(cost, haproxyName, .20, "idle", idleBurst)
	add(descriptors, "", 2, "idle", idleBurst)

	add(rate, splicedName, .95, bulk...)
	add(rate, haproxyName, 1.00, "echo-64B-1", "echo-64B-64", "echo-64B-1000", "echo-1KiB-64")
	if contender == forwardName {
		add(rate, haproxyName, 1.00, "short")
	}

	// A slow client never slows another.
	return append(list,
		bar{contender, "stalled", contender, withoutStalled, cost, 1.05},
		bar{contender, "stalled", contender, withoutStalled, rate, .95})
}

// value returns the figure that a bar judges; ok is false if it is not known.
func (b bar) value(t *table) (value float64, ok bool) {
	ours, theirs := t.at(b.Workload, b.Contender), t.at(cmp.Or(b.Than, b.Workload), b.Peer)
	switch b.Quantity {
	case cost:
		return ratio(first(ours.costs()), first(theirs.costs()))
	case rate:
		return ratio(last(ours.rates()), last(theirs.rates()))
	default: // descriptors
		value = median(ours.descriptors())
		return value, value > 0
	}
}

// met compares with the two decimals in which limits are given.
func (b bar) met(value float64) bool {
	value = float64(int(value*100+.5)) / 100
	if b.Quantity == rate {
		return value >= b.Limit
	}
	return value <= b.Limit
}

// verdict is a bar and what came of it.
type verdict struct {
	bar
	Known bool // whether both figures were measured
	Value float64
	Met   bool
}

func judge(t *table) []verdict {
	var list []verdict
	for _, b := range bars() {
		value, ok := b.value(t)
		list = append(list, verdict{b, ok, value, ok && b.met(value)})
	}
	return list
}

func (v verdict) String() string {
	sign, word := "≤", "ok"
	if v.Quantity == rate {
		sign = "≥"
	}
	if !v.Met {
		word = "MISSED"
	}
	return fmt.Sprintf("%s (%s %s %s)", short2(v.Value), sign, short2(v.Limit), word)
}

// short2 writes a ratio with two decimals and, below 1, without the zero.
func short2(v float64) string {
	text := fmt.Sprintf("%.2f", v)
	if v < 1 && text[0] == '0' {
		return text[1:]
	}
	return text
}
