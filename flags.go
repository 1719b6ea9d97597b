package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"gateway/internal/admin"
	"gateway/internal/ask"
	"gateway/internal/balance"
	"gateway/internal/flagvalue"
	"gateway/internal/kcp"
	"gateway/internal/limit"
	"gateway/internal/listen"
	"gateway/internal/policy"
	"gateway/internal/resume"
	"gateway/internal/setting"
	"gateway/internal/sockopt"
	"gateway/internal/web"
)

// minBuffer is the least -buffer, in bytes: less is more system calls than work.
const minBuffer = 64

// The groups of -help, in their order.
const (
	groupSecrets   = "Secrets"
	groupListening = "Listening"
	groupClients   = "Who is served; a client that is not gets a reset at once"
	groupRequest   = "The client's request"
	groupBackend   = "The backend"
	groupTunnel    = "The tunnel"
	groupResume    = "Resumable tunnels, which outlive their client's connection"
	groupAsk       = "A service of yours that is asked where names and tickets lead"
	groupKCP       = "KCP, for clients and backends on UDP"
	groupProcess   = "The process"
	groupActions   = "Actions, instead of serving"
)

// row is one of the settings below.
func row(group, name, arg string, value flag.Value, usage string) setting.Setting {
	return setting.Setting{Group: group, Name: name, Arg: arg, Value: value, Usage: usage}
}

