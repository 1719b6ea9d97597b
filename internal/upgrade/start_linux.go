package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Supported tells whether processes can hand over sockets here.
const Supported = true

// Program is what to start.
type Program struct {
	Path string
	Args []string // with the name of the program as the first
	Env  []string
	Dir  string // where it exists; or else, and if it is empty, this process's
}

// Successor is the new process, as the old one sees it. Its methods are safe for
// concurrent use.
type Successor struct {
	control *net.UnixConn
	tunnels *net.UnixConn
	process *os.Process
	said    chan message  // closed when it says no more
	stops   chan struct{} // closed when it says that this process is to end too
	left    chan struct{} // closed when it has a successor of its own, or says stop
	gone    chan struct{} // closed when it has ended
	exited  chan struct{} // closed when the process has been waited for

	mu    sync.Mutex
	how   string // it ended
	pid   int
	taken []string
	bye   bool
}

// Start starts a program with copies of sockets, and waits for nothing. The caller
// ends it by [Successor.Close].
func Start(p Program, sockets []Socket) (*Successor, error) {
	control, theirControl, err := socketpair()
	if err != nil {
		return nil, err
	}
	tunnels, theirTunnels, err := socketpair()
	if err != nil {
		control.Close()
		unix.Close(theirControl)
		return nil, err
	}
	defer unix.Close(theirControl)
	defer unix.Close(theirTunnels)

	// By numbers: the Fd method of an os.File would make the socket blocking, for
	// both processes.
	files := []uintptr{0, 1, 2, uintptr(theirControl), uintptr(theirTunnels)}
	names := make([]string, len(sockets))
	for i, s := range sockets {
		files = append(files, uintptr(s.FD))
		names[i] = s.Name
	}
	if _, err := os.Stat(p.Dir); err != nil {
		p.Dir = "" // it was removed, and this process is in it still
	}
	pid, err := syscall.ForkExec(p.Path, p.Args, &syscall.ProcAttr{Dir: p.Dir, Env: environment(p.Env), Files: files})
	if err != nil {
		control.Close()
		tunnels.Close()
		return nil, fmt.Errorf("cannot start %s: %w", p.Path, err)
	}
	process, err := os.FindProcess(pid) // never fails on Unix
	if err != nil {
		panic(err)
	}
	s := &Successor{
		control: control, tunnels: tunnels, process: process, pid: pid,
		said: make(chan message, 4), stops: make(chan struct{}), left: make(chan struct{}), gone: make(chan struct{}), exited: make(chan struct{}),
	}
	go s.await()
	go s.listen()
	if err := s.say(message{Word: offer, Version: Version, PID: os.Getpid(), Sockets: names}); err != nil {
		s.Close()
		return nil, fmt.Errorf("%s takes no offer: %w", p.Path, err)
	}
	return s, nil
}

// socketpair returns one end for package net, and the other as a descriptor. Both
// are close-on-exec.
func socketpair() (*net.UnixConn, int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	conn, err := unixConn(pair[0])
	if err != nil {
		unix.Close(pair[1])
		return nil, -1, err
	}
	return conn, pair[1], nil
}

// unixConn gives a descriptor to package net.
func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "")
	conn, err := net.FileConn(f) // a copy
	f.Close()
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a Unix socket")
	}
	return unixConn, nil
}

// environment is that of a new process. What systemd has said to this one alone is
// not for it, but for the watchdog's period.
func environment(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return name == Variable || name == "WATCHDOG_PID" || strings.HasPrefix(name, "LISTEN_")
	})
	return append(env, Variable+"="+strconv.Itoa(Version))
}

// say sends a message.
func (s *Successor) say(m message) error { return send(s.control, m) }

// send writes a message. The other side always reads: it may stop a moment, and
// there are few bytes.
func send(to *net.UnixConn, m message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = to.Write(append(line, '\n'))
	return err
}

// await waits for the process's end.
func (s *Successor) await() {
	state, err := s.process.Wait()
	how := ""
	if err != nil {
		how = err.Error()
	} else {
		how = state.String()
	}
	s.mu.Lock()
	s.how = how
	s.mu.Unlock()
	close(s.exited)
}

