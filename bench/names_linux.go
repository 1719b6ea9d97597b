package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Names in place of addresses, which DNS (srv:) or the operator's service (ask:) knows, and
// tickets, which are asked for each time, beside names that are looked up since they are new:
// what they cost beside each other. Only gateways know them.

const (
	nameCount = 100
	nameTTL   = 10 // seconds

	// newNames is how many names are new to a measurement: so many connections a second no
	// gateway serves on one CPU that has to look each up. What comes beyond is known already.
	newNames = 20_000 // times -time in seconds
)

// guide answers where names and tickets lead, as a name server and as a service of -ask.
// It lasts as long as the benchmark, and asks for little: an answer is good for a while.
type guide struct {
	backends []string
	dns, url string // where it is asked
}

// newGuide serves in this process.
func newGuide(backends []string) (*guide, error) {
	g := &guide{backends: backends}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	g.dns, g.url = conn.LocalAddr().String(), "http://"+ln.Addr().String()+"/"
	go g.serveDNS(conn)
	go http.Serve(ln, g)
	return g, nil
}

// backend returns where name number n leads.
func (g *guide) backend(n int) string { return g.backends[n%len(g.backends)] }

// number reads that of "_n7._tcp.bench.test", or of a ticket or name that ends in one.
func number(name string) (n int) {
	fmt.Sscanf(strings.TrimLeft(name, "_abcdefghijklmnopqrstuvwxyz"), "%d", &n)
	return n
}

// ServeHTTP answers a question of -ask.
func (g *guide) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q struct{ Name, Ticket string }
	body, err := io.ReadAll(r.Body)
	if err != nil || json.Unmarshal(body, &q) != nil {
		http.Error(w, "no question", http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, `{"backend": %q, "ttl": %d}`, g.backend(number(q.Name+q.Ticket)), nameTTL)
}

// serveDNS answers for SRV records with the address besides, for an address with that.
func (g *guide) serveDNS(conn net.PacketConn) {
	defer conn.Close()
	query := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(query)
		if err != nil {
			return
		}
		if answer := g.answer(query[:n]); answer != nil {
			conn.WriteTo(answer, from)
		}
	}
}

// answer makes one of RFC 1035 section 4.1, with the records of RFC 2782.
func (g *guide) answer(query []byte) []byte {
	const header, typeA, typeSRV = 12, 1, 33
	if len(query) < header {
		return nil
	}
	end, labels := header, []string(nil)
	for end < len(query) && query[end] != 0 {
		size := int(query[end])
		if end+1+size > len(query) {
			return nil
		}
		labels = append(labels, string(query[end+1:end+1+size]))
		end += 1 + size
	}
	if end+5 > len(query) || labels == nil {
		return nil
	}
	kind := binary.BigEndian.Uint16(query[end+1:])
	name := strings.ToLower(labels[0])
	host, port, err := net.SplitHostPort(g.backend(number(name)))
	if err != nil {
		return nil
	}
	var portNumber uint16
	fmt.Sscan(port, &portNumber)
	ip := net.ParseIP(host).To4()

	b := append([]byte(nil), query[:end+5]...)
	b[2], b[3] = 0x84|query[2]&1, 0 // a response, authoritative
	copy(b[4:header], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	record := func(name []byte, kind uint16, data []byte) {
		b = append(b, name...)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = append(b, 0, 1, 0, 0, 0, nameTTL)
		b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
		b = append(b, data...)
	}
	asked := []byte{0xc0, header}
	switch kind {
	case typeA:
		b[7] = 1
		record(asked, typeA, ip)
	case typeSRV:
		b[7], b[11] = 1, 1
		target := fmt.Appendf(nil, "%c%s\x05bench\x04test\x00", len(name)-1, name[1:])
		record(asked, typeSRV, append(binary.BigEndian.AppendUint16([]byte{0, 1, 0, 1}, portNumber), target...))
		record(target, typeA, ip)
	}
	return b
}

// knowsAsk tells whether a gateway is new enough for -ask.
func knowsAsk(path string) bool {
	help, err := exec.Command(path, "-help").Output()
	return err == nil && strings.Contains(string(help), "-ask=")
}

// named makes the lines that lead to names, with a gateway's own -seal.
type named struct {
	knows func() bool
	seal  func(addr string) (string, error)

	mu    sync.Mutex
	lines map[kind][]string
	next  int // the number of the first name that is new

	backends []string // of the last site
}

func newNamed(path string, seal func(string) (string, error)) *named {
	return &named{knows: sync.OnceValue(func() bool { return knowsAsk(path) }), seal: seal, lines: make(map[kind][]string)}
}

// serve starts a guide to the backends of a site, and returns the flags that name it; none
// for a gateway that is too old for names.
func (m *named) serve(s site) ([]string, error) {
	if !m.knows() {
		return nil, nil
	}
	m.mu.Lock()
	m.backends = s.backends
	m.mu.Unlock()
	g, err := newGuide(s.backends)
	if err != nil {
		return nil, err
	}
	return []string{"-resolver=" + g.dns, "-ask=" + g.url, "-ask-tickets=1"}, nil
}

// linesFor returns what clients of a workload send first, for as long as it takes.
func (m *named) linesFor(k kind, within time.Duration) ([]string, error) {
	if !m.knows() {
		return nil, errors.New("it does not know -ask")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if k.isNew() {
		return m.newLines(k, int(within.Seconds()*newNames)+nameCount)
	}
	if m.lines[k] != nil {
		return m.lines[k], nil
	}
	var lines []string
	for n := range nameCount {
		line, err := fmt.Sprintf("?t%d", n), error(nil)
		switch k {
		case bySRV:
			line, err = m.seal(fmt.Sprintf("srv:_n%d._tcp.bench.test", n))
		case byAsk:
			line, err = m.seal(fmt.Sprintf("ask:n%d", n))
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	m.lines[k] = lines
	return lines, nil
}

// newLines returns the lines that lead to names which are new.
func (m *named) newLines(k kind, count int) (lines []string, err error) {
	for range count {
		n := m.next
		m.next++
		addr := fmt.Sprintf("srv:_n%d._tcp.bench.test", n)
		if k == byNew {
			_, port, err := net.SplitHostPort(m.backends[n%len(m.backends)])
			if err != nil {
				return nil, err
			}
			addr = fmt.Sprintf("n%d.bench.test:%s", n, port)
		}
		line, err := sealLine(addr)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// sealLine is a gateway's -seal where there are too many for a process each: what
// "openssl enc -aes-256-cbc -md md5 -a -A" makes.
func sealLine(addr string) (string, error) {
	const saltSize = 8
	b := append(make([]byte, 0, 128), "Salted__"...)
	b = b[:len(b)+saltSize]
	salt := b[len(b)-saltSize:]
	rand.Read(salt)
	var keyed []byte // EVP_BytesToKey: 32 bytes of key and 16 of IV
	for last := []byte(nil); len(keyed) < 32+aes.BlockSize; keyed = append(keyed, last...) {
		sum := md5.Sum(slices.Concat(last, []byte(secret), salt))
		last = sum[:]
	}
	block, err := aes.NewCipher(keyed[:32])
	if err != nil {
		return "", err
	}
	pad := aes.BlockSize - len(addr)%aes.BlockSize
	text := append([]byte(addr), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, keyed[32:]).CryptBlocks(text, text)
	return base64.StdEncoding.EncodeToString(append(b, text...)), nil
}
