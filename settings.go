package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/balance"
	"gateway/internal/flagvalue"
	"gateway/internal/kcp"
	"gateway/internal/limit"
	"gateway/internal/policy"
	"gateway/internal/resume"
	"gateway/internal/sockopt"
)

// minBuffer is the least -buffer, in bytes: less is more system calls than work.
const minBuffer = 64

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
	groupClients   = "Who is served; a client that is not gets a reset at once"
	groupRequest   = "The client's request"
	groupBackend   = "The backend"
	groupTunnel    = "The tunnel"
	groupResume    = "Resumable tunnels, which outlive their client's connection"
	groupKCP       = "KCP, for clients and backends on UDP"
	groupProcess   = "The process"
	groupActions   = "Actions, instead of serving"
)

// settings lists every flag, grouped as -help shows them. The current values
// in cfg are the defaults.
func settings(cfg *Config) []setting {
	act := func(a action) flag.Value { return &actionValue{cfg, a} }
	before := []setting{
		{groupSecrets, "secret", "PASSPHRASE", flagvalue.String(&cfg.secret),
			"seals and opens addresses. The process list shows it, so prefer -secret-file,\n" +
				"GATEWAY_SECRET, or systemd's LoadCredential=secret:FILE, which is read like\n" +
				"-secret-file. Every source that is given counts, in this order; at least one\n" +
				"is required, unless all listeners forward"},
		{groupSecrets, "secret-file", "FILE", flagvalue.String(&cfg.secretFile),
			"one secret a line, at most 100: all open, the first seals; blank lines and\n" +
				"lines that start with # are skipped"},
		{groupSecrets, "kdf", "LIST", flagvalue.Parsed(&cfg.KDFs, parseKDFs, joinKDFs),
			"key derivations to try, in order; the first seals. md5: OpenSSL before 1.1.0,\n" +
				"CryptoJS. sha256: OpenSSL since. pbkdf2: openssl enc -pbkdf2; it costs\n" +
				"milliseconds of CPU for each bad line, so it is tried only when named here"},
		{groupSecrets, "token-keys", "FILE", flagvalue.String(&cfg.TokenKeys),
			"keys (a JWK Set, see -keygen) that open JOSE tokens, which expire, wherever a\n" +
				"sealed line is taken. Read again when it changes"},
		{groupSecrets, "token-audience", "NAME", flagvalue.String(&cfg.TokenAudience),
			"whom a token's aud must name; empty: anybody"},
		{groupSecrets, "legacy", "0|1", flagvalue.Switch(&cfg.Legacy),
			"0 refuses sealed lines: tokens only, and no secret is needed"},

		{groupListening, "addr", "ADDRESS", flagvalue.Address(&cfg.addr, false),
			"host:port to listen on. :port is every IPv4 and IPv6 address, 0.0.0.0:port\n" +
				"every IPv4 address; port 0 is a free one, which the log names"},
		{groupListening, "forward", "TARGET", flagvalue.Parsed(&cfg.forward, parseForward, targetText),
			"host:port to which every client of -addr goes: a plain port forward, without\n" +
				"handshake, status or secret. Like a sealed address it may be several with\n" +
				"weights, A:1*2,B:1, or srv:NAME; http://host:port speaks HTTP"},
		{groupListening, "listen", "ADDRESS=sealed|forward:TARGET[;LIMIT=VALUE...]", (*listenValue)(&cfg.Listen),
			"one more address to listen on, for sealed lines or as a plain port forward.\n" +
				"May be repeated (separated by spaces in GATEWAY_LISTEN). With -listen and\n" +
				"neither -addr nor -forward, there is no -addr. Behind a semicolon each, it may\n" +
				"have limits of its own, whose clients are counted apart: max-conns,\n" +
				"max-conns-per-ip, rate-per-ip, allow-clients, deny-clients"},
		{groupListening, "reuse", "0|1", flagvalue.Switch(&cfg.Reuse),
			"1 sets SO_REUSEPORT, for several processes on one address"},
		{groupListening, "trusted-proxies", "CIDRS", flagvalue.Sum(&cfg.TrustedProxies, parsePrefix, ""),
			"peers that must send a PROXY protocol header (v1 or v2) first, whose client\n" +
				"address is believed, separated by commas; empty: nobody is believed"},
		{groupListening, "tls-cert", "FILE", flagvalue.String(&cfg.TLSCert),
			"certificate chain in PEM form: clients may then speak TLS. Read again when it\n" +
				"changes"},
		{groupListening, "tls-key", "FILE", flagvalue.String(&cfg.TLSKey),
			"the certificate's private key"},
	}
	clients := append(cfg.clientLimits.settings(), []setting{
		{groupClients, "ip-prefix6", "BITS", flagvalue.Int(&cfg.Prefix6, 1, 128),
			"of an IPv6 address that count as one client address; IPv4 addresses count whole"},
		{groupClients, "ban", "N/TIME:TIME", flagvalue.Parsed(&cfg.Ban, limit.ParseBan, limit.BanRule.String),
			"bad lines, tokens or handshakes of one client address in so long a time after\n" +
				"which it is not served for so long: 20/1m:10m. Players may share an address;\n" +
				"empty: never"},
	}...)
	return slices.Concat(before, clients, []setting{
		{groupRequest, "handshake-timeout", "TIME", flagvalue.Duration(&cfg.HandshakeTimeout),
			"for the whole request, however it dribbles"},
		{groupRequest, "handshake-max", "BYTES", flagvalue.Int(&cfg.HandshakeMax, 1, 1<<20),
			"largest sealed line or token, in whatever form it comes; 2048 by default where\n" +
				"-token-keys is set"},
		{groupRequest, "max-pending", "COUNT", flagvalue.Int(&cfg.MaxPending, 0, 1<<24),
			"clients that have not said yet where they want to go, after which the oldest of\n" +
				"them gives way to the newest; 0: as many as an eighth of the memory that the\n" +
				"process may use (GOMEMLIMIT, its control group) is enough for"},
		{groupRequest, "health-path", "PATH", flagvalue.Parsed(&cfg.HealthPath, parsePath, func(s string) string { return s }),
			"of HTTP requests that ask for the gateway's own health, wherever clients may\n" +
				"speak HTTP: 200, and 503 once clients should go elsewhere; logged at debug;\n" +
				"empty: none"},
		{groupRequest, "http-header-max", "BYTES", flagvalue.Int(&cfg.HTTPHeaderMax, 128, 1<<20),
			"largest header of an HTTP request"},
		{groupRequest, "ws-origins", "PATTERNS", flagvalue.List(&cfg.WSOrigins, parseOrigin, "want hosts, or * for all"),
			"hosts (game.example, *.example) whose web pages may open WebSockets, with\n" +
				"https:// or http:// before them for that scheme alone, separated by commas"},

		{groupBackend, "retry", "ATTEMPTS", flagvalue.Int(&cfg.Retry, 1, 1000),
			"to connect, in all; only a time-out is tried again"},
		{groupBackend, "timeout", "TIME", flagvalue.Duration(&cfg.Timeout),
			"for each attempt, its name lookup included"},
		{groupBackend, "max-tunnels-per-backend", "COUNT", flagvalue.Int(&cfg.MaxTunnels, 0, 1<<24),
			"of one host:port as it is sealed, dials included; then the next of several is\n" +
				"taken, or the client gets 502; 0: any number"},
		{groupBackend, "balance", "first|roundrobin|random|leastconn|source", flagvalue.Parsed(&cfg.Balance, balance.ParseAlgorithm, balance.Algorithm.String),
			"which of several backends a client gets, by HAProxy's names: the first in order\n" +
				"that answers, each in turn by weight, any, the one with the fewest tunnels,\n" +
				"or by the client's address"},
		{groupBackend, "resolver", "ADDRESS", flagvalue.Server(&cfg.Resolver),
			"host:port of the name server to ask, for srv: and all names (Consul: port\n" +
				"8600); empty: the system's"},
		{groupBackend, "resolver-timeout", "TIME", flagvalue.Duration(&cfg.ResolverTimeout),
			"for one lookup by a name server, with all repetitions"},
		{groupBackend, "allow-backends", "RULES", flagvalue.Sum(&cfg.Allow, policy.ParseRule, "want rules, or nothing at all"),
			"where backends may be, and nowhere else: CIDR, CIDR:PORT or CIDR:FROM-TO,\n" +
				"separated by commas; may be repeated. Link-local and metadata addresses\n" +
				"(169.254.0.0/16, fe80::/10 and the clouds') need a rule within their range;\n" +
				"empty: everywhere else"},
		{groupBackend, "deny-backends", "RULES", flagvalue.Sum(&cfg.Deny, policy.ParseRule, "want rules, or nothing at all"),
			"where backends may not be, in the same form, whatever -allow-backends says"},
		{groupBackend, "allow", "RULES", flagvalue.Sum(&cfg.Allow, policy.ParseRule, "want rules, or nothing at all"),
			"the older name of -allow-backends: it is not about clients"},
		{groupBackend, "deny", "RULES", flagvalue.Sum(&cfg.Deny, policy.ParseRule, "want rules, or nothing at all"),
			"the older name of -deny-backends: it is not about clients"},
		{groupBackend, "http-idle-timeout", "TIME", flagvalue.DurationOrZero(&cfg.HTTPIdleTimeout, 0),
			"for which an HTTP connection to a backend is kept between two requests, unless\n" +
				"the backend's Keep-Alive says less; below the 5 s after which Node.js closes.\n" +
				"0: each request has its own"},
		{groupBackend, "send-proxy", "off|v1|v2", flagvalue.OneOf(&cfg.SendProxy, "off", "v1", "v2"),
			"tell backends the client's address, by a PROXY protocol header before anything\n" +
				"else; v2 carries a unique id too, which the log has"},

		{groupTunnel, "buffer", "BYTES", flagvalue.Int(&cfg.Buffer, minBuffer, 16<<20),
			"of the copy buffer, 64 at least. It has no effect on long runs of data on\n" +
				"Linux, which are spliced inside the kernel; a read that fills it is what starts\n" +
				"one"},
		{groupTunnel, "splice", "0|1", flagvalue.Switch(&cfg.Splice),
			"0 copies everything through user space, on Linux too"},
		{groupTunnel, "io-uring", "0|1", flagvalue.Switch(&cfg.IOUring),
			"1 relays the messages of many tunnels by two system calls of an io_uring, where\n" +
				"Linux has one and no container's filter refuses it; the log says which. 0 never\n" +
				"asks for one"},
		{groupTunnel, "loops", "COUNT", flagvalue.Int(&cfg.Loops, -1, 1024),
			"event loops, on Linux; 0 is one for each CPU the process may use, -1 serves\n" +
				"with goroutines as other systems do"},
		{groupTunnel, "idle-timeout", "TIME", flagvalue.DurationOrZero(&cfg.IdleTimeout, 0),
			"after which a tunnel ends through which no byte has moved; 0: never"},
		{groupTunnel, "half-close-timeout", "TIME", flagvalue.Duration(&cfg.HalfCloseTimeout),
			"the same for a tunnel of which one side has finished"},
		{groupTunnel, "keepalive", "TIME", flagvalue.DurationOrZero(&cfg.Keepalive, sockopt.MaxKeepalive),
			"of silence after which TCP asks both ends, and a ping asks a WebSocket's\n" +
				"client, whether they are there; 0: never"},
		{groupTunnel, "tcp-user-timeout", "TIME", flagvalue.DurationOrZero(&cfg.UserTimeout, sockopt.MaxUserTimeout),
			"after which a peer that acknowledges nothing, or takes nothing, is given up\n" +
				"(TCP_USER_TIMEOUT, Linux); 0: the kernel's, about 15 minutes"},

		{groupResume, "resume", "0|1", flagvalue.Switch(&cfg.Resume),
			"1 lets clients that ask for it come back by another connection, from another\n" +
				"address, and go on where they were"},
		{groupResume, "resume-plain", "0|1", flagvalue.Switch(&cfg.ResumePlain),
			"1 takes clients that cannot exchange keys outside of TLS too, where whoever\n" +
				"listens on the way can resume their tunnels"},
		{groupResume, "resume-hold", "TIME", flagvalue.Duration(&cfg.ResumeHold),
			"for which a tunnel is held whose client is gone; then its backend is reset"},
		{groupResume, "resume-buffer", "BYTES", flagvalue.Int(&cfg.ResumeBuffer, resume.MinWindow, resume.MaxWindow),
			"that a tunnel may have unacknowledged in each direction: the most that it costs\n" +
				"in memory, twice, and the most that it moves in a round trip"},
		{groupResume, "resume-memory", "BYTES", flagvalue.Int(&cfg.ResumeMemory, 1<<20, math.MaxInt),
			"of all such tunnels, after which the one whose client has been gone for the\n" +
				"longest is given up; if there is none, new ones are refused"},
		{groupResume, "resume-max", "COUNT", flagvalue.Int(&cfg.ResumeMax, 1, 1<<24),
			"tunnels held whose clients are gone, after which the oldest is given up"},
		{groupResume, "resume-key-file", "FILE", flagvalue.String(&cfg.ResumeKeyFile),
			"secrets, one a line, that seal the tickets by which clients come back: the\n" +
				"first seals, all open. Without it the secrets of sealed lines do"},
		{groupResume, "resume-peer", "ADDRESS", flagvalue.Parsed(&cfg.ResumePeer, parsePeer, func(s string) string { return s }),
			"ip:port to listen on for other gateways, which pass on clients that come back\n" +
				"there; it stands in tickets, so it is the address at which they reach this one.\n" +
				"Keep it private; empty: clients come back to the same gateway only"},
		{groupResume, "resume-peers", "CIDRS", flagvalue.Sum(&cfg.ResumePeers, parsePrefix, ""),
			"where the other gateways are, separated by commas: only they are taken on\n" +
				"-resume-peer, and only there a ticket may lead"},

		{groupKCP, "kcp", "ADDRESS", flagvalue.Address(&cfg.KCP, true),
			"host:port to listen on for KCP clients, the same as -addr most of the time;\n" +
				"empty: off. Backends sealed as kcp://host:port are dialed in any case"},
		{groupKCP, "kcp-mode", "normal|fast|fast2|fast3", flagvalue.OneOf(&cfg.KCPMode, "normal", "fast", "fast2", "fast3"),
			"how early what may be lost is sent again, as in kcptun"},
		{groupKCP, "kcp-sndwnd", "PACKETS", flagvalue.Int(&cfg.KCPSendWindow, kcp.MinWindow, kcp.MaxWindow),
			"that a session may have in flight"},
		{groupKCP, "kcp-rcvwnd", "PACKETS", flagvalue.Int(&cfg.KCPReceiveWindow, kcp.MinWindow, kcp.MaxWindow),
			"that a session may have unread"},
		{groupKCP, "kcp-mtu", "BYTES", flagvalue.Int(&cfg.KCPMTU, kcp.MinMTU, kcp.MaxMTU),
			"largest datagram, without the headers of IP and UDP"},
		{groupKCP, "kcp-datashard", "COUNT", flagvalue.Int(&cfg.KCPDataShards, 0, kcp.MaxShards),
			"packets of a Reed-Solomon group, the same at both ends; 0: no such correction"},
		{groupKCP, "kcp-parityshard", "COUNT", flagvalue.Int(&cfg.KCPParityShards, 0, kcp.MaxShards),
			"packets added to a group, the same at both ends"},
		{groupKCP, "kcp-crypt", "none|aes", flagvalue.OneOf(&cfg.KCPCrypt, "none", "aes"),
			"AES-256 around each datagram, the same at both ends; it does not authenticate"},
		{groupKCP, "kcp-key", "PASSPHRASE", flagvalue.String(&cfg.KCPKey),
			"of -kcp-crypt=aes, as in kcptun. The process list shows it, so prefer\n" +
				"GATEWAY_KCP_KEY"},
		{groupKCP, "kcp-idle-timeout", "TIME", flagvalue.Duration(&cfg.KCPIdleTimeout),
			"after which a session ends through which no byte has moved: KCP has no FIN,\n" +
				"so nothing else tells that a peer is gone"},
		{groupKCP, "kcp-max-sessions", "COUNT", flagvalue.Int(&cfg.KCPMaxSessions, 1, 1<<20),
			"of the listener, at which new ones are dropped; they count as connections for\n" +
				"-max-conns too"},

		{groupProcess, "config", "FILE", flagvalue.String(&cfg.file),
			"settings, NAME=VALUE or GATEWAY_NAME=VALUE a line, which SIGHUP reads again,\n" +
				"with all files that they name; blank lines and lines that start with # are\n" +
				"skipped. A flag wins over a variable, and both over the file"},
		{groupProcess, "pidfile", "FILE", flagvalue.String(&cfg.PIDFile),
			"holds the process id while the gateway runs, with a line for each gateway\n" +
				"that names the file; empty: none"},
		{groupProcess, "drain-delay", "TIME", flagvalue.DurationOrZero(&cfg.DrainDelay, 0),
			"after SIGTERM or SIGINT in which clients are still served, and -health-path\n" +
				"and /readyz say 503: for balancers to notice. A second signal within a second\n" +
				"of the first is the same one"},
		{groupProcess, "drain", "TIME", flagvalue.DurationOrZero(&cfg.Drain, 0),
			"that tunnels get to finish after SIGTERM or SIGINT; a second signal ends them\n" +
				"at once"},
		{groupProcess, "upgrade-exec", "FILE", flagvalue.String(&cfg.UpgradeExec),
			"program that SIGUSR2 starts in this one's place, with the same flags, which\n" +
				"takes over the listening sockets (Linux); empty: this program's path, and\n" +
				"whatever is there by then"},
		{groupProcess, "upgrade-timeout", "TIME", flagvalue.Duration(&cfg.UpgradeTimeout),
			"after which a new program that does not serve yet is killed; the old one has\n" +
				"gone on meanwhile"},
		{groupProcess, "handover", "0|1", flagvalue.Switch(&cfg.Handover),
			"1 has live tunnels go on in a process that replaces this one: those that event\n" +
				"loops relay (Linux). TLS, WebSocket, HTTP and KCP end in the old process"},
		{groupProcess, "hard-stop-after", "TIME", flagvalue.DurationOrZero(&cfg.HardStopAfter, 0),
			"that tunnels get to finish in a process that another has replaced; 0: as long\n" +
				"as they take"},
		{groupProcess, "log-format", "text|json", flagvalue.OneOf(&cfg.LogFormat, "text", "json"),
			"of the log on standard error"},
		{groupProcess, "log-level", "debug|info|warn|error", flagvalue.Parsed(&cfg.LogLevel, parseLevel, levelText),
			"the least that is logged"},
		{groupProcess, "pprof", "ADDRESS", flagvalue.Address(&cfg.Pprof, true),
			"host:port of net/http/pprof; keep it private; empty: off"},
		{groupProcess, "admin", "ADDRESS", flagvalue.Parsed(&cfg.Admin, parseAdmin, func(s string) string { return s }),
			"host:port or unix:PATH of metrics, health and live tunnels; keep it private. A\n" +
				"Unix socket is for its owner alone, who may change things there; empty: off"},
		{groupProcess, "admin-token-file", "FILE", flagvalue.String(&cfg.AdminTokenFile),
			"holds the bearer token with which things may be changed where -admin is\n" +
				"host:port; empty: nothing can be"},

		{groupActions, "seal", "ADDRESS", act(actionSeal),
			"print the sealed line for host:port, for several with commas between, or for\n" +
				"srv:name; with -ttl, a token"},
		{groupActions, "ttl", "TIME", flagvalue.DurationOrZero(&cfg.TTL, 0),
			"how long the token of -seal is good, which -token-keys makes; 0: a sealed line"},
		{groupActions, "open", "LINE", act(actionOpen),
			"print the address in a sealed line or token; exit 1 if it does not open"},
		{groupActions, "keygen", "", act(actionKeygen),
			"print a fresh key set for -token-keys"},
		{groupActions, "check", "", act(actionCheck),
			"validate the configuration, the files that it names, and for a moment the\n" +
				"addresses to listen on; exit 0 or 2"},
		{groupActions, "status", "", act(actionStatus),
			"print how the gateway at -admin is, as a table; exit 0, or 1 if it cannot be\n" +
				"asked"},
		{groupActions, "watch", "TIME", flagvalue.DurationOrZero(&cfg.Watch, 0),
			"after which -status prints again, until it is interrupted; 0: it does not"},
		{groupActions, "tunnels", "FILTER", act(actionTunnels),
			"print the live tunnels of the gateway at -admin: all, or those of\n" +
				"client=CIDR, backend=HOST:PORT, listener=ADDRESS or id=ID, several of them\n" +
				"with commas between; the names may be left out; exit 0 or 1"},
		{groupActions, "cut", "FILTER", act(actionCut),
			"cut the live tunnels of one id=, client= or backend= of the gateway at\n" +
				"-admin; exit 1 if there are none, or it cannot be asked"},
		{groupActions, "version", "", act(actionVersion),
			"print version, Go version and commit"},
	})
}

