package admin

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metric is a counter or a gauge whose values the Source knows: they are asked for
// when somebody wants to see them, and cost nothing before.
type Metric struct {
	Name, Help string
	Labels     []string

	kind prometheus.ValueType
	desc *prometheus.Desc
}

// all are the metrics in the order in which they are defined.
var all []*Metric

func define(kind prometheus.ValueType, name, help string, labels []string) *Metric {
	m := &Metric{Name: name, Help: help, Labels: labels, kind: kind}
	m.desc = prometheus.NewDesc(name, help, labels, nil)
	all = append(all, m)
	return m
}

func counter(name, help string, labels ...string) *Metric {
	return define(prometheus.CounterValue, name, help, labels)
}

func gauge(name, help string, labels ...string) *Metric {
	return define(prometheus.GaugeValue, name, help, labels)
}

// The metrics of a gateway. Their names are an interface: they never change their
// meaning, and docs/operating.md lists them.
var (
	BuildInfo = gauge("gateway_build_info", "1, labelled with what this was built from.", "version", "commit", "goversion")
	StartTime = gauge("gateway_start_time_seconds", "When the gateway started, in seconds since 1970.")
	Ready     = gauge("gateway_ready", "1 if new clients may come, 0 while /readyz says why not.")
	Draining  = gauge("gateway_draining", "1 while new clients should go elsewhere: since /api/drain, or since the signal to end.")

	Accepted    = counter("gateway_accepted_total", "Connections accepted.", "listener")
	Connections = counter("gateway_connections_total", "Connections by what became of them: 200 is a tunnel, anything else a refusal, or for HTTP the last answer; none: nobody was there to read a status.", "listener", "form", "status")
	Pending     = gauge("gateway_connections_pending", "Connections that are neither a tunnel nor refused yet: clients that have not said all, backends that are dialed, HTTP.")
	Refusals    = counter("gateway_refusals_total", "Connections that came to no backend, by reason.", "reason")

	TunnelsActive = gauge("gateway_tunnels_active", "Tunnels that are open.")
	TunnelsEnded  = counter("gateway_tunnels_ended_total", "Tunnels that have ended, by who ended them, how, and by which limit.", "by", "how", "limit")
	Bytes         = counter("gateway_bytes_total", "Bytes moved, those of living tunnels included: up from clients, down to them; spliced inside the kernel, copied, or the bodies of HTTP.", "direction", "path")

	Requests        = counter("gateway_http_requests_total", "Requests of HTTP clients by their kind and what they were answered; 0: nothing.", "kind", "status")
	RequestRefusals = counter("gateway_http_refusals_total", "Requests of HTTP clients that failed, by reason.", "reason")
	TokenFailures   = counter("gateway_token_failures_total", "Tokens that did not open, by reason.", "reason")

	Dials          = counter("gateway_dials_total", "Attempts to connect a backend, by result (ok, or the reason of a refusal) and by which attempt of a connection it was; 4 is the fourth and later ones.", "result", "attempt")
	BackendTunnels = gauge("gateway_backend_tunnels_active", "Tunnels that are open, for each backend of -forward and of a service; other: those that came too late for a place of their own.", "backend")
	BackendFailed  = counter("gateway_backend_failures_total", "Attempts to connect such a backend that failed.", "backend")
	BackendSkipped = gauge("gateway_backend_skipped", "1 while such a backend is passed over since it has failed.", "backend")

	LoopBusy    = counter("gateway_loop_busy_seconds_total", "Time in which a loop worked; its rate is the share of its time: at 1 it is full.", "loop")
	LoopLongest = gauge("gateway_loop_longest_turn_seconds", "The longest that a loop has let its connections wait for each other, within this minute and the last.", "loop")
	LoopConns   = gauge("gateway_loop_connections", "Connections of a loop.", "loop")
	PipesOpen   = gauge("gateway_pipes_open", "Pipes for splicing, lent or idle.")
	PipesLimit  = gauge("gateway_pipes_limit", "Pipes for splicing that there may be; beyond it, data are copied.")

	DNSLookups = counter("gateway_dns_lookups_total", "Lookups, by what was looked up (address, service) and the result (ok, not_found, failed).", "type", "result")
	DNSStale   = gauge("gateway_dns_stale_seconds", "For how long the oldest answer that is in use since it cannot be looked up has been out of date.")

	TLSHandshakes = counter("gateway_tls_handshakes_total", "TLS handshakes with clients, by version (none: it failed before one was agreed on) and result.", "version", "result")
	TLSExpiry     = gauge("gateway_tls_certificate_expiry_timestamp_seconds", "When the certificate expires, in seconds since 1970; absent without one.", "file")

	Reloads = counter("gateway_reloads_total", "Changes of files that were taken up while the gateway runs, or failed to be: certificate, token_keys.", "what", "result")

	KCPSessions    = gauge("gateway_kcp_sessions", "Live KCP sessions.", "listener")
	KCPUnproven    = gauge("gateway_kcp_sessions_unproven", "Those of them whose client has not proven its address.", "listener")
	KCPRefused     = counter("gateway_kcp_refused_total", "First datagrams for which there was no room.", "listener")
	KCPChallenged  = counter("gateway_kcp_challenged_total", "First datagrams that were answered by a challenge only.", "listener")
	KCPDropped     = counter("gateway_kcp_dropped_total", "Datagrams that belong to no session, or prove what is not so.", "listener")
	KCPRetransmits = counter("gateway_kcp_retransmitted_total", "KCP packets that were sent again, to clients and to backends.")

	DescriptorsOpen  = gauge("gateway_descriptors_open", "File descriptors in use.")
	DescriptorsLimit = gauge("gateway_descriptors_limit", "File descriptors that the process may have.")
)

