package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// role in the environment makes the test binary the new process of a test.
const role = "UPGRADE_TEST_ROLE"

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if name := os.Getenv(role); name != "" {
		if err := roles[name](); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// roles are what the new process does.
var roles = map[string]func() error{
	"good": func() error {
		p, err := Inherit()
		if err != nil {
			return err
		}
		fd, ok := p.Take("a")
		if !ok {
			return errors.New("no socket a")
		}
		if _, ok := p.Take("missing"); ok {
			return errors.New("a socket that was not offered")
		}
		if err := p.Ready("the good one"); err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "")
		ln, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "the new one")
				c.Close()
			}
		}()
		if err := p.Serving(); err != nil {
			return err
		}
		if err := p.Settled(); err != nil {
			return err
		}
		b, err := io.ReadAll(p.Conn()) // what comes over the other stream says how to end
		if err != nil {
			return err
		}
		switch string(b) {
		case "bye":
			return p.Bye()
		case "stop":
			<-p.Stop()
			return nil
		}
		return errors.New("told to fail")
	},
	"heir": func() error { // serves whatever becomes of the old process
		p, err := Inherit()
		if err != nil {
			return err
		}
		fd, _ := p.Take("a")
		f := os.NewFile(uintptr(fd), "")
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		for _, err := range []error{p.Ready("the heir"), p.Serving(), p.Settled()} {
			if err != nil && !errors.Is(err, ErrOldEnded) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
				return err
			}
		}
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		io.WriteString(c, "the heir")
		return c.Close()
	},
	"wide-eyed": func() error { // looks at what it was born with
		if _, err := Inherit(); err != nil {
			return err
		}
		if os.Getenv(Variable) != "" {
			return errors.New("its own children would take themselves for upgrades")
		}
		for fd := controlFD; fd < firstSocketFD+3; fd++ {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if fd < firstSocketFD {
				continue // net has copies of those
			}
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				return fmt.Errorf("descriptor %d is not close-on-exec: %v", fd, err)
			}
			if open, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || open&unix.O_NONBLOCK == 0 {
				return fmt.Errorf("descriptor %d blocks: %v", fd, err)
			}
		}
		return nil
	},
	"alone": func() error {
		p, err := Inherit()
		if p != nil || err != nil {
			return fmt.Errorf("an old process: %v, %v", p, err)
		}
		if _, ok := p.Take("a"); ok || len(p.Names()) > 0 || p.Bye() != nil {
			return errors.New("nobody has sockets to give")
		}
		<-p.Stop()
		return nil
	},
	"misled": func() error {
		if _, err := Inherit(); err == nil {
			return errors.New("descriptor 3 is taken for an old process's socket")
		}
		return nil
	},
}

// begin starts the test binary in a role, with these listeners.
func begin(t *testing.T, name string, listeners map[string]*net.TCPListener, names ...string) *Successor {
	t.Helper()
	var sockets []Socket
	for _, n := range names {
		raw, err := listeners[n].SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			n2, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			sockets = append(sockets, Socket{n, n2})
		})
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(Program{Path: self, Args: []string{self}, Env: append(os.Environ(), role+"="+name, "GORACE=atexit_sleep_ms=0")}, sockets)
	for _, socket := range sockets {
		unix.Close(socket.FD)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Kill(); s.Close() })
	return s
}

