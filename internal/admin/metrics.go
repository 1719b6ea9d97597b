package admin

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are a registry of all metrics, and those that are fed as things happen.
type Metrics struct {
	registry *prometheus.Registry

	// Handshake is from the accept of a connection to the end of its request, Dial
	// from the beginning of an attempt to connect a backend to its success, and
	// FirstByte from the beginning of a tunnel to the first byte of its backend. Ask is
	// from a question to the operator's service to its answer, and Stall from the loss of
	// a resumable tunnel's connection to its resume.
	Handshake, Dial, FirstByte, Ask, Stall *Histogram
}

// NewMetrics returns metrics of which nothing is known yet.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.Handshake, m.Dial, m.FirstByte = m.histogram(0), m.histogram(1), m.histogram(2)
	m.Ask, m.Stall = m.histogram(3), m.histogram(4)
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

// histograms are those of Metrics, in their order there.
var histograms = [...]struct {
	name, help string
	slower     []float64 // upper bounds of buckets behind those of all, in seconds
}{
	{"gateway_handshake_duration_seconds", "From the accept of a connection to the end of its request, where it is asked for one; not for HTTP.", nil},
	{"gateway_dial_duration_seconds", "From the beginning of an attempt to connect a backend to its success.", nil},
	{"gateway_first_byte_duration_seconds", "From the beginning of a tunnel to the first byte of its backend.", nil},
	{"gateway_ask_duration_seconds", "From a question to the service of -ask to its answer, or to the end of the wait for one.", nil},
	{"gateway_resume_stall_seconds", "From the loss of a resumable tunnel's connection to its resume, where the gateway knew of the loss before.", []float64{30, 60, 300}},
}

// histogram makes the nth with classic buckets and, for scrapers that understand them,
// native ones.
func (m *Metrics) histogram(n int) *Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: histograms[n].name, Help: histograms[n].help,
		Buckets:                         append([]float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, histograms[n].slower...),
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  160,
		NativeHistogramMinResetDuration: time.Hour,
	})
	m.registry.MustRegister(h)
	return &Histogram{h}
}

// handler serves the metrics of a source. There may be one server after another: a
// gateway serves again where the process that took its place has died.
func (m *Metrics) handler(source Source, log *slog.Logger) http.Handler {
	sampled := prometheus.NewRegistry()
	sampled.MustRegister(sampler{source})
	return promhttp.HandlerFor(prometheus.Gatherers{m.registry, sampled}, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 8,
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
	})
}

// sampler asks a source for the values of the metrics.
type sampler struct{ source Source }

func (s sampler) Describe(ch chan<- *prometheus.Desc) {
	for i := range values {
		ch <- values[i].desc
	}
}

func (s sampler) Collect(ch chan<- prometheus.Metric) {
	st := s.source.Status()
	for i := range values {
		m := &values[i]
		sums := make(map[string]float64)
		m.tell(&st, func(value float64, labels ...string) {
			sums[strings.Join(labels, "\xff")] += value // which no text in UTF-8 has
		})
		for joined, sum := range sums {
			var labels []string
			if len(m.labels) > 0 {
				labels = strings.Split(joined, "\xff")
			}
			c, err := prometheus.NewConstMetric(m.desc, m.kind, sum, labels...)
			if err != nil {
				c = prometheus.NewInvalidMetric(m.desc, err)
			}
			ch <- c
		}
	}
}

// Names returns the names of all metrics but those of Go and the process.
func Names() (names []string) {
	for _, h := range histograms {
		names = append(names, h.name)
	}
	for i := range values {
		names = append(names, values[i].name)
	}
	slices.Sort(names)
	return names
}

// Labels returns the labels of a metric.
func Labels(name string) []string {
	for i := range values {
		if values[i].name == name {
			return values[i].labels
		}
	}
	return nil
}

// Help returns what is said of a metric.
func Help(name string) string {
	for _, h := range histograms {
		if h.name == name {
			return h.help
		}
	}
	for i := range values {
		if values[i].name == name {
			return values[i].help
		}
	}
	return ""
}
