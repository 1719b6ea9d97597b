package main

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/certificate"
	"gateway/internal/flagvalue"
	"gateway/internal/kcp"
	"gateway/internal/policy"
	"gateway/internal/resume"
	"gateway/internal/smallfile"
	"gateway/internal/token"
)

// parseConfig reads the command line and the environment, where a flag wins
// over its twin, and validates them. What they name is for load to read. Its
// errors name the flag or variable at fault, and never hold a secret.
// flag.ErrHelp asks for the help.
func parseConfig(args []string) (*Config, error) {
	cfg := defaultConfig()
	fs := flag.NewFlagSet("gateway", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are the caller's to print
	all := settings(cfg)
	for _, s := range all {
		fs.Var(s.value, s.name, s.usage)
	}
	if err := fs.Parse(args); err != nil {
		return nil, explainFlagError(err, all)
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("flags are written -name=value; %s stands without a flag", strayArgument(args, fs.Args()))
	}
	if cfg.Action == actionVersion || cfg.Action == actionKeygen {
		return cfg, nil // whatever else is wrong
	}
	if err := cfg.readEnvironment(fs, all); err != nil {
		return nil, err
	}
	if err := cfg.readFile(all); err != nil {
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
	cfg.level = new(slog.LevelVar)
	cfg.level.Set(cfg.LogLevel)
	return cfg, cfg.checkTokens()
}

// explainFlagError says of package flag's errors what to do, and nothing that may
// be a secret.
func explainFlagError(err error, all []setting) error {
	text := err.Error()
	if strings.HasPrefix(text, "bad flag syntax") { // repeats the value too
		return errors.New("flags are written -name=value; one has a wrong beginning")
	}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		names := make([]string, len(all))
		for i, s := range all {
			names[i] = s.name
		}
		if near := flagvalue.Nearest(name, names); near != "" {
			return fmt.Errorf("there is no flag -%s: did you mean -%s?", name, near)
		}
		return fmt.Errorf("there is no flag -%s", name)
	}
	if rest, ok := strings.CutPrefix(text, "invalid boolean flag "); ok {
		return errors.New("-" + rest)
	}
	if rest, ok := strings.CutPrefix(text, "invalid boolean value "); ok {
		return errors.New("invalid value " + rest)
	}
	return err
}

// strayArgument names the first argument that is no flag's: by its place, unless
// it is a plain word. Anything else may be a secret that lost its flag.
func strayArgument(args, rest []string) string {
	word := rest[0]
	if len(word) <= 10 && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz") == "" {
		return strconv.Quote(word)
	}
	return fmt.Sprintf("argument %d of %d", len(args)-len(rest)+1, len(args))
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

// maxConfigFile bounds the file of settings, in bytes.
const maxConfigFile = 1 << 20

// readFile sets what neither the command line nor the environment has.
func (cfg *Config) readFile(all []setting) error {
	if dir := os.Getenv("CONFIGURATION_DIRECTORY"); cfg.sources["config"] == "" && dir != "" {
		name := filepath.Join(dir, "gateway.conf")
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			cfg.file, cfg.sources["config"] = name, "$CONFIGURATION_DIRECTORY"
		}
	}
	if cfg.file == "" {
		return nil
	}
	text, err := smallfile.Read(cfg.file, maxConfigFile)
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.sources["config"], err)
	}
	known := make(map[string]setting)
	names := make([]string, len(all))
	for i, s := range all {
		known[s.name], names[i] = s, s.name
	}
	seen := make(map[string]bool)
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		at := fmt.Sprintf("%s: line %d of %s", cfg.sources["config"], number, cfg.file)
		name, value, ok := strings.Cut(line, "=")
		if !ok { // perhaps a secret that stands alone: not repeated
			return fmt.Errorf("%s: want NAME=VALUE", at)
		}
		name, value = settingName(strings.TrimSpace(name)), unquote(strings.TrimSpace(value))
		s, ok := known[name]
		switch {
		case !ok && flagvalue.Nearest(name, names) != "":
			return fmt.Errorf("%s: there is no setting %q: did you mean %q?", at, name, flagvalue.Nearest(name, names))
		case !ok:
			return fmt.Errorf("%s: there is no setting of that name (gateway -help lists all)", at)
		case s.group == groupActions || name == "config":
			return fmt.Errorf("%s: %s is for the command line", at, name)
		case seen[name] && name != "listen" && name != "allow" && name != "deny":
			return fmt.Errorf("%s: %s is there twice", at, name)
		}
		seen[name] = true
		cfg.inFile++
		if cfg.sources[name] != "" && cfg.sources[name] != cfg.file {
			continue
		}
		if err := s.value.Set(value); err != nil {
			if name == "secret" || name == "kcp-key" {
				return fmt.Errorf("%s: invalid value for %s: %w", at, name, err)
			}
			return fmt.Errorf("%s: invalid value %q for %s: %w", at, value, name, err)
		}
		cfg.sources[name] = cfg.file
	}
	return nil
}

