package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gateway/internal/admin"
	"gateway/internal/pidfile"
	"gateway/internal/profiling"
	"gateway/internal/systemd"
	"gateway/internal/upgrade"
)

// service is a gateway that serves, and what happens to it from outside: signals,
// another configuration, a new process in its place.
type service struct {
	args    []string // of the command line
	cfg     atomic.Pointer[Config]
	log     *slog.Logger
	g       *Gateway
	sockets *sockets
	notify  *systemd.Notifier
	before  *upgrade.Predecessor // nil: started afresh
	pid     *pidfile.File        // nil: none
	served  chan error           // a listener's end, other than by Withdraw
	signals chan os.Signal

	reloading sync.Mutex
	pprof     func(context.Context) // stops it; nil: off
	seen      *overview             // by -admin; nil: off
	dropped   func() int64          // lines of the log
	admin     net.Listener
	unseen    func(context.Context) // stops -admin; nil: off
	program   string                // to start anew
	dir       string                // where this one was started
}

// serveListener serves until the gateway withdraws from the listener.
func (p *service) serveListener(ln net.Listener, l listening) {
	go func() {
		var err error
		switch {
		case l.peer:
			err = p.g.ServePeer(ln)
		case l.forward != nil:
			err = p.g.ServeForward(ln, *l.forward)
		default:
			err = p.g.Serve(ln)
		}
		if err != ErrGatewayClosed {
			p.served <- err // it cannot listen
		}
	}()
}

// servePprof serves -pprof, if it is set.
func (p *service) servePprof(cfg *Config) error {
	ln, err := p.sockets.private("pprof", cfg.Pprof, listenPprof)
	if ln == nil || err != nil {
		return err
	}
	p.pprof = profiling.Serve(ln, p.log)
	p.log.Info("pprof is on", "url", fmt.Sprintf("http://%s/debug/pprof/", ln.Addr()))
	p.g.Own(ln.Addr())
	return nil
}

// stopPprof stops it; whom it serves has some time.
func (p *service) stopPprof(patience time.Duration) {
	if p.pprof == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.pprof(ctx)
	p.pprof = nil
}

// openAdmin opens the socket of -admin, if it is set.
func (p *service) openAdmin(cfg *Config) error {
	ln, err := p.sockets.private("admin", cfg.Admin, listenAdmin)
	if ln == nil || err != nil {
		return err
	}
	p.admin = admin.Inherited(ln)
	p.g.Own(ln.Addr())
	return nil
}

// serveAdmin serves at the socket that was opened.
func (p *service) serveAdmin(cfg *Config) {
	if p.admin != nil {
		p.seen, p.unseen = startAdmin(p.admin, cfg, p.g, build{version, commitOf()}, p.Reload, p.dropped, p.log)
	}
}

// stopAdmin stops it; whom it serves has some time.
func (p *service) stopAdmin(patience time.Duration) {
	if p.unseen == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.unseen(ctx)
	p.unseen = nil
}

// alive tells whether every event loop takes its turn within a time.
func (p *service) alive(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return p.g.loops.answer(ctx) == nil
}

// Reload reads the settings again, and the files that they name, and has connections
// to come follow them. If anything is wrong, all stays as it was, and the error says
// what. It may be called from any goroutine.
func (p *service) Reload() error {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	p.notify.Reloading()
	next, changed, fixed, err := p.cfg.Load().reload(p.args, p.log)
	p.g.reloads.add(err)
	if err != nil {
		p.log.Error("cannot reload, everything stays as it was", "err", err)
		p.notify.Ready("serving; the last reload failed")
		return err
	}
	p.g.Reload(next)
	p.cfg.Store(next)
	p.seen.reloaded(next)
	next.level.Set(next.LogLevel)
	p.log.Info("reloaded", "changed", strings.Join(changed, ","), "secrets", len(next.Secrets), "from", strings.Join(next.SecretSources, ","))
	if len(fixed) > 0 {
		p.log.Warn("needs a restart or an upgrade (SIGUSR2), and stays as it was", "settings", strings.Join(fixed, ","))
	}
	next.warn(p.log)
	p.notify.Ready("serving")
	return nil
}

