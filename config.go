package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/ask"
	"gateway/internal/balance"
	"gateway/internal/certificate"
	"gateway/internal/kcp"
	"gateway/internal/limit"
	"gateway/internal/listen"
	"gateway/internal/memlimit"
	"gateway/internal/policy"
	"gateway/internal/relay"
	"gateway/internal/resume"
	"gateway/internal/smallfile"
	"gateway/internal/sockopt"
	"gateway/internal/token"
	"gateway/internal/web"
)

// Set by the Makefile.
var (
	version = "dev"
	commit  = ""
)

// Config is a validated configuration; see parseConfig and load. What each field
// means and its default stand in settings, which -help prints.
type Config struct {
	Secrets       [][]byte // the first seals
	SecretSources []string // where they and the keys for tokens came from, for the log
	KDFs          []kdf    // at least one; the first seals
	Legacy        bool     // sealed lines open
	TokenKeys     string   // a file; empty: no token opens
	TokenAudience string   // empty: any

	Listen []listen.Address // where, and what clients get there; at least one
	Reuse  bool
	MPTCP  bool

	clientLimits // of clients of all listeners that have no own
	Prefix6      int
	Ban          limit.BanRule

	TrustedProxies  []netip.Prefix
	TLSCert, TLSKey string // both or none
	HTTPHeaderMax   int    // bytes
	HTTPIdleTimeout time.Duration
	WSOrigins       []string
	HTTPHost        string      // "keep", or "backend"
	HTTPSet         []web.Field // of requests and responses
	HTTPStripPrefix string      // empty: none

	HandshakeTimeout time.Duration
	HandshakeMax     int    // bytes
	MaxPending       int    // clients; 0: by the memory limit
	HealthPath       string // empty: none
	Retry            int    // attempts in all
	MaxTunnels       int    // of one backend; 0: any number
	Timeout          time.Duration
	Balance          balance.Algorithm
	Resolver         string // empty: the system's
	ResolverTimeout  time.Duration
	Allow, Deny      []policy.Rule
	SendProxy        string // "off", "v1" or "v2"
	Buffer           int    // bytes

	Loops            int // 0: one per CPU; below: goroutines
	Splice           bool
	IOUring          bool
	IdleTimeout      time.Duration // 0: never
	HalfCloseTimeout time.Duration
	Keepalive        time.Duration // 0: none
	UserTimeout      time.Duration // 0: the kernel's

	Resume        bool          // tunnels may be resumable
	ResumePlain   bool          // without a key exchange, and outside of TLS
	ResumeHold    time.Duration // for which a tunnel is kept whose client is gone
	ResumeBuffer  int           // bytes, of a tunnel in each direction
	ResumeMemory  int           // bytes, of all tunnels
	ResumeMax     int           // tunnels whose client is gone
	ResumeKeyFile string        // seals tickets; empty: the secrets do
	ResumePeer    string        // address for other gateways; empty: none
	ResumePeers   []netip.Prefix

	Ask          string // URL of the service that is asked; empty: none
	AskTimeout   time.Duration
	AskCA        string        // a file; empty: the system's certificates
	AskTokenFile string        // empty: none
	AskStale     time.Duration // for which an answer outlasts its time; 0: not at all
	AskTickets   bool          // clients may bring tickets
	AskHeaders   []string      // of HTTP requests, that the service is told

	KCP                             string // address; empty: off
	KCPMode                         string
	KCPSendWindow, KCPReceiveWindow int // packets
	KCPMTU                          int // bytes
	KCPDataShards, KCPParityShards  int
	KCPCrypt, KCPKey                string
	KCPIdleTimeout                  time.Duration
	KCPMaxSessions                  int // of each listener

	PIDFile        string // empty: none
	Drain          time.Duration
	DrainDelay     time.Duration
	UpgradeExec    string // empty: the program that runs
	UpgradeTimeout time.Duration
	Handover       bool
	HardStopAfter  time.Duration // 0: never
	LogFormat      string        // "text" or "json"
	LogLevel       slog.Level
	LogFile        string // empty: standard error
	LogTunnels     string // "end", or "open" for their beginning too
	LogRefusedRate int    // lines a second for refusals of one reason and network; 0: all
	Pprof          string // empty: off

	Admin          string // host:port or unix:PATH; empty: off
	AdminTokenFile string // empty: nobody changes anything by TCP

	// Action is what to do instead of serving, and Arg its argument.
	Action action
	Arg    string
	TTL    time.Duration // of what actionSeal makes; 0: a sealed line
	Watch  time.Duration // between two tables of actionStatus; 0: there is one
	filter url.Values    // of actionTunnels and actionCut
	probe  admin.Probe   // of actionProbe

	// What load makes of files and of what belongs together.
	tokens      *token.Keys           // nil: no token opens
	tlsConfig   *tls.Config           // nil: clients do not speak TLS
	certificate *certificate.Reloader // of it
	tickets     *resume.Tickets       // of resumable tunnels; nil: there are none
	asks        *ask.Service          // of Ask; nil: none
	kcp         *kcp.Transport        // listens for KCP clients and dials KCP backends
	watch       *smallfile.Watch      // of the files of secrets

	adminToken string
	level      *slog.LevelVar // LogLevel, or what it was changed to; nil: LogLevel

	file               string // of settings; empty: none
	inFile             int    // settings that it holds
	secret, secretFile string
	addr               string
	forward            *address.Route    // of -addr
	sources            map[string]string // setting → what set it: flag or variable
	doubts             []string          // settings that another hides
	// Limits of listeners that have some of their own, with the others, by the text of
	// the options: see limitsAt.
	own map[string]*clientLimits
}

