package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/ask"
	"gateway/internal/certificate"
	"gateway/internal/descriptors"
	"gateway/internal/kcp"
	"gateway/internal/listen"
	"gateway/internal/policy"
	"gateway/internal/resume"
	"gateway/internal/secretfile"
	"gateway/internal/setting"
	"gateway/internal/smallfile"
	"gateway/internal/token"
)

// parseConfig reads the command line, the environment and the file of settings, of
// which the first wins, and validates them. What they name is for load to read. Its
// errors name the flag or variable at fault, and never hold a secret. flag.ErrHelp asks
// for the help.
func parseConfig(args []string) (*Config, error) {
	cfg := defaultConfig()
	read := reader(cfg)
	if err := read.Flags(args); err != nil {
		return nil, err
	}
	cfg.sources = read.Sources
	if cfg.Action == actionVersion || cfg.Action == actionKeygen {
		return cfg, nil // whatever else is wrong
	}
	if cfg.Action == actionProbe { // by the same environment as the gateway that it looks at
		var err error
		if cfg.probe, err = admin.ParseProbe(cfg.Arg); err != nil {
			return nil, fmt.Errorf("invalid value %q for -probe: %w", cfg.Arg, err)
		}
		return cfg, nil
	}
	if err := read.Environment(); err != nil {
		return nil, err
	}
	if err := cfg.readFile(read); err != nil {
		return nil, err
	}
	if err := cfg.checkAdmin(); err != nil {
		return nil, err
	}
	if cfg.filter != nil || cfg.Action == actionStatus {
		return cfg, nil // whatever the gateway that runs was told
	}
	if err := cfg.settleListening(); err != nil {
		return nil, err
	}
	if err := cfg.checkTLS(); err != nil {
		return nil, err
	}
	if err := cfg.checkResume(); err != nil {
		return nil, err
	}
	if err := cfg.checkMPTCP(); err != nil {
		return nil, err
	}
	cfg.doubts = read.Doubts
	if err := cfg.checkAsk(); err != nil {
		return nil, err
	}
	cfg.level = new(slog.LevelVar)
	cfg.level.Set(cfg.LogLevel)
	return cfg, cfg.checkTokens()
}

// reader returns what reads the settings of cfg.
func reader(cfg *Config) *setting.Reader {
	return &setting.Reader{
		All: settings(cfg), Prefix: "GATEWAY_", Actions: groupActions,
		Sums:   map[string]bool{"listen": true, "http-set": true, "allow": true, "allow-backends": true, "deny": true, "deny-backends": true, "allow-clients": true, "deny-clients": true},
		Secret: map[string]bool{"secret": true, "kcp-key": true},
	}
}

// describe logs the settings that are not left at their defaults, and where each comes
// from.
func (cfg *Config) describe(log *slog.Logger) {
	read := reader(cfg)
	var set []any
	for _, s := range read.All {
		from := cfg.sources[s.Name]
		if from == "" || s.Group == groupActions {
			continue
		}
		value := s.Value.String()
		if read.Secret[s.Name] {
			value = "(hidden)"
		}
		set = append(set, slog.Group(s.Name, slog.String("value", value), slog.String("from", from)))
	}
	// In a group, since addr, drain and others are texts in other lines.
	log.Info("settings", slog.Group("set", set...), "others", "default")
}

// readFile sets what neither the command line nor the environment has.
func (cfg *Config) readFile(read *setting.Reader) error {
	if dir := os.Getenv("CONFIGURATION_DIRECTORY"); cfg.sources["config"] == "" && dir != "" {
		name := filepath.Join(dir, "gateway.conf")
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			cfg.file, cfg.sources["config"] = name, "$CONFIGURATION_DIRECTORY"
		}
	}
	if cfg.file == "" {
		return nil
	}
	err := read.File(cfg.file, "config")
	cfg.inFile = read.InFile
	return err
}