func defaultConfig() *Config {
	return &Config{
		KDFs:             []kdf{kdfMD5, kdfSHA256},
		Legacy:           true,
		addr:             "0.0.0.0:0",
		HandshakeTimeout: 10 * time.Second,
		HandshakeMax:     1024,
		Prefix6:          64,
		HTTPHeaderMax:    8192,
		HTTPIdleTimeout:  4 * time.Second,
		WSOrigins:        []string{"*"},
		Retry:            1,
		Timeout:          3 * time.Second,
		ResolverTimeout:  2 * time.Second,
		SendProxy:        "off",
		Buffer:           16384,
		Splice:           true,
		IOUring:          true,
		HalfCloseTimeout: 60 * time.Second,
		Keepalive:        30 * time.Second,
		ResumeHold:       30 * time.Second,
		ResumeBuffer:     256 << 10,
		ResumeMemory:     256 << 20,
		ResumeMax:        10_000,
		KCPMode:          "fast3",
		KCPSendWindow:    1024,
		KCPReceiveWindow: 1024,
		KCPMTU:           1350,
		KCPCrypt:         "none",
		KCPIdleTimeout:   60 * time.Second,
		KCPMaxSessions:   10_000,
		PIDFile:          "gateway.pid",
		Drain:            30 * time.Second,
		UpgradeTimeout:   30 * time.Second,
		Handover:         true,
		LogFormat:        "text",
		LogLevel:         slog.LevelInfo,
	}
}