// settingName returns the name of a setting that is perhaps written as a variable.
func settingName(text string) string {
	if rest, ok := strings.CutPrefix(text, "GATEWAY_"); ok {
		return strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
	}
	return strings.TrimPrefix(strings.TrimPrefix(text, "-"), "-")
}

// unquote takes the quotes off a value that has some, as systemd and shells do.
func unquote(text string) string {
	if n := len(text); n >= 2 && (text[0] == '"' || text[0] == '\'') && text[n-1] == text[0] {
		return text[1 : n-1]
	}
	return text
}

// reloadable are the settings that a running process can take up, and how. All others
// need a new one.
var reloadable = map[string]func(to, from *Config){
	"allow":                   func(to, from *Config) { to.Allow = from.Allow },
	"allow-backends":          func(to, from *Config) { to.Allow = from.Allow },
	"allow-clients":           takeLimits,
	"ban":                     func(to, from *Config) { to.Ban = from.Ban },
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
	"http-header-max":         func(to, from *Config) { to.HTTPHeaderMax = from.HTTPHeaderMax },
	"http-idle-timeout":       func(to, from *Config) { to.HTTPIdleTimeout = from.HTTPIdleTimeout },
	"ip-prefix6":              func(to, from *Config) { takeLimits(to, from); to.Prefix6 = from.Prefix6 },
	"kdf":                     func(to, from *Config) { to.KDFs = from.KDFs },
	"legacy":                  func(to, from *Config) { to.Legacy = from.Legacy },
	"log-level":               func(to, from *Config) { to.LogLevel = from.LogLevel },
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
		take, ok := reloadable[s.name]
		if ok {
			take(&merged, read)
		}
		if s.group == groupActions || before[i].value.String() == s.value.String() {
			continue
		}
		if changed = append(changed, s.name); !ok {
			fixed = append(fixed, s.name)
		}
	}
	merged.inFile = read.inFile
	// What load has made.
	merged.Secrets, merged.SecretSources = read.Secrets, read.SecretSources
	merged.tokens, merged.tlsConfig, merged.sources, merged.watch = read.tokens, read.tlsConfig, read.sources, read.watch
	merged.certificate = read.certificate
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
		if cfg.adminToken, err = readToken(cfg.AdminTokenFile); err != nil {
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
	cfg.watch = smallfile.NewWatch(maxSecretFile, cfg.secretFiles()...)
	if err := cfg.loadSecrets(); err != nil {
		return err
	}
	return cfg.loadTicketSecrets()
}

// loadTicketSecrets finds what seals the tickets of resumable tunnels.
func (cfg *Config) loadTicketSecrets() error {
	if !cfg.Resume || cfg.Action == actionSeal || cfg.Action == actionOpen {
		return nil
	}
	secrets, err := cfg.Secrets, error(nil)
	if cfg.ResumeKeyFile != "" {
		if secrets, err = readSecrets(cfg.ResumeKeyFile); err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["resume-key-file"], err)
		}
	}
	if len(secrets) == 0 {
		return fmt.Errorf("%s=1 needs a secret that seals tickets: set -resume-key-file where there is no secret for sealed lines", cfg.sources["resume"])
	}
	cfg.tickets, err = resume.NewTickets(secrets)
	return err
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

