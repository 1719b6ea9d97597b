package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// probeTimeout bounds a whole probe: whoever asks for one gives up after seconds.
const probeTimeout = 3 * time.Second

// Probe is a health check from outside: of a port that clients come to, or of a Server.
type Probe struct {
	addr  string
	asked bool // for /readyz; a port is only connected to
}

// ParseProbe reads a probe from a command line.
//
//	HOST:PORT         takes connections
//	admin:HOST:PORT   a Server that is ready
//	unix:PATH         the same
//
// No host is this one.
func ParseProbe(s string) (Probe, error) {
	if path, ok := UnixPath(s); ok {
		if path == "" {
			return Probe{}, errors.New("want unix:PATH, with a path")
		}
		return Probe{s, true}, nil
	}
	// admin:8000 is a port of a host named admin.
	addr, asked := strings.CutPrefix(s, "admin:")
	if asked && !strings.Contains(addr, ":") {
		addr, asked = s, false
	}
	_, port, err := net.SplitHostPort(addr)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 {
		return Probe{}, errors.New("want HOST:PORT, admin:HOST:PORT or unix:PATH, with a port from 1 to 65535")
	}
	return Probe{addr, asked}, nil
}

// Run probes, and returns in a line what is well, or as the error what is not. It takes
// 3 s at most.
func (p Probe) Run(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if p.asked {
		if err := NewClient(p.addr, "").Ready(ctx); err != nil {
			return "", err
		}
		return "ready", nil
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return "", fmt.Errorf("%s takes no connections: %w", p.addr, err)
	}
	// Nothing was sent and nothing is read, so this is a FIN, of a client that had
	// nothing to say.
	if err := c.Close(); err != nil {
		return "", fmt.Errorf("%s: %w", p.addr, err)
	}
	return p.addr + " takes connections", nil
}

// Ready asks /readyz. The error is why clients had better not come.
func (c *Client) Ready(ctx context.Context) error {
	resp, err := c.send(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("the answer of the gateway at %s breaks off: %w", c.addr, err)
	}
	text := strings.TrimSpace(string(b))
	switch {
	case resp.StatusCode == http.StatusOK && text == "ready":
		return nil
	case resp.StatusCode == http.StatusServiceUnavailable && text != "" && strings.IndexFunc(text, unicode.IsControl) < 0:
		return fmt.Errorf("the gateway at %s is not ready: %s", c.addr, text)
	}
	return fmt.Errorf("what answers at %s is not a gateway's -admin (%s)", c.addr, strconv.QuoteToASCII(resp.Status))
}