// Sample is the values of all metrics at one time.
type Sample struct {
	values map[sampleKey]float64
}

type sampleKey struct {
	metric *Metric
	labels string // joined by \xff, which no text in UTF-8 has
}

// Add adds to a value of a metric, which has as many labels as it was defined with.
// Values without labels are 0 to begin with.
func (s *Sample) Add(m *Metric, value float64, labels ...string) {
	s.values[sampleKey{m, strings.Join(labels, "\xff")}] += value
}

// Metrics are a registry of all metrics, and those that are fed as things happen.
type Metrics struct {
	registry *prometheus.Registry
}

// NewMetrics returns metrics of which nothing is known yet.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// Histogram is a distribution of durations, in seconds. A nil one takes nothing.
type Histogram struct{ h prometheus.Histogram }

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	if h != nil {
		h.h.Observe(d.Seconds())
	}
}

// histogram makes one with classic buckets and, for scrapers that understand them,
// native ones.
func (m *Metrics) histogram(name, help string) *Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help,
		Buckets:                         []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  160,
		NativeHistogramMinResetDuration: time.Hour,
	})
	m.registry.MustRegister(h)
	return &Histogram{h}
}

// handler serves the metrics of a source. It is for one server.
func (m *Metrics) handler(source Source, log *slog.Logger) http.Handler {
	m.registry.MustRegister(sampler{source})
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 8,
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
	})
}

// sampler asks a source for the values of the metrics.
type sampler struct{ source Source }

func (s sampler) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range all {
		ch <- m.desc
	}
}

func (s sampler) Collect(ch chan<- prometheus.Metric) {
	sample := Sample{values: make(map[sampleKey]float64)}
	for _, m := range all {
		if len(m.Labels) == 0 {
			sample.Add(m, 0)
		}
	}
	open, limit := descriptors()
	sample.Add(DescriptorsOpen, float64(open))
	sample.Add(DescriptorsLimit, float64(limit))
	s.source.Collect(&sample)
	for k, v := range sample.values {
		var labels []string
		if len(k.metric.Labels) > 0 {
			labels = strings.Split(k.labels, "\xff")
		}
		c, err := prometheus.NewConstMetric(k.metric.desc, k.metric.kind, v, labels...)
		if err != nil {
			c = prometheus.NewInvalidMetric(k.metric.desc, err)
		}
		ch <- c
	}
}