// settings lists every flag, grouped as -help shows them. The current values
// in cfg are the defaults.
func settings(cfg *Config) []setting.Setting {
	act := func(a action) flag.Value { return &actionValue{cfg, a} }
	before := []setting.Setting{
		row(groupSecrets, "secret", "PASSPHRASE", flagvalue.String(&cfg.secret),
			"seals and opens addresses. The process list shows it, so prefer -secret-file,\n"+
				"GATEWAY_SECRET, or systemd's LoadCredential=secret:FILE, which is read like\n"+
				"-secret-file. Every source that is given counts, in this order; at least one\n"+
				"is required, unless all listeners forward"),
		row(groupSecrets, "secret-file", "FILE", flagvalue.String(&cfg.secretFile),
			"one secret a line, at most 100: all open, the first seals; blank lines and\n"+
				"lines that start with # are skipped"),
		row(groupSecrets, "kdf", "LIST", flagvalue.Parsed(&cfg.KDFs, parseKDFs, joinKDFs),
			"key derivations to try, in order; the first seals. md5: OpenSSL before 1.1.0,\n"+
				"CryptoJS. sha256: OpenSSL since. pbkdf2: openssl enc -pbkdf2; it costs\n"+
				"milliseconds of CPU for each bad line, so it is tried only when named here"),
		row(groupSecrets, "token-keys", "FILE", flagvalue.String(&cfg.TokenKeys),
			"keys (a JWK Set, see -keygen) that open JOSE tokens, which expire, wherever a\n"+
				"sealed line is taken. Read again when it changes"),
		row(groupSecrets, "token-audience", "NAME", flagvalue.String(&cfg.TokenAudience),
			"whom a token's aud must name; empty: anybody"),
		row(groupSecrets, "legacy", "0|1", flagvalue.Switch(&cfg.Legacy),
			"0 refuses sealed lines: tokens only, and no secret is needed"),

		row(groupListening, "addr", "ADDRESS", flagvalue.Address(&cfg.addr, false),
			"host:port to listen on. :port is every IPv4 and IPv6 address, 0.0.0.0:port\n"+
				"every IPv4 address; port 0 is a free one, which the log names"),
		row(groupListening, "forward", "TARGET", flagvalue.Parsed(&cfg.forward, listen.ParseForward, listen.TargetText),
			"host:port to which every client of -addr goes: a plain port forward, without\n"+
				"handshake, status or secret. Like a sealed address it may be several with\n"+
				"weights, A:1*2,B:1, srv:NAME or ask:NAME; http://host:port speaks HTTP"),
		row(groupListening, "listen", "ADDRESS=sealed|forward:TARGET[;LIMIT=VALUE...]", listen.Value{List: &cfg.Listen, Check: new(clientLimits).set},
			"one more address to listen on, for sealed lines or as a plain port forward.\n"+
				"May be repeated (separated by spaces in GATEWAY_LISTEN). With -listen and\n"+
				"neither -addr nor -forward, there is no -addr. Behind a semicolon each, it may\n"+
				"have limits of its own, whose clients are counted apart: max-conns,\n"+
				"max-conns-per-ip, rate-per-ip, allow-clients, deny-clients"),
		row(groupListening, "reuse", "0|1", flagvalue.Switch(&cfg.Reuse),
			"1 sets SO_REUSEPORT, for several processes on one address"),
		row(groupListening, "mptcp", "0|1", flagvalue.Switch(&cfg.MPTCP),
			"1 takes clients that speak MPTCP (RFC 8684), whose connection survives a change\n"+
				"of networks; all others are served as ever (Linux). Not together with\n"+
				"-tcp-user-timeout, and not for what -resume-peer is for"),
		row(groupListening, "trusted-proxies", "CIDRS", flagvalue.Sum(&cfg.TrustedProxies, flagvalue.Network, ""),
			"peers that must send a PROXY protocol header (v1 or v2) first, whose client\n"+
				"address is believed, separated by commas; empty: nobody is believed"),
		row(groupListening, "tls-cert", "FILE", flagvalue.String(&cfg.TLSCert),
			"certificate chain in PEM form: clients may then speak TLS. Read again when it\n"+
				"changes"),
		row(groupListening, "tls-key", "FILE", flagvalue.String(&cfg.TLSKey),
			"the certificate's private key"),
	}
	clients := append(cfg.clientLimits.settings(), []setting.Setting{
		row(groupClients, "ip-prefix6", "BITS", flagvalue.Int(&cfg.Prefix6, 1, 128),
			"of an IPv6 address that count as one client address; IPv4 addresses count whole"),
		row(groupClients, "ban", "N/TIME:TIME", flagvalue.Parsed(&cfg.Ban, limit.ParseBan, limit.BanRule.String),
			"bad lines, tokens or handshakes of one client address in so long a time after\n"+
				"which it is not served for so long: 20/1m:10m. Players may share an address;\n"+
				"empty: never"),
	}...)
	return slices.Concat(before, clients, []setting.Setting{
		row(groupRequest, "handshake-timeout", "TIME", flagvalue.Duration(&cfg.HandshakeTimeout),
			"for the whole request, however it dribbles"),
		row(groupRequest, "handshake-max", "BYTES", flagvalue.Int(&cfg.HandshakeMax, 1, 1<<20),
			"largest sealed line or token, in whatever form it comes; 2048 by default where\n"+
				"-token-keys is set"),
		row(groupRequest, "max-pending", "COUNT", flagvalue.Int(&cfg.MaxPending, 0, 1<<24),
			"clients that have not said yet where they want to go, after which the oldest of\n"+
				"them gives way to the newest; 0: as many as an eighth of the memory that the\n"+
				"process may use (GOMEMLIMIT, its control group) is enough for"),
		row(groupRequest, "health-path", "PATH", flagvalue.Parsed(&cfg.HealthPath, flagvalue.URLPath, func(s string) string { return s }),
			"of HTTP requests that ask for the gateway's own health, wherever clients may\n"+
				"speak HTTP: 200, and 503 once clients should go elsewhere; logged at debug;\n"+
				"empty: none"),
		row(groupRequest, "http-header-max", "BYTES", flagvalue.Int(&cfg.HTTPHeaderMax, 128, 1<<20),
			"largest header of an HTTP request"),
		row(groupRequest, "http-host", "keep|backend", flagvalue.OneOf(&cfg.HTTPHost, "keep", "backend"),
			"the Host that a backend of HTTP is told: the client's, or its own address"),
		row(groupRequest, "http-strip-prefix", "PATH", flagvalue.Parsed(&cfg.HTTPStripPrefix, parseStripPrefix, func(s string) string { return s }),
			"taken off the paths of HTTP requests that begin with it; empty: none"),
		row(groupRequest, "http-set", "HEADER", flagvalue.Lines(&cfg.HTTPSet, web.ParseField),
			"NAME: VALUE of HTTP requests for the backend; response NAME: VALUE of what\n"+
				"it answers. It replaces what is there; no value removes it. May be repeated\n"+
				"(one a line in GATEWAY_HTTP_SET)"),
		row(groupRequest, "ws-origins", "PATTERNS", flagvalue.List(&cfg.WSOrigins, flagvalue.Origin, "want hosts, or * for all"),
			"hosts (game.example, *.example) whose web pages may open WebSockets, with\n"+
				"https:// or http:// before them for that scheme alone, separated by commas"),

		row(groupBackend, "retry", "ATTEMPTS", flagvalue.Int(&cfg.Retry, 1, 1000),
			"to connect, in all; only a time-out is tried again"),
		row(groupBackend, "timeout", "TIME", flagvalue.Duration(&cfg.Timeout),
			"for each attempt, its name lookup included"),
		row(groupBackend, "max-tunnels-per-backend", "COUNT", flagvalue.Int(&cfg.MaxTunnels, 0, 1<<24),
			"of one host:port as it is sealed, dials included; then the next of several is\n"+
				"taken, or the client gets 502; 0: any number"),
		row(groupBackend, "balance", "first|roundrobin|random|leastconn|source", flagvalue.Parsed(&cfg.Balance, balance.ParseAlgorithm, balance.Algorithm.String),
			"which of several backends a client gets, by HAProxy's names: the first in order\n"+
				"that answers, each in turn by weight, any, the one with the fewest tunnels,\n"+
				"or by the client's address"),
		row(groupBackend, "resolver", "ADDRESS", flagvalue.Server(&cfg.Resolver),
			"host:port of the name server to ask, for srv: and all names (Consul: port\n"+
				"8600); empty: the system's"),
		row(groupBackend, "resolver-timeout", "TIME", flagvalue.Duration(&cfg.ResolverTimeout),
			"for one lookup by a name server, with all repetitions"),
		row(groupBackend, "allow-backends", "RULES", flagvalue.Sum(&cfg.Allow, policy.ParseRule, "want rules, or nothing at all"),
			"where backends may be, and nowhere else: CIDR, CIDR:PORT or CIDR:FROM-TO,\n"+
				"separated by commas; may be repeated. Link-local and metadata addresses\n"+
				"(169.254.0.0/16, fe80::/10 and the clouds') need a rule within their range;\n"+
				"empty: everywhere else"),
		row(groupBackend, "deny-backends", "RULES", flagvalue.Sum(&cfg.Deny, policy.ParseRule, "want rules, or nothing at all"),
			"where backends may not be, in the same form, whatever -allow-backends says"),
		row(groupBackend, "allow", "RULES", flagvalue.Sum(&cfg.Allow, policy.ParseRule, "want rules, or nothing at all"),
			"the older name of -allow-backends: it is not about clients"),
		row(groupBackend, "deny", "RULES", flagvalue.Sum(&cfg.Deny, policy.ParseRule, "want rules, or nothing at all"),
			"the older name of -deny-backends: it is not about clients"),
		row(groupBackend, "http-idle-timeout", "TIME", flagvalue.DurationOrZero(&cfg.HTTPIdleTimeout, 0),
			"for which an HTTP connection to a backend is kept between two requests, unless\n"+
				"the backend's Keep-Alive says less; below the 5 s after which Node.js closes.\n"+
				"0: each request has its own"),
		row(groupBackend, "send-proxy", "off|v1|v2", flagvalue.OneOf(&cfg.SendProxy, "off", "v1", "v2"),
			"tell backends the client's address, by a PROXY protocol header before anything\n"+
				"else; v2 carries a unique id too, which the log has"),

		row(groupTunnel, "buffer", "BYTES", flagvalue.Int(&cfg.Buffer, minBuffer, 16<<20),
			"of the copy buffer, 64 at least. It has no effect on long runs of data on\n"+
				"Linux, which are spliced inside the kernel; a read that fills it is what starts\n"+
				"one"),
		row(groupTunnel, "splice", "0|1", flagvalue.Switch(&cfg.Splice),
			"0 copies everything through user space, on Linux too"),
		row(groupTunnel, "io-uring", "0|1", flagvalue.Switch(&cfg.IOUring),
			"1 relays the messages of many tunnels by two system calls of an io_uring, where\n"+
				"Linux has one and no container's filter refuses it; the log says which. 0 never\n"+
				"asks for one"),
		row(groupTunnel, "loops", "COUNT", flagvalue.Int(&cfg.Loops, -1, 1024),
			"event loops, on Linux; 0 is one for each CPU the process may use, -1 serves\n"+
				"with goroutines as other systems do"),
		row(groupTunnel, "idle-timeout", "TIME", flagvalue.DurationOrZero(&cfg.IdleTimeout, 0),
			"after which a tunnel ends through which no byte has moved; 0: never"),
		row(groupTunnel, "half-close-timeout", "TIME", flagvalue.Duration(&cfg.HalfCloseTimeout),
			"the same for a tunnel of which one side has finished"),
		row(groupTunnel, "keepalive", "TIME", flagvalue.DurationOrZero(&cfg.Keepalive, sockopt.MaxKeepalive),
			"of silence after which TCP asks both ends, and a ping asks a WebSocket's\n"+
				"client, whether they are there; 0: never"),
		row(groupTunnel, "tcp-user-timeout", "TIME", flagvalue.DurationOrZero(&cfg.UserTimeout, sockopt.MaxUserTimeout),
			"after which a peer that acknowledges nothing, or takes nothing, is given up\n"+
				"(TCP_USER_TIMEOUT, Linux); 0: the kernel's, about 15 minutes"),

		row(groupResume, "resume", "0|1", flagvalue.Switch(&cfg.Resume),
			"1 lets clients that ask for it come back by another connection, from another\n"+
				"address, and go on where they were"),
		row(groupResume, "resume-plain", "0|1", flagvalue.Switch(&cfg.ResumePlain),
			"1 takes clients that cannot exchange keys outside of TLS too, where whoever\n"+
				"listens on the way can resume their tunnels"),
		row(groupResume, "resume-hold", "TIME", flagvalue.Duration(&cfg.ResumeHold),
			"for which a tunnel is held whose client is gone; then its backend is reset"),
		row(groupResume, "resume-buffer", "BYTES", flagvalue.Int(&cfg.ResumeBuffer, resume.MinWindow, resume.MaxWindow),
			"that a tunnel may have unacknowledged in each direction: the most that it costs\n"+
				"in memory, twice, and the most that it moves in a round trip"),
		row(groupResume, "resume-memory", "BYTES", flagvalue.Int(&cfg.ResumeMemory, 1<<20, math.MaxInt),
			"of all such tunnels, after which the one whose client has been gone for the\n"+
				"longest is given up; if there is none, new ones are refused"),
		row(groupResume, "resume-max", "COUNT", flagvalue.Int(&cfg.ResumeMax, 1, 1<<24),
			"tunnels held whose clients are gone, after which the oldest is given up"),
		row(groupResume, "resume-key-file", "FILE", flagvalue.String(&cfg.ResumeKeyFile),
			"secrets, one a line, that seal the tickets by which clients come back: the\n"+
				"first seals, all open. Without it the secrets of sealed lines do"),
		row(groupResume, "resume-peer", "ADDRESS", flagvalue.Parsed(&cfg.ResumePeer, flagvalue.Reachable, func(s string) string { return s }),
			"ip:port to listen on for other gateways, which pass on clients that come back\n"+
				"there; it stands in tickets, so it is the address at which they reach this one.\n"+
				"Keep it private; empty: clients come back to the same gateway only"),
		row(groupResume, "resume-peers", "CIDRS", flagvalue.Sum(&cfg.ResumePeers, flagvalue.Network, ""),
			"where the other gateways are, separated by commas: only they are taken on\n"+
				"-resume-peer, and only there a ticket may lead"),

		row(groupAsk, "ask", "URL", flagvalue.Parsed(&cfg.Ask, ask.ParseURL, func(s string) string { return s }),
			"http://, https:// or unix:PATH of the service that a POST of JSON asks where\n"+
				"ask:NAME leads, which may be sealed, or stand in a token or -forward; empty:\n"+
				"none"),
		row(groupAsk, "ask-timeout", "TIME", flagvalue.Duration(&cfg.AskTimeout),
			"for one question"),
		row(groupAsk, "ask-ca", "FILE", flagvalue.String(&cfg.AskCA),
			"certificates (PEM) that an https:// service's has to come from, and no others;\n"+
				"empty: the system's"),
		row(groupAsk, "ask-token-file", "FILE", flagvalue.String(&cfg.AskTokenFile),
			"holds the bearer token that the service is shown; empty: none"),
		row(groupAsk, "ask-stale", "TIME", flagvalue.DurationOrZero(&cfg.AskStale, 0),
			"for which the last answer for a name is used beyond its own time while the\n"+
				"service gives none; 0: not at all"),
		row(groupAsk, "ask-tickets", "0|1", flagvalue.Switch(&cfg.AskTickets),
			"1 takes ?TICKET in place of a sealed line, of which the service alone knows\n"+
				"what it is worth. Of those that are worth nothing, a client address has 100\n"+
				"at once and 10 a second"),
		row(groupAsk, "ask-headers", "NAMES", flagvalue.Sum(&cfg.AskHeaders, ask.ParseHeader, "want names of headers, or nothing at all"),
			"headers of HTTP requests that the service is told, separated by commas; empty:\n"+
				"none"),

		row(groupKCP, "kcp", "ADDRESS", flagvalue.Address(&cfg.KCP, true),
			"host:port to listen on for KCP clients, the same as -addr most of the time;\n"+
				"empty: off. Backends sealed as kcp://host:port are dialed in any case"),
		row(groupKCP, "kcp-mode", "normal|fast|fast2|fast3", flagvalue.OneOf(&cfg.KCPMode, "normal", "fast", "fast2", "fast3"),
			"how early what may be lost is sent again, as in kcptun"),
		row(groupKCP, "kcp-sndwnd", "PACKETS", flagvalue.Int(&cfg.KCPSendWindow, kcp.MinWindow, kcp.MaxWindow),
			"that a session may have in flight"),
		row(groupKCP, "kcp-rcvwnd", "PACKETS", flagvalue.Int(&cfg.KCPReceiveWindow, kcp.MinWindow, kcp.MaxWindow),
			"that a session may have unread"),
		row(groupKCP, "kcp-mtu", "BYTES", flagvalue.Int(&cfg.KCPMTU, kcp.MinMTU, kcp.MaxMTU),
			"largest datagram, without the headers of IP and UDP"),
		row(groupKCP, "kcp-datashard", "COUNT", flagvalue.Int(&cfg.KCPDataShards, 0, kcp.MaxShards),
			"packets of a Reed-Solomon group, the same at both ends; 0: no such correction"),
		row(groupKCP, "kcp-parityshard", "COUNT", flagvalue.Int(&cfg.KCPParityShards, 0, kcp.MaxShards),
			"packets added to a group, the same at both ends"),
		row(groupKCP, "kcp-crypt", "none|aes", flagvalue.OneOf(&cfg.KCPCrypt, "none", "aes"),
			"AES-256 around each datagram, the same at both ends; it does not authenticate"),
		row(groupKCP, "kcp-key", "PASSPHRASE", flagvalue.String(&cfg.KCPKey),
			"of -kcp-crypt=aes, as in kcptun. The process list shows it, so prefer\n"+
				"GATEWAY_KCP_KEY"),
		row(groupKCP, "kcp-idle-timeout", "TIME", flagvalue.Duration(&cfg.KCPIdleTimeout),
			"after which a session ends through which no byte has moved: KCP has no FIN,\n"+
				"so nothing else tells that a peer is gone"),
		row(groupKCP, "kcp-max-sessions", "COUNT", flagvalue.Int(&cfg.KCPMaxSessions, 1, 1<<20),
			"of the listener, at which new ones are dropped; they count as connections for\n"+
				"-max-conns too"),

		row(groupProcess, "config", "FILE", flagvalue.String(&cfg.file),
			"settings, NAME=VALUE or GATEWAY_NAME=VALUE a line, which SIGHUP reads again,\n"+
				"with all files that they name; blank lines and lines that start with # are\n"+
				"skipped. A flag wins over a variable, and both over the file"),
		row(groupProcess, "pidfile", "FILE", flagvalue.String(&cfg.PIDFile),
			"holds the process id while the gateway runs, with a line for each gateway\n"+
				"that names the file; empty: none"),
		row(groupProcess, "drain-delay", "TIME", flagvalue.DurationOrZero(&cfg.DrainDelay, 0),
			"after SIGTERM or SIGINT in which clients are still served, and -health-path\n"+
				"and /readyz say 503: for balancers to notice. A second signal within a second\n"+
				"of the first is the same one"),
		row(groupProcess, "drain", "TIME", flagvalue.DurationOrZero(&cfg.Drain, 0),
			"that tunnels get to finish after SIGTERM or SIGINT; a second signal ends them\n"+
				"at once"),
		row(groupProcess, "upgrade-exec", "FILE", flagvalue.String(&cfg.UpgradeExec),
			"program that SIGUSR2 starts in this one's place, with the same flags, which\n"+
				"takes over the listening sockets (Linux); empty: this program's path, and\n"+
				"whatever is there by then"),
		row(groupProcess, "upgrade-timeout", "TIME", flagvalue.Duration(&cfg.UpgradeTimeout),
			"after which a new program that does not serve yet is killed; the old one has\n"+
				"gone on meanwhile"),
		row(groupProcess, "handover", "0|1", flagvalue.Switch(&cfg.Handover),
			"1 has live tunnels go on in a process that replaces this one: those that event\n"+
				"loops relay (Linux), WebSockets too. TLS, HTTP and KCP end in the old process"),
		row(groupProcess, "hard-stop-after", "TIME", flagvalue.DurationOrZero(&cfg.HardStopAfter, 0),
			"that tunnels get to finish in a process that another has replaced; 0: as long\n"+
				"as they take"),
		row(groupProcess, "log-format", "text|json", flagvalue.OneOf(&cfg.LogFormat, "text", "json"),
			"of the log on standard error"),
		row(groupProcess, "log-file", "FILE", flagvalue.String(&cfg.LogFile),
			"that the log is appended to, and that SIGUSR1 opens again once it was moved\n"+
				"away; empty: standard error, for systemd's journal with the level of each line"),
		row(groupProcess, "log-tunnels", "end|open", flagvalue.OneOf(&cfg.LogTunnels, "end", "open"),
			"open logs also when a tunnel begins, as -log-level=debug does anyway"),
		row(groupProcess, "log-refused-rate", "COUNT", flagvalue.Int(&cfg.LogRefusedRate, 0, 1<<20),
			"refusals of one reason and one network of clients that get a line in a second;\n"+
				"those beyond are counted in a line; 0: every one gets its line"),
		row(groupProcess, "log-level", "debug|info|warn|error", flagvalue.Level(&cfg.LogLevel),
			"the least that is logged"),
		row(groupProcess, "pprof", "ADDRESS", flagvalue.Address(&cfg.Pprof, true),
			"host:port of net/http/pprof; keep it private; empty: off"),
		row(groupProcess, "admin", "ADDRESS", flagvalue.Parsed(&cfg.Admin, parseAdmin, func(s string) string { return s }),
			"host:port or unix:PATH of metrics, health and live tunnels; keep it private. A\n"+
				"Unix socket is for its owner alone, who may change things there; empty: off"),
		row(groupProcess, "admin-token-file", "FILE", flagvalue.String(&cfg.AdminTokenFile),
			"holds the bearer token with which things may be changed where -admin is\n"+
				"host:port; empty: nothing can be"),

		row(groupActions, "seal", "ADDRESS", act(actionSeal),
			"print the sealed line for host:port, for several with commas between, for\n"+
				"srv:name or ask:name; with -ttl, a token"),
		row(groupActions, "ttl", "TIME", flagvalue.DurationOrZero(&cfg.TTL, 0),
			"how long the token of -seal is good, which -token-keys makes; 0: a sealed line"),
		row(groupActions, "open", "LINE", act(actionOpen),
			"print the address in a sealed line or token; exit 1 if it does not open"),
		row(groupActions, "keygen", "", act(actionKeygen),
			"print a fresh key set for -token-keys"),
		row(groupActions, "check", "", act(actionCheck),
			"validate the configuration, the files that it names, and for a moment the\n"+
				"addresses to listen on; exit 0 or 2"),
		row(groupActions, "status", "", act(actionStatus),
			"print how the gateway at -admin is, as a table; exit 0, or 1 if it cannot be\n"+
				"asked"),
		row(groupActions, "watch", "TIME", flagvalue.DurationOrZero(&cfg.Watch, 0),
			"after which -status prints again, until it is interrupted; 0: it does not"),
		row(groupActions, "tunnels", "FILTER", act(actionTunnels),
			"print the live tunnels of the gateway at -admin: all, or those of\n"+
				"client=CIDR, backend=HOST:PORT, listener=ADDRESS or id=ID, several of them\n"+
				"with commas between; the names may be left out; exit 0 or 1"),
		row(groupActions, "cut", "FILTER", act(actionCut),
			"cut the live tunnels of one id=, client= or backend= of the gateway at\n"+
				"-admin; exit 1 if there are none, or it cannot be asked"),
		row(groupActions, "probe", "ADDRESS", act(actionProbe),
			"tell by exit code 0 or 1 and a line whether host:port, where clients come,\n"+
				"takes connections, or whether the gateway at admin:host:port or unix:PATH,\n"+
				"its -admin, is ready; within 3 s, whatever else is set"),
		row(groupActions, "version", "", act(actionVersion),
			"print version, Go version and commit"),
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
		HTTPHost:         "keep",
		Retry:            1,
		Timeout:          3 * time.Second,
		ResolverTimeout:  2 * time.Second,
		SendProxy:        "off",
		Buffer:           16384,
		Splice:           true,
		IOUring:          true,
		HalfCloseTimeout: 60 * time.Second,
		Keepalive:        30 * time.Second,
		AskTimeout:       time.Second,
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
		LogTunnels:       "end",
		LogRefusedRate:   100,
		LogLevel:         slog.LevelInfo,
	}
}

// settings lists the flags of limits on clients. A listener may have its own.
func (c *clientLimits) settings() []setting.Setting {
	return []setting.Setting{
		row(groupClients, "max-conns", "COUNT", flagvalue.Int(&c.MaxConns, 0, 1<<24),
			"connections in all, KCP sessions included, at which accepting pauses until one\n"+
				"ends; 0, and never more: as many as the limit of descriptors is enough for"),
		row(groupClients, "max-conns-per-ip", "COUNT", flagvalue.Int(&c.ConnsPerIP, 0, 1<<24),
			"connections of one client address; 0: any number"),
		row(groupClients, "rate-per-ip", "N/s[,BURST]", flagvalue.Parsed(&c.RatePerIP, limit.ParseRate, limit.Rate.String),
			"connections that one client address may open in a second (/s), minute (/m) or\n"+
				"hour (/h), and how many at once, N where that is not said; empty: any number"),
		row(groupClients, "allow-clients", "CIDRS", flagvalue.Sum(&c.AllowClients, limit.ParseSource, "want addresses, networks or @FILE, or nothing at all"),
			"networks of clients that are served, and no others, separated by commas; @FILE\n"+
				"is a file with one on each line (# begins a comment), which is read again when\n"+
				"it changes; may be repeated. It is about clients, and -allow-backends is about\n"+
				"backends; empty: everybody"),
		row(groupClients, "deny-clients", "CIDRS", flagvalue.Sum(&c.DenyClients, limit.ParseSource, "want addresses, networks or @FILE, or nothing at all"),
			"networks of clients that are not served, in the same form, whatever\n"+
				"-allow-clients says"),
	}
}

// set sets one of them, of a listener: it replaces what is there.
func (c *clientLimits) set(o listen.Option) error {
	if o.Name == "allow-clients" {
		c.AllowClients = nil
	} else if o.Name == "deny-clients" {
		c.DenyClients = nil
	}
	for _, s := range c.settings() {
		if s.Name == o.Name {
			return s.Value.Set(o.Value)
		}
	}
	return errors.New("want max-conns, max-conns-per-ip, rate-per-ip, allow-clients or deny-clients")
}

// printHelp writes what -help says.
func printHelp(w io.Writer) {
	fmt.Fprint(w, `gateway lets TCP clients through to the backends whose sealed addresses they
bring, and keeps the backends' own addresses out of sight.

  gateway -secret-file=secret -addr=:8000
  gateway -secret-file=secret -seal=10.0.0.7:4000
`)
	setting.PrintHelp(w, settings(defaultConfig()))
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

// parseStripPrefix reads the escaped beginning of a path.
func parseStripPrefix(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if err := (&web.Changes{Path: s}).Check(); err != nil || len(s) < 2 || strings.HasSuffix(s, "/") || strings.Contains(s, "?") {
		return "", errors.New("want the beginning of an escaped path, /api for instance, without a slash at its end")
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