// listen passes on what the new process says, to its end. That is the end of the
// process, or of all that it has started with what it was given: a script may start
// the gateway and end.
func (s *Successor) listen() {
	defer close(s.gone)
	defer close(s.said)
	from := json.NewDecoder(io.LimitReader(s.control, maxSaid))
	for {
		var m message
		if err := from.Decode(&m); err != nil {
			return
		}
		if m.Word == bye || m.Word == stop {
			s.mu.Lock()
			if !s.bye {
				close(s.left)
			}
			s.bye = true
			s.mu.Unlock()
			if m.Word == stop {
				close(s.stops)
				return
			}
			continue
		}
		select {
		case s.said <- m:
		default:
			return // it says more than there is to say: no gateway
		}
	}
}

// hear waits for a word. The process is as good as gone if it says another.
func (s *Successor) hear(ctx context.Context, word string) (message, error) {
	select {
	case m, ok := <-s.said:
		switch {
		case !ok:
			return m, s.endedBefore(ctx, word)
		case m.Word == refuse:
			return m, fmt.Errorf("the new process refuses: %s", m.Why)
		case m.Word != word:
			return m, fmt.Errorf("the new process says %q instead of %q", m.Word, word)
		}
		return m, nil
	case <-ctx.Done():
		return message{}, fmt.Errorf("the new process has not said %q in time: %w", word, context.Cause(ctx))
	}
}

func (s *Successor) endedBefore(ctx context.Context, word string) error {
	// A process closes its sockets a moment before it has ended.
	select {
	case <-s.exited:
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.how == "" {
		return ended("it closed its socket", "before it said "+strconv.Quote(word))
	}
	return ended(s.how, "before it said "+strconv.Quote(word))
}

// Ready waits until the new process can serve, and returns its name.
func (s *Successor) Ready(ctx context.Context) (program string, err error) {
	m, err := s.hear(ctx, ready)
	if err != nil {
		return "", err
	}
	if m.PID <= 1 || m.PID == os.Getpid() { // signals for it would go to others
		return "", fmt.Errorf("the new process says that it is process %d", m.PID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid, s.taken = m.PID, m.Taken
	return m.Program, nil
}

// Serve has the new process serve, and waits until it does.
func (s *Successor) Serve(ctx context.Context) error {
	if err := s.say(message{Word: serve}); err != nil {
		return s.endedBefore(ctx, serving)
	}
	_, err := s.hear(ctx, serving)
	return err
}

// Never says that this process serves on. It is for a process that was started by the one
// that this one knows, and outlives it; the caller ends that.
func (s *Successor) Never() { s.say(message{Word: never}) } // who is gone need not hear it

// Yield says that this process accepts no more.
func (s *Successor) Yield() error { return s.say(message{Word: yours}) }

// PID returns its process id: once it is ready, of the process that is.
func (s *Successor) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

// Took tells whether the new process, which is ready, has taken a socket.
func (s *Successor) Took(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.taken, name)
}

// Conn returns the stream to [Predecessor.Conn], for what else changes hands. Close
// closes it.
func (s *Successor) Conn() *net.UnixConn { return s.tunnels }

// Gone is closed when the new process has ended, or closed its sockets.
func (s *Successor) Gone() <-chan struct{} { return s.gone }

// Stops is closed when the new process ends in order, and this one is to do so too.
func (s *Successor) Stops() <-chan struct{} { return s.stops }

// Left is closed when this process need not serve again, whatever becomes of the new one.
func (s *Successor) Left() <-chan struct{} { return s.left }

// InOrder tells of one that is gone whether it has said so before.
func (s *Successor) InOrder() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bye
}

// How says how the process ended, after some patience if it is just about to.
func (s *Successor) How(patience time.Duration) string {
	select {
	case <-s.exited:
	case <-time.After(patience):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.how
}

// End has the process end in order (SIGTERM).
func (s *Successor) End() error { return s.Signal(syscall.SIGTERM) }

// Signal sends a signal, of package syscall, to the process, which has not ended yet as
// far as is known.
func (s *Successor) Signal(sig os.Signal) error { return syscall.Kill(s.PID(), sig.(syscall.Signal)) }

// Kill ends the process at once.
func (s *Successor) Kill() { s.process.Kill() }

// Close leaves the process to itself. One that is not done with what it was given
// takes this for the end of this process.
func (s *Successor) Close() {
	s.control.Close()
	s.tunnels.Close()
}