func (p *service) createPIDFile(cfg *Config) error {
	if cfg.PIDFile == "" {
		return nil
	}
	other := 0
	if p.before != nil {
		other = p.before.PID
	}
	var err error
	if p.pid, err = pidfile.CreateInsteadOf(cfg.PIDFile, other); err != nil {
		err = fmt.Errorf("-pidfile: %w", err)
		if p.before != nil { // nobody else serves any more
			p.log.Error("the pid file names the old process", "err", err)
			return nil
		}
	}
	return err
}

func (p *service) removePIDFile() {
	if p.pid == nil {
		return
	}
	if err := p.pid.Remove(); err != nil {
		p.log.Warn("cannot clean up the pid file", "err", err)
	}
}

func (p *service) logListeners(cfg *Config, listeners []net.Listener) {
	for i, ln := range listeners {
		attrs := []any{"addr", ln.Addr().String(), "pid", os.Getpid(), "version", version}
		switch {
		case cfg.Listen[i].kcp:
			attrs = append(attrs, "protocol", "kcp")
		case cfg.Listen[i].peer:
			attrs = append(attrs, "protocol", "resume")
		default:
			attrs = append(attrs, "relay", p.g.relaying())
		}
		if to := cfg.Listen[i].forward; to != nil {
			attrs = append(attrs, "forward", to.String())
		} else {
			attrs = append(attrs, "secrets", len(cfg.Secrets), "from", strings.Join(cfg.SecretSources, ","))
		}
		if p.before != nil {
			attrs = append(attrs, "instead_of", p.before.PID)
		}
		p.log.Info("listening", attrs...)
	}
}

// drain lets connections end, and the process with them.
func (p *service) drain(sig os.Signal) error {
	cfg := p.cfg.Load()
	hurry, cancel := context.WithCancel(context.Background())
	defer cancel()
	first := time.Now()
	go func() {
		for {
			select {
			case again := <-p.signals:
				switch {
				case again == syscall.SIGHUP, again == upgrade.Signal:
				case again == sig && time.Since(first) < sameSignal:
					p.log.Info("the same signal once more", "signal", sig.String())
				default:
					p.log.Info("ending at once", "signal", again.String())
					cancel()
				}
			case <-hurry.Done():
				return
			}
		}
	}()
	p.lameDuck(hurry, sig, cfg.DrainDelay)
	beforeGone := p.before.Stop()
	p.log.Info("draining", "signal", sig.String(), "drain", cfg.Drain.String())
	p.notify.Stopping(p.status("draining"))
	ctx, stop := context.WithTimeout(hurry, cfg.Drain)
	defer stop()
	go p.tellWhileDraining(ctx)
	p.sockets.dropAll()
	p.g.Shutdown(ctx)
	select {
	case <-beforeGone: // systemd ends what is left of a service with its main process
	case <-ctx.Done():
	}
	cancel()
	p.g.Close()
	p.g.logTotals()
	return nil
}

// sameSignal is how long after a signal another is the same one, delivered twice:
// timeout(1) and supervisors signal a process and its group.
const sameSignal = time.Second

// lameDuck serves clients for a while that are told to go elsewhere. ctx ends it early.
func (p *service) lameDuck(ctx context.Context, sig os.Signal, delay time.Duration) {
	if delay <= 0 {
		return
	}
	p.log.Info("lame duck: clients are served, and told to go elsewhere", "signal", sig.String(), "drain_delay", delay.String())
	p.g.ledger.leaving.Store(true)
	p.notify.Stopping(p.status("about to drain"))
	select {
	case <-time.After(delay):
	case <-ctx.Done():
	}
}

// tellInterval is how often systemd hears how the draining goes.
const tellInterval = 2 * time.Second

// tellWhileDraining has systemd wait for as long as connections may take.
func (p *service) tellWhileDraining(ctx context.Context) {
	for {
		// More than until the next time, however busy the machine is.
		p.notify.Extend(15 * time.Second)
		p.notify.Status(p.status("draining"))
		select {
		case <-time.After(tellInterval):
		case <-ctx.Done():
			return
		}
	}
}

// status is for systemctl status.
func (p *service) status(doing string) string {
	return fmt.Sprintf("%d tunnels, %s", p.g.ledger.open(), doing)
}
