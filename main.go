// Command gateway is one address in front of every game server. A client
// connects and sends one line, the address of its backend, sealed by the
// operator; the gateway opens it, connects, and pumps bytes both ways.
//
// Follow a connection from Gateway.serveConn in gateway.go.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/logwriter"
	"gateway/internal/sockopt"
	"gateway/internal/token"
)

// Set by the Makefile.
var (
	version = "dev"
	commit  = ""
)

const (
	exitOK      = 0
	exitFailure = 1 // failed while running
	exitUsage   = 2 // wrong flags, environment or files that they name
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is the program: it does what args and the environment say and returns
// the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	cfg, err := parseConfig(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		printHelp(stdout)
		return exitOK
	case err != nil:
		return fail(stderr, exitUsage, fmt.Errorf("%w (gateway -help lists all flags)", err))
	}
	switch cfg.Action {
	case actionVersion:
		fmt.Fprintln(stdout, versionLine())
		return exitOK
	case actionKeygen:
		keys, err := token.Generate()
		if err != nil {
			return fail(stderr, exitFailure, err)
		}
		stdout.Write(keys)
		return exitOK
	case actionSeal:
		route, err := address.ParseRoute(cfg.Arg)
		if err != nil {
			return fail(stderr, exitUsage, fmt.Errorf("invalid value %q for -seal: %w", cfg.Arg, err))
		}
		line, err := seal(cfg, route)
		if err != nil {
			return fail(stderr, exitUsage, err)
		}
		fmt.Fprintln(stdout, line)
		return exitOK
	case actionOpen:
		route, err := open(cfg)
		if err != nil {
			if strings.HasPrefix(err.Error(), "token_") {
				return fail(stderr, exitFailure, fmt.Errorf("-open: the token does not open (%w); docs/issuing.md says what that means", err))
			}
			return fail(stderr, exitFailure, fmt.Errorf("-open: the line does not open (%w): is it whole, and sealed with this secret and one of -kdf, or made with one of -token-keys?", err))
		}
		fmt.Fprintln(stdout, route)
		return exitOK
	}

	for _, w := range cfg.warnings() {
		newLogger(cfg, stderr).Warn(w)
	}
	if cfg.Action == actionCheck {
		fmt.Fprintln(stdout, "the configuration is valid")
		return exitOK
	}
	lines := logwriter.New(stderr, func(n int) []byte {
		var line bytes.Buffer
		newLogger(cfg, &line).Warn("log lines were dropped: their reader is too slow", "lines", n)
		return line.Bytes()
	})
	err = serve(cfg, newLogger(cfg, lines))
	lines.Close(time.Second)
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

