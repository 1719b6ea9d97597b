package main

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"

	"gateway/internal/kcp"
	"gateway/internal/sockopt"
)

// Clients and backends that speak KCP. internal/kcp makes streams of datagrams;
// here they are made to look like connections that can finish.

// kcpTransport returns what listens for KCP clients and dials KCP backends. Its
// error names the flag at fault.
func (cfg *Config) kcpTransport() (*kcp.Transport, error) {
	return kcp.New(kcp.Options{
		Mode:          cfg.KCPMode,
		SendWindow:    cfg.KCPSendWindow,
		ReceiveWindow: cfg.KCPReceiveWindow,
		MTU:           cfg.KCPMTU,
		DataShards:    cfg.KCPDataShards,
		ParityShards:  cfg.KCPParityShards,
		Crypt:         cfg.KCPCrypt,
		Key:           cfg.KCPKey,
		IdleTimeout:   cfg.KCPIdleTimeout,
	})
}

// listenKCP opens the socket of -kcp, for Serve.
func (cfg *Config) listenKCP() (net.Listener, error) {
	t, err := cfg.kcpTransport()
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	if cfg.Reuse {
		lc.Control = func(network, address string, c syscall.RawConn) error {
			return sockopt.ReusePort(network, address, c)
		}
	}
	socket, err := lc.ListenPacket(context.Background(), networkOf("udp", cfg.KCP), cfg.KCP)
	if err != nil {
		return nil, err
	}
	ln, err := t.Serve(socket.(*net.UDPConn))
	if err != nil {
		return nil, err
	}
	return kcpListener{ln}, nil
}

// kcpListener is a net.Listener of KCP clients.
type kcpListener struct{ *kcp.Listener }

func (l kcpListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return kcpClient{c}, nil
}

// kcpClient is a client that comes by KCP. KCP has no FIN, so the end of what
// the backend sends is the end of the session, once everything has arrived.
type kcpClient struct{ *kcp.Conn }

func (c kcpClient) CloseWrite() error { return c.Close() }

func (c kcpClient) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}
