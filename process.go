package main

import (
	"cmp"
	"context"
	"errors"
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
	"gateway/internal/handover"
	"gateway/internal/listen"
	"gateway/internal/logwriter"
	"gateway/internal/profiling"
	"gateway/internal/sockopt"
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
	sockets *listen.Sockets
	notify  *systemd.Notifier
	before  *upgrade.Predecessor // nil: started afresh
	pid     *pidFile             // nil: none
	served  chan error           // a listener's end, other than by Withdraw
	signals chan os.Signal       // that ask for the end
	wishes  chan os.Signal       // all others

	reloading sync.Mutex
	soon      atomic.Bool              // reloadSoon has begun one that has read nothing yet
	wished    atomic.Int64             // calls of Reload …
	told      int64                    // … before the new process was started
	pprof     func(context.Context)    // stops it; nil: off
	seen      atomic.Pointer[overview] // by -admin; nil: off
	out       *logwriter.Output        // what log writes to
	admin     net.Listener
	unseen    func(context.Context) // stops -admin; nil: off
	program   string                // to start anew
	dir       string                // where this one was started
}

// serveListener serves until the gateway withdraws from the listener.
func (p *service) serveListener(ln net.Listener, l listen.Address) {
	p.g.limits(ln, l)
	go func() {
		var err error
		switch {
		case l.Peer:
			err = p.g.ServePeer(ln)
		case l.Forward != nil:
			err = p.g.ServeForward(ln, *l.Forward)
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
	ln, err := p.sockets.Private("pprof", cfg.Pprof, nil)
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
	ln, err := p.sockets.Private("admin", cfg.Admin, listenAdmin)
	if ln == nil || err != nil {
		return err
	}
	p.admin = admin.Inherited(ln)
	if p.sockets.Systemds("admin") {
		admin.Leave(p.admin) // the file is systemd's, which goes on listening
	}
	p.g.Own(ln.Addr())
	return nil
}

// listenAdmin opens the socket of -admin.
func listenAdmin(addr string) (net.Listener, error) {
	if path, ok := admin.UnixPath(addr); ok {
		ln, err := admin.ListenUnix(path)
		return ln, listen.PrivateRemedy("admin", err)
	}
	return listen.OpenPrivate("admin", addr)
}

// serveAdmin serves at the socket that was opened; ready says that all is up.
func (p *service) serveAdmin(cfg *Config, ready bool) {
	if p.admin != nil {
		seen, stop := startAdmin(p.admin, cfg, p.g, build{versionOf(), commitOf()}, p.Reload, p.out.Dropped, ready, p.log)
		p.seen.Store(seen)
		p.unseen = stop
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
	return p.g.engine.answer(ctx) == nil
}

// reloadSoon is Reload, for which nobody waits. However often it is called meanwhile, what
// is there by then is read once more.
func (p *service) reloadSoon() {
	if p.soon.Swap(true) {
		return
	}
	go p.Reload()
}

// Reload reads the settings again, and the files that they name, and has connections
// to come follow them. If anything is wrong, all stays as it was, and the error says
// what. It may be called from any goroutine.
func (p *service) Reload() error {
	p.wished.Add(1)
	p.reloading.Lock()
	defer p.reloading.Unlock()
	p.soon.Store(false)
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
	p.seen.Load().reloaded(next)
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
	if p.pid, err = createPIDFileInsteadOf(cfg.PIDFile, other); err != nil {
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
	if err := p.pid.remove(); err != nil {
		p.log.Warn("cannot clean up the pid file", "err", err)
	}
}

func (p *service) logListeners(cfg *Config, listeners []net.Listener) {
	for i, ln := range listeners {
		attrs := []any{"addr", ln.Addr().String(), "pid", os.Getpid(), "version", versionOf()}
		switch {
		case cfg.Listen[i].KCP:
			attrs = append(attrs, "protocol", "kcp")
		case cfg.Listen[i].Peer:
			attrs = append(attrs, "protocol", "resume")
		default:
			attrs = append(attrs, "relay", p.g.relaying())
			if cfg.MPTCP && sockopt.IsMPTCP(ln) {
				attrs = append(attrs, "mptcp", true)
			} else if cfg.MPTCP {
				p.log.Warn("no MPTCP on this listener: its clients speak TCP", "addr", ln.Addr().String(),
					"err", "the kernel has none, net.mptcp.enabled is 0, or the socket was given to this process and has none (SocketProtocol=mptcp in a unit of systemd)")
			}
		}
		if to := cfg.Listen[i].Forward; to != nil {
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
				if again == sig && time.Since(first) < sameSignal {
					p.log.Info("the same signal once more", "signal", sig.String())
					continue
				}
				p.log.Info("ending at once", "signal", again.String())
				cancel()
			case <-hurry.Done():
				return
			}
		}
	}()
	p.lameDuck(hurry, sig, cfg.DrainDelay)
	beforeGone := p.before.Stop()
	p.log.Info("draining", "signal", sig.String(), "tunnels", p.g.ledger.open(), "drain", cfg.Drain.String())
	p.notify.Stopping(p.status("draining"))
	ctx, stop := context.WithTimeout(hurry, cfg.Drain)
	defer stop()
	go p.tellWhileDraining(ctx)
	p.sockets.DropAll()
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

// How often systemd hears how the draining goes, and every how manieth time the log does.
const (
	tellInterval = 2 * time.Second
	logEvery     = 2
)

// tellWhileDraining has systemd wait for as long as connections may take, and tells how
// many there are.
func (p *service) tellWhileDraining(ctx context.Context) {
	until, _ := ctx.Deadline()
	for n := 0; ; n++ {
		if n > 0 && n%logEvery == 0 {
			p.log.Info("still draining", "tunnels", p.g.ledger.open(), "left_ms", max(0, time.Until(until).Milliseconds()))
		}
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

// inheritable returns the sockets that a new process gets.
func (p *service) inheritable() (list []upgrade.Socket) {
	for _, d := range p.sockets.All() {
		list = append(list, upgrade.Socket(d))
	}
	return list
}

func (p *service) start(ctx context.Context, program string, timeout time.Duration) (*upgrade.Successor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errUpgradeTimeout)
	defer cancel()
	args := append([]string{program}, os.Args[1:]...)
	sockets := append(p.inheritable(), p.before.Elders()...)
	return upgrade.Replace(ctx, upgrade.Program{Path: program, Args: args, Env: os.Environ(), Dir: p.dir}, sockets, p.log)
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
	if p.sockets.Took("admin", s.Took) {
		admin.Leave(p.admin)
	}
	p.stopAdmin(time.Second)
	p.notify.GiveWay(s.PID())
	if err := s.Yield(); err != nil {
		return p.goOn(s)
	}
	// What the new process has no use for is to refuse, and not to let wait.
	p.sockets.Drop(func(name string) bool { return !s.Took(name) })
	p.before.Bye() // it is of no more use, and may have ended
	p.out.Follow()
	p.log.Info("handed over", "new_pid", s.PID(), "tunnels", p.g.ledger.open(), "hard_stop_after", cfg.HardStopAfter.String())
	if sig != nil { // who sent it meant whoever serves
		if err := s.End(); err != nil {
			p.log.Warn("the new process serves on", "new_pid", s.PID(), "err", err)
		}
		return p.drain(sig)
	}
	if p.wished.Load() != p.told { // it may have read the settings before they changed
		p.passOn(s, syscall.SIGHUP)
	}
	defer p.handOver(s)()

	var stop <-chan time.Time
	if cfg.HardStopAfter > 0 {
		stop = time.After(cfg.HardStopAfter)
	}
	until := time.Now().Add(probation)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	gone, left := s.Gone(), s.Left()
	for {
		select {
		case <-look.C:
			if p.g.ledger.idle() && !p.g.isTaking() && !time.Now().Before(until) && p.isReplaced(until) {
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
		case <-left:
			p.sockets.DropAll() // later processes may have given some of them up
			left = nil
		case <-gone:
			if !s.InOrder() {
				return p.goOn(s)
			}
			gone = nil
		case wish := <-p.wishes:
			if gone != nil {
				p.passOn(s, wish) // who sent it meant whoever serves
				continue
			}
			p.log.Warn("this process only waits for its tunnels to end: signal the one that serves", "signal", wish.String())
		case sig := <-p.signals:
			return p.drain(sig)
		}
	}
}

// isReplaced tells whether this process may go: the pid file names the new one, which
// may be slow to get there, or was given time enough.
func (p *service) isReplaced(since time.Time) bool {
	return p.pid == nil || !p.pid.namesMe() || time.Since(since) > lockWait
}

// passOn has the new process, which serves, do what this one was asked for.
func (p *service) passOn(s *upgrade.Successor, wish os.Signal) {
	p.log.Info("passed on to the new process", "signal", wish.String(), "new_pid", s.PID())
	if err := s.Signal(wish); err != nil {
		p.log.Warn("the new process is not reached: send it once more", "err", err)
	}
}

// handOver sends live tunnels to the new process, over a stream of its own, until stop
// is called; what stays ends here. A process that does not even answer hangs, and is ended.
func (p *service) handOver(s *upgrade.Successor) (stop func()) {
	cfg := p.cfg.Load()
	if !cfg.Handover {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := p.g.HandOver(ctx, s.Conn(), cfg.UpgradeTimeout, func(tunnels int, took time.Duration) {
			p.log.Info("tunnels handed over", "tunnels", tunnels, "took_ms", took.Milliseconds(), "stay", p.g.ledger.open())
		})
		if errors.Is(err, handover.ErrSilent) {
			p.log.Error("the new process hangs: it is killed", "new_pid", s.PID(), "err", err)
			s.Kill()
		} else if err != nil {
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
	p.log.Info("tunnels taken over", "tunnels", n, "old_pid", p.before.PID)
	if err != nil {
		p.log.Warn("the old process keeps what tunnels it has left", "old_pid", p.before.PID, "err", err)
	}
}

// goOn serves again after the new process has ended.
func (p *service) goOn(s *upgrade.Successor) error {
	p.out.Unfollow()
	p.log.Error("the new process has ended: this one serves again", "new_pid", s.PID(), "how", s.How(time.Second))
	cfg := p.cfg.Load()
	p.g.Return()
	again := p.sockets.Reopen(howToListen(cfg), p.log)
	if len(again) == 0 {
		return errors.New("the new process has ended, and this one cannot serve again")
	}
	for _, l := range again {
		p.g.Own(l.Listener.Addr())
		p.serveListener(l.Listener, l.Address)
	}
	if err := p.servePprof(cfg); err != nil {
		p.log.Warn("pprof is off", "err", err)
	}
	if err := p.openAdmin(cfg); err != nil {
		p.log.Warn("admin is off", "err", err)
	}
	p.serveAdmin(cfg, true)
	if p.pid != nil {
		if err := p.pid.reclaim(s.PID()); err != nil {
			p.log.Error("the pid file does not name this process", "err", err)
		}
	}
	p.notify.TakeBack("serving; the new process has ended")
	p.notify.Watch(p.alive)
	return errGoOn
}
