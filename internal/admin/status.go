package admin

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Status is a gateway at one time, as /api/status and the status page have it. Names
// and meanings are an interface: fields come, and do not change. Counts are since the
// start and never get less; from two of them and the times between them come rates.
// Lists are sorted, and empty rather than null.
type Status struct {
	Time     time.Time `json:"time"`    // of all that follows
	Started  time.Time `json:"started"` // the gateway did
	Version  string    `json:"version"`
	Commit   string    `json:"commit"`
	Go       string    `json:"go"` // its version
	PID      int       `json:"pid"`
	LogLevel string    `json:"log_level"` // debug, info, warn or error

	Ready    bool   `json:"ready"`            // new clients may come
	Reason   string `json:"reason,omitempty"` // why they had better not, as /readyz says it
	Draining bool   `json:"draining"`         // since /api/drain, or since the signal to end

	Listeners   []Listener        `json:"listeners"`
	Accepted    int64             `json:"accepted"`    // connections, of all listeners
	Pending     int64             `json:"pending"`     // connections that are neither a tunnel nor refused yet; gauge
	Connections []ConnectionCount `json:"connections"` // by what became of them
	Refusals    []ReasonCount     `json:"refusals"`    // connections that came to no backend
	Recent      []Refusal         `json:"recent_refusals"`

	Tunnels  Tunnels     `json:"tunnels"`
	Bytes    Bytes       `json:"bytes"`
	Dials    []DialCount `json:"dials"`
	Backends []Backend   `json:"backends"`

	Requests        []RequestCount `json:"http_requests"`
	RequestRefusals []ReasonCount  `json:"http_refusals"`
	TLS             TLS            `json:"tls"`
	DNS             DNS            `json:"dns"`
	KCP             KCP            `json:"kcp"`
	Resume          Resume         `json:"resume"`
	Ask             Ask            `json:"ask"`
	Reloads         []ReloadCount  `json:"reloads"`
	LogDropped      int64          `json:"log_lines_dropped"`

	Loops  []Loop `json:"loops"` // empty where goroutines serve
	Limits Limits `json:"limits"`
}

// Listener is an address that the gateway listens on.
type Listener struct {
	Name     string `json:"name"`              // HOST:PORT, with kcp:// before it for KCP
	Forward  string `json:"forward,omitempty"` // where its clients go, whatever they say
	Accepted int64  `json:"accepted"`          // connections
}

// ConnectionCount counts connections that have come to something.
type ConnectionCount struct {
	Listener string `json:"listener"`
	Form     string `json:"form"`   // line, prefixed, binary, http, websocket, forward, unknown, tls; with +tls or +kcp
	Status   string `json:"status"` // 200: a tunnel; http: the last answer; none: nobody was there to read one
	Count    int64  `json:"count"`
}

// ReasonCount counts refusals of one reason.
type ReasonCount struct {
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
}

// Refusal is a connection, or a request of HTTP, that was refused lately. The newest
// comes first, and there are no more than MaxRecent.
type Refusal struct {
	Time     time.Time `json:"time"`
	Client   string    `json:"client"` // IP:PORT
	Listener string    `json:"listener"`
	Form     string    `json:"form"`
	Status   string    `json:"status"` // empty: nobody was there to read one
	Reason   string    `json:"reason"`
	Backend  string    `json:"backend,omitempty"` // once one has been chosen
}

// MaxRecent is how many refusals are remembered.
const MaxRecent = 50

// Tunnels counts tunnels.
type Tunnels struct {
	Active int64      `json:"active"` // gauge
	Opened int64      `json:"opened"`
	Moved  int64      `json:"moved"` // that came from other processes, less those that went to them
	Ended  []EndCount `json:"ended"`
}

// ended returns how many have.
func (t *Tunnels) ended() (n int64) {
	for _, e := range t.Ended {
		n += e.Count
	}
	return n
}

// EndCount counts tunnels that ended in one way.
type EndCount struct {
	By    string `json:"by"`    // client, backend or gateway
	How   string `json:"how"`   // fin, reset, timeout, shutdown, cut or error
	Limit string `json:"limit"` // that ended it: idle, half_close or drain; empty: none
	Count int64  `json:"count"`
}

// Bytes counts what was moved, through living tunnels too.
type Bytes struct {
	Up   Moved `json:"up"`   // from clients to backends
	Down Moved `json:"down"` // and back
}

// Moved is one direction.
type Moved struct {
	Spliced int64 `json:"spliced"` // inside the kernel
	Copied  int64 `json:"copied"`
	HTTP    int64 `json:"http"` // bodies
}

// DialCount counts attempts to connect a backend.
type DialCount struct {
	Result  string `json:"result"`  // ok, or the reason of a refusal
	Attempt int    `json:"attempt"` // which of a connection it was; 4: the fourth or a later one
	Count   int64  `json:"count"`
}

// Backend is a backend that clients cannot choose: of -forward, or of a service.
type Backend struct {
	Address  string `json:"address"` // other: those for which there is no place
	Tunnels  int64  `json:"tunnels"` // that are open; gauge
	Failures int64  `json:"failures"`
	Skipped  bool   `json:"skipped"` // for now, since it has failed
}