// seal makes the sealed line or the token for a route.
func seal(cfg *Config, route address.Route) (string, error) {
	if cfg.TTL == 0 {
		return newKeyring(cfg.Secrets, cfg.KDFs).seal(route), nil
	}
	keys, err := cfg.tokenKeys(slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	text, err := keys.Seal(route.String(), cfg.TTL, time.Now())
	if err != nil {
		return "", fmt.Errorf("-seal: %w", err)
	}
	return text, nil
}

// open opens the line or token of -open.
func open(cfg *Config) (address.Route, error) {
	var f frontend
	if cfg.Legacy {
		f.keys = newKeyring(cfg.Secrets, cfg.KDFs)
	}
	var err error
	if f.tokens, err = cfg.tokenKeys(slog.New(slog.DiscardHandler)); err != nil {
		return address.Route{}, err
	}
	line := strings.TrimSuffix(strings.TrimSuffix(cfg.Arg, "\n"), "\r")
	return f.open(context.Background(), []byte(line))
}

// fail prints an error on a line of its own.
func fail(stderr io.Writer, code int, err error) int {
	fmt.Fprintln(stderr, "gateway:", strings.ReplaceAll(err.Error(), "\n", " "))
	return code
}

func newLogger(cfg *Config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// serve runs a gateway until a signal ends it.
func serve(cfg *Config, log *slog.Logger) error {
	// Before anything that a signal would have to clean up.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	// The standard library has something to tell now and then.
	slog.SetDefault(log)
	stdlog.SetOutput(libraryLog{log})
	// Who reads the log may die; the gateway need not follow.
	signal.Ignore(syscall.SIGPIPE)

	listeners, err := listenAll(cfg)
	if err != nil {
		return err
	}
	if n := cfg.loopCount(); n > 0 && os.Getenv("GOMAXPROCS") == "" {
		// The loops' threads, and one for everything else. Without it the rest
		// would have to take a processor from a loop.
		runtime.GOMAXPROCS(n + 1)
	}
	g, err := NewGateway(cfg, log)
	if err != nil {
		closeAll(listeners)
		return err
	}
	defer g.Close()
	for _, ln := range listeners {
		g.Own(ln.Addr()) // all of them, before a client of any
	}
	if cfg.Pprof != "" {
		at, stopPprof, err := startPprof(cfg.Pprof, log)
		if err != nil {
			closeAll(listeners)
			return err
		}
		defer stopPprof()
		g.Own(at)
	}
	served := make(chan error, len(listeners))
	for i, ln := range listeners {
		go func() {
			if to := cfg.Listen[i].forward; to != nil {
				served <- g.ServeForward(ln, *to)
			} else {
				served <- g.Serve(ln)
			}
		}()
	}

	if cfg.PIDFile != "" {
		p, err := createPIDFile(cfg.PIDFile)
		if err != nil {
			return fmt.Errorf("-pidfile: %w", err)
		}
		defer func() {
			if err := p.remove(); err != nil {
				log.Warn("cannot clean up the pid file", "err", err)
			}
		}()
	}
	for i, ln := range listeners {
		attrs := []any{"addr", ln.Addr().String(), "pid", os.Getpid(), "version", version}
		if cfg.Listen[i].kcp {
			attrs = append(attrs, "protocol", "kcp")
		}
		if to := cfg.Listen[i].forward; to != nil {
			attrs = append(attrs, "forward", to.String())
		} else {
			attrs = append(attrs, "secrets", len(cfg.Secrets), "from", strings.Join(cfg.SecretSources, ","))
		}
		log.Info("listening", attrs...)
	}

	var sig os.Signal
	select {
	case sig = <-signals:
	case err := <-served:
		return err // it cannot listen
	}
	log.Info("draining", "signal", sig.String(), "drain", cfg.Drain.String())
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Drain)
	defer cancel()
	go func() {
		select {
		case sig := <-signals:
			log.Info("ending at once", "signal", sig.String())
			cancel()
		case <-ctx.Done():
		}
	}()
	g.Shutdown(ctx)
	g.Close()
	spliced, copied := g.relay.moved()
	log.Info("stopped", "cut", g.cut.Load(), "denied", g.denied.Load(), "spliced", spliced, "copied", copied)
	return nil
}

// libraryLog takes what the standard library logs. Of a backend that speaks out
// of turn net/http quotes up to 4 KiB: that is no business of the log.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(line)), " starting with ")
	l.log.Info("standard library", "text", text)
	return len(line), nil
}

// listenAll opens all listening sockets.
func listenAll(cfg *Config) ([]net.Listener, error) {
	var list []net.Listener
	for _, l := range cfg.Listen {
		ln, err := listen(cfg, l)
		if err != nil {
			closeAll(list)
			if errors.Is(err, syscall.EADDRINUSE) && !cfg.Reuse {
				err = fmt.Errorf("%w (stop who uses it, or start all with -reuse=1)", err)
			}
			return nil, fmt.Errorf("-%s: %w", l.setting, err)
		}
		list = append(list, ln)
	}
	return list, nil
}

func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		ln.Close()
	}
}

// listen opens a listening socket.
func listen(cfg *Config, l listening) (net.Listener, error) {
	if l.kcp {
		return cfg.listenKCP()
	}
	var lc net.ListenConfig
	// Since Go 1.24 listeners speak MPTCP unless told not to, and then some
	// socket options fail (golang/go#74643).
	lc.SetMultipathTCP(false)
	lc.KeepAlive, lc.KeepAliveConfig = cfg.keepalive()
	lc.Control = func(network, address string, c syscall.RawConn) error {
		if cfg.Reuse {
			if err := sockopt.ReusePort(network, address, c); err != nil {
				return err
			}
		}
		return cfg.liveness().Inherit(c)
	}
	return lc.Listen(context.Background(), networkOf("tcp", l.addr), l.addr)
}

// networkOf returns "tcp4" or "udp4" for an IPv4 address to listen on: "tcp" would
// make 0.0.0.0 listen on IPv6 too.
func networkOf(network, addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); ip != nil && ip.To4() != nil {
		network += "4"
	}
	return network
}

func versionLine() string {
	rev := commit
	if info, ok := debug.ReadBuildInfo(); ok && rev == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				rev = s.Value
			}
		}
	}
	if rev == "" {
		rev = "unknown"
	}
	return fmt.Sprintf("gateway %s %s %s/%s commit %s", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, rev)
}
