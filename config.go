package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/kcp"
	"gateway/internal/policy"
	"gateway/internal/sockopt"
)

// Config is a validated configuration; see parseConfig. What each field means
// and its default stand in settings, which -help prints.
type Config struct {
	Secrets       [][]byte // at least one; the first seals
	SecretSources []string // where they and the keys for tokens came from, for the log
	KDFs          []kdf    // at least one; the first seals
	Legacy        bool     // sealed lines open
	TokenKeys     string   // a file; empty: no token opens
	TokenAudience string   // empty: any

	Listen []listening // where, and what clients get there; at least one
	Reuse  bool

	TrustedProxies  []netip.Prefix
	TLSCert, TLSKey string // both or none
	HTTPHeaderMax   int    // bytes
	WSOrigins       []string

	HandshakeTimeout time.Duration
	HandshakeMax     int // bytes
	Retry            int // attempts in all
	Timeout          time.Duration
	Balance          balance.Algorithm
	Resolver         string // empty: the system's
	ResolverTimeout  time.Duration
	Allow, Deny      []policy.Rule
	SendProxy        string // "off", "v1" or "v2"
	Buffer           int    // bytes

	Loops            int // 0: one per CPU; below: goroutines
	Splice           bool
	IdleTimeout      time.Duration // 0: never
	HalfCloseTimeout time.Duration
	Keepalive        time.Duration // 0: none
	UserTimeout      time.Duration // 0: the kernel's

	KCP                             string // address; empty: off
	KCPMode                         string
	KCPSendWindow, KCPReceiveWindow int // packets
	KCPMTU                          int // bytes
	KCPDataShards, KCPParityShards  int
	KCPCrypt, KCPKey                string
	KCPIdleTimeout                  time.Duration

	PIDFile   string // empty: none
	Drain     time.Duration
	LogFormat string // "text" or "json"
	LogLevel  slog.Level
	Pprof     string // empty: off

	// Action is what to do instead of serving, and Arg its argument.
	Action action
	Arg    string
	TTL    time.Duration // of what actionSeal makes; 0: a sealed line

	secret, secretFile string
	addr               string
	forward            *address.Route    // of -addr
	sources            map[string]string // setting → what set it: flag or variable
}

// listening is an address to listen on.
type listening struct {
	addr    string
	forward *address.Route // where every client goes; nil: to its sealed address
	kcp     bool           // by KCP, on UDP
	setting string         // the flag that said so
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
)

// setting is one flag.
type setting struct {
	group string
	name  string
	arg   string // placeholder of its value in -help; empty for none
	value flag.Value
	usage string
}

// The groups of -help, in their order.
const (
	groupSecrets   = "Secrets"
	groupListening = "Listening"
	groupRequest   = "The client's request"
	groupBackend   = "The backend"
	groupTunnel    = "The tunnel"
	groupKCP       = "KCP, for clients and backends on UDP"
	groupProcess   = "The process"
	groupActions   = "Actions, instead of serving"
)

