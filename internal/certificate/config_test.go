package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
)

// handshake connects a client to a server over a pipe, and returns what each
// of them says of it.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	done := make(chan error, 1)
	go func() {
		defer b.Close()
		done <- tls.Server(b, server).Handshake()
	}()
	conn := tls.Client(a, client)
	clientErr = conn.Handshake()
	a.Close() // a server that still writes to it, as tickets, is let go
	return conn.ConnectionState(), clientErr, <-done
}

// trusting is the configuration of a client that trusts p for the name a.
func trusting(p pair) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.cert)
	return &tls.Config{RootCAs: roots, ServerName: "a"}
}

func TestApplicationProtocols(t *testing.T) {
	f := newFiles(t)
	p := newPair(t, "a")
	f.write(p)
	server := Config(f.load(new(logBuffer)))
	for _, tt := range []struct {
		name   string
		offers []string
		want   string
		alert  string
	}{
		{"a client that names none", nil, "", ""},
		{"HTTP/1.1", []string{"http/1.1"}, "http/1.1", ""},
		{"a browser", []string{"h2", "http/1.1"}, "http/1.1", ""},
		{"HTTP/2 only", []string{"h2"}, "", "no application protocol"},
		{"another", []string{"mqtt"}, "", "no application protocol"},
	} {
		client := trusting(p)
		client.NextProtos = tt.offers
		state, err, _ := handshake(t, server, client)
		if tt.alert != "" {
			if err == nil || !strings.Contains(err.Error(), tt.alert) {
				t.Errorf("%s: error %v, want the alert %q", tt.name, err, tt.alert)
			}
			continue
		}
		if err != nil || state.NegotiatedProtocol != tt.want || state.Version != tls.VersionTLS13 {
			t.Errorf("%s: protocol %q, version %x, %v; want %q in TLS 1.3", tt.name, state.NegotiatedProtocol, state.Version, err, tt.want)
		}
	}
}

func TestVersionsOlderThanTLS12AreRefused(t *testing.T) {
	t.Setenv("GODEBUG", "tls10server=1") // which would allow them
	f := newFiles(t)
	p := newECDSAPair(t, "a") // Ed25519 would itself rule them out
	f.write(p)
	server := Config(f.load(new(logBuffer)))
	for version, ok := range map[uint16]bool{
		tls.VersionTLS10: false,
		tls.VersionTLS11: false,
		tls.VersionTLS12: true,
		tls.VersionTLS13: true,
	} {
		client := trusting(p)
		client.MinVersion, client.MaxVersion = version, version
		state, clientErr, serverErr := handshake(t, server, client)
		if (clientErr == nil) != ok || ok && state.Version != version {
			t.Errorf("%s: client %v, server %v", tls.VersionName(version), clientErr, serverErr)
		}
	}
}
