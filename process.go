package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"gateway/internal/admin"
	"gateway/internal/pidfile"
	"gateway/internal/systemd"
	"gateway/internal/upgrade"
)

// serve runs a gateway until a signal ends it, or another process has taken over.
// dropped tells how many lines of the log were.
func serve(args []string, cfg *Config, log *slog.Logger, dropped func() int64) error {
	p := &service{args: args, log: log, dropped: dropped, signals: make(chan os.Signal, 16)}
	p.cfg.Store(cfg)
	// Before anything that a signal would have to clean up.
	signal.Notify(p.signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, upgrade.Signal)
	defer signal.Stop(p.signals)
	p.notify = systemd.New(log)
	p.program, p.dir = upgrade.OwnProgram()
	var err error
	if p.before, err = upgrade.Inherit(); err != nil {
		return err
	}
	if p.sockets, err = newSockets(cfg, p.before); err != nil {
		return err
	}
	return p.serve()
}

func (p *service) serve() error {
	cfg := p.cfg.Load()
	listeners, err := p.sockets.listenAll(cfg)
	if err != nil {
		return err
	}
	p.makeRoom(cfg)
	if p.g, err = NewGateway(cfg, p.log); err != nil {
		closeAll(listeners)
		return err
	}
	defer p.g.Close()
	for i, ln := range listeners {
		p.g.Own(ln.Addr()) // all of them, before a client of any
		p.g.limits(ln, cfg.Listen[i].own)
	}
	if err := p.servePprof(cfg); err != nil {
		closeAll(listeners)
		return err
	}
	defer p.stopPprof(0)
	if err := p.openAdmin(cfg); err != nil {
		closeAll(listeners)
		return err
	}
	if p.before == nil {
		p.serveAdmin(cfg)
	}
	defer p.stopAdmin(0)

	if cfg.PIDFile != "" && p.before != nil {
		// The old process still has its line. What is wrong should show before it
		// gives way.
		if err := pidfile.Check(cfg.PIDFile); err != nil {
			closeAll(listeners)
			return fmt.Errorf("-pidfile: %w", err)
		}
	}
	if p.before != nil {
		err := p.before.Ready(versionLine())
		if errors.Is(err, upgrade.ErrOldEnded) {
			p.log.Warn("nobody hands over: this process serves", "err", err)
		} else if err != nil {
			closeAll(listeners)
			return err
		}
	}
	p.served = make(chan error, 2*len(listeners))
	for i, ln := range listeners {
		if l := cfg.Listen[i]; !l.kcp || p.before == nil {
			p.serveListener(ln, l)
		}
	}
	if p.before != nil {
		p.takeOver()
		// Not before: whoever asks the old one is told how that does.
		p.serveAdmin(cfg)
		p.seen.ready()
		for i, ln := range listeners {
			// Datagrams are not shared as connects are: who reads one has it. The
			// old process has read all of its own by now.
			if l := cfg.Listen[i]; l.kcp {
				p.serveListener(ln, l)
			}
		}
	}
	if err := p.createPIDFile(cfg); err != nil {
		return err
	}
	defer p.removePIDFile()
	p.logListeners(cfg, listeners)
	p.seen.ready()
	p.notify.Ready("serving")
	p.notify.Watch(p.alive)
	if p.before != nil {
		go p.takeTunnels(p.before.Conn())
	}
	return p.live()
}