// settings lists the flags of limits on clients. A listener may have its own.
func (c *clientLimits) settings() []setting {
	return []setting{
		{groupClients, "max-conns", "COUNT", flagvalue.Int(&c.MaxConns, 0, 1<<24),
			"connections in all, KCP sessions included, at which accepting pauses until one\n" +
				"ends; 0, and never more: as many as the limit of descriptors is enough for"},
		{groupClients, "max-conns-per-ip", "COUNT", flagvalue.Int(&c.ConnsPerIP, 0, 1<<24),
			"connections of one client address; 0: any number"},
		{groupClients, "rate-per-ip", "N/s[,BURST]", flagvalue.Parsed(&c.RatePerIP, limit.ParseRate, limit.Rate.String),
			"connections that one client address may open in a second (/s), minute (/m) or\n" +
				"hour (/h), and how many at once, N where that is not said; empty: any number"},
		{groupClients, "allow-clients", "CIDRS", flagvalue.Sum(&c.AllowClients, limit.ParseSource, "want addresses, networks or @FILE, or nothing at all"),
			"networks of clients that are served, and no others, separated by commas; @FILE\n" +
				"is a file with one on each line (# begins a comment), which is read again when\n" +
				"it changes; may be repeated. It is about clients, and -allow-backends is about\n" +
				"backends; empty: everybody"},
		{groupClients, "deny-clients", "CIDRS", flagvalue.Sum(&c.DenyClients, limit.ParseSource, "want addresses, networks or @FILE, or nothing at all"),
			"networks of clients that are not served, in the same form, whatever\n" +
				"-allow-clients says"},
	}
}