// reloadable are the settings that a running process can take up, and how. All others
// need a new one.
var reloadable = map[string]func(to, from *Config){
	"allow":                   func(to, from *Config) { to.Allow = from.Allow },
	"allow-backends":          func(to, from *Config) { to.Allow = from.Allow },
	"allow-clients":           takeLimits,
	"ban":                     func(to, from *Config) { to.Ban = from.Ban },
	"ask":                     func(to, from *Config) { to.Ask = from.Ask },
	"ask-ca":                  func(to, from *Config) { to.AskCA = from.AskCA },
	"ask-headers":             func(to, from *Config) { to.AskHeaders = from.AskHeaders },
	"ask-stale":               func(to, from *Config) { to.AskStale = from.AskStale },
	"ask-tickets":             func(to, from *Config) { to.AskTickets = from.AskTickets },
	"ask-timeout":             func(to, from *Config) { to.AskTimeout = from.AskTimeout },
	"ask-token-file":          func(to, from *Config) { to.AskTokenFile = from.AskTokenFile },
	"balance":                 func(to, from *Config) { to.Balance = from.Balance },
	"config":                  func(to, from *Config) { to.file = from.file },
	"deny":                    func(to, from *Config) { to.Deny = from.Deny },
	"deny-backends":           func(to, from *Config) { to.Deny = from.Deny },
	"deny-clients":            takeLimits,
	"drain":                   func(to, from *Config) { to.Drain = from.Drain },
	"drain-delay":             func(to, from *Config) { to.DrainDelay = from.DrainDelay },
	"handshake-max":           func(to, from *Config) { to.HandshakeMax = from.HandshakeMax },
	"handshake-timeout":       func(to, from *Config) { to.HandshakeTimeout = from.HandshakeTimeout },
	"handover":                func(to, from *Config) { to.Handover = from.Handover },
	"hard-stop-after":         func(to, from *Config) { to.HardStopAfter = from.HardStopAfter },
	"health-path":             func(to, from *Config) { to.HealthPath = from.HealthPath },
	"http-host":               func(to, from *Config) { to.HTTPHost = from.HTTPHost },
	"http-set":                func(to, from *Config) { to.HTTPSet = from.HTTPSet },
	"http-strip-prefix":       func(to, from *Config) { to.HTTPStripPrefix = from.HTTPStripPrefix },
	"http-header-max":         func(to, from *Config) { to.HTTPHeaderMax = from.HTTPHeaderMax },
	"http-idle-timeout":       func(to, from *Config) { to.HTTPIdleTimeout = from.HTTPIdleTimeout },
	"ip-prefix6":              func(to, from *Config) { takeLimits(to, from); to.Prefix6 = from.Prefix6 },
	"kdf":                     func(to, from *Config) { to.KDFs = from.KDFs },
	"legacy":                  func(to, from *Config) { to.Legacy = from.Legacy },
	"log-level":               func(to, from *Config) { to.LogLevel = from.LogLevel },
	"log-refused-rate":        func(to, from *Config) { to.LogRefusedRate = from.LogRefusedRate },
	"log-tunnels":             func(to, from *Config) { to.LogTunnels = from.LogTunnels },
	"max-conns":               takeLimits,
	"max-conns-per-ip":        takeLimits,
	"max-tunnels-per-backend": func(to, from *Config) { to.MaxTunnels = from.MaxTunnels },
	"rate-per-ip":             takeLimits,
	"retry":                   func(to, from *Config) { to.Retry = from.Retry },
	"secret":                  func(to, from *Config) { to.secret = from.secret },
	"secret-file":             func(to, from *Config) { to.secretFile = from.secretFile },
	"send-proxy":              func(to, from *Config) { to.SendProxy = from.SendProxy },
	"timeout":                 func(to, from *Config) { to.Timeout = from.Timeout },
	"tls-cert":                func(to, from *Config) { to.TLSCert = from.TLSCert },
	"tls-key":                 func(to, from *Config) { to.TLSKey = from.TLSKey },
	"token-audience":          func(to, from *Config) { to.TokenAudience = from.TokenAudience },
	"token-keys":              func(to, from *Config) { to.TokenKeys = from.TokenKeys },
	"trusted-proxies":         func(to, from *Config) { to.TrustedProxies = from.TrustedProxies },
	"upgrade-exec":            func(to, from *Config) { to.UpgradeExec = from.UpgradeExec },
	"upgrade-timeout":         func(to, from *Config) { to.UpgradeTimeout = from.UpgradeTimeout },
	"ws-origins":              func(to, from *Config) { to.WSOrigins = from.WSOrigins },
}