func listener(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// hear returns what a listener's server says.
func hear(t *testing.T, ln net.Listener) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", ln.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// settle brings a new process as far as that it has all for itself.
func settle(t *testing.T, s *Successor) {
	t.Helper()
	if name, err := s.Ready(within(t)); err != nil || name != "the good one" {
		t.Fatal(name, err)
	}
	if err := s.Serve(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Yield(); err != nil {
		t.Fatal(err)
	}
}

func TestTheNewProcessHasTheSameSocketAndItsQueue(t *testing.T) {
	a, b := listener(t), listener(t)
	queued, err := net.Dial("tcp", a.Addr().String()) // before anybody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer queued.Close()
	s := begin(t, "good", map[string]*net.TCPListener{"a": a, "b": b}, "a", "b")
	settle(t, s)
	a.Close() // this process's copy
	queued.SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(queued); err != nil || string(got) != "the new one" {
		t.Errorf("who stood in the queue hears %q, %v", got, err)
	}
	if got := hear(t, a); got != "the new one" {
		t.Errorf("who comes later hears %q", got)
	}
	if !s.Took("a") || s.Took("b") {
		t.Errorf("took a: %v, b: %v", s.Took("a"), s.Took("b"))
	}
}

func TestTheOldProcessLearnsHowTheNewOneEnds(t *testing.T) {
	for _, tt := range []struct {
		say           string
		how           string
		inOrder, stop bool
	}{
		{"bye", "exit status 0", true, false},
		{"stop", "", true, true},
		{"crash", "exit status 3", false, false},
	} {
		t.Run(tt.say, func(t *testing.T) {
			a := listener(t)
			s := begin(t, "good", map[string]*net.TCPListener{"a": a}, "a")
			settle(t, s)
			if _, err := io.WriteString(s.Conn(), tt.say); err != nil {
				t.Fatal(err)
			}
			s.Conn().CloseWrite()
			select {
			case <-s.Gone():
			case <-time.After(patience):
				t.Fatal("nothing is heard of its end")
			}
			if s.InOrder() != tt.inOrder {
				t.Errorf("in order: %v", s.InOrder())
			}
			select {
			case <-s.Stops():
				if !tt.stop {
					t.Error("it says that this process is to end too")
				}
				return // it waits for our end
			default:
				if tt.stop {
					t.Error("it does not say that this process is to end too")
				}
			}
			if how := s.How(patience); how != tt.how {
				t.Errorf("how: %q, want %q", how, tt.how)
			}
		})
	}
}

// The end of a process is that of its sockets.
func TestTheNewProcessGoesOnWhereverTheOldOneEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(s *Successor) error
	}{
		{"at once", func(*Successor) error { return nil }},
		{"once the new one is ready", func(s *Successor) error { _, err := s.Ready(within(t)); return err }},
		{"once it serves", func(s *Successor) error {
			_, err := s.Ready(within(t))
			return errors.Join(err, s.Serve(within(t)))
		}},
		{"once all is handed over", func(s *Successor) error {
			_, err := s.Ready(within(t))
			return errors.Join(err, s.Serve(within(t)), s.Yield())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := listener(t)
			s := begin(t, "heir", map[string]*net.TCPListener{"a": a}, "a")
			if err := tt.do(s); err != nil {
				t.Fatal(err)
			}
			s.Close()
			a.Close()
			if got := hear(t, a); got != "the heir" {
				t.Errorf("a client hears %q", got)
			}
			if how := s.How(patience); how != "exit status 0" {
				t.Errorf("the new process: %s", how)
			}
		})
	}
}

func TestWhatTheNewProcessIsBornWith(t *testing.T) {
	a := listener(t)
	s := begin(t, "wide-eyed", map[string]*net.TCPListener{"a": a, "b": a, "c": a}, "a", "b", "c")
	if _, err := s.Ready(within(t)); err == nil || !strings.Contains(err.Error(), "exit status 0") {
		t.Error(err)
	}
	// Handing over must not make this process's socket block either.
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket blocks now: %v", err)
		}
	})
}

func TestAProcessWithoutAnOldOne(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		role string
		env  []string
	}{{"alone", nil}, {"misled", []string{Variable + "=1"}}, {"misled", []string{Variable + "=2"}}, {"misled", []string{Variable + "="}}} {
		process, err := os.StartProcess(self, []string{self}, &os.ProcAttr{
			Env: append(append(os.Environ(), role+"="+tt.role, "GORACE=atexit_sleep_ms=0"), tt.env...), Files: []*os.File{nil, nil, os.Stderr, os.Stderr}})
		if err != nil {
			t.Fatal(err)
		}
		if state, err := process.Wait(); err != nil || !state.Success() {
			t.Errorf("%s %q: %v, %v", tt.role, tt.env, state, err)
		}
	}
}

func TestTheEnvironmentOfANewProcessIsNotThatOfThisOneAlone(t *testing.T) {
	got := environment([]string{"A=1", "LISTEN_FDS=3", "LISTEN_PID=1", "LISTEN_FDNAMES=x", "WATCHDOG_PID=1", "WATCHDOG_USEC=5", "NOTIFY_SOCKET=/n", Variable + "=0", "LISTEN=1"})
	if want := "A=1 WATCHDOG_USEC=5 NOTIFY_SOCKET=/n LISTEN=1 " + Variable + "=1"; strings.Join(got, " ") != want {
		t.Errorf("%q", got)
	}
}
