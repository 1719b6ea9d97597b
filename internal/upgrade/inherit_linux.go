package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Predecessor is the old process, as the new one sees it. Only Take and Untaken may
// not be called at the same time.
type Predecessor struct {
	PID     int // of the old process
	control *net.UnixConn
	tunnels *net.UnixConn
	from    *json.Decoder
	offered []Socket // not taken yet
	taken   []string
	elders  []int // descriptors of this one's sockets to it and to those before it
}

// Inherit returns what the old process has to give, or nil if there is none. It must
// be called before descriptors are opened that are not close-on-exec, and once.
func Inherit() (*Predecessor, error) {
	text, ok := os.LookupEnv(Variable)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(Variable)
	if text != strconv.Itoa(Version) {
		return nil, fmt.Errorf("the old process hands over by version %s, and this one knows %d: restart instead", text, Version)
	}
	unix.CloseOnExec(controlFD)
	own, err := unix.FcntlInt(controlFD, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		own = -1 // it is no socket either
	}
	unix.CloseOnExec(tunnelsFD)
	control, err := unixConn(controlFD)
	if err != nil {
		return nil, fmt.Errorf("%s is in the environment, but descriptor %d is no socket of an old process: unset it", Variable, controlFD)
	}
	p := &Predecessor{control: control, from: json.NewDecoder(control)}
	if p.tunnels, err = unixConn(tunnelsFD); err != nil {
		return nil, fmt.Errorf("descriptor %d of the old process: %w", tunnelsFD, err)
	}
	var m message
	if err := p.from.Decode(&m); err != nil {
		return nil, fmt.Errorf("the old process has made no offer: %w", err)
	}
	if m.Word != offer || m.Version != Version {
		why := fmt.Sprintf("this is version %d of the upgrade, and not %d", Version, m.Version)
		send(p.control, message{Word: refuse, Why: why}) // it sees the end of this process too
		return nil, fmt.Errorf("the old process offers what this one does not know: %s", why)
	}
	p.PID = m.PID
	p.elders = append(p.elders, own)
	for i, name := range m.Sockets {
		fd := firstSocketFD + i
		unix.CloseOnExec(fd)
		if name == elder {
			p.elders = append(p.elders, fd)
			continue
		}
		p.offered = append(p.offered, Socket{name, fd})
	}
	return p, nil
}

// Take returns a socket of that name, which is the caller's from here on. Of several
// of one name each comes once, in order.
func (p *Predecessor) Take(name string) (fd int, ok bool) {
	if p == nil {
		return -1, false
	}
	i := slices.IndexFunc(p.offered, func(s Socket) bool { return s.Name == name })
	if i < 0 {
		return -1, false
	}
	fd = p.offered[i].FD
	p.offered = slices.Delete(p.offered, i, i+1)
	p.taken = append(p.taken, name)
	return fd, true
}

// Names returns those of the sockets that nobody has taken.
func (p *Predecessor) Names() []string {
	if p == nil {
		return nil
	}
	var names []string
	for _, s := range p.offered {
		names = append(names, s.Name)
	}
	return names
}

// Ready says that this process can serve, and waits until it is to, or until the old
// one has ended: [ErrOldEnded]. What nobody has taken is closed, and left to the old
// process.
func (p *Predecessor) Ready(program string) error {
	for _, s := range p.offered {
		unix.Close(s.FD)
	}
	p.offered = nil
	if err := p.say(message{Word: ready, PID: os.Getpid(), Taken: p.taken, Program: program}); err != nil {
		return err
	}
	return p.hear(serve)
}

// say says something to an old process that may have ended, or have said that it serves
// on: that is still there to be read then.
func (p *Predecessor) say(m message) error {
	err := send(p.control, m)
	if err == nil {
		return nil
	}
	if heard := p.hear(never); !errors.Is(heard, ErrOldEnded) {
		return heard
	}
	return fmt.Errorf("%w: %w", ErrOldEnded, err)
}

func (p *Predecessor) hear(word string) error {
	var m message
	if err := p.from.Decode(&m); err != nil {
		return fmt.Errorf("%w: %w instead of %q", ErrOldEnded, err, word)
	}
	if m.Word == never {
		return ErrNever
	}
	if m.Word != word {
		return fmt.Errorf("the old process says %q instead of %q", m.Word, word)
	}
	return nil
}

// Serving says that this process serves.
func (p *Predecessor) Serving() error { return p.say(message{Word: serving}) }

// Settled waits until the old process accepts no more. The error says that it has
// ended instead, which comes to the same, or [ErrNever].
func (p *Predecessor) Settled() error { return p.hear(yours) }

// Conn returns the stream to [Successor.Conn]. Close closes it.
func (p *Predecessor) Conn() *net.UnixConn { return p.tunnels }

// Elders returns sockets for a successor of this process, besides those that serve: by
// them it reaches the old process, and those before it, as this one does. They are not the
// caller's. Nobody may call it at the same time as Stop.
func (p *Predecessor) Elders() (list []Socket) {
	if p == nil {
		return nil
	}
	p.elders = slices.DeleteFunc(p.elders, func(fd int) bool {
		ended := hasEnded(fd)
		if ended {
			unix.Close(fd)
		}
		return ended
	})
	for _, fd := range p.elders {
		list = append(list, Socket{elder, fd})
	}
	return list
}

// hasEnded tells whether nobody is left at a socket's other end.
func hasEnded(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR come unasked
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// Stop says that this process ends, and that the old one is to end too, and those before
// it. The channel is closed when they have. It is called once.
func (p *Predecessor) Stop() <-chan struct{} {
	gone := make(chan struct{})
	var ending sync.WaitGroup
	if p != nil {
		for _, fd := range p.elders {
			conn, err := unixConn(fd)
			if err != nil || send(conn, message{Word: stop}) != nil {
				continue // it has ended
			}
			ending.Go(func() {
				io.Copy(io.Discard, conn) // it says no more
				conn.Close()
			})
		}
		p.elders = nil
	}
	go func() {
		ending.Wait()
		close(gone)
	}()
	return gone
}

// Bye says that the old process need not serve again, whatever becomes of this one.
func (p *Predecessor) Bye() error {
	if p == nil {
		return nil
	}
	return send(p.control, message{Word: bye})
}
