package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Workloads of WebSockets: those that the gateway ends, which are bytes to the
// backend, and those that a proxy passes through to a backend that speaks HTTP.

// upgradeKind is what becomes of a WebSocket.
type upgradeKind string

const (
	ended   upgradeKind = "ended"   // its messages are the backend's bytes
	through upgradeKind = "through" // the backend gets its frames

	// Not a WebSocket: a resumable tunnel, whose frames are the backend's bytes.
	roaming upgradeKind = "roaming"
)

// upgrade returns what becomes of the workload's WebSockets; empty where there are
// none.
func (k kind) upgrade() upgradeKind {
	return map[kind]upgradeKind{echoWS: ended, echoPass: through, echoRoam: roaming}[k]
}

// agreed is what the bench's backend answers a request for a WebSocket. Nobody looks
// at its key.
const agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"

// modeRequest is the first byte of a request for a WebSocket: what follows is echoed.
const modeRequest = 'G'

// ask returns the request of a client, with the sealed line where there is one.
func (k upgradeKind) ask(line string) string {
	if k == roaming {
		return plainKey + line + "\n"
	}
	header := "X-Cipher-Origin: "
	if k == ended {
		header = "Server-Identify: "
	}
	if header += line + "\r\n"; line == "" {
		header = ""
	}
	return "GET / HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + header + "\r\n"
}

// frames returns what stands before a client's message of a size and before the
// answer. The key is zero, which is one like any other to a receiver, so that the
// payload looks the same in both directions.
func (k upgradeKind) frames(size int) (out, back []byte) {
	switch {
	case k == "":
		return nil, nil
	case k == roaming:
		out = []byte{byte(size >> 8), byte(size)}
		return out, out
	case size > 125:
		out = []byte{0x82, 0x80 | 126, byte(size >> 8), byte(size), 0, 0, 0, 0}
		back = []byte{0x82, 126, byte(size >> 8), byte(size)}
	default:
		out, back = []byte{0x82, 0x80 | byte(size), 0, 0, 0, 0}, []byte{0x82, byte(size)}
	}
	if k == through {
		back = out // as it was sent
	}
	return out, back
}

// switched reads the answer to a request for a WebSocket, and reports whether it is
// whole. Nothing comes behind it before the client has said something.
func (l *load) switched(t *tunnel) (bool, error) {
	for {
		n, err := l.some(t, l.buf[:4<<10], "a 101")
		if n == 0 {
			return false, err
		}
		answer := l.buf[:n]
		if t.count == 0 && t.want == 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
			return false, fmt.Errorf("answered %.60q, not 101", answer)
		}
		t.want = 1 // it has begun
		if bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
			return true, nil
		}
	}
}

// measureUpgrades is measure for WebSockets. A peer passes them through by a process
// of its own, which speaks HTTP.
func (s *suite) measureUpgrades(round int, w workload, e *entrant) error {
	if e.seal != nil {
		return s.measure(round, w, e)
	}
	in, err := s.launchUnproven(e, e.through)
	if err != nil {
		return err
	}
	defer in.process.kill()
	if err := in.listens(); err != nil {
		return err
	}
	other := *e
	other.instance, other.lines = in, []string{""}
	return s.measure(round, w, &other)
}

// listens waits until a process does.
func (in *instance) listens() error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp4", in.targets[0], time.Second)
		if err == nil {
			return conn.Close()
		}
		if !in.process.isAlive() || time.Now().After(deadline) {
			return fmt.Errorf("it does not listen: %w: %s", err, in.process.lastWords())
		}
	}
}

// haproxyThrough has HAProxy speak HTTP.
func haproxyThrough(s site) (*exec.Cmd, error) {
	config := haproxyConfig(s, "")
	return haproxyCommand(s, strings.Replace(config, "mode tcp", "mode http\n\ttimeout tunnel 1h", 1))
}

// nginxThrough has nginx speak HTTP, with what its manual asks for WebSockets.
func nginxThrough(s site) (*exec.Cmd, error) {
	config := nginxConfig(s, "")
	head, _, _ := strings.Cut(config, "stream {")
	var b strings.Builder
	b.WriteString(head + "http {\n\taccess_log off;\n\tupstream bench {\n")
	for _, addr := range s.backends {
		fmt.Fprintf(&b, "\t\tserver %s;\n", addr)
	}
	fmt.Fprintf(&b, "\t}\n\tserver {\n\t\tlisten %s;\n\t\tlocation / {\n\t\t\tproxy_pass http://bench;\n"+
		"\t\t\tproxy_http_version 1.1;\n\t\t\tproxy_set_header Upgrade $http_upgrade;\n"+
		"\t\t\tproxy_set_header Connection upgrade;\n\t\t\tproxy_read_timeout 1h;\n\t\t}\n\t}\n}\n", s.listen)
	file := filepath.Join(s.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return nil, err
	}
	return exec.Command(s.path, "-p", s.dir, "-c", file, "-e", "stderr"), nil
}