// limitsAt returns the limits of a listener's own, or nil.
func (cfg *Config) limitsAt(l listen.Address) *clientLimits {
	return cfg.own[listen.OptionsText(l.Options)]
}

// clientLimits are what clients are held to, of one listener or of all.
type clientLimits struct {
	MaxConns                  int // 0: by the descriptors
	AllowClients, DenyClients []limit.Source
	ConnsPerIP                int // 0: any number
	RatePerIP                 limit.Rate

	loaded limit.Limits
}

// limits returns the limits for internal/limit, once they are loaded.
func (c *clientLimits) limits() limit.Limits { return c.loaded }

// load reads the files of lists of clients. It returns the setting at fault.
func (c *clientLimits) load(prefix6 int, log *slog.Logger) (setting string, err error) {
	c.loaded = limit.Limits{ConnsPerIP: c.ConnsPerIP, Rate: c.RatePerIP, Prefix6: prefix6}
	if c.loaded.Allow, err = limit.LoadClients(c.AllowClients, false, log); err != nil {
		return "allow-clients", err
	}
	if c.loaded.Deny, err = limit.LoadClients(c.DenyClients, true, log); err != nil {
		return "deny-clients", err
	}
	return "", nil
}

// action is one of the flags that do something other than serve.
type action string

const (
	actionServe   action = ""
	actionSeal    action = "seal"
	actionKeygen  action = "keygen"
	actionOpen    action = "open"
	actionCheck   action = "check"
	actionVersion action = "version"
	actionStatus  action = "status"
	actionTunnels action = "tunnels"
	actionCut     action = "cut"
	actionProbe   action = "probe"
)

// settleListening gathers all addresses to listen on: -addr comes first, unless
// only -listen is given.
func (cfg *Config) settleListening() error {
	if len(cfg.Listen) == 0 || cfg.sources["addr"] != "" || cfg.forward != nil {
		cfg.Listen = slices.Insert(cfg.Listen, 0, listen.Address{Addr: cfg.addr, Forward: cfg.forward, Setting: "addr"})
	}
	first := cfg.Listen[0]
	if slices.ContainsFunc(cfg.Listen[1:], func(l listen.Address) bool { return l.Addr == first.Addr }) &&
		!strings.HasSuffix(first.Addr, ":0") {
		return fmt.Errorf("%s has %s, and so has -addr: give it once", cfg.sources["listen"], first.Addr)
	}
	if cfg.KCP != "" {
		cfg.Listen = append(cfg.Listen, listen.Address{Addr: cfg.KCP, KCP: true, Setting: "kcp"})
	}
	if cfg.ResumePeer != "" {
		cfg.Listen = append(cfg.Listen, listen.Address{Addr: cfg.ResumePeer, Peer: true, Setting: "resume-peer"})
	}
	return nil
}

// shortSecret is the length in bytes under which a secret gets a warning: who
// holds one sealed line can try secrets at millions a second.
const shortSecret = 16

// tokenHandshakeMax is the default of -handshake-max with tokens, in bytes: they
// are longer than sealed lines.
const tokenHandshakeMax = 2048