// live deals with what comes from outside, until the process is to end.
func (p *service) live() error {
	starting := false
	started := make(chan *upgrade.Successor, 1)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	for {
		select {
		case sig := <-p.signals:
			switch {
			case sig == syscall.SIGHUP:
				go p.Reload()
			case sig == upgrade.Signal && starting:
				p.log.Warn("an upgrade is under way: asked for one more", "signal", sig.String())
			case sig == upgrade.Signal:
				starting = true
				go func() { started <- p.upgrade(ctx) }()
			default:
				cancel(fmt.Errorf("this process is to end: %s", sig))
				if starting {
					if s := <-started; s != nil {
						return p.giveWay(s, sig) // too late to end it
					}
				}
				return p.drain(sig)
			}
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

// upgrade starts a new process and returns it once it serves beside this one; or nil,
// and the log says why not. ctx ends it early.
func (p *service) upgrade(ctx context.Context) *upgrade.Successor {
	cfg := p.cfg.Load()
	program := cmp.Or(cfg.UpgradeExec, p.program)
	p.notify.Reloading()
	s, err := p.start(ctx, program, cfg.UpgradeTimeout)
	if err == nil {
		return s
	}
	p.log.Error("the upgrade failed: this process goes on serving", "program", program, "err", err)
	p.notify.Ready("serving; the upgrade failed")
	return nil
}

var errUpgradeTimeout = errors.New("-upgrade-timeout is over")

func (p *service) start(ctx context.Context, program string, timeout time.Duration) (*upgrade.Successor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errUpgradeTimeout)
	defer cancel()
	args := append([]string{program}, os.Args[1:]...)
	return upgrade.Replace(ctx, upgrade.Program{Path: program, Args: args, Env: os.Environ(), Dir: p.dir}, p.sockets.all(), p.log)
}

// takeOver says that this process serves beside the old one, and waits until that
// serves no more, or has ended.
func (p *service) takeOver() {
	err := p.before.Serving()
	if err == nil {
		err = p.before.Settled()
	}
	if err != nil {
		p.log.Warn("the old process has not finished handing over", "err", err)
	}
}

// errGoOn is what giveWay returns where this process serves again.
var errGoOn = errors.New("the new process has ended")

// probation is how long a new process has to live before the old one ends, even if
// there is nothing to wait for: one that crashes at once is replaced by the old.
const probation = 500 * time.Millisecond

// giveWay leaves the sockets to a new process that serves, and lets connections end.
// It returns errGoOn if that process ends without a word meanwhile: then this one
// serves again. sig, if not nil, has asked for this one's end.
func (p *service) giveWay(s *upgrade.Successor, sig os.Signal) error {
	defer s.Close()
	cfg := p.cfg.Load()
	p.g.Withdraw()
	p.stopPprof(time.Second)
	admin.Leave(p.admin)
	p.stopAdmin(time.Second)
	p.notify.GiveWay(s.PID())
	if err := s.Yield(); err != nil {
		return p.goOn(s)
	}
	// What the new process has no use for is to refuse, and not to let wait.
	p.sockets.drop(func(name string) bool { return !s.Took(name) })
	p.before.Bye() // it is of no more use, and may have ended
	p.log.Info("handed over", "new_pid", s.PID(), "tunnels", p.g.ledger.open(), "hard_stop_after", cfg.HardStopAfter.String())
	if sig != nil { // who sent it meant whoever serves
		if err := s.End(); err != nil {
			p.log.Warn("the new process serves on", "new_pid", s.PID(), "err", err)
		}
		return p.drain(sig)
	}
	defer p.handOver(s.Conn())()

	var stop <-chan time.Time
	if cfg.HardStopAfter > 0 {
		stop = time.After(cfg.HardStopAfter)
	}
	until := time.Now().Add(probation)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	gone := s.Gone()
	for {
		select {
		case <-look.C:
			if p.g.ledger.open() == 0 && !p.g.isTaking() && !time.Now().Before(until) {
				p.g.Close()
				p.g.logTotals()
				return nil
			}
		case <-stop:
			p.log.Info("ending at once", "tunnels", p.g.ledger.open(), "reason", "-hard-stop-after")
			p.g.Close()
			p.g.logTotals()
			return nil
		case <-s.Stops():
			return p.drain(syscall.SIGTERM)
		case <-gone:
			if !s.InOrder() {
				return p.goOn(s)
			}
			p.sockets.dropAll()
			gone = nil
		case sig := <-p.signals:
			if sig == syscall.SIGHUP || sig == upgrade.Signal {
				p.log.Warn("this process only waits for its tunnels to end: signal the new one", "signal", sig.String(), "new_pid", s.PID())
				continue
			}
			return p.drain(sig)
		}
	}
}

// handOver sends live tunnels to the new process, over a stream of its own, until stop
// is called; what stays ends here.
func (p *service) handOver(to *net.UnixConn) (stop func()) {
	if !p.cfg.Load().Handover {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := p.g.HandOver(ctx, to, func(tunnels int, took time.Duration) {
			p.log.Info("tunnels handed over", "tunnels", tunnels, "took_ms", took.Milliseconds(), "stay", p.g.ledger.open())
		})
		if err != nil {
			p.log.Warn("tunnels stay in this process until they end", "tunnels", p.g.ledger.open(), "err", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// takeTunnels is handOver's other end.
func (p *service) takeTunnels(from *net.UnixConn) {
	if !p.cfg.Load().Handover {
		p.g.RefuseTunnels(from, "-handover=0")
		return
	}
	n, err := p.g.TakeOver(from)
	p.log.Info("tunnels taken over", "tunnels", n, "from", p.before.PID)
	if err != nil {
		p.log.Warn("the old process keeps what tunnels it has left", "from", p.before.PID, "err", err)
	}
}

// goOn serves again after the new process has ended.
func (p *service) goOn(s *upgrade.Successor) error {
	p.log.Error("the new process has ended: this one serves again", "new_pid", s.PID(), "how", s.How(time.Second))
	cfg := p.cfg.Load()
	p.g.Return()
	again := p.sockets.reopen(cfg, p.log)
	if len(again) == 0 {
		return errors.New("the new process has ended, and this one cannot serve again")
	}
	for _, l := range again {
		p.g.Own(l.ln.Addr())
		p.g.limits(l.ln, l.own)
		p.serveListener(l.ln, l.listening)
	}
	if err := p.servePprof(cfg); err != nil {
		p.log.Warn("pprof is off", "err", err)
	}
	if err := p.openAdmin(cfg); err != nil {
		p.log.Warn("admin is off", "err", err)
	}
	p.serveAdmin(cfg)
	p.seen.ready()
	if p.pid != nil {
		if err := p.pid.Reclaim(s.PID()); err != nil {
			p.log.Error("the pid file does not name this process", "err", err)
		}
	}
	p.notify.TakeBack("serving; the new process has ended")
	p.notify.Watch(p.alive)
	return errGoOn
}
