// Package systemd tells the service manager how the process does, by the protocol of
// sd_notify(3), and takes the sockets that it was started with (sd_listen_fds(3)).
// Where no manager asks, nothing is done.
package systemd

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier sends notifications. Its methods are safe for concurrent use; those of a
// nil Notifier do nothing.
type Notifier struct {
	log *slog.Logger

	mu       sync.Mutex
	quiet    bool          // another process speaks
	watching chan struct{} // closed to end it; nil: nobody watches
	failed   bool          // the log knows
}

// New returns a Notifier, or nil where nobody is to be told ($NOTIFY_SOCKET).
func New(log *slog.Logger) *Notifier {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return &Notifier{log: log}
}

// notify sends assignments, one a line.
func (n *Notifier) notify(state string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.quiet {
		return
	}
	_, err := daemon.SdNotify(false, state)
	if err != nil && !n.failed {
		n.log.Warn("cannot tell systemd how it goes", "err", err)
	}
	n.failed = err != nil
}

// Ready says that the process serves, once it has started and after each reload.
func (n *Notifier) Ready(status string) {
	n.notify(daemon.SdNotifyReady + "\nMAINPID=" + strconv.Itoa(os.Getpid()) + "\nSTATUS=" + status)
}

// Reloading says that the process is about to take up another configuration; Ready
// says that it has.
func (n *Notifier) Reloading() {
	n.notify(daemon.SdNotifyReloading + "\n" + monotonic())
}

// Stopping says that the process has begun to end.
func (n *Notifier) Stopping(status string) {
	n.notify(daemon.SdNotifyStopping + "\nSTATUS=" + status)
}

// Status is what systemctl status shows.
func (n *Notifier) Status(text string) { n.notify("STATUS=" + text) }

// GiveWay says that another process is the service from here on, and then nothing
// until TakeBack.
func (n *Notifier) GiveWay(pid int) {
	if n == nil {
		return
	}
	n.unwatch()
	n.notify("MAINPID=" + strconv.Itoa(pid))
	n.hush(true)
}

// TakeBack says that this process is the service again.
func (n *Notifier) TakeBack(status string) {
	if n == nil {
		return
	}
	n.hush(false)
	n.Ready(status)
}

func (n *Notifier) hush(quiet bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.quiet = quiet
}

// Extend asks for more time than that of TimeoutStopSec=: from now on.
func (n *Notifier) Extend(by time.Duration) {
	n.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", by.Microseconds()))
}

// Watch feeds the watchdog, if there is one (WatchdogSec=), as long as alive, which
// may take a third of its period, returns true. It ends with GiveWay.
func (n *Notifier) Watch(alive func(within time.Duration) bool) {
	if n == nil {
		return
	}
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("systemd's watchdog is not fed", "err", err)
	}
	if err != nil || period == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watching != nil {
		return
	}
	n.watching = make(chan struct{})
	go n.watch(period/3, alive, n.watching)
}

func (n *Notifier) watch(every time.Duration, alive func(time.Duration) bool, stop <-chan struct{}) {
	missed := false
	for {
		ok := alive(every)
		if ok {
			n.notify(daemon.SdNotifyWatchdog)
		} else if !missed {
			n.log.Error("an event loop does not answer: systemd's watchdog is not fed", "within", every.String())
		}
		missed = !ok
		select {
		case <-stop:
			return
		case <-time.After(every):
		}
	}
}

// unwatch no longer feeds the watchdog.
func (n *Notifier) unwatch() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watching != nil {
		close(n.watching)
		n.watching = nil
	}
}