// set sets one of them, of a listener: it replaces what is there.
func (c *clientLimits) set(o option) error {
	if o.name == "allow-clients" {
		c.AllowClients = nil
	} else if o.name == "deny-clients" {
		c.DenyClients = nil
	}
	for _, s := range c.settings() {
		if s.name == o.name {
			return s.value.Set(o.value)
		}
	}
	return errors.New("want max-conns, max-conns-per-ip, rate-per-ip, allow-clients or deny-clients")
}

// envName returns the environment twin of a flag.
func envName(flagName string) string {
	return "GATEWAY_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// printHelp writes what -help says.
func printHelp(w io.Writer) {
	fmt.Fprint(w, `gateway lets TCP clients through to the backends whose sealed addresses they
bring, and keeps the backends' own addresses out of sight.

  gateway -secret-file=secret -addr=:8000
  gateway -secret-file=secret -seal=10.0.0.7:4000
`)
	group := ""
	for _, s := range settings(defaultConfig()) {
		if s.group != group {
			group = s.group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		head := "-" + s.name
		if s.arg != "" {
			head += "=" + s.arg
		}
		if def := s.value.String(); def != "" {
			head += "  (default " + def + ")"
		}
		fmt.Fprintf(w, "  %s\n      %s\n", head, strings.ReplaceAll(s.usage, "\n", "\n      "))
	}
	fmt.Fprint(w, `
Environment
  Each setting above, but no action, can also be given as GATEWAY_NAME with
  dashes as underscores: GATEWAY_SECRET_FILE=secret. A flag wins.

Exit codes
  0 ended by a signal, also when tunnels had to be cut; 1 failed while running,
  the line of -open does not open, -cut finds no tunnel, or the gateway that is
  to be asked does not answer; 2 wrong flags or environment, or a file named in
  them cannot be read
`)
}

// The values that only this program has.

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

// listenValue is a list of addresses to listen on.
type listenValue []listening

func (v *listenValue) String() string {
	var words []string
	for _, l := range *v {
		switch {
		case l.setting != "listen":
		case l.forward != nil:
			words = append(words, l.addr+"=forward:"+l.forward.String())
		default:
			words = append(words, l.addr+"=sealed")
		}
	}
	return strings.Join(words, " ")
}

func (v *listenValue) Set(s string) error {
	for word := range strings.FieldsSeq(s) {
		addr, what, _ := strings.Cut(word, "=")
		l := listening{setting: "listen"}
		err := flagvalue.Address(&l.addr, false).Set(addr)
		if err != nil {
			return fmt.Errorf("%w, before =sealed or =forward:TARGET", err)
		}
		what, limits, limited := strings.Cut(what, ";")
		if limited {
			if l.options, err = parseOptions(limits); err != nil {
				return err
			}
		}
		if target, ok := strings.CutPrefix(what, "forward:"); ok {
			if l.forward, err = parseTarget(target); err != nil {
				return err
			}
		} else if what != "sealed" {
			return errors.New("want ADDRESS=sealed or ADDRESS=forward:HOST:PORT, and limits behind ; or none")
		}
		// Port 0 is another port each time.
		same := slices.IndexFunc(*v, func(have listening) bool {
			return have.addr == l.addr && !strings.HasSuffix(l.addr, ":0")
		})
		if same < 0 {
			*v = append(*v, l)
		} else if targetText(l.forward) != targetText((*v)[same].forward) || !slices.Equal(l.options, (*v)[same].options) {
			return fmt.Errorf("want one use of %s", l.addr)
		}
	}
	return nil
}

// parsePath reads the path of a URL, or nothing.
func parsePath(s string) (string, error) {
	if s != "" && (s[0] != '/' || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("?#%", r) })) {
		return "", errors.New("want a path that begins with /, of plain ASCII characters")
	}
	return s, nil
}

