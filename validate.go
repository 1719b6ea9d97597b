package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"gateway/internal/address"
	"gateway/internal/certificate"
	"gateway/internal/policy"
	"gateway/internal/sockopt"
)

// settleListening gathers all addresses to listen on: -addr comes first, unless
// only -listen is given.
func (cfg *Config) settleListening() error {
	if len(cfg.Listen) == 0 || cfg.sources["addr"] != "" || cfg.forward != nil {
		cfg.Listen = slices.Insert(cfg.Listen, 0, listening{addr: cfg.addr, forward: cfg.forward, setting: "addr"})
	}
	first := cfg.Listen[0]
	if slices.ContainsFunc(cfg.Listen[1:], func(l listening) bool { return l.addr == first.addr }) &&
		!strings.HasSuffix(first.addr, ":0") {
		return fmt.Errorf("%s has %s, and so has -addr: give it once", cfg.sources["listen"], first.addr)
	}
	if cfg.KCP != "" {
		cfg.Listen = append(cfg.Listen, listening{addr: cfg.KCP, kcp: true, setting: "kcp"})
	}
	return nil
}

// checkTLS sees whether there is a certificate to begin with.
func (cfg *Config) checkTLS() error {
	switch {
	case cfg.TLSCert == "" && cfg.TLSKey == "":
		return nil
	case cfg.TLSCert == "":
		return errors.New("-tls-key needs -tls-cert too")
	case cfg.TLSKey == "":
		return errors.New("-tls-cert needs -tls-key too")
	}
	_, err := certificate.Load(cfg.TLSCert, cfg.TLSKey, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("%s and %s: %w", cfg.sources["tls-cert"], cfg.sources["tls-key"], err)
	}
	return nil
}

// proxyVersion is the version of -send-proxy's header, 0 for none.
func (cfg *Config) proxyVersion() int {
	return map[string]int{"v1": 1, "v2": 2}[cfg.SendProxy]
}

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

// targetsOf returns how many targets a route has that is perhaps none.
func targetsOf(r *address.Route) int {
	if r == nil {
		return 0
	}
	return r.Len()
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
	if host, _, _ := net.SplitHostPort(cfg.Pprof); cfg.Pprof != "" {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback() && !ip.IsPrivate()) {
			list = append(list, "-pprof listens on more than a private address: anybody who reaches it can profile and slow down the gateway")
		}
	}
	return append(list, unknownVariables(os.Environ())...)
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
