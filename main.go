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
	"strings"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/handshake"
	"gateway/internal/logwriter"
	"gateway/internal/pidfile"
	"gateway/internal/token"
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
	case actionStatus, actionTunnels, actionCut:
		return ask(cfg, stdout, stderr)
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
		if cfg.PIDFile != "" {
			if err := pidfile.Check(cfg.PIDFile); err != nil {
				return fail(stderr, exitUsage, fmt.Errorf("-pidfile: %w", err))
			}
		}
		cfg.warn(newLogger(cfg, stderr))
		fmt.Fprintln(stdout, "the configuration is valid")
		return exitOK
	}
	return serveLogged(args, cfg, stderr)
}

// serveLogged serves until a signal ends it, and logs to stderr.
func serveLogged(args []string, cfg *Config, stderr io.Writer) int {
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
		// The standard library has something to tell now and then.
		slog.SetDefault(log)
		stdlog.SetOutput(libraryLog{log})
		cfg.warn(log)
		code, err = exitFailure, serve(args, cfg, log, lines.Dropped)
	}
	lines.Close(time.Second)
	if err != nil {
		return fail(stderr, code, err)
	}
	return exitOK
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

// ask asks the gateway at -admin, which runs already.
func ask(cfg *Config, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if cfg.AdminTokenFile != "" {
		var err error
		if cfg.adminToken, err = readToken(cfg.AdminTokenFile); err != nil {
			return fail(stderr, exitUsage, fmt.Errorf("%s: %w", cfg.sources["admin-token-file"], err))
		}
	}
	client := admin.NewClient(cfg.Admin, cfg.adminToken)
	var err error
	switch cfg.Action {
	case actionStatus:
		err = admin.Watch(ctx, stdout, client, cfg.Watch, cfg.Watch > 0 && isTerminal(stdout))
	case actionTunnels:
		err = admin.PrintTunnels(ctx, stdout, client, cfg.filter)
	case actionCut:
		var n int
		if n, err = client.Cut(ctx, cfg.filter); err == nil {
			_, err = fmt.Fprintln(stdout, "tunnels cut:", n)
			if err == nil && n == 0 {
				return exitFailure
			}
		}
	}
	if err != nil {
		return fail(stderr, exitFailure, fmt.Errorf("-%s: %w", cfg.Action, err))
	}
	return exitOK
}

// isTerminal tells whether somebody looks at what is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// fail prints an error on a line of its own.
func fail(stderr io.Writer, code int, err error) int {
	fmt.Fprintln(stderr, "gateway:", strings.ReplaceAll(err.Error(), "\n", " "))
	return code
}

func newLogger(cfg *Config, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.level != nil {
		opts.Level = cfg.level
	}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// libraryLog takes what the standard library logs. Of a backend that speaks out
// of turn net/http quotes up to 4 KiB: that is no business of the log.
type libraryLog struct{ log *slog.Logger }

func (l libraryLog) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(line)), " starting with ")
	l.log.Info("standard library", "text", text)
	return len(line), nil
}