// parseOptions reads the limits of one listener, name=value with semicolons between.
func parseOptions(s string) (list []option, err error) {
	var scratch clientLimits
	for word := range strings.SplitSeq(s, ";") {
		name, value, _ := strings.Cut(word, "=")
		o := option{name, value}
		if slices.ContainsFunc(list, func(have option) bool { return have.name == name }) {
			return nil, fmt.Errorf("want %s once", name)
		}
		if err := scratch.set(o); err != nil {
			return nil, fmt.Errorf("%s: %w", word, err)
		}
		list = append(list, o)
	}
	return list, nil
}

// parseForward is parseTarget, or nil for nothing.
func parseForward(s string) (*address.Route, error) {
	if s == "" {
		return nil, nil
	}
	return parseTarget(s)
}

// parseTarget reads a route to a backend, or to one of several.
func parseTarget(s string) (*address.Route, error) {
	r, err := address.ParseRoute(s)
	if err != nil {
		return nil, fmt.Errorf("want host:port, several such or srv:name (%w)", err)
	}
	return &r, nil
}

func targetText(r *address.Route) string {
	if r == nil {
		return ""
	}
	return r.String()
}

// parsePrefix reads a network, or an address, which is one.
func parsePrefix(word string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(word)
	if addr, aerr := netip.ParseAddr(word); aerr == nil && addr.Zone() == "" {
		p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q: want addresses or networks such as 10.0.0.0/8 and fd00::/8, without bits beyond the prefix", word)
	}
	return p, nil
}