// settings lists every flag, grouped as -help shows them. The current values
// in cfg are the defaults.
func settings(cfg *Config) []setting {
	act := func(a action) flag.Value { return &actionValue{cfg, a} }
	return []setting{
		{groupSecrets, "secret", "PASSPHRASE", (*stringValue)(&cfg.secret),
			"seals and opens addresses. The process list shows it, so prefer -secret-file,\n" +
				"GATEWAY_SECRET, or systemd's LoadCredential=secret:FILE, which is read like\n" +
				"-secret-file. Every source that is given counts, in this order; at least one\n" +
				"is required, unless all listeners forward"},
		{groupSecrets, "secret-file", "FILE", (*stringValue)(&cfg.secretFile),
			"one secret a line: all open, the first seals; blank lines and lines that\n" +
				"start with # are skipped"},
		{groupSecrets, "kdf", "LIST", (*kdfsValue)(&cfg.KDFs),
			"key derivations to try, in order; the first seals. md5: OpenSSL before 1.1.0,\n" +
				"CryptoJS. sha256: OpenSSL since. pbkdf2: openssl enc -pbkdf2; it costs\n" +
				"milliseconds of CPU for each bad line, so it is tried only when named here"},
		{groupSecrets, "token-keys", "FILE", (*stringValue)(&cfg.TokenKeys),
			"keys (a JWK Set, see -keygen) that open JOSE tokens, which expire, wherever a\n" +
				"sealed line is taken. Read again when it changes"},
		{groupSecrets, "token-audience", "NAME", (*stringValue)(&cfg.TokenAudience),
			"whom a token's aud must name; empty: anybody"},
		{groupSecrets, "legacy", "0|1", (*switchValue)(&cfg.Legacy),
			"0 refuses sealed lines: tokens only, and no secret is needed"},

		{groupListening, "addr", "ADDRESS", &addrValue{&cfg.addr, false},
			"host:port to listen on. :port is every IPv4 and IPv6 address, 0.0.0.0:port\n" +
				"every IPv4 address; port 0 is a free one, which the log names"},
		{groupListening, "forward", "TARGET", &targetValue{&cfg.forward},
			"host:port to which every client of -addr goes: a plain port forward, without\n" +
				"handshake, status or secret. Like a sealed address it may be several with\n" +
				"weights, A:1*2,B:1, or srv:NAME; http://host:port speaks HTTP"},
		{groupListening, "listen", "ADDRESS=sealed|forward:TARGET", (*listenValue)(&cfg.Listen),
			"one more address to listen on, for sealed lines or as a plain port forward.\n" +
				"May be repeated (separated by spaces in GATEWAY_LISTEN). With -listen and\n" +
				"neither -addr nor -forward, there is no -addr"},
		{groupListening, "reuse", "0|1", (*switchValue)(&cfg.Reuse),
			"1 sets SO_REUSEPORT, for several processes on one address"},
		{groupListening, "trusted-proxies", "CIDRS", (*prefixesValue)(&cfg.TrustedProxies),
			"peers that must send a PROXY protocol header (v1 or v2) first, whose client\n" +
				"address is believed, separated by commas; empty: nobody is believed"},
		{groupListening, "tls-cert", "FILE", (*stringValue)(&cfg.TLSCert),
			"certificate chain in PEM form: clients may then speak TLS. Read again when it\n" +
				"changes"},
		{groupListening, "tls-key", "FILE", (*stringValue)(&cfg.TLSKey),
			"the certificate's private key"},

		{groupRequest, "handshake-timeout", "TIME", &durationValue{p: &cfg.HandshakeTimeout},
			"for the whole request, however it dribbles"},
		{groupRequest, "handshake-max", "BYTES", &intValue{&cfg.HandshakeMax, 1, 1 << 20},
			"largest sealed line or token, in whatever form it comes; 2048 by default where\n" +
				"-token-keys is set"},
		{groupRequest, "http-header-max", "BYTES", &intValue{&cfg.HTTPHeaderMax, 4097, 1 << 20},
			"largest header of an HTTP request"},
		{groupRequest, "ws-origins", "PATTERNS", (*originsValue)(&cfg.WSOrigins),
			"hosts (game.example, *.example) whose web pages may open WebSockets,\n" +
				"separated by commas"},

		{groupBackend, "retry", "ATTEMPTS", &intValue{&cfg.Retry, 1, 1000},
			"to connect, in all; only a time-out is tried again"},
		{groupBackend, "timeout", "TIME", &durationValue{p: &cfg.Timeout},
			"for each attempt, its name lookup included"},
		{groupBackend, "balance", "first|roundrobin|random|leastconn|source", (*balanceValue)(&cfg.Balance),
			"which of several backends a client gets, by HAProxy's names: the first in order\n" +
				"that answers, each in turn by weight, any, the one with the fewest tunnels,\n" +
				"or by the client's address"},
		{groupBackend, "resolver", "ADDRESS", &addrValue{&cfg.Resolver, true},
			"host:port of the name server to ask, for srv: and all names (Consul: port\n" +
				"8600); empty: the system's"},
		{groupBackend, "resolver-timeout", "TIME", &durationValue{p: &cfg.ResolverTimeout},
			"for one lookup by a name server, with all repetitions"},
		{groupBackend, "allow", "RULES", (*rulesValue)(&cfg.Allow),
			"where backends may be, and nowhere else: CIDR, CIDR:PORT or CIDR:FROM-TO,\n" +
				"separated by commas; may be repeated. Link-local and metadata addresses\n" +
				"(169.254.0.0/16, fe80::/10 and the clouds') need a rule within their range;\n" +
				"empty: everywhere else"},
		{groupBackend, "deny", "RULES", (*rulesValue)(&cfg.Deny),
			"where backends may not be, in the same form, whatever -allow says"},
		{groupBackend, "send-proxy", "off|v1|v2", &choiceValue{&cfg.SendProxy, []string{"off", "v1", "v2"}},
			"tell backends the client's address, by a PROXY protocol header before anything\n" +
				"else; v2 carries a unique id too, which the log has"},

		{groupTunnel, "buffer", "BYTES", &intValue{&cfg.Buffer, 1, 16 << 20},
			"of the copy buffer. It has no effect on long runs of data on Linux, which\n" +
				"are spliced inside the kernel; a read that fills it is what starts one"},
		{groupTunnel, "splice", "0|1", (*switchValue)(&cfg.Splice),
			"0 copies everything through user space, on Linux too"},
		{groupTunnel, "loops", "COUNT", &intValue{&cfg.Loops, -1, 1024},
			"event loops, on Linux; 0 is one for each CPU the process may use, -1 serves\n" +
				"with goroutines as other systems do"},
		{groupTunnel, "idle-timeout", "TIME", &durationValue{p: &cfg.IdleTimeout, zeroOK: true},
			"after which a tunnel ends through which no byte has moved; 0: never"},
		{groupTunnel, "half-close-timeout", "TIME", &durationValue{p: &cfg.HalfCloseTimeout},
			"the same for a tunnel of which one side has finished"},
		{groupTunnel, "keepalive", "TIME", &durationValue{p: &cfg.Keepalive, zeroOK: true, most: sockopt.MaxKeepalive},
			"of silence after which TCP asks both ends, and a ping asks a WebSocket's\n" +
				"client, whether they are there; 0: never"},
		{groupTunnel, "tcp-user-timeout", "TIME", &durationValue{p: &cfg.UserTimeout, zeroOK: true, most: sockopt.MaxUserTimeout},
			"after which a peer that acknowledges nothing, or takes nothing, is given up\n" +
				"(TCP_USER_TIMEOUT, Linux); 0: the kernel's, about 15 minutes"},

		{groupKCP, "kcp", "ADDRESS", &addrValue{&cfg.KCP, true},
			"host:port to listen on for KCP clients, the same as -addr most of the time;\n" +
				"empty: off. Backends sealed as kcp://host:port are dialed in any case"},
		{groupKCP, "kcp-mode", "normal|fast|fast2|fast3", &choiceValue{&cfg.KCPMode, []string{"normal", "fast", "fast2", "fast3"}},
			"how early what may be lost is sent again, as in kcptun"},
		{groupKCP, "kcp-sndwnd", "PACKETS", &intValue{&cfg.KCPSendWindow, kcp.MinWindow, kcp.MaxWindow},
			"that a session may have in flight"},
		{groupKCP, "kcp-rcvwnd", "PACKETS", &intValue{&cfg.KCPReceiveWindow, kcp.MinWindow, kcp.MaxWindow},
			"that a session may have unread"},
		{groupKCP, "kcp-mtu", "BYTES", &intValue{&cfg.KCPMTU, kcp.MinMTU, kcp.MaxMTU},
			"largest datagram, without the headers of IP and UDP"},
		{groupKCP, "kcp-datashard", "COUNT", &intValue{&cfg.KCPDataShards, 0, kcp.MaxShards},
			"packets of a Reed-Solomon group, the same at both ends; 0: no such correction"},
		{groupKCP, "kcp-parityshard", "COUNT", &intValue{&cfg.KCPParityShards, 0, kcp.MaxShards},
			"packets added to a group, the same at both ends"},
		{groupKCP, "kcp-crypt", "none|aes", &choiceValue{&cfg.KCPCrypt, []string{"none", "aes"}},
			"AES-256 around each datagram, the same at both ends; it does not authenticate"},
		{groupKCP, "kcp-key", "PASSPHRASE", (*stringValue)(&cfg.KCPKey),
			"of -kcp-crypt=aes, as in kcptun. The process list shows it, so prefer\n" +
				"GATEWAY_KCP_KEY"},
		{groupKCP, "kcp-idle-timeout", "TIME", &durationValue{p: &cfg.KCPIdleTimeout},
			"after which a session ends through which no byte has moved: KCP has no FIN,\n" +
				"so nothing else tells that a peer is gone"},

		{groupProcess, "pidfile", "FILE", (*stringValue)(&cfg.PIDFile),
			"holds the process id while the gateway runs, with a line for each gateway\n" +
				"that names the file; empty: none"},
		{groupProcess, "drain", "TIME", &durationValue{p: &cfg.Drain, zeroOK: true},
			"that tunnels get to finish after SIGTERM or SIGINT; a second signal ends them\n" +
				"at once"},
		{groupProcess, "log-format", "text|json", &choiceValue{&cfg.LogFormat, []string{"text", "json"}},
			"of the log on standard error"},
		{groupProcess, "log-level", "debug|info|warn|error", (*levelValue)(&cfg.LogLevel),
			"the least that is logged"},
		{groupProcess, "pprof", "ADDRESS", &addrValue{&cfg.Pprof, true},
			"host:port of net/http/pprof; keep it private; empty: off"},

		{groupActions, "seal", "ADDRESS", act(actionSeal),
			"print the sealed line for host:port, for several with commas between, or for\n" +
				"srv:name; with -ttl, a token"},
		{groupActions, "ttl", "TIME", &durationValue{p: &cfg.TTL, zeroOK: true},
			"how long the token of -seal is good, which -token-keys makes; 0: a sealed line"},
		{groupActions, "open", "LINE", act(actionOpen),
			"print the address in a sealed line or token; exit 1 if it does not open"},
		{groupActions, "keygen", "", act(actionKeygen),
			"print a fresh key set for -token-keys"},
		{groupActions, "check", "", act(actionCheck),
			"validate the configuration; exit 0 or 2"},
		{groupActions, "version", "", act(actionVersion),
			"print version, Go version and commit"},
	}
}