// checkTokens sees whether the settings of tokens go together.
func (cfg *Config) checkTokens() error {
	if cfg.TokenKeys == "" {
		switch {
		case !cfg.Legacy && cfg.opens() && !cfg.AskTickets:
			return fmt.Errorf("%s=0 leaves only tokens, which need -token-keys", cfg.sources["legacy"])
		case cfg.TTL != 0:
			return errors.New("-ttl is for tokens, which need -token-keys")
		case cfg.TokenAudience != "":
			return fmt.Errorf("%s is for tokens, which need -token-keys", cfg.sources["token-audience"])
		}
		return nil
	}
	if cfg.TTL != 0 && cfg.Action != actionSeal {
		return errors.New("-ttl is for -seal, which is not given")
	}
	if cfg.Action == actionSeal && cfg.TTL == 0 && !cfg.Legacy {
		return errors.New("-seal needs -ttl, the time after which the token expires")
	}
	if cfg.sources["handshake-max"] == "" {
		cfg.HandshakeMax = tokenHandshakeMax
	}
	return nil
}

// opens tells whether there is anything to seal or to open.
func (cfg *Config) opens() bool {
	return cfg.Action == actionSeal || cfg.Action == actionOpen ||
		slices.ContainsFunc(cfg.Listen, func(l listen.Address) bool { return l.Forward == nil })
}

// opensLines tells whether there is anything for a secret to do.
func (cfg *Config) opensLines() bool {
	switch {
	case !cfg.Legacy:
		return false
	case cfg.Action == actionSeal:
		return cfg.TTL == 0
	case cfg.Action == actionOpen:
		return cfg.TokenKeys == ""
	}
	return slices.ContainsFunc(cfg.Listen, func(l listen.Address) bool { return l.Forward == nil })
}

// checkTLS sees whether a certificate and its key are named, or neither.
func (cfg *Config) checkTLS() error {
	switch {
	case cfg.TLSCert == "" && cfg.TLSKey != "":
		return errors.New("-tls-key needs -tls-cert too")
	case cfg.TLSCert != "" && cfg.TLSKey == "":
		return errors.New("-tls-cert needs -tls-key too")
	}
	return nil
}

// checkResume sees whether the settings of resumable tunnels go together.
func (cfg *Config) checkResume() error {
	for name, set := range map[string]bool{
		"resume-plain": cfg.ResumePlain, "resume-key-file": cfg.ResumeKeyFile != "",
		"resume-peer": cfg.ResumePeer != "", "resume-peers": len(cfg.ResumePeers) > 0,
	} {
		if set && !cfg.Resume {
			return fmt.Errorf("%s is for resumable tunnels, which need -resume=1", cfg.sources[name])
		}
	}
	if cfg.ResumePeer != "" && len(cfg.ResumePeers) == 0 {
		return fmt.Errorf("%s needs -resume-peers: from where other gateways connect, and which of them are connected to", cfg.sources["resume-peer"])
	}
	return nil
}

// checkAsk sees whether the settings of -ask go together.
func (cfg *Config) checkAsk() error {
	if cfg.Ask != "" {
		return nil
	}
	for name, set := range map[string]bool{
		"ask-ca": cfg.AskCA != "", "ask-token-file": cfg.AskTokenFile != "", "ask-stale": cfg.AskStale != 0, "ask-headers": len(cfg.AskHeaders) > 0,
	} {
		if set {
			return fmt.Errorf("%s is for the service of -ask, which is not given", cfg.sources[name])
		}
	}
	if cfg.AskTickets {
		return fmt.Errorf("%s=1 needs -ask: the URL of the service that knows what tickets are worth", cfg.sources["ask-tickets"])
	}
	for _, l := range cfg.Listen {
		if l.Forward != nil && l.Forward.IsAsked() {
			return fmt.Errorf("%s leads to %s, which needs -ask: the URL of the service that knows where that is", l.Addr, l.Forward)
		}
	}
	return nil
}

// checkMPTCP sees whether -mptcp goes with the other settings.
func (cfg *Config) checkMPTCP() error {
	if cfg.MPTCP && cfg.UserTimeout > 0 {
		return fmt.Errorf("%s and %s do not go together: MPTCP has no TCP_USER_TIMEOUT, and a client that is silently gone would be kept for minutes", cfg.sources["mptcp"], cfg.sources["tcp-user-timeout"])
	}
	return nil
}

// checkAdmin sees whether the settings of -admin go together.
func (cfg *Config) checkAdmin() error {
	asks := cfg.Action == actionStatus || cfg.Action == actionTunnels || cfg.Action == actionCut
	switch {
	case cfg.Admin == "" && cfg.AdminTokenFile != "":
		return fmt.Errorf("%s is for -admin, which is not given", cfg.sources["admin-token-file"])
	case cfg.Admin == "" && asks:
		return fmt.Errorf("-%s asks a gateway that runs: say by -admin or GATEWAY_ADMIN which, by what its own -admin is", cfg.Action)
	case cfg.Watch != 0 && cfg.Action != actionStatus:
		return errors.New("-watch is for -status, which is not given")
	}
	var err error
	switch cfg.Action {
	case actionTunnels:
		cfg.filter, err = admin.ParseFilter(cfg.Arg)
	case actionCut:
		if cfg.filter, err = admin.ParseFilter(cfg.Arg); err == nil {
			err = admin.CheckCut(cfg.filter)
		}
	}
	if err != nil {
		return fmt.Errorf("invalid value %q for -%s: %w", cfg.Arg, cfg.Action, err)
	}
	return nil
}

