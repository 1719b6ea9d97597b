package admin

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// value is a counter or a gauge that is read from a Status: it costs nothing before
// somebody wants to see it.
type value struct {
	name, help string
	labels     []string
	kind       prometheus.ValueType
	tell       func(st *Status, add add) // tells all values there are
	desc       *prometheus.Desc
}

// add tells a value, with as many labels as its metric has. What has the same labels
// is added up.
type add func(value float64, labels ...string)

func counter(name, help string, tell func(*Status, add), labels ...string) value {
	return value{name, help, labels, prometheus.CounterValue, tell, prometheus.NewDesc(name, help, labels, nil)}
}

func gauge(name, help string, tell func(*Status, add), labels ...string) value {
	return value{name, help, labels, prometheus.GaugeValue, tell, prometheus.NewDesc(name, help, labels, nil)}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// values are all of them. Their names are an interface: they never change their
// meaning, and docs/operating.md lists them.
var values = []value{
	gauge("gateway_build_info", "1, labelled with what this was built from.",
		func(st *Status, add add) { add(1, st.Version, st.Commit, st.Go) }, "version", "commit", "goversion"),
	gauge("gateway_start_time_seconds", "When the gateway started, in seconds since 1970.",
		func(st *Status, add add) { add(float64(st.Started.UnixMicro()) / 1e6) }),
	gauge("gateway_ready", "1 if new clients may come, 0 while /readyz says why not.",
		func(st *Status, add add) { add(truth(st.Ready)) }),
	gauge("gateway_draining", "1 while new clients should go elsewhere: since /api/drain, or since the signal to end.",
		func(st *Status, add add) { add(truth(st.Draining)) }),

	counter("gateway_accepted_total", "Connections accepted.",
		func(st *Status, add add) {
			for _, l := range st.Listeners {
				add(float64(l.Accepted), l.Name)
			}
		}, "listener"),
	counter("gateway_connections_total", "Connections by what became of them. Status 200 is a tunnel, resumed a client that came back to its own, for HTTP that the last request was answered; any other a refusal, none one that nobody was there to read.",
		func(st *Status, add add) {
			for _, c := range st.Connections {
				add(float64(c.Count), c.Listener, c.Form, c.Status)
			}
		}, "listener", "form", "status"),
	gauge("gateway_connections_pending", "Connections that have come to nothing yet: clients that have not said all, backends that are dialed, HTTP.",
		func(st *Status, add add) { add(float64(st.Pending)) }),
	counter("gateway_refusals_total", "Connections that came to no backend, by reason.",
		func(st *Status, add add) {
			for _, r := range st.Refusals {
				add(float64(r.Count), r.Reason)
			}
		}, "reason"),
	counter("gateway_token_failures_total", "Tokens that did not open, by reason, of connections and of HTTP requests.",
		func(st *Status, add add) {
			for _, list := range [][]ReasonCount{st.Refusals, st.RequestRefusals} {
				for _, r := range list {
					if strings.HasPrefix(r.Reason, "token_") {
						add(float64(r.Count), r.Reason)
					}
				}
			}
		}, "reason"),

	gauge("gateway_tunnels_active", "Tunnels that are open.",
		func(st *Status, add add) { add(float64(st.Tunnels.Active)) }),
	counter("gateway_tunnels_opened_total", "Tunnels that were opened.",
		func(st *Status, add add) { add(float64(st.Tunnels.Opened)) }),
	gauge("gateway_tunnels_moved", "Tunnels that came from other processes by upgrades, less those that went to them.",
		func(st *Status, add add) { add(float64(st.Tunnels.Moved)) }),
	counter("gateway_tunnels_ended_total", "Tunnels that have ended, by who ended them, how, and by which limit (idle, half_close, drain, user_timeout, keepalive; empty: none).",
		func(st *Status, add add) {
			for _, e := range st.Tunnels.Ended {
				add(float64(e.Count), e.By, e.How, e.Limit)
			}
		}, "by", "how", "limit"),
	counter("gateway_bytes_total", "Bytes moved, through living tunnels too: up from clients, down to them; spliced inside the kernel, copied, or http for bodies.",
		func(st *Status, add add) {
			for direction, m := range map[string]Moved{"up": st.Bytes.Up, "down": st.Bytes.Down} {
				add(float64(m.Spliced), direction, "spliced")
				add(float64(m.Copied), direction, "copied")
				add(float64(m.HTTP), direction, "http")
			}
		}, "direction", "path"),

	counter("gateway_http_requests_total", "Requests of HTTP clients by their kind and what they were answered; 0: nothing.",
		func(st *Status, add add) {
			for _, r := range st.Requests {
				add(float64(r.Count), r.Kind, strconv.Itoa(r.Status))
			}
		}, "kind", "status"),
	counter("gateway_http_refusals_total", "Requests of HTTP clients that failed, by reason.",
		func(st *Status, add add) {
			for _, r := range st.RequestRefusals {
				add(float64(r.Count), r.Reason)
			}
		}, "reason"),

	counter("gateway_dials_total", "Attempts to connect a backend, by result (ok, or the reason of a refusal) and by which attempt of a connection it was; 4 is the fourth or a later one.",
		func(st *Status, add add) {
			for _, d := range st.Dials {
				add(float64(d.Count), d.Result, strconv.Itoa(d.Attempt))
			}
		}, "result", "attempt"),
	gauge("gateway_backend_tunnels_active", "Tunnels that are open, by backend of -forward or of a service; other: those for which there is no place.",
		func(st *Status, add add) {
			for _, b := range st.Backends {
				add(float64(b.Tunnels), b.Address)
			}
		}, "backend"),
	counter("gateway_backend_failures_total", "Attempts to connect such a backend that failed by its fault.",
		func(st *Status, add add) {
			for _, b := range st.Backends {
				add(float64(b.Failures), b.Address)
			}
		}, "backend"),
	gauge("gateway_backend_skipped", "1 while such a backend is passed over since it has failed.",
		func(st *Status, add add) {
			for _, b := range st.Backends {
				add(truth(b.Skipped), b.Address)
			}
		}, "backend"),

	counter("gateway_loop_busy_seconds_total", "Time in which a loop worked. Its rate is the share of the loop's time that is work: at 1 it is full.",
		func(st *Status, add add) {
			for i, l := range st.Loops {
				add(l.BusySeconds, strconv.Itoa(i))
			}
		}, "loop"),
	gauge("gateway_loop_longest_turn_seconds", "The longest for which a loop has let its connections wait for each other, in this minute and the last.",
		func(st *Status, add add) {
			for i, l := range st.Loops {
				add(l.LongestTurnSeconds, strconv.Itoa(i))
			}
		}, "loop"),
	gauge("gateway_loop_connections", "Connections of a loop.",
		func(st *Status, add add) {
			for i, l := range st.Loops {
				add(float64(l.Connections), strconv.Itoa(i))
			}
		}, "loop"),

	gauge("gateway_descriptors_open", "File descriptors in use.",
		func(st *Status, add add) { add(float64(st.Limits.Descriptors.Used)) }),
	gauge("gateway_descriptors_limit", "File descriptors that the process may have.",
		func(st *Status, add add) { add(float64(st.Limits.Descriptors.Limit)) }),
	gauge("gateway_connections_limit", "Connections for which the descriptors are enough; beyond it, clients wait to be accepted. 0: unknown.",
		func(st *Status, add add) { add(float64(st.Limits.Connections.Limit)) }),
	gauge("gateway_pipes_open", "Pipes for splicing, lent or idle.",
		func(st *Status, add add) { add(float64(st.Limits.Pipes.Used)) }),
	gauge("gateway_pipes_limit", "Pipes for splicing that there may be; beyond it, data are copied.",
		func(st *Status, add add) { add(float64(st.Limits.Pipes.Limit)) }),

	counter("gateway_dns_lookups_total", "Lookups, by what was looked up (address, service) and the result (ok, not_found, failed).",
		func(st *Status, add add) {
			for _, l := range st.DNS.Lookups {
				add(float64(l.Count), l.Type, l.Result)
			}
		}, "type", "result"),
	gauge("gateway_dns_stale_seconds", "For how long the oldest answer that stays in use, since it cannot be looked up again, has been out of date.",
		func(st *Status, add add) { add(st.DNS.StaleSeconds) }),

	counter("gateway_ask_questions_total", "Questions to the service of -ask, by result (answered, denied, limited, down, silent, bad, busy, given_up); down: also those that were not put while the circuit is open.",
		func(st *Status, add add) {
			for _, q := range st.Ask.Questions {
				add(float64(q.Count), q.Result)
			}
		}, "result"),
	counter("gateway_ask_hits_total", "Answers that were known without a question: fresh, or stale where the service gave none.",
		func(st *Status, add add) {
			for _, h := range st.Ask.Hits {
				add(float64(h.Count), h.Kind)
			}
		}, "kind"),
	gauge("gateway_ask_circuit_open", "1 while the service of -ask is out of order, and asked only now and then; absent without one.",
		func(st *Status, add add) {
			if st.Ask.On {
				add(truth(st.Ask.CircuitOpen))
			}
		}),
	counter("gateway_ask_label_total", "Tunnels and HTTP requests, by the label of the answer that led them; other: those for which there is no place.",
		func(st *Status, add add) {
			for _, l := range st.Ask.Labels {
				add(float64(l.Count), l.Label)
			}
		}, "label"),

	counter("gateway_tls_handshakes_total", "TLS handshakes with clients, by version (none: it failed before one was agreed on) and result.",
		func(st *Status, add add) {
			for _, h := range st.TLS.Handshakes {
				add(float64(h.Count), h.Version, h.Result)
			}
		}, "version", "result"),
	gauge("gateway_tls_certificate_expiry_timestamp_seconds", "When the certificate expires, in seconds since 1970; absent without one.",
		func(st *Status, add add) {
			if st.TLS.File != "" {
				add(float64(st.TLS.NotAfter.Unix()), st.TLS.File)
			}
		}, "file"),
	counter("gateway_reloads_total", "Changes of files that were taken up while the gateway ran, or failed to be.",
		func(st *Status, add add) {
			for _, r := range st.Reloads {
				add(float64(r.Count), r.What, r.Result)
			}
		}, "what", "result"),

	gauge("gateway_kcp_sessions", "Live KCP sessions.",
		func(st *Status, add add) {
			for _, l := range st.KCP.Listeners {
				add(float64(l.Sessions), l.Listener)
			}
		}, "listener"),
	gauge("gateway_kcp_sessions_unproven", "Those of them whose client has not proven its address.",
		func(st *Status, add add) {
			for _, l := range st.KCP.Listeners {
				add(float64(l.Unproven), l.Listener)
			}
		}, "listener"),
	counter("gateway_kcp_refused_total", "First datagrams for which there was no room.",
		func(st *Status, add add) {
			for _, l := range st.KCP.Listeners {
				add(float64(l.Refused), l.Listener)
			}
		}, "listener"),
	counter("gateway_kcp_challenged_total", "First datagrams that were answered by a challenge only.",
		func(st *Status, add add) {
			for _, l := range st.KCP.Listeners {
				add(float64(l.Challenged), l.Listener)
			}
		}, "listener"),
	counter("gateway_kcp_dropped_total", "Datagrams that belong to no session, or prove what is not so.",
		func(st *Status, add add) {
			for _, l := range st.KCP.Listeners {
				add(float64(l.Dropped), l.Listener)
			}
		}, "listener"),
	counter("gateway_kcp_retransmitted_total", "KCP packets that were sent again, to clients and to backends.",
		func(st *Status, add add) { add(float64(st.KCP.Retransmitted)) }),

	gauge("gateway_resume_tunnels", "Resumable tunnels.",
		func(st *Status, add add) { add(float64(st.Resume.Tunnels)) }),
	gauge("gateway_resume_detached", "Those of them whose client is gone and may come back.",
		func(st *Status, add add) { add(float64(st.Resume.Detached)) }),
	gauge("gateway_resume_memory_bytes", "What resumable tunnels hold that is not acknowledged.",
		func(st *Status, add add) { add(float64(st.Resume.Memory)) }),
	counter("gateway_resume_attempts_total", "Requests to resume a tunnel, by result: ok, passed_on to the gateway that has it, or the reason of the refusal.",
		func(st *Status, add add) {
			for _, r := range st.Resume.Attempts {
				add(float64(r.Count), r.Result)
			}
		}, "result"),

	counter("gateway_log_lines_dropped_total", "Lines of the log that were not written.",
		func(st *Status, add add) { add(float64(st.LogDropped)) }),
}
