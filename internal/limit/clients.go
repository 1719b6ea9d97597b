package limit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"

	"gateway/internal/smallfile"
)

// Source is a network of clients, or a file of networks.
type Source struct {
	Network netip.Prefix
	File    string // empty: none
}

// ParseSource reads a network, an address, or @FILE.
func ParseSource(word string) (Source, error) {
	if file, ok := strings.CutPrefix(word, "@"); ok {
		if file == "" {
			return Source{}, errors.New("want the name of a file behind @")
		}
		return Source{File: file}, nil
	}
	p, err := ParseNetwork(word)
	return Source{Network: p}, err
}

// String returns what was parsed.
func (s Source) String() string {
	if s.File != "" {
		return "@" + s.File
	}
	return s.Network.String()
}

// maxClientsFile bounds a file of networks, in bytes: some 200,000 of them.
const maxClientsFile = 4 << 20

// Clients is a set of clients' networks. Files are read again when they change: the
// first client that comes a second or more after the last look has that done in a
// goroutine, and does not wait for it, since an event loop asks that others wait for: some
// 200,000 networks take half a second. A nil Clients contains nobody. Its methods are safe for concurrent
// use.
type Clients struct {
	sources []Source
	empty   bool // may be
	log     *slog.Logger
	watch   *smallfile.Watch // nil: there are no files
	set     atomic.Pointer[networks[struct{}]]
}

// LoadClients reads what stands in sources; without any it returns nil. Where it may
// not be empty, a file without a network is an error, and anywhere one without a word.
// The error names file and line.
// log gets a line for each change of a file; one that cannot be used changes nothing.
func LoadClients(sources []Source, mayBeEmpty bool, log *slog.Logger) (*Clients, error) {
	if len(sources) == 0 {
		return nil, nil
	}
	c := &Clients{sources: sources, empty: mayBeEmpty, log: log}
	var files []string
	for _, s := range sources {
		if s.File != "" {
			files = append(files, s.File)
		}
	}
	if len(files) > 0 {
		c.watch = smallfile.NewWatch(maxClientsFile, files...) // before they are read
	}
	set, err := c.read()
	if err != nil {
		return nil, err
	}
	c.set.Store(set)
	return c, nil
}

// contains tells whether a client, whose address is not mapped, is in the set.
func (c *Clients) contains(client netip.Addr) bool {
	if c == nil {
		return false
	}
	c.watch.Follow(c.reload)
	found := false
	c.set.Load().find(client.WithZone(""), func(netip.Prefix, struct{}) bool {
		found = true
		return false
	})
	return found
}

func (c *Clients) reload() {
	set, err := c.read()
	if err != nil {
		c.log.Error("cannot use the changed list of clients, the old one stays", "err", err)
		return
	}
	c.set.Store(set)
	c.log.Info("the list of clients was read again", "networks", len(set.all))
}

func (c *Clients) read() (*networks[struct{}], error) {
	set := &networks[struct{}]{}
	for _, s := range c.sources {
		if s.File == "" {
			set.put(s.Network, struct{}{})
			continue
		}
		text, err := smallfile.Read(s.File, maxClientsFile)
		if err != nil {
			return nil, err
		}
		n := 0
		text = bytes.TrimPrefix(text, []byte("\ufeff"))
		if len(bytes.TrimSpace(text)) == 0 { // more likely an accident of who writes it
			return nil, fmt.Errorf("%s is empty: if it is to name nobody, say so in a comment (#)", s.File)
		}
		for line := range strings.Lines(string(text)) {
			n++
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			p, err := ParseNetwork(line)
			if err != nil {
				return nil, fmt.Errorf("%s: line %d: %w", s.File, n, err)
			}
			set.put(p, struct{}{})
		}
	}
	if len(set.all) == 0 && !c.empty {
		return nil, fmt.Errorf("%s holds no network: nobody would be served", c.sources[0].File)
	}
	return set, nil
}