// takeLimits takes all of them: they are loaded as one.
func takeLimits(to, from *Config) { to.clientLimits = from.clientLimits }

// reload reads the command line, the environment, and the files that they name
// again. It returns the configuration to go on with: cfg, with what a running process
// can take up; and the names of the settings that have changed, and of those among
// them that only another process can take up.
func (cfg *Config) reload(args []string, log *slog.Logger) (next *Config, changed, fixed []string, err error) {
	read, err := parseConfig(args)
	if err == nil && read.inFile == 0 && cfg.inFile > 0 {
		// More likely an accident of who writes it than what is meant.
		err = fmt.Errorf("%s: %s holds no setting any more (restart, if that is meant)", cmp.Or(read.sources["config"], cfg.sources["config"]), cmp.Or(read.file, cfg.file))
	}
	if err == nil {
		err = read.load(log)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	merged := *cfg
	before, after := settings(cfg), settings(read)
	for i, s := range after {
		take, ok := reloadable[s.Name]
		if ok {
			take(&merged, read)
		}
		if s.Group == groupActions || before[i].Value.String() == s.Value.String() {
			continue
		}
		if _, alias := aliases[s.Name]; alias && cfg.sources[s.Name] == "" && read.sources[s.Name] == "" {
			continue // it has changed under its other name
		}
		if changed = append(changed, s.Name); !ok {
			fixed = append(fixed, s.Name)
		}
	}
	merged.inFile = read.inFile
	// What load has made.
	merged.Secrets, merged.SecretSources = read.Secrets, read.SecretSources
	merged.tokens, merged.tlsConfig, merged.sources, merged.watch = read.tokens, read.tlsConfig, read.sources, read.watch
	merged.certificate, merged.asks = read.certificate, read.asks
	merged.loaded = read.loaded
	merged.own = maps.Clone(cfg.own) // of listeners that are as they were
	maps.Copy(merged.own, read.own)  // with what they inherit
	return &merged, changed, fixed, nil
}

// load reads the files that the configuration names, and makes of them what the
// gateway works with: what can be made is valid. Its errors name the flag,
// variable or file at fault, and never hold a secret. log is told when one of
// the files changes later.
func (cfg *Config) load(log *slog.Logger) error {
	if cfg.TLSCert != "" {
		var err error
		cfg.certificate, err = certificate.Load(cfg.TLSCert, cfg.TLSKey, log)
		if err != nil {
			return fmt.Errorf("%s and %s: %w", cfg.sources["tls-cert"], cfg.sources["tls-key"], err)
		}
		cfg.tlsConfig = certificate.Config(cfg.certificate)
	}
	var err error
	if cfg.TokenKeys != "" {
		if cfg.tokens, err = token.Load(cfg.TokenKeys, cfg.TokenAudience, log); err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["token-keys"], err)
		}
	}
	if cfg.AdminTokenFile != "" {
		if cfg.adminToken, err = secretfile.Word(cfg.AdminTokenFile, shortSecret); err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["admin-token-file"], err)
		}
	}
	if err := cfg.loadLimits(log); err != nil {
		return err
	}
	if cfg.kcp, err = kcp.New(kcp.Options{
		Mode:          cfg.KCPMode,
		SendWindow:    cfg.KCPSendWindow,
		ReceiveWindow: cfg.KCPReceiveWindow,
		MTU:           cfg.KCPMTU,
		DataShards:    cfg.KCPDataShards,
		ParityShards:  cfg.KCPParityShards,
		Crypt:         cfg.KCPCrypt,
		Key:           cfg.KCPKey,
		IdleTimeout:   cfg.KCPIdleTimeout,
		MaxSessions:   cfg.KCPMaxSessions,
	}); err != nil {
		return err // names the flag
	}
	if err := cfg.loadAsk(log); err != nil {
		return err
	}
	cfg.watch = smallfile.NewWatch(secretfile.MaxSize, cfg.secretFiles()...)
	if err := cfg.loadSecrets(); err != nil {
		return err
	}
	return cfg.loadTicketSecrets()
}