// proxyVersion is the version of -send-proxy's header, 0 for none.
func (cfg *Config) proxyVersion() int {
	return map[string]int{"v1": 1, "v2": 2}[cfg.SendProxy]
}

// loopsSupported tells whether this system has epoll and splice.
const loopsSupported = runtime.GOOS == "linux"

// loopCount returns how many event loops there will be: 0 where goroutines
// serve.
func (cfg *Config) loopCount() int {
	switch {
	case !loopsSupported || cfg.Loops < 0:
		return 0
	case cfg.Loops == 0:
		return runtime.NumCPU() // of the affinity mask
	}
	return cfg.Loops
}

func (cfg *Config) liveness() sockopt.Liveness {
	return sockopt.Liveness{Keepalive: cfg.Keepalive, UserTimeout: cfg.UserTimeout}
}

// pendingBytes is what a client may cost that has proven nothing, in bytes, with
// what the collector has not yet taken back.
const pendingBytes = 32 << 10

// maxPending returns how many clients may have proven nothing yet: as many as an
// eighth of the memory is enough for.
func (cfg *Config) maxPending() int {
	if cfg.MaxPending > 0 {
		return cfg.MaxPending
	}
	return int(min(max(memlimit.Limit()/8/pendingBytes, 128), 1<<16))
}

// pendingShare returns how many of those may be of one address, where several parts
// have a share each: an eighth.
func (cfg *Config) pendingShare(parts int) int { return max(1, cfg.maxPending()/8/parts) }

func (cfg *Config) bounds() relay.Bounds {
	return relay.Bounds{Idle: cfg.IdleTimeout, HalfClosed: cfg.HalfCloseTimeout}
}

// keepalive returns -keepalive in the words of net.Dialer and ListenConfig:
// three probes, a third of it apart.
func (cfg *Config) keepalive() (time.Duration, net.KeepAliveConfig) {
	if cfg.Keepalive == 0 {
		return -1, net.KeepAliveConfig{} // zero would be net's default
	}
	return 0, net.KeepAliveConfig{
		Enable:   true,
		Idle:     max(time.Second, cfg.Keepalive),
		Interval: max(time.Second, cfg.Keepalive/3),
		Count:    3,
	}
}

// versionLine is what -version prints.
func versionLine() string {
	return fmt.Sprintf("gateway %s %s %s/%s commit %s", versionOf(), runtime.Version(), runtime.GOOS, runtime.GOARCH, commitOf())
}

// versionOf returns the version that this was built as: the Makefile's, or that of
// go install PATH@VERSION.
func versionOf() string {
	info, ok := debug.ReadBuildInfo()
	if version != "dev" || !ok || !strings.HasPrefix(info.Main.Version, "v") || revision(info) != "" {
		return version // what go build makes of a commit is no version of ours
	}
	return info.Main.Version
}

// commitOf returns the commit that this was built from.
func commitOf() string {
	rev := commit
	if info, ok := debug.ReadBuildInfo(); ok && rev == "" {
		rev = revision(info)
	}
	return cmp.Or(rev, "unknown")
}

// revision returns the commit of the work tree in which this was built.
func revision(info *debug.BuildInfo) string {
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

// actionValue sets the one action of the command line.
type actionValue struct {
	cfg    *Config
	action action
}

func (v *actionValue) String() string { return "" }

func (v *actionValue) Set(s string) error {
	if v.action == actionTunnels {
		if s == "true" { // what package flag says for a flag alone
			s = ""
		}
	} else if v.IsBoolFlag() {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("want no value")
		}
		if !on {
			return nil
		}
	}
	if v.cfg.Action != actionServe && v.cfg.Action != v.action {
		return fmt.Errorf("-%s is given too: one action at a time", v.cfg.Action)
	}
	v.cfg.Action, v.cfg.Arg = v.action, s
	return nil
}

func (v *actionValue) IsBoolFlag() bool {
	switch v.action {
	case actionCheck, actionVersion, actionKeygen, actionStatus, actionTunnels:
		return true
	}
	return false
}