// loadLimits reads the lists of clients, of all listeners and of those that have
// their own.
func (cfg *Config) loadLimits(log *slog.Logger) error {
	if setting, err := cfg.clientLimits.load(cfg.Prefix6, log); err != nil {
		return fmt.Errorf("%s: %w", cfg.sources[setting], err)
	}
	for i := range cfg.Listen {
		l := &cfg.Listen[i]
		if len(l.options) == 0 {
			continue
		}
		own := cfg.clientLimits
		own.MaxConns = 0 // -max-conns holds besides
		for _, o := range l.options {
			if err := own.set(o); err != nil {
				return fmt.Errorf("-listen: %s: %s: %w", l.addr, o.name, err)
			}
		}
		if setting, err := own.load(cfg.Prefix6, log); err != nil {
			return fmt.Errorf("-listen: %s: %s: %w", l.addr, setting, err)
		}
		l.own = &own
	}
	return nil
}

// loadSecrets gathers the secrets of all sources.
func (cfg *Config) loadSecrets() error {
	// A shell's echo and many secret stores leave a newline at the end, which
	// nobody means and nobody sees.
	if secret := strings.TrimRight(cfg.secret, "\r\n"); secret != "" {
		cfg.addSecrets(cfg.sources["secret"], []byte(secret))
	}
	if cfg.secretFile != "" {
		secrets, err := readSecrets(cfg.secretFile)
		if err != nil {
			return fmt.Errorf("%s: %w", cfg.sources["secret-file"], err)
		}
		cfg.addSecrets(cfg.sources["secret-file"], secrets...)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		secrets, err := readSecrets(filepath.Join(dir, "secret"))
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

const (
	maxSecretFile = 1 << 20 // bytes
	maxSecrets    = 100     // in a file
)

// readSecrets reads a file of secrets, at least one.
func readSecrets(name string) ([][]byte, error) {
	text, err := smallfile.Read(name, maxSecretFile)
	if err != nil {
		return nil, err
	}
	if bytes.IndexByte(text, 0) >= 0 { // UTF-16 without its mark is full of them
		return nil, fmt.Errorf("%s holds a zero byte: save it as UTF-8", name)
	}
	var secrets [][]byte
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secrets = append(secrets, []byte(line))
	}
	switch {
	case len(secrets) == 0:
		return nil, fmt.Errorf("%s holds no secret: want one a line", name)
	case len(secrets) > maxSecrets:
		return nil, fmt.Errorf("%s holds %d secrets, want at most %d: a line that does not open costs an attempt for each", name, len(secrets), maxSecrets)
	}
	return secrets, nil
}

// readToken reads the token of -admin-token-file.
func readToken(name string) (string, error) {
	text, err := smallfile.Read(name, maxSecretFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if len(token) < shortSecret || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%s holds no token: want at least %d ASCII characters in one word (openssl rand -hex 24 makes a good one)", name, shortSecret)
	}
	return token, nil
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
		for i := range targetsOf(l.forward) {
			to := l.forward.Target(i).Addr
			if !to.IP.IsValid() { // names are judged when they are looked up
				continue
			}
			if err := rules.Check(netip.AddrPortFrom(to.IP, to.Port)); err != nil {
				list = append(list, fmt.Sprintf("a backend of %s will not be reached: %v", l.addr, err))
			}
		}
	}
	if most := connBudget(); most > 0 && cfg.MaxConns > int(most) {
		list = append(list, fmt.Sprintf("-max-conns is %d, and the limit of descriptors (ulimit -n) is enough for %d: that is what holds", cfg.MaxConns, most))
	}
	if !isPrivate(cfg.Pprof) {
		list = append(list, "-pprof listens on more than a private address: anybody who reaches it can profile and slow down the gateway")
	}
	if !isPrivate(cfg.Admin) {
		list = append(list, "-admin listens on more than a private address: anybody who reaches it sees who plays where")
	}
	return append(list, unknownVariables(os.Environ())...)
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

// unknownVariables warns about what looks like a setting in the environment and
// is none, a misspelt GATEWAY_ALLOW for instance. What Kubernetes sets for a
// service whose name begins with gateway is no mistake: GATEWAY_PORT,
// GATEWAY_SERVICE_HOST, GATEWAY_WEB_PORT_80_TCP and the like.
func unknownVariables(environ []string) []string {
	known := make(map[string]bool)
	for _, s := range settings(defaultConfig()) {
		known[envName(s.name)] = s.group != groupActions
	}
	var list []string
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "GATEWAY_") || known[name] ||
			strings.Contains(name, "_PORT") || strings.Contains(name, "_SERVICE_") {
			continue
		}
		list = append(list, name+" is in the environment but is no setting: it has no effect (gateway -help lists all flags)")
	}
	return list
}