// RequestCount counts requests of HTTP clients.
type RequestCount struct {
	Kind   string `json:"kind"`   // http, upgrade or websocket
	Status int    `json:"status"` // 0: nothing was answered
	Count  int64  `json:"count"`
}

// TLS is what there is to tell of TLS.
type TLS struct {
	File       string           `json:"file,omitempty"`     // of the certificate; empty: clients do not speak TLS
	NotAfter   time.Time        `json:"not_after,omitzero"` // when it expires
	Handshakes []HandshakeCount `json:"handshakes"`
}

// HandshakeCount counts TLS handshakes.
type HandshakeCount struct {
	Version string `json:"version"` // 1.2, 1.3; none: it failed before one was agreed on
	Result  string `json:"result"`  // ok or failed
	Count   int64  `json:"count"`
}

// DNS is what there is to tell of names.
type DNS struct {
	Lookups []LookupCount `json:"lookups"`
	// StaleSeconds is for how long the oldest answer that stays in use, since it
	// cannot be looked up again, has been out of date; gauge.
	StaleSeconds float64 `json:"stale_seconds"`
}

// LookupCount counts lookups.
type LookupCount struct {
	Type   string `json:"type"`   // address or service
	Result string `json:"result"` // ok, not_found or failed
	Count  int64  `json:"count"`
}

// Resume is what there is to tell of resumable tunnels.
type Resume struct {
	Tunnels  int           `json:"tunnels"`
	Detached int           `json:"detached"` // whose client is gone and may come back
	Memory   int64         `json:"memory"`   // in bytes, of what is not acknowledged
	Attempts []ResultCount `json:"attempts"` // requests to resume one
}

// Ask is what there is to tell of the service of -ask.
type Ask struct {
	// On says that there is one.
	On        bool          `json:"on"`
	Questions []ResultCount `json:"questions"`
	Hits      []KindCount   `json:"hits"`   // answers that were known: fresh or stale
	Labels    []LabelCount  `json:"labels"` // of answers: tunnels and HTTP requests
	Asking    int           `json:"asking"` // questions that the service has; gauge
	Waiting   int           `json:"waiting"`
	// CircuitOpen says that the service is out of order, and asked only now and then.
	CircuitOpen bool `json:"circuit_open"`
}

// ResultCount counts questions.
type ResultCount struct {
	Result string `json:"result"` // answered, denied, limited, down, silent, bad, busy or given_up
	Count  int64  `json:"count"`
}

// KindCount counts by a kind.
type KindCount struct {
	Kind  string `json:"kind"`
	Count int64  `json:"count"`
}

// LabelCount counts by a label.
type LabelCount struct {
	Label string `json:"label"`
	Count int64  `json:"count"`
}

// KCP is what there is to tell of KCP.
type KCP struct {
	Listeners     []KCPListener `json:"listeners"`
	Retransmitted int64         `json:"retransmitted"` // packets, to clients and to backends
}

// KCPListener is a listener for KCP.
type KCPListener struct {
	Listener   string `json:"listener"`
	Sessions   int64  `json:"sessions"`   // live; gauge
	Unproven   int64  `json:"unproven"`   // those of them whose client has not proven its address; gauge
	Refused    int64  `json:"refused"`    // first datagrams for which there was no room
	Challenged int64  `json:"challenged"` // first datagrams that were answered by a challenge only
	Dropped    int64  `json:"dropped"`    // datagrams that belong to no session, or prove what is not so
}

// ReloadCount counts changes of files.
type ReloadCount struct {
	What   string `json:"what"`   // certificate or token_keys
	Result string `json:"result"` // ok or failed
	Count  int64  `json:"count"`
}

// Loop is an event loop.
type Loop struct {
	BusySeconds        float64 `json:"busy_seconds"`         // its rate is the share of its time that is work: at 1 it is full
	LongestTurnSeconds float64 `json:"longest_turn_seconds"` // of this minute and the last; gauge
	Connections        int64   `json:"connections"`          // gauge
}

// Limits are what there may be, and how much of it there is. A limit of 0 is unknown,
// or none.
type Limits struct {
	Descriptors Use `json:"descriptors"`
	Connections Use `json:"connections"` // that the descriptors are enough for
	Pipes       Use `json:"pipes"`       // for splicing; beyond it, data are copied
	Unproven    Use `json:"unproven"`    // clients that have not said yet where they want to go
}

// Use is how much is used of what there may be.
type Use struct {
	Used  int64 `json:"used"`
	Limit int64 `json:"limit"`
}

// StatusOf is what /api/status tells of a Source.
func StatusOf(s Source) Status { return withDescriptors{s}.Status() }

// Counts makes a list of what was counted, sorted by the texts in it, which come before
// the count. It is never nil.
func Counts[K comparable, C any](all iter.Seq2[K, int64], item func(K, int64) C) []C {
	list := []C{}
	for k, n := range all {
		list = append(list, item(k, n))
	}
	slices.SortFunc(list, func(a, b C) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return list
}