// loadAsk makes what asks the service of -ask. It does not ask yet.
func (cfg *Config) loadAsk(log *slog.Logger) (err error) {
	if cfg.Ask == "" || cfg.Action == actionSeal || cfg.Action == actionOpen {
		return nil
	}
	cfg.asks, err = ask.New(ask.Options{
		URL: cfg.Ask, Timeout: cfg.AskTimeout, Stale: cfg.AskStale,
		CAFile: cfg.AskCA, TokenFile: cfg.AskTokenFile, Log: log,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.sources["ask"], err)
	}
	return nil
}

// loadTicketSecrets finds what seals the tickets of resumable tunnels.
func (cfg *Config) loadTicketSecrets() error {
	if !cfg.Resume || cfg.Action == actionSeal || cfg.Action == actionOpen {
		return nil
	}
	secrets, err := cfg.Secrets, error(nil)
	if cfg.ResumeKeyFile != "" {
		if secrets, err = secretfile.Lines(cfg.ResumeKeyFile); err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["resume-key-file"], err)
		}
	}
	if len(secrets) == 0 {
		return fmt.Errorf("%s=1 needs a secret that seals tickets: set -resume-key-file where there is no secret for sealed lines", cfg.sources["resume"])
	}
	cfg.tickets, err = resume.NewTickets(secrets)
	return err
}

// aliases are settings of which there are two names each.
var aliases = map[string]struct{}{"allow": {}, "allow-backends": {}, "deny": {}, "deny-backends": {}}

// loadLimits reads the lists of clients, of all listeners and of those that have
// their own.
func (cfg *Config) loadLimits(log *slog.Logger) error {
	if name, err := cfg.clientLimits.load(cfg.Prefix6, log); err != nil {
		return fmt.Errorf("%s: %w", cfg.sources[name], err)
	}
	cfg.own = make(map[string]*clientLimits)
	for _, l := range cfg.Listen {
		if len(l.Options) == 0 {
			continue
		}
		own := cfg.clientLimits
		own.MaxConns = 0 // -max-conns holds besides
		for _, o := range l.Options {
			if err := own.set(o); err != nil {
				return fmt.Errorf("-listen: %s: %s: %w", l.Addr, o.Name, err)
			}
		}
		if name, err := own.load(cfg.Prefix6, log); err != nil {
			return fmt.Errorf("-listen: %s: %s: %w", l.Addr, name, err)
		}
		cfg.own[listen.OptionsText(l.Options)] = &own
	}
	return nil
}

// secretFiles returns the files that hold secrets, whether they are there or not.
func (cfg *Config) secretFiles() (names []string) {
	if cfg.secretFile != "" {
		names = append(names, cfg.secretFile)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		names = append(names, filepath.Join(dir, "secret"))
	}
	return names
}

