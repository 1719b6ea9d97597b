package upgrade

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"

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
	for i, name := range m.Sockets {
		fd := firstSocketFD + i
		unix.CloseOnExec(fd)
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
	if err := send(p.control, message{Word: ready, PID: os.Getpid(), Taken: p.taken, Program: program}); err != nil {
		return fmt.Errorf("%w: %w", ErrOldEnded, err)
	}
	return p.hear(serve)
}

func (p *Predecessor) hear(word string) error {
	var m message
	if err := p.from.Decode(&m); err != nil {
		return fmt.Errorf("%w: %w instead of %q", ErrOldEnded, err, word)
	}
	if m.Word != word {
		return fmt.Errorf("the old process says %q instead of %q", m.Word, word)
	}
	return nil
}

// Serving says that this process serves.
func (p *Predecessor) Serving() error { return send(p.control, message{Word: serving}) }

// Settled waits until the old process accepts no more. The error says that it has
// ended instead, which comes to the same.
func (p *Predecessor) Settled() error { return p.hear(yours) }

// Conn returns the stream to [Successor.Conn]. Close closes it.
func (p *Predecessor) Conn() *net.UnixConn { return p.tunnels }

// Stop says that this process ends, and that the old one is to end too. The channel is
// closed when it has.
func (p *Predecessor) Stop() <-chan struct{} {
	gone := make(chan struct{})
	if p == nil || send(p.control, message{Word: stop}) != nil {
		close(gone)
		return gone
	}
	go func() {
		defer close(gone)
		var m message
		for p.from.Decode(&m) == nil { // it says no more
		}
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
