// Command gateway is one address in front of every game server. A client
// connects and sends one line, the address of its backend, sealed by the
// operator; the gateway opens it, connects, and pumps bytes both ways.
//
// Follow a connection from Gateway.serveConn in gateway.go, where a goroutine waits for it.
// On Linux event loops do the same for most, from accept_linux.go and handshake_linux.go on.
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
	"strings"
	"sync"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/handshake"
	"gateway/internal/listen"
	"gateway/internal/logwriter"
	"gateway/internal/secretfile"
	"gateway/internal/systemd"
	"gateway/internal/token"
	"gateway/internal/upgrade"
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
		return tell(stdout, stderr, versionLine())
	case actionKeygen:
		keys, err := token.Generate()
		if err != nil {
			return fail(stderr, exitFailure, err)
		}
		return tell(stdout, stderr, strings.TrimSuffix(string(keys), "\n"))
	case actionStatus, actionTunnels, actionCut:
		return askAdmin(cfg, stdout, stderr)
	case actionProbe:
		says, err := cfg.probe.Run(context.Background())
		if err != nil {
			return fail(stderr, exitFailure, fmt.Errorf("-probe: %w", err))
		}
		return tell(stdout, stderr, says)
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
			if err := checkPIDFile(cfg.PIDFile); err != nil {
				return fail(stderr, exitUsage, fmt.Errorf("-pidfile: %w", err))
			}
		}
		if cfg.LogFile != "" {
			if err := logwriter.Check(cfg.LogFile); err != nil {
				return fail(stderr, exitUsage, fmt.Errorf("%s: %w", cfg.sources["log-file"], err))
			}
		}
		cfg.warn(slog.New(logwriter.Handler(stderr, cfg.LogFormat, cfg.level)))
		return tell(stdout, stderr, "the configuration is valid")
	}
	return serveLogged(args, cfg, stderr)
}

// checkListening sees whether all addresses can be listened on.
func checkListening(cfg *Config) error {
	for _, l := range cfg.Listen {
		if err := l.Check(cfg.Reuse); err != nil {
			return err
		}
	}
	for setting, addr := range map[string]string{"admin": cfg.Admin, "pprof": cfg.Pprof} {
		var err error
		if path, ok := admin.UnixPath(addr); ok {
			err = admin.CheckUnix(path)
		} else if addr != "" {
			err = listen.Check(listen.Network("tcp", addr), addr, false)
		}
		if err != nil {
			return listen.PrivateRemedy(setting, err)
		}
	}
	return nil
}

// serveLogged serves until a signal ends it, and logs to -log-file or stderr.
func serveLogged(args []string, cfg *Config, stderr io.Writer) int {
	// Who reads the log may die, now or later; the gateway need not follow.
	signal.Ignore(syscall.SIGPIPE)
	var out *logwriter.Output
	out, err := logwriter.OpenOutput(cfg.LogFile, stderr, func(n int) []byte {
		var line bytes.Buffer
		slog.New(out.Handler(&line, cfg.LogFormat, cfg.level)).Warn("log lines were dropped: they could not be written, or not as fast as they came", "lines", n)
		return line.Bytes()
	})
	if err != nil {
		return fail(stderr, exitUsage, fmt.Errorf("%s: %w", cfg.sources["log-file"], err))
	}
	log := slog.New(out.Handler(out, cfg.LogFormat, cfg.level))
	code, err := exitUsage, cfg.load(log)
	if err == nil {
		// The standard library has something to tell now and then.
		slog.SetDefault(log)
		stdlog.SetOutput(logwriter.Library{Log: log})
		defer reopenOnSignal(out, log)()
		cfg.warn(log)
		code, err = exitFailure, serve(args, cfg, log, out)
	}
	if err != nil && cfg.LogFile != "" {
		log.Error("the gateway ends", "err", err)
	}
	if n := out.Close(time.Second); n > 0 {
		fail(stderr, code, fmt.Errorf("the last %d lines of the log could not be written", n))
	}
	if err != nil {
		return fail(stderr, code, err)
	}
	return exitOK
}

