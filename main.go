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
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/logwriter"
	"gateway/internal/profiling"
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
	case actionSeal, actionOpen:
		if err := cfg.load(slog.New(slog.DiscardHandler)); err != nil {
			return fail(stderr, exitUsage, err)
		}
		if cfg.Action == actionSeal {
			return sealRoute(cfg, stdout, stderr)
		}
		return openLine(cfg, stdout, stderr)
	case actionCheck:
		if err := cfg.load(slog.New(slog.DiscardHandler)); err != nil {
			return fail(stderr, exitUsage, err)
		}
		if err := checkListening(cfg); err != nil {
			return fail(stderr, exitUsage, err)
		}
		if err := checkPIDFile(cfg.PIDFile); err != nil {
			return fail(stderr, exitUsage, err)
		}
		warn(cfg, newLogger(cfg, stderr))
		fmt.Fprintln(stdout, "the configuration is valid")
		return exitOK
	}
	return serveLogged(cfg, stderr)
}

// serveLogged serves until a signal ends it, and logs to stderr.
func serveLogged(cfg *Config, stderr io.Writer) int {
	// Who reads the log may die, now or later; the gateway need not follow.
	signal.Ignore(syscall.SIGPIPE)
	lines := logwriter.New(stderr, func(n int) []byte {
		var line bytes.Buffer
		newLogger(cfg, &line).Warn("log lines were dropped: their reader is too slow", "lines", n)
		return line.Bytes()
	})
	log := newLogger(cfg, lines)
	code, err := exitUsage, cfg.load(log)
	if err == nil {
		warn(cfg, log)
		code, err = exitFailure, serve(cfg, log)
	}
	lines.Close(time.Second)
	if err != nil {
		return fail(stderr, code, err)
	}
	return exitOK
}

func warn(cfg *Config, log *slog.Logger) {
	for _, w := range cfg.warnings() {
		log.Warn(w)
	}
}

// sealRoute prints the sealed line or the token for the route of -seal.
func sealRoute(cfg *Config, stdout, stderr io.Writer) int {
	route, err := address.ParseRoute(cfg.Arg)
	if err != nil {
		return fail(stderr, exitUsage, fmt.Errorf("invalid value %q for -seal: %w", cfg.Arg, err))
	}
	text := ""
	if cfg.TTL == 0 {
		text = newKeyring(cfg.Secrets, cfg.KDFs).seal(route)
	} else if text, err = cfg.tokens.Seal(route.String(), cfg.TTL, time.Now()); err != nil {
		return fail(stderr, exitUsage, fmt.Errorf("-seal: %w", err))
	}
	fmt.Fprintln(stdout, text)
	return exitOK
}

// openLine prints the route in the line or token of -open.
func openLine(cfg *Config, stdout, stderr io.Writer) int {
	line := strings.TrimSuffix(strings.TrimSuffix(cfg.Arg, "\n"), "\r")
	route, err := newRules(cfg, nil).open(context.Background(), handshake.Line, []byte(line))
	var bad token.Error
	switch {
	case errors.As(err, &bad):
		return fail(stderr, exitFailure, fmt.Errorf("-open: the token does not open (%w); docs/issuing.md says what that means", err))
	case err != nil:
		return fail(stderr, exitFailure, fmt.Errorf("-open: the line does not open (%w): is it whole, and sealed with this secret and one of -kdf, or made with one of -token-keys?", err))
	}
	fmt.Fprintln(stdout, route)
	return exitOK
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
		ln, err := listenPprof(cfg.Pprof)
		if err != nil {
			closeAll(listeners)
			return err
		}
		defer profiling.Serve(ln, log)()
		log.Info("pprof is on", "url", fmt.Sprintf("http://%s/debug/pprof/", ln.Addr()))
		g.Own(ln.Addr())
	}
	served := make(chan error, len(listeners))
	for i, ln := range listeners {
		go func() {
			switch to := cfg.Listen[i].forward; {
			case cfg.Listen[i].peer:
				served <- g.ServePeer(ln)
			case to != nil:
				served <- g.ServeForward(ln, *to)
			default:
				served <- g.Serve(ln)
			}
		}()
	}

	if cfg.PIDFile != "" {
		p, err := createPIDFile(cfg.PIDFile)
		if err != nil {
			return pidFileFailure(err)
		}
		defer func() {
			if err := p.remove(); err != nil {
				log.Warn("cannot clean up the pid file", "err", err)
			}
		}()
	}
	for i, ln := range listeners {
		attrs := []any{"addr", ln.Addr().String(), "pid", os.Getpid(), "version", version}
		switch {
		case cfg.Listen[i].kcp:
			attrs = append(attrs, "protocol", "kcp")
		case cfg.Listen[i].peer:
			attrs = append(attrs, "protocol", "resume")
		default:
			attrs = append(attrs, "relay", g.relaying())
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
	g.logTotals()
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