func defaultConfig() *Config {
	return &Config{
		KDFs:             []kdf{kdfMD5, kdfSHA256},
		Legacy:           true,
		addr:             "0.0.0.0:0",
		HandshakeTimeout: 10 * time.Second,
		HandshakeMax:     1024,
		HTTPHeaderMax:    8192,
		WSOrigins:        []string{"*"},
		Retry:            1,
		Timeout:          3 * time.Second,
		ResolverTimeout:  2 * time.Second,
		SendProxy:        "off",
		Buffer:           16384,
		Splice:           true,
		HalfCloseTimeout: 60 * time.Second,
		Keepalive:        30 * time.Second,
		KCPMode:          "fast3",
		KCPSendWindow:    1024,
		KCPReceiveWindow: 1024,
		KCPMTU:           1350,
		KCPCrypt:         "none",
		KCPIdleTimeout:   60 * time.Second,
		PIDFile:          "gateway.pid",
		Drain:            30 * time.Second,
		LogFormat:        "text",
		LogLevel:         slog.LevelInfo,
	}
}

// parseConfig reads the command line and the environment, where a flag wins
// over its twin, and validates them. Its errors name the flag, variable or
// file at fault, and never hold a secret. flag.ErrHelp asks for the help.
func parseConfig(args []string) (*Config, error) {
	cfg := defaultConfig()
	fs := flag.NewFlagSet("gateway", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are the caller's to print
	all := settings(cfg)
	for _, s := range all {
		fs.Var(s.value, s.name, s.usage)
	}
	if err := fs.Parse(args); err != nil {
		if strings.HasPrefix(err.Error(), "bad flag syntax") { // repeats the value too
			return nil, errors.New("flags are written -name=value; one has a wrong beginning")
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, errors.New("flags are written -name=value; there is an argument without a flag")
	}
	if cfg.Action == actionVersion || cfg.Action == actionKeygen {
		return cfg, nil // whatever else is wrong
	}
	if err := cfg.readEnvironment(fs, all); err != nil {
		return nil, err
	}
	if err := cfg.settleListening(); err != nil {
		return nil, err
	}
	if err := cfg.checkTLS(); err != nil {
		return nil, err
	}
	if err := cfg.checkTokens(); err != nil {
		return nil, err
	}
	if _, err := cfg.kcpTransport(); err != nil {
		return nil, err
	}
	return cfg, cfg.loadSecrets()
}

// readEnvironment sets what the command line has not.
func (cfg *Config) readEnvironment(fs *flag.FlagSet, all []setting) error {
	cfg.sources = make(map[string]string)
	fs.Visit(func(f *flag.Flag) { cfg.sources[f.Name] = "-" + f.Name })
	for _, s := range all {
		text, ok := os.LookupEnv(envName(s.name))
		if !ok || cfg.sources[s.name] != "" || s.group == groupActions {
			continue
		}
		if err := s.value.Set(text); err != nil {
			return fmt.Errorf("invalid value %q for %s: %w", text, envName(s.name), err)
		}
		cfg.sources[s.name] = envName(s.name)
	}
	return nil
}

// envName returns the environment twin of a flag.
func envName(flagName string) string {
	return "GATEWAY_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}