// loadSecrets gathers the secrets of all sources.
func (cfg *Config) loadSecrets() error {
	// A shell's echo and many secret stores leave a newline at the end, which
	// nobody means and nobody sees.
	if secret := strings.TrimRight(cfg.secret, "\r\n"); secret != "" {
		cfg.addSecrets(cfg.sources["secret"], []byte(secret))
	}
	if cfg.secretFile != "" {
		secrets, err := secretfile.Lines(cfg.secretFile)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["secret-file"], err)
		}
		cfg.addSecrets(cfg.sources["secret-file"], secrets...)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		secrets, err := secretfile.Lines(filepath.Join(dir, "secret"))
		if err == nil {
			cfg.addSecrets("$CREDENTIALS_DIRECTORY/secret", secrets...)
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("$CREDENTIALS_DIRECTORY: %w", err)
		}
	}
	if cfg.TokenKeys != "" {
		cfg.SecretSources = append(cfg.SecretSources, cfg.sources["token-keys"])
	}
	if len(cfg.Secrets) == 0 && cfg.opensLines() {
		if cfg.Action == actionSeal && cfg.TokenKeys != "" {
			return errors.New("-seal needs -ttl for a token, or a secret for a sealed line")
		}
		return errors.New("a secret is required: set -secret-file, GATEWAY_SECRET, -secret, or a systemd credential named secret; or -token-keys and -legacy=0")
	}
	return nil
}

// addSecrets adds those that are new.
func (cfg *Config) addSecrets(source string, secrets ...[]byte) {
	cfg.SecretSources = append(cfg.SecretSources, source)
	for _, s := range secrets {
		if !slices.ContainsFunc(cfg.Secrets, func(have []byte) bool { return string(have) == string(s) }) {
			cfg.Secrets = append(cfg.Secrets, s)
		}
	}
}

// targetsOf returns how many targets a route has that is perhaps none.
func targetsOf(r *address.Route) int {
	if r == nil {
		return 0
	}
	return r.Len()
}

func (cfg *Config) warn(log *slog.Logger) {
	for _, w := range cfg.warnings() {
		log.Warn(w)
	}
}

// warnings lists what is allowed but unwise.
func (cfg *Config) warnings() []string {
	var list []string
	for i, s := range cfg.Secrets {
		if len(s) < shortSecret {
			list = append(list, fmt.Sprintf("secret %d of %d is short: under %d bytes it can be guessed by whoever holds a sealed line (openssl rand -base64 24 makes a good one)",
				i+1, len(cfg.Secrets), shortSecret))
		}
	}
	rules := policy.New(cfg.Allow, cfg.Deny)
	for _, l := range cfg.Listen {
		for i := range targetsOf(l.Forward) {
			to := l.Forward.Target(i).Addr
			if !to.IP.IsValid() { // names are judged when they are looked up
				continue
			}
			if err := rules.Check(netip.AddrPortFrom(to.IP, to.Port)); err != nil {
				list = append(list, fmt.Sprintf("a backend of %s will not be reached: %v", l.Addr, err))
			}
		}
	}
	if most := descriptors.Conns(); most > 0 && cfg.MaxConns > int(most) {
		list = append(list, fmt.Sprintf("-max-conns is %d, and the limit of descriptors (ulimit -n) is enough for %d: that is what holds", cfg.MaxConns, most))
	}
	if u, err := url.Parse(cfg.Ask); err == nil && u.Scheme == "http" && !isPrivate(net.JoinHostPort(u.Hostname(), "0")) {
		list = append(list, "-ask speaks http:// with more than a private address: whoever listens on the way reads tickets and the bearer token, and can answer")
	}
	if !isPrivate(cfg.Pprof) {
		list = append(list, "-pprof listens on more than a private address: anybody who reaches it can profile and slow down the gateway")
	}
	if !isPrivate(cfg.Admin) {
		list = append(list, "-admin listens on more than a private address: anybody who reaches it sees who plays where")
	}
	for _, name := range reader(defaultConfig()).Unknown(os.Environ()) {
		list = append(list, name+" is in the environment but is no setting: it has no effect (gateway -help lists all flags)")
	}
	return append(list, cfg.doubts...)
}

// isPrivate tells whether strangers cannot reach an address to listen on, or there is
// none.
func isPrivate(addr string) bool {
	if _, ok := admin.UnixPath(addr); ok || addr == "" {
		return true
	}
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsPrivate())
}