// reopenOnSignal has SIGUSR1 open the log file once more until stop is called.
func reopenOnSignal(out *logwriter.Output, log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, logwriter.Signal)
	var reopening sync.WaitGroup
	reopening.Go(func() {
		for range signals {
			switch is, err := out.Reopen(); {
			case err != nil:
				log.Error("cannot open the log file again, the old one stays in use", "err", err)
			case is:
				log.Info("the log file was opened again")
			default:
				log.Warn("there is no -log-file to open again", "signal", logwriter.Signal.String())
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(signals)
		reopening.Wait()
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
	return tell(stdout, stderr, text)
}

// openLine prints the route in the line or token of -open.
func openLine(cfg *Config, stdout, stderr io.Writer) int {
	line := strings.TrimSuffix(strings.TrimSuffix(cfg.Arg, "\n"), "\r")
	o := newOpener(cfg)
	route, err := o.open(context.Background(), handshake.Line, []byte(line))
	var bad token.Error
	switch {
	case errors.As(err, &bad):
		return fail(stderr, exitFailure, fmt.Errorf("-open: the token does not open (%w); docs/issuing.md says what that means", err))
	case err != nil:
		return fail(stderr, exitFailure, fmt.Errorf("-open: the line does not open (%w): is it whole, and sealed with this secret and one of -kdf, or made with one of -token-keys?", err))
	}
	return tell(stdout, stderr, route)
}

// askAdmin asks the gateway at -admin, which runs already.
func askAdmin(cfg *Config, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if cfg.AdminTokenFile != "" {
		var err error
		if cfg.adminToken, err = secretfile.Word(cfg.AdminTokenFile, shortSecret); err != nil {
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

// tell prints what an action was asked for. Keys or a line that nobody gets, on a full
// disk for one, are a failure.
func tell(stdout, stderr io.Writer, says any) int {
	if _, err := fmt.Fprintln(stdout, says); err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

// fail prints an error on a line of its own.
func fail(stderr io.Writer, code int, err error) int {
	text := "gateway: " + strings.ReplaceAll(err.Error(), "\n", " ")
	if f, ok := stderr.(*os.File); ok && logwriter.IsJournal(f) {
		text = logwriter.ErrorPrefix + text
	}
	fmt.Fprintln(stderr, text)
	return code
}

// serve runs a gateway until a signal ends it, or another process has taken over.
// out is what log writes to.
func serve(args []string, cfg *Config, log *slog.Logger, out *logwriter.Output) error {
	p := &service{args: args, log: log, out: out, signals: make(chan os.Signal, 16), wishes: make(chan os.Signal, 16)}
	p.cfg.Store(cfg)
	// Before anything that a signal would have to clean up.
	// Apart from each other: what a channel has no room for is lost, and no flood of
	// wishes may keep the gateway from its end.
	signal.Notify(p.signals, os.Interrupt, syscall.SIGTERM)
	signal.Notify(p.wishes, syscall.SIGHUP, upgrade.Signal)
	defer signal.Stop(p.signals)
	defer signal.Stop(p.wishes)
	p.notify = systemd.New(log)
	p.program, p.dir = upgrade.OwnProgram()
	var err error
	if p.before, err = upgrade.Inherit(); err != nil {
		return err
	}
	var list []listen.Descriptor
	inherited, err := systemd.Sockets()
	for _, s := range inherited {
		list = append(list, listen.Descriptor(s))
	}
	if err != nil {
		return err
	}
	sockets, given, err := listen.New(p.before, list, upgrade.Supported)
	if err != nil {
		return err
	}
	p.sockets, cfg.Listen = sockets, listen.Activate(cfg.Listen, given, cfg.forward)
	return p.serve()
}

func (p *service) serve() error {
	cfg := p.cfg.Load()
	listeners, err := p.sockets.OpenAll(cfg.Listen, howToListen(cfg))
	if err != nil {
		return err
	}
	p.makeRoom(cfg)
	if p.g, err = NewGateway(cfg, p.log); err != nil {
		listen.CloseAll(listeners)
		return err
	}
	defer p.g.Close()
	for _, ln := range listeners {
		p.g.Own(ln.Addr()) // all of them, before a client of any
	}
	if err := p.servePprof(cfg); err != nil {
		listen.CloseAll(listeners)
		return err
	}
	defer p.stopPprof(0)
	if err := p.openAdmin(cfg); err != nil {
		listen.CloseAll(listeners)
		return err
	}
	if p.before == nil {
		p.serveAdmin(cfg, false)
	}
	defer p.stopAdmin(0)

	if cfg.PIDFile != "" && p.before != nil {
		// The old process still has its line. What is wrong should show before it
		// gives way.
		if err := checkPIDFile(cfg.PIDFile); err != nil {
			listen.CloseAll(listeners)
			return fmt.Errorf("-pidfile: %w", err)
		}
	}
	if p.before != nil {
		err := p.before.Ready(versionLine())
		if errors.Is(err, upgrade.ErrOldEnded) {
			p.log.Warn("nobody hands over: this process serves", "err", err)
		} else if err != nil {
			listen.CloseAll(listeners)
			return err
		}
	}
	if p.before != nil {
		p.g.Expect()
	}
	p.served = make(chan error, 2*len(listeners))
	for i, ln := range listeners {
		if l := cfg.Listen[i]; !l.KCP || p.before == nil {
			p.serveListener(ln, l)
		}
	}
	if p.before != nil {
		if err := p.takeOver(); err != nil {
			return err
		}
		// Not before: whoever asks the old one is told how that does.
		p.serveAdmin(cfg, true)
		for i, ln := range listeners {
			// Datagrams are not shared as connects are: who reads one has it. The
			// old process has read all of its own by now.
			if l := cfg.Listen[i]; l.KCP {
				p.serveListener(ln, l)
			}
		}
	}
	if err := p.createPIDFile(cfg); err != nil {
		return err
	}
	defer p.removePIDFile()
	p.out.CatchUp() // whoever has rotated the log meanwhile has told the old process
	p.seen.Load().ready()
	p.logListeners(cfg, listeners)
	cfg.describe(p.log)
	p.notify.Ready("serving")
	p.notify.Watch(p.alive)
	if p.before != nil {
		go p.takeTunnels(p.before.Conn())
	}
	return p.live()
}

// takeOver says that this process serves beside the old one, and waits until that
// serves no more, or has ended. The error says that it serves on.
func (p *service) takeOver() error {
	err := p.before.Serving()
	if err == nil {
		err = p.before.Settled()
	}
	if errors.Is(err, upgrade.ErrNever) {
		return err
	}
	if err != nil {
		p.log.Warn("the old process has not finished handing over", "err", err)
	}
	return nil
}

// live deals with what comes from outside, until the process is to end.
func (p *service) live() error {
	starting := false
	started := make(chan *upgrade.Successor, 1)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	for {
		select {
		case wish := <-p.wishes:
			switch {
			case wish == syscall.SIGHUP:
				p.reloadSoon()
			case starting:
				p.log.Warn("an upgrade is under way: asked for one more", "signal", wish.String())
			default:
				starting = true
				p.told = p.wished.Load()
				go func() { started <- p.upgrade(ctx) }()
			}
		case sig := <-p.signals:
			cancel(fmt.Errorf("this process is to end: %s", sig))
			if starting {
				if s := <-started; s != nil {
					return p.giveWay(s, sig) // too late to end it
				}
			}
			return p.drain(sig)
		case s := <-started:
			starting = false
			if s == nil {
				continue
			}
			if err := p.giveWay(s, nil); err != errGoOn {
				return err
			}
		case err := <-p.served:
			return err
		}
	}
}

// makeRoom gives the loops' threads a processor each, and one to everything else,
// which would otherwise have to take one from a loop.
func (p *service) makeRoom(cfg *Config) {
	if n := cfg.loopCount(); n > 0 && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(n + 1)
	}
}
