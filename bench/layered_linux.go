package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// The load generator for clients that speak TLS and WebSockets. It is plain: a goroutine
// for what is under way, and the libraries. So it takes more of a CPU than the other one,
// and throughput says less.

// layered holds the tunnels.
type layered struct {
	conns []net.Conn
	size  int // of their messages
	reply loadReply
	mu    sync.Mutex // reply and conns, while tunnels are opened
}

// do performs one step.
func (l *layered) do(req loadRequest) loadReply {
	l.reply.Err, l.reply.Units, l.reply.Elapsed, l.reply.Latencies = "", 0, 0, nil
	var err error
	switch req.Op {
	case opEcho, opUp, opDown, opShort:
		err = l.work(req)
	case opOpen:
		l.close()
		l.reply, l.size = loadReply{}, req.Size
		err = atOnce(openingAtOnce, req.Tunnels, func(i int) error { return l.open(i, req) })
	case opBurst:
		err = atOnce(burstsAtOnce, len(l.conns), func(i int) error { return l.echo(l.conns[i], make([]byte, burstBytes)) })
	case opClose:
		l.close()
	default:
		err = fmt.Errorf("unknown step %q", req.Op)
	}
	if err != nil {
		l.reply.Err = err.Error()
		l.close()
	}
	return l.reply
}

// atOnce calls f with 0 to n-1, of which most are under way side by side.
func atOnce(most, n int, f func(i int) error) error {
	var all sync.WaitGroup
	failures := make([]error, most)
	for worker := range min(most, n) {
		all.Go(func() {
			for i := worker; i < n && failures[worker] == nil; i += most {
				failures[worker] = f(i)
			}
		})
	}
	all.Wait()
	for _, err := range failures {
		if err != nil {
			return err // one will do
		}
	}
	return nil
}

// open opens tunnel i, which echoes a first message.
func (l *layered) open(i int, req loadRequest) error {
	conn, err := dialLayered(req.Via, req.Targets[i%len(req.Targets)], req.lineOf(i))
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	l.mu.Lock()
	l.conns = append(l.conns, conn)
	l.mu.Unlock()
	message := bytes.Repeat([]byte{'.'}, req.Size)
	message[0] = req.Mode
	return l.echo(conn, message)
}

// echo sends a message and expects it back.
func (l *layered) echo(conn net.Conn, message []byte) error {
	conn.SetDeadline(time.Now().Add(burstTime))
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(message)
		sent <- err
	}()
	back := make([]byte, len(message))
	_, err := io.ReadFull(conn, back)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("echoing: %w", err)
	}
	if !bytes.Equal(back, message) {
		return fmt.Errorf("of a message of %d bytes others came back", len(message))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reply.Units++
	l.reply.Sent += int64(len(message))
	l.reply.Rcvd += int64(len(message))
	return conn.SetDeadline(time.Time{})
}

func (l *layered) close() {
	atOnce(openingAtOnce, len(l.conns), func(i int) error {
		l.conns[i].Close()
		return nil
	})
	l.conns = nil
}

// lineOf returns what client n of a step brings; empty: nothing.
func (req *loadRequest) lineOf(n int) string {
	if len(req.Lines) == 0 {
		return ""
	}
	return req.Lines[n%len(req.Lines)]
}

// dialLayered connects to a gateway through a layer and has it connect the
// backend that line is for. Others than gateways take no line; it is empty then.
func dialLayered(via layer, target, line string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tcp := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp4", target)
	}
	secure := func(ctx context.Context, _, _ string) (net.Conn, error) {
		// The certificate is the benchmark's own. Not all contenders know a key exchange
		// that outlasts quantum computers, so that none is asked for it: it costs more.
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}}}
		return d.DialContext(ctx, "tcp4", target)
	}
	switch via {
	case overTLS:
		return askLine(ctx, secure, line)
	case overWS:
		return askWebSocket(ctx, "ws://"+target, tcp, line)
	case overWSS:
		return askWebSocket(ctx, "wss://"+target, secure, line)
	}
	return nil, fmt.Errorf("unknown layer %q", via)
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// askLine opens a tunnel by a line.
func askLine(ctx context.Context, dial dialFunc, line string) (net.Conn, error) {
	conn, err := dial(ctx, "", "")
	if err != nil || line == "" {
		return conn, err
	}
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	answer := make([]byte, len(statusOK))
	if _, err = io.WriteString(conn, line+"\n"); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err == nil && string(answer) != statusOK {
		err = fmt.Errorf("answered %q, not %s", answer, statusOK)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// askWebSocket opens a WebSocket that the gateway relays as bytes.
func askWebSocket(ctx context.Context, url string, dial dialFunc, line string) (net.Conn, error) {
	transport := &http.Transport{DialContext: dial, DialTLSContext: dial}
	ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport},
		HTTPHeader: http.Header{"Server-Identify": {line}},
	})
	if err != nil {
		return nil, err
	}
	return websocket.NetConn(context.Background(), ws, websocket.MessageBinary), nil
}