// parseOrigin reads a pattern as path.Match has them.
func parseOrigin(word string) (string, error) {
	host := word
	if scheme, rest, ok := strings.Cut(word, "://"); ok {
		if host = rest; scheme != "http" && scheme != "https" {
			host = ""
		}
	}
	_, err := path.Match(word, "")
	if err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return "", fmt.Errorf("%q: want hosts, with http:// or https:// before them or without, and no path; * stands for anything", word)
	}
	return word, nil
}

// parsePeer reads an address at which others reach this process, or nothing.
func parsePeer(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().Zone() != "" || a.String() != s {
		return "", errors.New("want the ip:port at which other gateways reach this one, with a port from 1 to 65535")
	}
	return s, nil
}

// parseAdmin reads an address of -admin.
func parseAdmin(s string) (addr string, err error) {
	if _, ok := admin.UnixPath(s); ok {
		return s, admin.CheckAddr(s)
	}
	if err := flagvalue.Address(&addr, true).Set(s); err != nil {
		return "", fmt.Errorf("%w, or unix:PATH", err)
	}
	return addr, nil
}

func parseLevel(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, l.String()) {
			return l, nil
		}
	}
	return 0, errors.New("want debug, info, warn or error")
}

func levelText(l slog.Level) string { return strings.ToLower(l.String()) }

// parseKDFs reads a list of key derivations, each at most once.
func parseKDFs(s string) ([]kdf, error) {
	var list []kdf
	for name := range strings.SplitSeq(s, ",") {
		k := kdf(name)
		if k != kdfMD5 && k != kdfSHA256 && k != kdfPBKDF2 || slices.Contains(list, k) {
			return nil, errors.New("want md5, sha256 and pbkdf2, each at most once, separated by commas")
		}
		list = append(list, k)
	}
	return list, nil
}

func joinKDFs(list []kdf) string {
	names := make([]string, len(list))
	for i, k := range list {
		names[i] = string(k)
	}
	return strings.Join(names, ",")
}
